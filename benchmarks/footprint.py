"""Write what training costs into pages of docs/, as ``footprint`` counts it.

Into docs/scaling.md the state of every optimizer in every format for models of the shapes of Llama
3.2 1B and Llama 3.1 8B and 70B on many devices, and what each device sends; into
docs/critical-momenta.md what buffers of given capacity cost on one device. Nothing is allocated.
Run ``python benchmarks/footprint.py`` after the state or the messages of an optimizer have changed;
with ``--check`` it only says whether the pages are true.
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from page_blocks import with_block
from torch.optim import Optimizer

import steppe
from steppe.optim import ByteCounts, Footprint, footprint

Shape = tuple[int, ...]
Make = Callable[..., Optimizer]

DOCS = Path(__file__).parents[1] / "docs"
DEVICES = (8, 64, 512)
FORMATS: tuple[Any, ...] = (None, torch.bfloat16, "int8")
CAPACITIES = (0, 1, 2, 5, 10, 20)

_VOCABULARY = 128_256


def llama(width: int, layers: int, hidden: int, keys: int, *, is_tied: bool) -> list[Shape]:
    """Return the shapes of a Llama: the hyper-parameters are those of the models' ``config.json``.

    Parameters
    ----------
    width, layers, hidden
        ``hidden_size``, ``num_hidden_layers`` and ``intermediate_size``.
    keys
        Width of keys and values: ``num_key_value_heads`` of ``head_dim``.
    is_tied
        Whether the output shares the matrix of the embedding.
    """
    attention: list[Shape] = [(width, width), (keys, width), (keys, width), (width, width)]
    perceptron: list[Shape] = [(hidden, width), (hidden, width), (width, hidden)]
    norm: list[Shape] = [(width,)]
    embedding: list[Shape] = [(_VOCABULARY, width)]
    layer = norm + attention + norm + perceptron
    return embedding + layers * layer + norm + ([] if is_tied else embedding)


MODELS = {
    "1 B": llama(2048, 16, 8192, 8 * 64, is_tied=True),
    "8 B": llama(4096, 32, 14336, 8 * 128, is_tied=False),
    "70 B": llama(8192, 80, 28672, 8 * 128, is_tied=False),
}


def _sam(params: Any, **options: Any) -> Optimizer:
    return steppe.SAM(steppe.DualAdam(params, **options))


#: Optimizers with the same state share a line.
HELD: dict[str, Make] = {
    "`DualAdam`, `InvAdam`": steppe.DualAdam,
    "`MIAdam`, n = 2": steppe.MIAdam,
    "`SAM(DualAdam)`": _sam,
    "`AdamCM`, `DualAdamCM`, C = 5": steppe.AdamCM,
    "`SGDCM`, C = 5": steppe.SGDCM,
    "`AdamCG`, C = 10": steppe.AdamCG,
    "`RMSpropCG`, C = 10": steppe.RMSpropCG,
    "`SGDCG`, C = 10": steppe.SGDCG,
}

SENT: dict[str, Make] = {
    "`DualAdam`, `InvAdam`, `MIAdam`": steppe.DualAdam,
    "`AdamCM`, `DualAdamCM`, `SGDCM`, `AdamCG`, `RMSpropCG`, `SGDCG`": steppe.AdamCM,
    'the same with `scope="tensor"`': partial(steppe.AdamCM, scope="tensor"),
    "`DualAdam(scale_free=True)`": partial(steppe.DualAdam, scale_free=True),
    "`SAM(DualAdam)`": _sam,
}


@cache
def _with_state(make: Make, state_dtype: Any) -> Make:
    return partial(make, state_dtype=state_dtype)


@cache
def counted(model: str, make: Make, devices: int) -> Footprint:
    """Count one combination once."""
    return footprint(MODELS[model], make, devices)


def tables() -> str:
    """Return all tables as Markdown."""
    parts = [_held(model) for model in MODELS]
    return "\n".join([*parts, _passes(), _messages()])


def _held(model: str) -> str:
    plain = [counted(model, steppe.DualAdam, n).fsdp.device for n in DEVICES]
    head = [f"{model}: held, GiB a device", *(f"{n} devices" for n in DEVICES)]
    rows = [["parameters; as much again for gradients", *(_gib(each.parameters) for each in plain)]]
    for name, make in HELD.items():
        makes = [_with_state(make, each) for each in FORMATS]
        held = [[counted(model, each, n).fsdp.device.optimizer for each in makes] for n in DEVICES]
        rows.append([name, *(" / ".join(map(_gib, each)) for each in held)])
    return _table(head, rows)


def _passes() -> str:
    def sent(model: str, devices: int) -> str:
        found = counted(model, steppe.DualAdam, devices)
        return f"{_gb(found.fsdp.sent)} / {_gb(found.ddp.sent)}"

    head = ["sent, GB a device and step: FSDP2 / DDP", *(f"{n} devices" for n in DEVICES)]
    return _table(head, [[model, *(sent(model, n) for n in DEVICES)] for model in MODELS])


def _messages() -> str:
    head = ["added by the optimizer, bytes a step", *MODELS]
    rows = [
        [name, *(f"{counted(model, make, DEVICES[0]).message:,}" for model in MODELS)]
        for name, make in SENT.items()
    ]
    return _table(head, rows)


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g}"


def _gb(sent: ByteCounts) -> str:
    return f"{sent.total / 1e9:.3g}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def buffers() -> str:
    """Return what AdamCM holds for the smallest model on one device, by capacity and format."""
    head = ["1 B: AdamCM's state, GiB", "float32", "bfloat16", "8 bits", "8 bits, a parameter"]
    rows = []
    for capacity in CAPACITIES:
        make = partial(steppe.AdamCM, capacity=capacity)
        held = [counted("1 B", _with_state(make, each), 1).ddp.device.optimizer for each in FORMATS]
        count = counted("1 B", steppe.DualAdam, 1).numel
        rows.append([f"C = {capacity}", *map(_gib, held), f"{held[-1] / count:.2f} bytes"])
    return _table(head, rows)


def rewritten(page: str) -> str:
    """Return a page's text with the blocks as they are to be."""
    return with_block(with_block(page, "footprint", tables()), "footprint", buffers(), "buffers")


def main() -> None:
    """Rewrite the pages, or check them."""
    for path in (DOCS / "scaling.md", DOCS / "critical-momenta.md"):
        page = path.read_text()
        wanted = rewritten(page)
        if "--check" not in sys.argv[1:]:
            path.write_text(wanted)
        elif wanted != page:
            sys.exit(f"not what is counted: {path}")


if __name__ == "__main__":
    main()
