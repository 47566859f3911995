"""Train AdamCM with critical momenta in half of the memory that 8 bits take, or less.

python benchmarks/compressed_buffers.py [--seeds 40] [--task digits] [--page-only]

Each seed trains once with each buffer, from the same weights and with the batches in the same order
(AdamCM at its default lr; C = 5 where nothing else is said), the rest of its state in float32:

- in float32 with C = 5, 2 and 1, and in 8 bits as ``state_dtype="int8"`` stores it, both moments,
  too;
- low rank: of each matrix of m × n numbers (of a convolution, its outputs × all else) the r largest
  singular triples, r = mn/(4(m + n)), so that both factors in bfloat16 take half a byte a number;
- 4 bits: a sign and 3 bits of the square root over the largest of 256 numbers, rounded to nearest;
- 1 bit: the signs of 256 numbers, and the mean of their sizes.

Compression is emulated: what a slot holds is what would be read back, in float32. Declared before
the first run: a buffer of half of 8 bits' memory or less is worth a kernel if the 95 % interval of
its mean difference from float32 lies within ± 0.5 points of test accuracy, on each task.

Writes docs/results/compressed-buffers.json as runs end, and goes on from it after a kill; then its
table into docs/critical-momenta.md.
"""

from collections.abc import Callable
from typing import Any

import cyclopts
import torch
from paired_training import Case, paired_command
from torch import Tensor

import steppe

BLOCK = 256


class CompressedAdamCM(steppe.AdamCM):
    """AdamCM whose slots hold what ``compress`` leaves of a momentum."""

    def __init__(self, params: Any, compress: Callable[[Tensor], Tensor], **options: Any) -> None:
        super().__init__(params, **options)
        self._compress = compress

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take AdamCM's step, and compress what it has stored."""
        loss = super().step(closure)
        for state in self.state.values():
            slots = [state[f"slot_{i}"] for i in range(len(state["slot_births"]))]
            for i in (state["slot_births"] == state["step"]).nonzero().flatten().tolist():
                slots[i].copy_(self._compress(slots[i]))
            state["slot_sum"].copy_(torch.stack(slots).sum(0))
        return loss


def low_rank(x: Tensor) -> Tensor:
    """Keep as many singular triples as take half a byte a number in bfloat16."""
    if x.ndim < 2:
        return x
    matrix = x.reshape(len(x), -1)
    rank = max(1, matrix.numel() // (4 * sum(matrix.shape)))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    left, right = u[:, :rank] * s[:rank].sqrt(), v[:rank] * s[:rank, None].sqrt()
    kept: Tensor = left.bfloat16().float() @ right.bfloat16().float()
    return kept.reshape(x.shape)


def four_bits(x: Tensor) -> Tensor:
    """Round to a sign and 3 bits of the root of |x| over the largest of its block."""
    blocks = _blocks(x)
    scale = blocks.abs().amax(1, keepdim=True).bfloat16().float()
    roots = (blocks.abs() / scale.clamp(min=1e-30)).sqrt()
    sizes = (roots * 7).round().clamp(max=7) / 7
    return _unblocked(blocks.sign() * sizes.square() * scale, x)


def one_bit(x: Tensor) -> Tensor:
    """Keep the sign, and the mean size of its block."""
    blocks = _blocks(x)
    present = (torch.arange(blocks.numel()) < x.numel()).reshape(blocks.shape)
    sizes = blocks.abs().sum(1, keepdim=True) / present.sum(1, keepdim=True)
    return _unblocked(blocks.sign() * sizes.bfloat16().float(), x)


def _blocks(x: Tensor) -> Tensor:
    padding = -x.numel() % BLOCK
    return torch.nn.functional.pad(x.flatten(), (0, padding)).reshape(-1, BLOCK)


def _unblocked(blocks: Tensor, like: Tensor) -> Tensor:
    return blocks.flatten()[: like.numel()].reshape(like.shape)


def _compressed(compress: Callable[[Tensor], Tensor]) -> Case:
    return Case(torch.float32, lambda params, _: CompressedAdamCM(params, compress))


CASES = {
    "float32": Case(torch.float32, lambda params, _: steppe.AdamCM(params)),
    "C = 2": Case(torch.float32, lambda params, _: steppe.AdamCM(params, capacity=2)),
    "C = 1": Case(torch.float32, lambda params, _: steppe.AdamCM(params, capacity=1)),
    "8 bits": Case(torch.float32, lambda params, _: steppe.AdamCM(params, state_dtype="int8")),
    "low rank": _compressed(low_rank),
    "4 bits": _compressed(four_bits),
    "1 bit": _compressed(one_bit),
}


if __name__ == "__main__":
    cyclopts.run(paired_command("compressed_buffers", "critical-momenta.md", CASES))
