"""The optimizers that are measured, found by name, and the baseline that they are held against."""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch.optim import Optimizer

from steppe._shared.optimizer_modes import switch_mode
from steppe._shared.optimizer_presets import PRESETS, find_optimizer
from steppe.bench.presets import PEERS, TIMING_PRESETS, TimingPreset
from steppe.bench.shapes import Shape
from steppe.bench.workload import parameters


@dataclass(frozen=True)
class MeasuredOptimizer:
    """An optimizer's class, its options, and what it steps.

    Attributes
    ----------
    name : str
        The name in canonical spelling.
    cls : type
        The optimizer's class.
    options : mapping
        Keyword arguments for the class; other options have the class's defaults.
    dtype : torch.dtype
        Number format of the parameters.
    module_settings : mapping
        Settings that its package has for all optimizers, as ``package.module:attribute``.
    """

    name: str
    cls: type[Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    module_settings: Mapping[str, object] = field(default_factory=dict)

    def build(self, shapes: Iterable[Shape], device: torch.device) -> Optimizer:
        """Construct the optimizer over parameters of these shapes, ready for steps.

        Parameters
        ----------
        shapes : iterable of tuples
            Shapes of the parameters, which :func:`steppe.bench.workload.parameters` makes.
        device : torch.device
            The device that holds them.
        """
        for path, value in self.module_settings.items():
            module, _, attribute = path.partition(":")
            setattr(importlib.import_module(module), attribute, value)
        optimizer = self.cls(parameters(shapes, device, self.dtype), **self.options)
        switch_mode(optimizer, "train")
        return optimizer


#: The optimizer that every other is measured against.
BASELINE = MeasuredOptimizer("adamw-fused", torch.optim.AdamW, {"fused": True})

# One of each path through torch's and steppe's kernels; the peers come after them.
_DEFAULT_NAMES = (
    BASELINE.name,
    "adamw-foreach",
    "adamw-for-loop",
    "dualadam",
    "dualadam-switched",
    "dualadam-scale-free",
    "dualadam-bf16",
    "dualadam-int8",
    "dualadam-24bit",
    "invadam",
    "adamcm-keeping",
    "adamcm-replacing",
)


def default_names(device: torch.device) -> tuple[str, ...]:
    """Return the names of the optimizers that are measured unless others are asked for.

    The peers for the device are among them where their packages are installed.
    """
    peers = _peers(device).items()
    return (*_DEFAULT_NAMES, *(name for name, each in peers if _is_installed(each.package)))


def missing_packages(device: torch.device) -> tuple[str, ...]:
    """Return the packages of the device's peers that are not installed."""
    packages = dict.fromkeys(each.package for each in _peers(device).values())
    return tuple(package for package in packages if not _is_installed(package))


def find_measured(name: str) -> MeasuredOptimizer:
    """Return the optimizer of that name.

    Parameters
    ----------
    name : str
        A preset, a class of steppe or torch.optim in any case, or ``package.module:Class``; see
        :func:`steppe._shared.optimizer_presets.find_optimizer`. Those of
        :mod:`steppe.bench.presets` are allowed.

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
    timing = {key: (each.optimizer, each.options) for key, each in TIMING_PRESETS.items()}
    cls, options = find_optimizer(name, {**PRESETS, **timing})
    if ":" in name:
        return MeasuredOptimizer(name, cls, options)
    preset = TIMING_PRESETS.get(name.lower())
    if preset is None:
        return MeasuredOptimizer(name.lower(), cls, options)
    return MeasuredOptimizer(name.lower(), cls, options, preset.dtype, preset.module_settings)


def _peers(device: torch.device) -> dict[str, TimingPreset]:
    return {name: each for name, each in PEERS.items() if device.type in each.devices}


def _is_installed(package: str) -> bool:
    return find_spec(package) is not None
