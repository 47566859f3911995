"""Notice second moments that a user has reset or pruned, whose kept mean is then out of date.

With ``scale_free`` a step goes by the mean of v, which the state keeps beside v: the mean of a
moving average is the moving average of the means, so that v need not be read for it. In a run the
tensors' versions tell who has written to them (:class:`KeptMeans`); in a checkpoint only the
numbers do (:func:`mean_fits`).
"""

import math
from collections.abc import Iterable, Mapping
from operator import attrgetter

import torch
from torch import Tensor

from steppe._engines import MEAN, Group, State, is_member, is_sharded, is_traced, scale_name
from steppe._shared.identity import are_same
from steppe.optim._state import SECOND_MOMENT, mean_of_second_moment

version_of, _shape = attrgetter("_version"), attrgetter("shape")

# By how much rounding may part a mean from the mean of v. Measured over 4 000 steps, β2 from 0.9
# to 0.99999, nine kinds of gradients: 6e-5 in float32, 10 % in bfloat16 (of one element), 2 % in
# 8 bits.
_LIMIT, _LIMIT_IF_ROUNDED = 1.01, 2.0

_NAMES = (MEAN, SECOND_MOMENT, scale_name(SECOND_MOMENT))


class KeptMeans:
    """The means that parameters' states keep, and the second moments that they are of.

    A tensor's version tells of writes by torch's operations. Kernels, and what is written by way of
    ``.data``, raise none.

    Parameters
    ----------
    params
        Some parameters; those without a mean are passed over.
    states
        The optimizer's state.

    Attributes
    ----------
    tensors
        Those whose versions tell whether somebody has written to them: means and moments.
    versions
        Theirs when moments and means belonged together, as they do after a step, which notes them.
    """

    def __init__(self, params: Iterable[Tensor] = (), states: Mapping[Tensor, State] = {}) -> None:
        self._found = {
            param: _tensors(states[param])
            for param in params
            if param in states and MEAN in states[param]
        }
        self._shapes = {param: [*map(_shape, found)] for param, found in self._found.items()}
        every = [tensor for found in self._found.values() for tensor in found]
        # Tensors made in inference mode have no version.
        self.tensors = [] if any(map(Tensor.is_inference, every)) else every
        self.versions = [*map(version_of, self.tensors)]

    def stale(self, states: Mapping[Tensor, State]) -> list[Tensor]:
        """Return the parameters of which the moment alone has changed.

        A mean that has changed too, as by loading a checkpoint, is right.
        """
        pairs = zip(self.tensors, self.versions, strict=True)
        written = {id(tensor) for tensor, version in pairs if version_of(tensor) != version}
        found = []
        for param, known in self._found.items():
            mean_written, *moment_written = [id(tensor) in written for tensor in known]
            state = states.get(param, {})
            if state.get(MEAN) is not known[0] or mean_written:
                continue
            is_same = are_same(_tensors(state), known) and not any(moment_written)
            if not is_same or [*map(_shape, known)] != self._shapes[param]:
                found.append(param)
        return found

    def forget_stale(self, states: Mapping[Tensor, State]) -> None:
        """Take their means out of the state: the next step computes them from the moments."""
        for param in self.stale(states):
            del states[param][MEAN]


def mean_fits(state: State, param: Tensor, group: Group) -> bool:
    """Whether the mean in a loaded state is that of its v, but for rounding; True without a mean.

    One that fits is kept to the last bit, so that a resumed run is that which was never stopped.
    """
    if not {MEAN, SECOND_MOMENT} <= state.keys():
        return True
    moment = state[SECOND_MOMENT]
    if is_traced(moment) or (is_sharded(param) and not is_member(param)):
        return True
    kept, found = state[MEAN].item(), mean_of_second_moment(param, state, group).item()
    full = torch.float64 if moment.dtype == torch.float64 else torch.float32
    # Below this a step's share (1 − β2)·g² may be denormal, and v without it.
    least = torch.finfo(full).tiny / torch.finfo(full).eps
    if not math.isfinite(found) or max(abs(kept), found) <= least:
        return True  # g² may overflow, which its mean in float64 does not
    limit = _LIMIT if moment.dtype in (torch.float32, torch.float64) else _LIMIT_IF_ROUNDED
    return found / limit <= kept <= found * limit


def without_mean(state: State) -> State:
    """Return a state without its mean, which is computed from the moment where it is missing."""
    return {name: value for name, value in state.items() if name != MEAN}


def _tensors(state: State) -> list[Tensor]:
    """Return the mean, and the tensors of the second moment."""
    return [state[name] for name in _NAMES if name in state]
