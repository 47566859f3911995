"""The batches of a step, kept from one step to the next.

The optimizer makes a plan when its parameters or state have changed, and
:mod:`steppe._engines.dispatch` carries it out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steppe._engines.base.batch import PACKED, EngineRequest, ParamBatch, batches_of
from steppe._engines.base.held_tensors import HeldTensors
from steppe._engines.base.packing import pack, pick
from steppe._engines.base.param_row import ParamRow, State, refuse_lazy
from steppe._engines.base.sharding import is_sharded, local_part, real
from steppe._shared.array_types import Flags
from steppe._shared.identity import are_same

# Parameters may have gradients in turns, as several heads do: batches for so many turns are kept.
_KEPT = 16


class Plan:
    """The batches of an optimizer's steps, kept while its parameters and state stay the same.

    It is made for all parameters that have state. If only some of them have gradients in a step,
    the step's batches have their rows alone.

    ``grad_scale`` and ``found_inf`` are what a GradScaler leaves to the engines: what gradients
    are to be divided by, and whether one is not finite, so that the step is to be skipped.

    Parameters
    ----------
    rows
        The parameters whose state is complete.
    params
        All parameters of the optimizer, or some of them that follow one another.
    states
        The optimizer's state.
    requests
        What each group requests, by the group's identity.
    first
        How many parameters of the optimizer come before those.

    Raises
    ------
    RuntimeError
        A parameter or its state is unfit for any engine; see :meth:`ParamRow.check`.
    """

    def __init__(
        self,
        rows: list[ParamRow],
        params: Sequence[Tensor],
        states: Mapping[Tensor, State],
        requests: dict[int, EngineRequest],
        *,
        first: int = 0,
    ) -> None:
        for row in rows:
            row.check(requests[id(row.group)].method)
        _separate(rows)
        self._params, self._states, self._first = list(params), _dictionaries(states), first
        self.whole = batches_of(rows, requests)
        for batch in self.whole:
            if not batch.request.capturable:
                pack(batch)
        self._held = [batch.held for batch in self.whole if batch.held is not None]
        self._packed = [
            row.state[name]
            for batch in self.whole
            if not batch.request.capturable
            for row in batch.rows
            for name in PACKED
            if name in row.state
        ]
        self._packed_addresses = list(map(Tensor.data_ptr, self._packed))
        self._has_row = np.zeros(len(self._params), dtype=bool)
        self._has_row[[row.index - first for row in rows]] = True
        self._has_gradient: list[bool] = []
        self._kept: dict[bytes, list[ParamBatch]] = {}
        # What inference mode has made may not be changed outside of it.
        self._in_inference_mode = torch.is_inference_mode_enabled()
        self.batches: list[ParamBatch] = []
        self.grad_scale: Tensor | None = None
        self.found_inf: Tensor | None = None

    def takes(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        states: Mapping[Tensor, State],
    ) -> bool:
        """Take the gradients of a step, if the plan is still the right one for it.

        It is for the parameters and states that it was made for, if nobody has replaced any, and
        has a row for each parameter with a gradient.
        """
        if not (
            torch.is_inference_mode_enabled() == self._in_inference_mode
            and are_same(params, self._params)
            and are_same(_dictionaries(states), self._states)
            # A copy of the optimizer that shares its state may have packed it anew, or a user may
            # have given one of the tensors other data.
            and list(map(Tensor.data_ptr, self._packed)) == self._packed_addresses
        ):
            return False
        has_gradient = [grad is not None for grad in grads]
        if has_gradient != self._has_gradient and not self._select(has_gradient):
            return False
        for batch in self.batches:
            batch.grads = [grads[i] for i in (batch.indices - self._first).tolist()]
        # Also of parameters that have no gradient: their state goes into the checkpoint.
        if not all(map(HeldTensors.are_same, self._held)):
            return False
        for batch in self.batches:
            assert batch.held is not None
            if batch.held.has_unusual:
                batch.held.refresh()
                batch.grads = [
                    local_grad(row.whole, grad)
                    for row, grad in zip(batch.rows, batch.grads, strict=True)
                ]
        return True

    def _select(self, has_gradient: list[bool]) -> bool:
        """Choose the batches for those parameters that have gradients, if all have rows."""
        wanted = np.array(has_gradient, dtype=bool)
        if (wanted & ~self._has_row).any():
            return False
        kind = wanted.tobytes()
        if kind not in self._kept:
            if len(self._kept) == _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[kind] = [
                part
                for batch in self.whole
                for part in _part(batch, wanted[batch.indices - self._first])
            ]
        self.batches, self._has_gradient = self._kept[kind], has_gradient
        return True


def _separate(rows: list[ParamRow]) -> None:
    """Give each row counts of its own, where somebody has put one tensor into several states."""
    found = set()
    for row in rows:
        for name in PACKED.keys() & row.state.keys():
            if id(row.state[name]) in found:
                row.state[name] = row.state[name].clone()
            found.add(id(row.state[name]))


def _dictionaries(states: Mapping[Tensor, State]) -> list[State]:
    """Return the states of parameters, without a user's own entries, which may be anything."""
    return [state for state in states.values() if type(state) is dict]


def _part(batch: ParamBatch, is_picked: Flags) -> list[ParamBatch]:
    """Return the batch of some of the rows; none without rows."""
    if is_picked.all():
        return [batch]
    return [pick(batch, is_picked)] if is_picked.any() else []


def local_grad(param: Tensor, grad: Tensor) -> Tensor:
    """Return what this process holds of a parameter's gradient, as real numbers."""
    if is_sharded(param):
        grad = _sharded_alike(grad, param)
    return real(local_part(grad))


def local_param_and_grad(param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return what this process holds of a parameter and its gradient, as real numbers.

    Raises
    ------
    RuntimeError
        The parameter is a lazy conjugate or negative: a change of its real view would be lost.
    """
    part = local_part(param)
    refuse_lazy(part, "a parameter")
    return real(part), local_grad(param, grad)


def _sharded_alike(grad: Any, param: Any) -> Tensor:
    """Return a gradient sharded as its parameter is: others may come along."""
    if grad.placements == param.placements:
        whole: Tensor = grad
        return whole
    moved: Tensor = grad.redistribute(param.device_mesh, param.placements)
    return moved
