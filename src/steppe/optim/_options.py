"""The range of every optimizer option, written once: what is accepted, and how errors put it.

Defaults stand in the constructors' signatures; docs/ and docstrings are tested against both.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

Scope = Literal["global", "tensor"]
Replacement = Literal["priority", "fifo"]
Variant = Literal["consistent", "authors"]
Aggregation = Literal["sum", "mean", "mid"]


class OptionCheck(NamedTuple):
    """Which values an option takes: as a test, and as the words of the error message."""

    accepts: Callable[[Any], bool]
    expected: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rate(value: Any) -> bool:
    if isinstance(value, Tensor):
        # On the meta device, where footprint puts parameters, a tensor has no value to check.
        if value.numel() != 1 or value.is_complex():
            return False
        return value.is_meta or 0 <= value.item() < math.inf
    return _is_number(value) and value >= 0


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_fraction, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_FLAG = OptionCheck(lambda x: isinstance(x, bool), "True or False")
_AMOUNT = OptionCheck(lambda x: _is_number(x) and x >= 0, "a finite number ≥ 0")
_FRACTION = OptionCheck(_is_fraction, "a number in [0, 1)")
_CLOSED_FRACTION = OptionCheck(lambda x: _is_number(x) and 0 <= x <= 1, "a number in [0, 1]")


def _one_of(*values: Any) -> OptionCheck:
    expected = " or ".join(map(repr, values))
    # 1 == True: of equal values only those of the same type count.
    return OptionCheck(lambda x: any(type(x) is type(y) and x == y for y in values), expected)


OPTION_CHECKS = {
    "lr": OptionCheck(_is_rate, "a finite number ≥ 0 or a tensor of one such number"),
    "betas": OptionCheck(_is_pair, "two numbers in [0, 1)"),
    "eps": _AMOUNT,
    "weight_decay": _AMOUNT,
    "momentum": _FRACTION,
    "dampening": _CLOSED_FRACTION,
    "alpha": _FRACTION,
    "switch_rate": _CLOSED_FRACTION,
    "kappa": _AMOUNT,
    "capacity": OptionCheck(_is_count, "an integer ≥ 0"),
    "priority_decay": OptionCheck(lambda x: _is_number(x) and 0 < x <= 1, "a number in (0, 1]"),
    "scope": _one_of(*get_args(Scope)),
    "replacement": _one_of(*get_args(Replacement)),
    "variant": _one_of(*get_args(Variant)),
    "aggregation": _one_of(*get_args(Aggregation)),
    "rho": _AMOUNT,
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
}


def to_plain(value: Any) -> Any:
    """Turn an option's value into one that every kind of checkpoint can hold.

    NumPy scalars, as parameter sweeps produce them, become Python's numbers: ``torch.load`` with
    ``weights_only`` refuses them. ``torch.bfloat16`` becomes its name: torch's distributed
    checkpoints refuse a ``torch.dtype`` when they gather state or bring it to the host.
    """
    if isinstance(value, np.generic):
        return value.item()
    if value is torch.bfloat16:
        return "bfloat16"
    if isinstance(value, tuple | list):
        return tuple(map(to_plain, value))
    return value


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse option values that are out of range, or that contradict each other.

    Options without a check here, such as those of another library's optimizer, pass.

    Raises
    ------
    ValueError
        The message names the argument, its value and what is expected.
    """
    for name, value in options.items():
        check = OPTION_CHECKS.get(name)
        if check is not None and not check.accepts(value):
            raise ValueError(f"{name}={value!r} is not valid: expected {check.expected}")
    if options.get("scale_free") and options["eps"] == 0:
        raise ValueError("eps=0 is not valid with scale_free=True: expected a number > 0")
    if options.get("differentiable") and options["state_dtype"] is not None:
        raise ValueError(
            f"state_dtype={options['state_dtype']!r} is not valid with differentiable=True: "
            "gradients cannot flow through rounded state; expected state_dtype=None"
        )
