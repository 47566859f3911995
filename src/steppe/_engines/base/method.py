"""What an engine must know of a method to run it: its rules, and the names of its state.

Each optimizer returns a :class:`Method` from ``_method``; engines know an optimizer by that alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

Function = Callable[..., Any]

SLOT_SUM = "slot_sum"
KEYS = "slot_keys"
BIRTHS = "slot_births"
REPLACEMENTS = "replacements"
MEAN = "exp_avg_sq_mean"
#: Entries of a state that have a shape of their own even where it happens to be the parameter's.
NEVER_PARAM_SHAPED = ("step", KEYS, BIRTHS, REPLACEMENTS, MEAN)

#: The running sum of the slots is summed afresh every so many replacements. Each replacement adds
#: a rounding error of the size that the slots had then, which would outlive them as gradients
#: shrink: 9e-4 of the mean after 10 000 steps when they shrink a thousandfold, 3e-7 so.
RESUM_EVERY = 64


def slot_name(index: int) -> str:
    """Name of the state that holds slot ``index``."""
    return f"slot_{index}"


@dataclass(frozen=True)
class Buffer:
    """A buffer of remembered momenta or gradients.

    Attributes
    ----------
    aggregate
        Maps the number of filled slots and κ to the rule's last scalars.
    remember
        Chooses the slot that takes this step's item, given its priority.
    """

    aggregate: Function
    remember: Function


@dataclass(frozen=True)
class Method:
    """One method as engines see it. Equal kernels share one compilation and one launch.

    Attributes
    ----------
    rule
        ``(p, g, *state, [total], *scalars, [*aggregate], [rms]) -> (p, *state, [item])``, where
        ``total`` and ``item`` belong to methods with a buffer.
    state
        Names of the parameter-shaped state, in the rule's order.
    scalars
        ``(t, **options) -> scalars``; its argument names are the group options it reads.
    buffer
        The buffer, or None. It has its own state: C slots, their sum, keys, births, and the
        number of replacements.
    mean_square
        For rules whose last scalar is ``rms``: ``(mean, square, *scalars) -> (mean, rms²)``, of
        numbers in float64. ``mean`` is the tensor's own in the state, ``square`` that of its
        squared gradient, and ``scalars`` are some of the rule's.
    norm_by_blocks
        Whether the CPU's norm of gradients adds up blocks of 256 where the kernel rounds by blocks
        and stores its items in full: an order of additions that saved keys have been made in.
    """

    rule: Function
    state: tuple[str, ...]
    scalars: Function
    buffer: Buffer | None = None
    mean_square: Function | None = None
    norm_by_blocks: bool = False

    @cached_property
    def scalar_names(self) -> tuple[str, ...]:
        """Names of the rule's scalars, those of the aggregate and ``rms`` included."""
        first = 2 + len(self.state) + (self.buffer is not None)
        return tuple(signature(self.rule).parameters)[first:]

    @cached_property
    def mean_scalars(self) -> tuple[str, ...]:
        """Names of the rule's scalars that ``mean_square`` takes; none where there is no mean."""
        return tuple(signature(self.mean_square).parameters)[2:] if self.mean_square else ()

    @cached_property
    def options(self) -> tuple[str, ...]:
        """Names of the group options that ``scalars`` reads."""
        return tuple(signature(self.scalars).parameters)[1:]


def needs_global_norm(method: Method, group: dict[str, Any]) -> bool:
    """Whether the parameters of a group go by the norm of all gradients."""
    return _has_buffer(method, group) and group["scope"] == "global"


def needs_tensor_norm(method: Method, group: dict[str, Any]) -> bool:
    """Whether each parameter of a group goes by the norm of its own gradient."""
    is_scoped = _has_buffer(method, group) and group["scope"] == "tensor"
    return method.mean_square is not None or is_scoped


def _has_buffer(method: Method, group: dict[str, Any]) -> bool:
    return method.buffer is not None and group["capacity"] > 0
