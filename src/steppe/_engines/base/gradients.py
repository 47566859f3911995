"""Gradients that do not lie as their parameters do: made to fit, or refused by name.

Dispatch calls it before a step is counted. What an optimizer refuses before that, such as sparse
gradients, is in ``optim/_step_checks.py``.
"""

from typing import Any

import torch
from torch import Tensor

from steppe._engines.base.batch import ParamBatch
from steppe._engines.base.memory_layout import is_alike, memory_objection
from steppe._engines.base.param_row import ParamRow
from steppe._shared.array_types import Flags


def resolve_negatives(grads: list[Tensor]) -> list[Tensor]:
    """Return gradients without lazy negatives, which autograd makes of complex numbers' parts."""
    return [grad.resolve_neg() for grad in grads]


def copy_gradients(batch: ParamBatch, which: Flags) -> None:
    """Copy some gradients: those in memory that the step writes, as ``p.grad = p.data`` leaves."""
    batch.grads = [
        grad.clone() if is_copied else grad
        for grad, is_copied in zip(batch.grads, which.tolist(), strict=True)
    ]


def fit_gradients(batch: ParamBatch, for_kernel: bool) -> bool:
    """Make a batch's gradients such as its engine can read.

    Parameters
    ----------
    batch
        Its gradients are replaced where they must be.
    for_kernel
        Whether they must have their parameters' formats and layouts, too; else only those do that
        are of integers or in 8 bits.

    Returns
    -------
    bool
        Whether the parameters still have the shapes that the batch was made for.

    Raises
    ------
    RuntimeError
        A gradient has another shape, has no memory, is complex where its parameter is not, or is
        of a subclass that its parameter isn't.
        The message names the parameter.
    """
    batch.grads = [
        _fitting(row, grad, for_kernel) for row, grad in zip(batch.rows, batch.grads, strict=True)
    ]
    return all(tuple(row.param.shape) == row.shard.sizes for row in batch.rows)


def _fitting(row: ParamRow, grad: Tensor, for_kernel: bool) -> Tensor:
    grad = _as_plain(row, grad)
    shape = tuple(row.param.shape)
    if tuple(grad.shape) != shape:
        raise RuntimeError(
            f"{row.place} has shape {shape}, its gradient {tuple(grad.shape)}: "
            "expected the same shape; compute the gradient anew (zero_grad, then backward)"
        )
    if why := memory_objection(grad):
        raise RuntimeError(f"the gradient of {row.place}, shape {shape}, {why}")
    if grad.is_complex():
        raise RuntimeError(
            f"the gradient of {row.place}, shape {shape}, is {grad.dtype} and the parameter "
            f"{row.param.dtype}: expected a real gradient; compute it anew"
        )
    # Integers and 8 bits are no formats to compute in.
    must_fit = for_kernel or not (grad.is_floating_point() and grad.dtype.itemsize > 1)
    if must_fit and (grad.dtype != row.param.dtype or not is_alike(grad, row.param)):
        return torch.empty_like(row.param).copy_(grad)
    return grad


def _as_plain(row: ParamRow, grad: Any) -> Tensor:
    """Return a gradient as a tensor of torch's own, unless its parameter is none either."""
    kind = type(grad)
    if kind is Tensor or kind is type(row.param):
        whole: Tensor = grad
        return whole
    if hasattr(grad, "trigger_wait"):
        # What a functional collective has not finished: AsyncCollectiveTensor.
        waited: Tensor = grad.trigger_wait()
        return waited
    if kind.__torch_dispatch__ is Tensor.__torch_dispatch__:
        # A subclass of functions alone: the memory is its own.
        own: Tensor = grad.as_subclass(Tensor)
        return own
    raise RuntimeError(
        f"the gradient of {row.place}, shape {tuple(row.param.shape)}, is a {kind.__name__}, which "
        f"keeps its numbers in other tensors; expected a {type(row.param).__name__}'s, a plain one"
    )
