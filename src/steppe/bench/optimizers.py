"""The optimizers that are measured, found by name, and the baseline that they are held against."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from steppe._shared.optimizer_modes import switch_mode
from steppe._shared.optimizer_presets import PRESETS, TIMING_PRESETS, find_optimizer


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
        Keyword arguments for the class; other options have the class's defaults.
    """

    name: str
    cls: type[Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, parameters: Iterable[Parameter]) -> Optimizer:
        """Construct the optimizer over ``parameters``, ready for steps."""
        optimizer = self.cls(parameters, **self.options)
        switch_mode(optimizer, "train")
        return optimizer


#: The optimizer that every other is measured against.
BASELINE = MeasuredOptimizer("adamw-fused", torch.optim.AdamW, {"fused": True})

# One of each path through steppe's kernels; pytorch_optimizer's DualAdam comes last.
_DEFAULT_NAMES = (
    BASELINE.name,
    "adamw-foreach",
    "adamw-for-loop",
    "dualadam",
    "dualadam-switched",
    "dualadam-scale-free",
    "dualadam-bf16",
    "dualadam-int8",
    "invadam",
    "adamcm-keeping",
    "adamcm-replacing",
)
_OTHER_DUALADAM = "pytorch_optimizer:DualAdam"


def default_names() -> tuple[str, ...]:
    """Return the names of the optimizers that are measured unless others are asked for.

    The DualAdam of pytorch_optimizer is among them if that package is installed.
    """
    others = [_OTHER_DUALADAM] if find_spec("pytorch_optimizer") else []
    return (*_DEFAULT_NAMES, *others)


def find_measured(name: str) -> MeasuredOptimizer:
    """Return the optimizer of that name.

    Parameters
    ----------
    name : str
        A preset, a class of steppe or torch.optim in any case, or ``package.module:Class``; see
        :func:`steppe._shared.optimizer_presets.find_optimizer`. Presets for timing are allowed.

    Raises
    ------
    ValueError
        There is no such optimizer, and the message lists the names; or the class cannot be
        imported.

    Examples
    --------
    >>> find_measured("DualAdam-switched").options
    {'switch_rate': 1.0}
    """
    name = name.strip()
    cls, options = find_optimizer(name, {**PRESETS, **TIMING_PRESETS})
    return MeasuredOptimizer(name if ":" in name else name.lower(), cls, options)
