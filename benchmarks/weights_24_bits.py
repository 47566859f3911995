"""Do weights of 24 bits train as float32 does? Paired runs of DualAdam on digits and FashionMNIST.

python benchmarks/weights_24_bits.py [--seeds 40] [--task digits] [--page-only]

Each seed trains three times from the same weights, with the batches in the same order: all in
float32; weights, activations and gradients in bfloat16 with ``param_error="int8"`` and 8-bit state;
and the same without the error. Declared before the first run: the 95 % interval of the mean
difference of 24 bits from float32 lies within ± 0.5 points of test accuracy, on each task.

Writes docs/results/weights-24-bits.json as runs end, and goes on from it after a kill; then its
table into docs/number-formats.md. The lr is DualAdam's default, and falls along a half cosine.
"""

import json
import math
import platform
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import cyclopts
import torch
from page_blocks import head, row, signed, with_block
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

import steppe
from steppe._shared.console import refusals
from steppe._shared.files import write_text
from steppe._shared.progress import progress
from steppe._shared.statistics import interval
from steppe.compare import LoadedTask, find_task

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "docs" / "results" / "weights-24-bits.json"
PAGE = ROOT / "docs" / "number-formats.md"

Name = Literal["digits", "fashion-mnist"]


class Case(NamedTuple):
    """Number formats of a run: the model's, and DualAdam's options."""

    label: str
    dtype: torch.dtype
    options: dict[str, Any]


CASES = {
    "float32": Case("float32", torch.float32, {}),
    "24 bits": Case(
        "24-bit weights, 8-bit state",
        torch.bfloat16,
        {"param_error": "int8", "state_dtype": "int8"},
    ),
    "16 bits": Case("bfloat16 weights, 8-bit state", torch.bfloat16, {"state_dtype": "int8"}),
}


def main(
    seeds: int = 40,
    task: Name | None = None,
    page_only: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> None:
    """Train what is missing, task after task, and write the table."""
    with refusals():
        if seeds < 2:
            raise ValueError(f"seeds must be at least 2, got {seeds}")
    torch.set_num_threads(1)
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {"runs": {}}
    names: list[Name] = ["digits", "fashion-mnist"] if task is None else [task]
    for name in [] if page_only else names:
        loaded = find_task(name).task({"scale": "small"}).load()
        known = found["runs"].setdefault(name, {})
        with progress(name, seeds * len(CASES)) as advance:
            for seed in range(seeds):
                scores = known.setdefault(str(seed), {})
                for case in CASES:
                    if case not in scores:
                        scores[case] = score(loaded, seed, CASES[case])
                        found |= {"torch": torch.__version__, "processor": platform.machine()}
                        write_text(RESULT, json.dumps(found, indent=1) + "\n")
                    advance(1)
    write_text(PAGE, with_block(PAGE.read_text(), "weights_24_bits", table(found["runs"])))


def score(loaded: LoadedTask, seed: int, case: Case) -> float:
    """Train once; return the test accuracy in percent."""
    task, data = loaded
    train: Any = data.train
    torch.manual_seed(seed)
    model = task.model().to(case.dtype)
    steps = task.epochs * math.ceil(len(train) / task.batch_size)
    optimizer = steppe.DualAdam(model.parameters(), total_steps=steps, **case.options)
    schedule = LambdaLR(optimizer, lambda t: (1 + math.cos(math.pi * t / steps)) / 2)
    order = torch.Generator().manual_seed(seed)
    for _ in range(task.epochs):
        for rows in torch.split(torch.randperm(len(train), generator=order), task.batch_size):
            optimizer.zero_grad()
            outputs = model(train.inputs[rows].to(case.dtype)).float()
            torch.autograd.backward(task.loss_of(outputs, train.targets[rows]))
            optimizer.step()
            schedule.step()
    return accuracy(model.eval(), data.test, case.dtype)


@torch.no_grad()
def accuracy(model: torch.nn.Module, samples: Any, dtype: torch.dtype) -> float:
    """Return how many percent of the samples the model has right."""
    right = 0
    for inputs, targets in zip(
        *(torch.split(x, 500) for x in (samples.inputs, samples.targets)), strict=True
    ):
        answers: Tensor = model(inputs.to(dtype))
        right += int((answers.argmax(1) == targets).sum())
    return 100 * right / len(samples)


def table(runs: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return each task's accuracies, and their paired differences from float32."""
    lines = [head("", "seeds", "float32", *(f"{case} − float32" for case in list(CASES)[1:]))]
    for name, by_seed in runs.items():
        whole = [scores for scores in by_seed.values() if scores.keys() >= CASES.keys()]
        cells = [f"{interval([scores['float32'] for scores in whole]).mean:.2f}"]
        for case in list(CASES)[1:]:
            cells.append(signed(interval([each[case] - each["float32"] for each in whole])))
        lines.append(row(name, str(len(whole)), *cells))
    return "\n".join(lines)


if __name__ == "__main__":
    cyclopts.run(main)
