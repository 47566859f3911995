"""The scalars of every row of a batch, from group options and step counts."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steppe.engines.bind import bind
from steppe.engines.kernel import KEYS
from steppe.engines.plan import Batch, Group, Row

Scalar = float | Tensor
Table = NDArray[np.float64]


def scalars(batch: Batch) -> Iterator[tuple[Scalar, ...]]:
    """Yield each row's scalars: its rule's, then its buffer's aggregate weights."""
    if batch.on_device:
        return (_tensors(batch, row) for row in batch.rows)
    filled = np.array([_filled(row) for row in batch.rows], dtype=np.float64)
    return (tuple(line) for line in table(batch, filled).tolist())


def table(batch: Batch, filled: Table | None) -> Table:
    """Compute all rows' scalars at once, for a batch that need not stay on its device.

    Options are read once per group, whatever the number of tensors. ``filled`` counts each row's
    filled slots, for methods with a buffer.
    """
    kernel, t = batch.kernel, batch.steps.numpy().astype(np.float64)
    values = bind(kernel.scalars, np)(t, **{name: column(batch, name) for name in kernel.options})
    if kernel.buffer is not None:
        values = (*values, *bind(kernel.buffer.aggregate, np)(filled, column(batch, "kappa")))
    return np.stack([np.broadcast_to(value, t.shape) for value in values], axis=1)


def column(batch: Batch, name: str) -> Any:
    """Return one option of every row; a pair of options as two rows."""
    groups, group_of_row = _groups(batch)
    values = [_numbers(group, name) for group in groups]
    return np.array(values, dtype=np.float64)[group_of_row].T


def high_precision(value: Tensor) -> Tensor:
    """In float64, where the device has it: 1 − β2ᵗ loses three digits at t = 1."""
    return value.float() if value.device.type == "mps" else value.double()


def _groups(batch: Batch) -> tuple[list[Group], NDArray[np.intp]]:
    """Return the batch's groups, and the position of each row's among them."""
    if "groups" not in batch.cache:
        groups = {id(row.group): row.group for row in batch.rows}
        position = {key: i for i, key in enumerate(groups)}
        of_row = np.array([position[id(row.group)] for row in batch.rows])
        batch.cache["groups"] = list(groups.values()), of_row
    found: tuple[list[Group], NDArray[np.intp]] = batch.cache["groups"]
    return found


def _tensors(batch: Batch, row: Row) -> tuple[Scalar, ...]:
    """One row's scalars as 0-dim tensors on its device, and options that are plain as they are."""
    kernel, group = batch.kernel, row.group
    t = high_precision(row.state["step"].to(row.param.device))
    values = bind(kernel.scalars, torch)(
        t, **{name: _as_is(group[name]) for name in kernel.options}
    )
    if kernel.buffer is None:
        return tuple(values)
    filled = torch.zeros_like(t)
    if row.capacity:
        filled += torch.count_nonzero(row.state[KEYS] > -torch.inf)
    return (*values, *bind(kernel.buffer.aggregate, torch)(filled, group["kappa"]))


def _filled(row: Row) -> int:
    return int(np.count_nonzero(row.state[KEYS].numpy() > -np.inf)) if row.capacity else 0


def _numbers(group: Group, name: str) -> Any:
    value = group[name]
    return [float(x) for x in value] if isinstance(value, tuple | list) else float(value)


def _as_is(value: Any) -> Any:
    """Return an option as it stands, a tensor of one number as 0-dim."""
    return value.reshape(()) if isinstance(value, Tensor) else value
