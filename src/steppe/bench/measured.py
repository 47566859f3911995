"""From a name to an optimizer to be measured: ``adamw-fused``, ``dualadam-int8``, ``mod:Cls``."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

import steppe
from steppe._shared.names import unknown
from steppe._shared.optimizer_classes import available, imported


@dataclass(frozen=True)
class MeasuredOptimizer:
    """An optimizer's class and its options.

    Attributes
    ----------
    name : str
        The name in canonical spelling.
    cls : type
        The optimizer's class.
    options : mapping
        Keyword arguments; the rest is at the class's defaults.
    """

    name: str
    cls: type[Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, parameters: Iterable[Parameter]) -> Optimizer:
        """Construct the optimizer over ``parameters``."""
        return self.cls(parameters, **self.options)


#: What everything is measured against.
BASELINE = MeasuredOptimizer("adamw-fused", torch.optim.AdamW, {"fused": True})

# The gradients stay as they are. So with keys that do not decay no step has a priority strictly
# greater than those in a full buffer, and nothing is replaced.
_NAMED = (
    BASELINE,
    MeasuredOptimizer("adamw-foreach", torch.optim.AdamW, {"foreach": True}),
    MeasuredOptimizer("adamw-for-loop", torch.optim.AdamW, {"foreach": False}),
    MeasuredOptimizer("dualadam", steppe.DualAdam),
    MeasuredOptimizer("dualadam-switched", steppe.DualAdam, {"switch_rate": 1.0}),
    MeasuredOptimizer("dualadam-scale-free", steppe.DualAdam, {"scale_free": True}),
    MeasuredOptimizer("dualadam-bf16", steppe.DualAdam, {"state_dtype": torch.bfloat16}),
    MeasuredOptimizer("dualadam-int8", steppe.DualAdam, {"state_dtype": "int8"}),
    MeasuredOptimizer("invadam", steppe.InvAdam),
    MeasuredOptimizer("adamcm-keeping", steppe.AdamCM, {"priority_decay": 1.0}),
    MeasuredOptimizer("adamcm-replacing", steppe.AdamCM, {"replacement": "fifo"}),
)
_PRESETS = {contender.name: contender for contender in _NAMED}

_PEER = "pytorch_optimizer:DualAdam"


def default_names() -> tuple[str, ...]:
    """Return what is measured unless asked otherwise; pytorch_optimizer's if it is installed."""
    peers = [_PEER] if find_spec("pytorch_optimizer") else []
    return (*_PRESETS, *peers)


def find_measured(name: str) -> MeasuredOptimizer:
    """Read one name.

    Parameters
    ----------
    name : str
        One of :func:`default_names`, a class of steppe or torch.optim in any case, or
        ``package.module:Class``.

    Raises
    ------
    ValueError
        If there is no such optimizer; the message lists those there are.

    Examples
    --------
    >>> find_contender("DualAdam-switched").options
    {'switch_rate': 1.0}
    """
    name = name.strip()
    if ":" in name:
        return MeasuredOptimizer(name, imported(name))
    name = name.lower()
    if name in _PRESETS:
        return _PRESETS[name]
    classes = available()
    if name not in classes:
        raise ValueError(
            f"{unknown('optimizer', name, {*classes, *_PRESETS})}, or package.module:Class"
        )
    return MeasuredOptimizer(name, classes[name])
