"""The scalars of every row of a batch, from group options and step counts.

The CPU's and the eager engine compute them here in each step; the GPU's kernels compute their own.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steppe._engines.base.batch import ParamBatch
from steppe._engines.base.bind import bind
from steppe._engines.base.method import KEYS
from steppe._engines.base.number_formats import accumulator
from steppe._engines.base.param_row import Group, ParamRow
from steppe._shared.array_types import Floats, Integers

Scalar = float | Tensor


def scalars(batch: ParamBatch) -> Iterator[tuple[Scalar, ...]]:
    """Yield each row's scalars, as in :func:`table`."""
    if batch.on_device:
        return (_tensors(batch, row) for row in batch.rows)
    values, lines = table(batch)
    return (tuple(values[line].tolist()) for line in lines)


def table(batch: ParamBatch) -> tuple[Floats, Integers]:
    """Compute the scalars of a batch that need not stay on its device.

    Parameters
    ----------
    batch
        The rows, before this step's items are stored.

    Returns
    -------
    arrays
        Lines of the gradient's factor, the rule's scalars, and the buffer's aggregate weights; and
        which line is each row's: rows of one group that have come equally far share one.
    """
    method, steps = batch.method, batch.steps.tolist()
    filled = [0] * len(steps)
    if batch.capacity:
        filled = (batch.keys.numpy() > -np.inf).sum(1).tolist()
    if steps.count(steps[0]) == filled.count(filled[0]) == len(steps):
        kinds = [(i, steps[0], filled[0]) for i in range(len(batch.groups))]
        line_of_row = batch.group_of_row
    else:
        of_row = list(zip(batch.group_of_row.tolist(), steps, filled, strict=True))
        line_of = {kind: i for i, kind in enumerate(dict.fromkeys(of_row))}
        kinds, line_of_row = list(line_of), np.array([line_of[kind] for kind in of_row])
    options = [{name: _numbers(group, name) for name in method.options} for group in batch.groups]
    factors = [gradient_factor(batch, group) for group in batch.groups]
    compute, weigh, kappas = bind(method.scalars, np), None, []
    if method.buffer is not None:
        weigh = bind(method.buffer.aggregate, np)
        kappas = [float(group["kappa"]) for group in batch.groups]
    lines = []
    for i, t, count in kinds:
        line = factors[i], *compute(np.float64(t), **options[i])
        lines.append(line if weigh is None else (*line, *weigh(np.float64(count), kappas[i])))
    return np.array(lines, dtype=np.float64), line_of_row


def gradient_factor(batch: ParamBatch, group: Group) -> float:
    """Return what a group's gradients are multiplied by."""
    return -batch.unscale if group["maximize"] else batch.unscale


def column(batch: ParamBatch, name: str) -> Any:
    """Return one option of every row; a pair of options as two rows."""
    values = [_numbers(group, name) for group in batch.groups]
    return np.array(values, dtype=np.float64)[batch.group_of_row].T


def _tensors(batch: ParamBatch, row: ParamRow) -> tuple[Scalar, ...]:
    """One row's scalars as 0-dim tensors on its device, and options that are plain as they are."""
    method, group = batch.method, row.group
    device = row.param.device
    t = row.state["step"].to(device, accumulator(device))
    values = bind(method.scalars, torch)(
        t, **{name: _as_is(group[name]) for name in method.options}
    )
    if method.buffer is not None:
        filled = torch.zeros_like(t)
        if row.capacity:
            filled += torch.count_nonzero(row.state[KEYS] > -torch.inf)
        values = (*values, *bind(method.buffer.aggregate, torch)(filled, group["kappa"]))
    return gradient_factor(batch, group), *values


def _numbers(group: Group, name: str) -> Any:
    value = group[name]
    return [float(x) for x in value] if isinstance(value, tuple | list) else float(value)


def _as_is(value: Any) -> Any:
    """Return an option as it stands, a tensor of one number as 0-dim."""
    return value.reshape(()) if isinstance(value, Tensor) else value
