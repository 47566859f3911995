"""Do weights of 24 bits train as float32 does? Paired runs of DualAdam on digits and FashionMNIST.

python benchmarks/weights_24_bits.py [--seeds 40] [--task digits] [--page-only]

Each seed trains three times from the same weights, with the batches in the same order: all in
float32; weights, activations and gradients in bfloat16 with ``param_error="int8"`` and 8-bit state;
and the same without the error. Declared before the first run: the 95 % interval of the mean
difference of 24 bits from float32 lies within ± 0.5 points of test accuracy, on each task.

Writes docs/results/weights-24-bits.json as runs end, and goes on from it after a kill; then its
table into docs/number-formats.md.
"""

from pathlib import Path
from typing import Annotated, Any

import cyclopts
import torch
from page_blocks import with_block
from paired_training import Case, TaskName, differences_table, train_pairs
from torch import Tensor

import steppe
from steppe._shared.console import refusals
from steppe._shared.files import write_text

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "docs" / "results" / "weights-24-bits.json"
PAGE = ROOT / "docs" / "number-formats.md"


def _dual_adam(dtype: torch.dtype, **options: Any) -> Case:
    def make(params: list[Tensor], steps: int) -> steppe.DualAdam:
        return steppe.DualAdam(params, total_steps=steps, **options)

    return Case(dtype, make)


CASES = {
    "float32": _dual_adam(torch.float32),
    "24 bits": _dual_adam(torch.bfloat16, param_error="int8", state_dtype="int8"),
    "16 bits": _dual_adam(torch.bfloat16, state_dtype="int8"),
}


def main(
    seeds: int = 40,
    task: TaskName | None = None,
    page_only: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> None:
    """Train what is missing, task after task, and write the table."""
    with refusals():
        runs = train_pairs(RESULT, CASES, seeds, task, only_read=page_only)
    table = differences_table(runs, list(CASES))
    write_text(PAGE, with_block(PAGE.read_text(), "weights_24_bits", table))


if __name__ == "__main__":
    cyclopts.run(main)
