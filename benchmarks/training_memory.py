"""What full fine-tuning of a language model holds at its peak, by number formats.

python benchmarks/training_memory.py [--batch 1] [--tokens 64]

Trains SmolLM2 (134.5 M parameters) on random tokens, each case in a process of its own. Writes
docs/results/training-memory.json, and its table into docs/scaling.md. The second step is measured:
the first one makes the state.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import torch
from page_blocks import head, row, with_block
from torch import nn

import steppe
from steppe._shared.console import refusals
from steppe._shared.files import write_text
from steppe.bench import peak_extra
from steppe.compare import find_task

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "docs" / "results" / "training-memory.json"
PAGE = ROOT / "docs" / "scaling.md"

_MIB = 2**20


@dataclass(frozen=True)
class Case:
    """How a model is trained.

    Attributes
    ----------
    label
        In words.
    make
        Makes the optimizer of parameters.
    dtype
        The parameters' number format.
    is_released
        Whether gradients are released.
    """

    label: str
    make: Callable[..., torch.optim.Optimizer]
    dtype: torch.dtype = torch.float32
    is_released: bool = False


_FULL = partial(steppe.DualAdam, lr=1e-5)
_SMALL = partial(steppe.DualAdam, lr=1e-5, state_dtype="int8", param_error="int8")
CASES = {
    "adamw": Case("torch's `AdamW`, float32", partial(torch.optim.AdamW, lr=1e-5, fused=True)),
    "full": Case("`DualAdam`, float32", _FULL),
    "full-released": Case("`DualAdam`, float32, released", _FULL, is_released=True),
    "small": Case(
        '`DualAdam`, bfloat16, `param_error="int8"`, `state_dtype="int8"`', _SMALL, torch.bfloat16
    ),
    "small-released": Case(
        "the same, released", _SMALL, torch.bfloat16, is_released=True
    ),
}  # fmt: skip


def main(
    batch: int = 1,
    tokens: int = 64,
    case: Annotated[str | None, cyclopts.Parameter(show=False)] = None,
) -> None:
    """Measure all cases, one process after the other."""
    with refusals():
        for name, value in (("batch", batch), ("tokens", tokens)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
    if case is not None:
        print(json.dumps(measure(CASES[case], batch, tokens)))
        return
    found = {}
    for name, each in CASES.items():
        options = ["--batch", str(batch), "--tokens", str(tokens)]
        command = [sys.executable, __file__, *options, "--case", name]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[name] = json.loads(printed.splitlines()[-1])
        print(f"{each.label}: {sum(found[name].values()) / _MIB:.0f} MiB", flush=True)
    content = {
        "model": "SmolLM2-135M",
        "batch": batch,
        "tokens": tokens,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cases": found,
    }
    write_text(RESULT, json.dumps(content, indent=2) + "\n")
    write_text(PAGE, with_block(PAGE.read_text(), "training_memory", table(content)))


def measure(case: Case, batch: int, tokens: int) -> dict[str, int]:
    """Return the bytes of parameters, of state, and of what a step takes beside them."""
    model: Any = find_task("finetune").task({"model": "smollm2"}).model().to(case.dtype)
    # As users do who are short of memory: activations are computed anew, layer by layer.
    model.model.activation_checkpointing_enable()
    optimizer: Any = case.make(model.parameters())
    if case.is_released:
        optimizer.release_gradients(model)
    torch.manual_seed(0)
    inputs = torch.randint(40_000, (batch, tokens + 1))
    step(model, optimizer, inputs)  # makes the state, and compiles
    optimizer.zero_grad()
    extra = peak_extra(partial(step, model, optimizer, inputs), torch.device("cpu"))
    if extra is None:
        raise OSError("this system does not tell the peak of resident memory")
    state = (x for each in optimizer.state.values() for x in each.values())
    return {
        "parameters": sum(p.nbytes for p in model.parameters()),
        "state": sum(x.nbytes for x in state if isinstance(x, torch.Tensor)),
        "step": extra,
    }


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> None:
    """Take one step of next-token prediction."""
    optimizer.zero_grad()
    logits = model(inputs[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), inputs[:, 1:].flatten())
    torch.autograd.backward(loss)
    optimizer.step()


def table(content: dict[str, Any]) -> str:
    """Return the cases as a table."""
    lines = [head("MiB", "parameters", "state", "gradients and activations", "peak")]
    for name, found in content["cases"].items():
        sizes = [found[key] for key in ("parameters", "state", "step")]
        cells = [f"{size / _MIB:,.0f}" for size in (*sizes, sum(sizes))]
        lines.append(row(CASES[name].label, *cells))
    return "\n".join(lines)


if __name__ == "__main__":
    cyclopts.run(main)
