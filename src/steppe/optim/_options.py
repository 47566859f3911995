"""The range of every optimizer option, written once: what is accepted, and how errors put it.

Defaults stand in the constructors' signatures; docs/ and docstrings are tested against both.
"""

import sys
from collections.abc import Callable, Mapping
from inspect import Parameter, isfunction, signature
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

Scope = Literal["global", "tensor"]
Replacement = Literal["priority", "fifo"]
Variant = Literal["consistent", "authors"]
Aggregation = Literal["sum", "mean", "mid"]
Direction = Literal["gradient", "momentum", "random"]
Metric = Literal["euclidean", "adaptive", "preconditioned"]


class OptionCheck(NamedTuple):
    """Which values an option takes: as a test, and as the words of the error message.

    Attributes
    ----------
    accepts
        Whether a value is in the option's range.
    expected
        The range in words.
    is_live
        Whether it may also be a tensor of one real number, which every step reads anew.
    in_a_run
        The check of a group that is stepped with, where it is not the constructor's.
    in_groups
        Whether groups have it, and not the constructor alone.
    """

    accepts: Callable[[Any], bool]
    expected: str
    is_live: bool = False
    in_a_run: "OptionCheck | None" = None
    in_groups: bool = True


def _is_number(value: Any) -> bool:
    # Not math.isfinite, which overflows on a long integer.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_FLAG = OptionCheck(lambda x: isinstance(x, bool), "True or False")
_NUMBER = OptionCheck(_is_number, "a finite number", is_live=True)
_AMOUNT = OptionCheck(lambda x: _is_number(x) and x >= 0, "a finite number ≥ 0", is_live=True)
# Schedules end a hair below 0 or go beyond 1, as in torch.optim: a run must not end there.
_SCHEDULED = _AMOUNT._replace(in_a_run=_NUMBER)
_FRACTION = OptionCheck(_is_fraction, "a number in [0, 1)", is_live=True)
_CLOSED_FRACTION = OptionCheck(lambda x: _is_number(x) and 0 <= x <= 1, "a number in [0, 1]")


def _one_of(*values: Any) -> OptionCheck:
    expected = " or ".join(map(repr, values))
    # 1 == True: of equal values only those of the same type count. No generator: Ctrl-C would leave
    # it unfinished, of which Python warns.
    known = [(type(value), value) for value in values]
    return OptionCheck(lambda x: (type(x), x) in known, expected)


OPTION_CHECKS = {
    "lr": _SCHEDULED._replace(expected="a finite number ≥ 0 or a tensor of one such number"),
    "betas": _FRACTION._replace(expected="two numbers in [0, 1)"),
    "eps": _AMOUNT,
    "weight_decay": _SCHEDULED,
    # It selects the rule, so no step may find another one in a tensor.
    "momentum": _CLOSED_FRACTION._replace(in_a_run=_AMOUNT._replace(is_live=False)),
    "dampening": _CLOSED_FRACTION._replace(is_live=True),
    "alpha": _FRACTION,
    "switch_rate": _CLOSED_FRACTION,
    "switch": OptionCheck(
        lambda x: _is_number(x) and 0 < x <= 1, "a number in (0, 1]", in_groups=False
    ),
    "total_steps": OptionCheck(
        lambda x: x is None or (_is_count(x) and 1 <= x <= 2**53),
        "an integer from 1 to 2**53 or None",
        in_groups=False,
    ),
    "integration_order": _one_of(1, 2, 3),
    "integration_rate": _FRACTION,
    "kappa": _AMOUNT._replace(is_live=False),
    "capacity": OptionCheck(_is_count, "an integer ≥ 0"),
    "priority_decay": OptionCheck(lambda x: _is_number(x) and 0 < x <= 1, "a number in (0, 1]"),
    "scope": _one_of(*get_args(Scope)),
    "replacement": _one_of(*get_args(Replacement)),
    "variant": _one_of(*get_args(Variant)),
    "aggregation": _one_of(*get_args(Aggregation)),
    # SAM itself checks the sign of what a group has: along the momentum ρ may be negative.
    "rho": _AMOUNT._replace(is_live=False, in_a_run=_NUMBER._replace(is_live=False)),
    "direction": _one_of(*get_args(Direction)),
    "metric": _one_of(*get_args(Metric)),
    "start": OptionCheck(_is_fraction, "a number in [0, 1)", in_groups=False),
    "adaptive": _FLAG,
    "required": _FLAG,
    "scale_free": _FLAG,
    "amsgrad": _FLAG,
    "centered": _FLAG,
    "maximize": _FLAG,
    "capturable": _FLAG,
    "differentiable": _FLAG,
    "fused": _one_of(None, True, False),
    "state_dtype": _one_of(None, torch.bfloat16, "bfloat16", "int8"),
    "param_error": _one_of(None, "int8"),
}


def arguments(names: dict[str, Any]) -> dict[str, Any]:
    """Return the options among a constructor's ``locals()``: they become the groups' defaults."""
    return {k: v for k, v in names.items() if k not in ("self", "params", "__class__")}


def to_plain(value: Any, name: str = "") -> Any:
    """Turn an option's value into one that engines read and every kind of checkpoint can hold.

    NumPy's scalars and arrays of one number, as parameter sweeps and schedules produce them, become
    Python's numbers: ``torch.load`` with ``weights_only`` refuses them. ``torch.bfloat16`` becomes
    its name: torch's distributed checkpoints refuse a ``torch.dtype`` when they gather state or
    bring it to the host. Of ``betas``, every sequence becomes a tuple: a list of a configuration
    file, an array, a tensor. Tensors of one number stay, as options that may change in place.
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1):
        found = value.item()
        # Of a longdouble it is one again.
        return float(found) if isinstance(found, np.floating) else found
    if value is torch.bfloat16:
        return "bfloat16"
    if name == "betas" and _is_sequence(value):
        # A tensor of one number may have dimensions, as in torch.optim.
        return tuple(
            x.reshape(()) if isinstance(x, Tensor) and x.numel() == 1 else x
            for x in map(to_plain, value)
        )
    return value


def _is_sequence(value: Any) -> bool:
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim == 1 and len(value) > 1
    # By what it can do: the lists of configuration files need not be registered as sequences.
    is_indexed = hasattr(type(value), "__len__") and hasattr(type(value), "__getitem__")
    return is_indexed and not isinstance(value, str | bytes | Mapping)


def is_live(name: str) -> bool:
    """Whether every step reads an option anew, so that it selects no rule and no layout."""
    return name in OPTION_CHECKS and OPTION_CHECKS[name].is_live


def check_options(options: Mapping[str, Any], *, in_a_run: bool = False, where: str = "") -> None:
    """Refuse option values that are out of range, or that contradict each other.

    Options without a check here, such as those of another library's optimizer, pass.

    Parameters
    ----------
    options
        Values by their names.
    in_a_run
        Whether they are those of a run, of a step or a checkpoint, and not of a constructor. The
        numbers in tensors are not read then: that would wait for their device.
    where
        Says in the message whose options they are.

    Raises
    ------
    ValueError
        The message names the argument, its value and what is expected.
    """
    for name, value in options.items():
        check = OPTION_CHECKS.get(name)
        if check is None:
            continue
        if in_a_run and check.in_a_run is not None:
            check = check.in_a_run
        if not _accepts(check, name, value, reads=not in_a_run):
            raise ValueError(f"{name}={value!r} is not valid{where}: expected {check.expected}")
    eps = options.get("eps")
    if options.get("scale_free") and not isinstance(eps, Tensor) and eps == 0:
        raise ValueError(f"eps=0 is not valid with scale_free=True{where}: expected a number > 0")
    if not options.get("differentiable"):
        return
    for name in ("state_dtype", "param_error"):
        if options.get(name) is not None:
            raise ValueError(
                f"{name}={options[name]!r} is not valid with differentiable=True{where}: "
                f"gradients cannot flow through rounded numbers; expected {name}=None"
            )


def _accepts(check: OptionCheck, name: str, value: Any, *, reads: bool) -> bool:
    if name == "betas":
        if not isinstance(value, tuple | list) or len(value) != 2:
            return False
        return all(_accepts(check, "beta", each, reads=reads) for each in value)
    if not isinstance(value, Tensor) or not check.is_live:
        return check.accepts(value)
    if value.numel() != 1 or value.is_complex() or value.dtype == torch.bool:
        return False
    # On the meta device, where footprint puts parameters, a tensor has no value to check.
    return not reads or value.is_meta or check.accepts(value.item())


def class_defaults(optimizer: type) -> dict[str, Any]:
    """Return the defaults in the constructor of an optimizer's class, by the options' names.

    They are those of the options that groups have. None is left out where the option does not take
    it: the constructor finds the value then.
    """
    found = {}
    for each in reversed(optimizer.__mro__):
        if isfunction(constructor := vars(each).get("__init__")):
            for parameter in signature(constructor).parameters.values():
                check = OPTION_CHECKS.get(parameter.name)
                if check is None or not check.in_groups or parameter.default is Parameter.empty:
                    continue
                if parameter.default is not None or check.accepts(None):
                    found[parameter.name] = parameter.default
    return found
