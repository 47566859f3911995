"""The scalars of every row of a batch, from group options and step counts."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steppe._engines.base.bind import bind
from steppe._engines.base.method import KEYS
from steppe._engines.base.plan import Group, ParamBatch, ParamRow
from steppe._shared import array_types

Scalar = float | Tensor


class Floats:
    """The vocabulary of :mod:`steppe.rules`' scalars for Python floats."""

    @staticmethod
    def clip(value: float, low: float | None, high: float | None) -> float:
        """Keep a value in a range."""
        value = value if low is None else max(value, low)
        return value if high is None else min(value, high)


def scalars(batch: ParamBatch) -> Iterator[tuple[Scalar, ...]]:
    """Yield each row's scalars, as in :func:`table`."""
    if batch.on_device:
        return (_tensors(batch, row) for row in batch.rows)
    values, lines = table(batch)
    return (tuple(values[line].tolist()) for line in lines)


def table(batch: ParamBatch) -> tuple[array_types.Floats, array_types.Integers]:
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
    members, group_of_row = groups(batch)
    steps = batch.steps.tolist()
    counts = [0] * len(steps)
    if batch.capacity:
        counts = np.count_nonzero(batch.keys.numpy() > -np.inf, axis=1).tolist()
    if steps.count(steps[0]) == counts.count(counts[0]) == len(steps):
        lines = [_line(batch, group, steps[0], counts[0]) for group in members]
        return np.array(lines), group_of_row
    kinds = list(zip(group_of_row.tolist(), steps, counts, strict=True))
    line_of = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    lines = [_line(batch, members[number], t, count) for number, t, count in line_of]
    return np.array(lines), np.array([line_of[kind] for kind in kinds])


def _line(batch: ParamBatch, group: Group, t: float, filled: float) -> tuple[float, ...]:
    kernel = batch.kernel
    options = {name: _numbers(group, name) for name in kernel.options}
    values: tuple[float, ...] = bind(kernel.scalars, Floats)(t, **options)
    if kernel.buffer is not None:
        values = (*values, *bind(kernel.buffer.aggregate, Floats)(filled, float(group["kappa"])))
    return factor(batch, group), *values


def factor(batch: ParamBatch, group: Group) -> float:
    """Return what a group's gradients are multiplied by."""
    return -batch.unscale if group["maximize"] else batch.unscale


def column(batch: ParamBatch, name: str) -> Any:
    """Return one option of every row; a pair of options as two rows."""
    members, group_of_row = groups(batch)
    values = [_numbers(group, name) for group in members]
    return np.array(values, dtype=np.float64)[group_of_row].T


def precise(device: torch.device) -> torch.dtype:
    """Return float64, where the device has it: 1 − β2ᵗ loses three digits at t = 1."""
    return torch.float32 if device.type == "mps" else torch.float64


def groups(batch: ParamBatch) -> tuple[list[Group], array_types.Integers]:
    """Return the batch's groups, and the position of each row's among them."""
    if "groups" not in batch.cache:
        members = {id(row.group): row.group for row in batch.rows}
        position = {key: i for i, key in enumerate(members)}
        of_row = np.array([position[id(row.group)] for row in batch.rows])
        batch.cache["groups"] = list(members.values()), of_row
    found: tuple[list[Group], array_types.Integers] = batch.cache["groups"]
    return found


def _tensors(batch: ParamBatch, row: ParamRow) -> tuple[Scalar, ...]:
    """One row's scalars as 0-dim tensors on its device, and options that are plain as they are."""
    kernel, group = batch.kernel, row.group
    device = row.param.device
    t = row.state["step"].to(device, precise(device))
    values = bind(kernel.scalars, torch)(
        t, **{name: _as_is(group[name]) for name in kernel.options}
    )
    if kernel.buffer is not None:
        filled = torch.zeros_like(t)
        if row.capacity:
            filled += torch.count_nonzero(row.state[KEYS] > -torch.inf)
        values = (*values, *bind(kernel.buffer.aggregate, torch)(filled, group["kappa"]))
    return factor(batch, group), *values


def _numbers(group: Group, name: str) -> Any:
    value = group[name]
    return [float(x) for x in value] if isinstance(value, tuple | list) else float(value)


def _as_is(value: Any) -> Any:
    """Return an option as it stands, a tensor of one number as 0-dim."""
    return value.reshape(()) if isinstance(value, Tensor) else value
