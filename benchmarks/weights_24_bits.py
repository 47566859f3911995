"""Do weights of 24 bits train as float32 does? Paired runs of DualAdam on digits and FashionMNIST.

python benchmarks/weights_24_bits.py [--seeds 40] [--task digits] [--page-only]

Each seed trains three times from the same weights, with the batches in the same order: all in
float32; weights, activations and gradients in bfloat16 with ``param_error="int8"`` and 8-bit state;
and the same without the error. Declared before the first run: the 95 % interval of the mean
difference of 24 bits from float32 lies within ± 0.5 points of test accuracy, on each task.

Writes docs/results/weights-24-bits.json as runs end, and goes on from it after a kill; then its
table into docs/number-formats.md.
"""

from typing import Any

import cyclopts
import torch
from paired_training import Case, paired_command
from torch import Tensor

import steppe


def _dual_adam(dtype: torch.dtype, **options: Any) -> Case:
    def make(params: list[Tensor], steps: int) -> steppe.DualAdam:
        return steppe.DualAdam(params, total_steps=steps, **options)

    return Case(dtype, make)


CASES = {
    "float32": _dual_adam(torch.float32),
    "24 bits": _dual_adam(torch.bfloat16, param_error="int8", state_dtype="int8"),
    "16 bits": _dual_adam(torch.bfloat16, state_dtype="int8"),
}


if __name__ == "__main__":
    cyclopts.run(paired_command("weights_24_bits", "number-formats.md", CASES))
