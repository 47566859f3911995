"""How large the blocks of a symmetric operator are, on its diagonal and beside it.

:func:`~steppe.landscape.by_layer` tells by them how much of the Hessian lies between layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from steppe._shared.array_types import Floats
from steppe.landscape.operators.operator import Operator
from steppe.landscape.result import Result
from steppe.landscape.spectra._probes import Probes, blocks


@dataclass(frozen=True, eq=False)
class BlockNorms(Result):
    """Frobenius norms of all blocks, estimated with random vectors.

    Attributes
    ----------
    norms, errors : ndarray
        ‖H_ij‖_F and its standard error, of shape (blocks, blocks); NaN for one vector each.
    off_diagonal, off_diagonal_error : float
        The share of ‖H‖_F² beside the diagonal blocks, and its standard error; NaN where H is 0.
    """

    norms: Floats
    errors: Floats
    off_diagonal: float
    off_diagonal_error: float


def block_norms(H: Operator, sizes: Sequence[int], vectors: int, seed: int) -> BlockNorms:
    """Estimate ‖H_ij‖_F² = E‖H_ij z‖², z of random signs, by so many vectors for each column.

    Of H_ij and H_ji, which are as large, the mean is taken. The error of the share is the
    jackknife's over vectors.
    """
    ends = np.cumsum(sizes)
    squares = np.zeros((vectors, len(sizes), len(sizes)))
    probes = Probes(H, seed)
    with H.held():
        for column, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            done = 0
            for count in blocks(H, vectors):
                rows = probes.signs(count)
                rows[:, : end - size] = rows[:, end:] = 0.0
                parts = torch.split(H.rows(rows), list(sizes), dim=1)
                found = torch.stack([each.double().square().sum(1) for each in parts], dim=1)
                squares[done : done + count, :, column] = found.cpu().numpy()
                done += count
    squares = (squares + squares.transpose(0, 2, 1)) / 2
    mean = squares.mean(0)
    norms = np.sqrt(mean)
    error = (
        squares.std(0, ddof=1) / math.sqrt(vectors) if vectors > 1 else np.full_like(mean, np.nan)
    )
    # Of a root, to first order.
    errors = np.divide(error, 2 * norms, out=np.zeros_like(error), where=norms > 0)
    inside, whole = np.trace(squares, axis1=1, axis2=2), squares.sum((1, 2))
    return BlockNorms(norms, errors, _share(inside.sum(), whole.sum()), _jackknife(inside, whole))


def _share(inside: float, whole: float) -> float:
    return 1 - inside / whole if whole > 0 else math.nan


def _jackknife(inside: Floats, whole: Floats) -> float:
    count = len(inside)
    if count < 2:
        return math.nan
    left_out = [
        _share(inside.sum() - a, whole.sum() - b) for a, b in zip(inside, whole, strict=True)
    ]
    return float(np.sqrt((count - 1) * np.var(left_out)))
