"""From a name on the command line to an optimizer: ``dualadam``, ``adamw+sam``, ``pkg.mod:Cls``."""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import steppe
from steppe.commands.classes import available, imported
from steppe.commands.wording import unknown
from steppe.compare.sources import class_source

DEFAULT = ("adamw", "adam+warmup", "dualadam", "adamcm", "adamw+sam")

_MODIFIERS = ("warmup", "sam")

_PRESETS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "adamcm-authors": ("adamcm", {"variant": "authors"}),
    "adamcm-bf16": ("adamcm", {"state_dtype": torch.bfloat16}),
    "adamcm-int8": ("adamcm", {"state_dtype": "int8"}),
    "dualadam-bf16": ("dualadam", {"state_dtype": torch.bfloat16}),
    "dualadam-int8": ("dualadam", {"state_dtype": "int8"}),
    "dualadam-scale-free": ("dualadam", {"scale_free": True}),
    "sgd-momentum": ("sgd", {"momentum": 0.9}),
}


@dataclass(frozen=True)
class Recipe:
    """An optimizer's class and how to set it up, before lr and switch rate are known.

    Attributes
    ----------
    name : str
        The name in canonical spelling: lower case, modifiers in the order warmup, sam.
    cls : type
        The optimizer's class.
    preset : mapping
        Arguments that the name stands for.
    warmup : bool
        Whether lr rises linearly over the first 1/switch_rate steps.
    sam : bool
        Whether SAM goes around it.
    source : str
        Hash of the class's source, torch's and steppe's left out.
    """

    name: str
    cls: type[Optimizer]
    preset: Mapping[str, Any] = field(default_factory=dict)
    warmup: bool = False
    sam: bool = False
    source: str = ""

    @property
    def switches(self) -> bool:
        """Whether the optimizer switches as DualAdam does, so that it needs the control."""
        return "switch_rate" in inspect.signature(self.cls).parameters

    def arguments(self, lr: float | None, switch_rate: float) -> dict[str, Any]:
        """Keyword arguments for the class: weight decay 0 for everybody, everything else its own.

        Parameters
        ----------
        lr : float or None
            None means the signature's default.
        switch_rate : float
            Taken by optimizers that switch, ignored by others.

        Raises
        ------
        ValueError
            If lr is None and the class has no default, or lr is given and it takes none.
        """
        accepted = inspect.signature(self.cls).parameters
        arguments = dict(self.preset)
        if lr is not None and "lr" not in accepted:
            raise ValueError(f"{self.name} takes no lr: leave --lr out")
        if "lr" in accepted:
            arguments["lr"] = accepted["lr"].default if lr is None else lr
            if arguments["lr"] is inspect.Parameter.empty:
                raise ValueError(f"{self.name} has no default lr: give one with --lr")
        if "weight_decay" in accepted:
            arguments["weight_decay"] = 0.0
        if self.switches:
            arguments["switch_rate"] = switch_rate
        return arguments

    def build(
        self, parameters: Iterable[Tensor], lr: float | None, switch_rate: float
    ) -> Optimizer:
        """Construct the optimizer over ``parameters``, inside SAM if the name says so."""
        optimizer = self.cls(parameters, **self.arguments(lr, switch_rate))
        return steppe.SAM(optimizer) if self.sam else optimizer

    def schedule(self, optimizer: Optimizer, switch_rate: float) -> LambdaLR | None:
        """Make the learning rate's warm-up, if the name says so.

        Step t (from 1) has the factor min(1, switch_rate·t), as Adam's part has in DualAdam.
        """
        if not self.warmup:
            return None
        return LambdaLR(optimizer, lambda done: min(1.0, switch_rate * (done + 1)))

    def settings(self, lr: float | None, switch_rate: float) -> dict[str, Any]:
        """Everything about the optimizer that a run's numbers depend on."""
        accepted = inspect.signature(self.cls).parameters.values()
        defaults = {p.name: p.default for p in accepted if p.default is not p.empty}
        arguments = {**defaults, **self.arguments(lr, switch_rate)}
        return {
            "class": f"{self.cls.__module__}:{self.cls.__qualname__}",
            "source": self.source,
            "arguments": {name: _text(value) for name, value in arguments.items()},
            "warmup": switch_rate if self.warmup else None,
            "sam": self.sam,
        }


def find_recipe(name: str) -> Recipe:
    """Read one name.

    Parameters
    ----------
    name : str
        A class of steppe or torch.optim in any case, a preset, or ``package.module:Class``; then
        any of ``+warmup`` and ``+sam``.

    Raises
    ------
    ValueError
        If there is no such optimizer or modifier; the message lists those there are.

    Examples
    --------
    >>> recipe = find_recipe("AdamW+warmup")
    >>> recipe.name, recipe.cls.__name__, recipe.warmup, recipe.sam
    ('adamw+warmup', 'AdamW', True, False)
    """
    base, *modifiers = name.strip().split("+")
    for modifier in modifiers:
        if modifier.lower() not in _MODIFIERS:
            raise ValueError(unknown(f"modifier of {base}", modifier, _MODIFIERS))
    chosen = [known for known in _MODIFIERS if known in map(str.lower, modifiers)]
    cls, preset = (imported(base), {}) if ":" in base else _named(base)
    module = base.partition(":")[0] if ":" in base else cls.__module__
    return Recipe(
        name="+".join((base if ":" in base else base.lower(), *chosen)),
        cls=cls,
        preset=preset,
        warmup="warmup" in chosen,
        sam="sam" in chosen,
        # Now, while the file is what was imported: it may be edited while the study runs.
        source=class_source(cls, module),
    )


def _named(name: str) -> tuple[type[Optimizer], Mapping[str, Any]]:
    classes = available()
    base, preset = _PRESETS.get(name.lower(), (name.lower(), {}))
    if base == "sam":
        raise ValueError("sam goes around another optimizer: write adamw+sam")
    if base not in classes:
        message = unknown("optimizer", name.lower(), {*classes, *_PRESETS})
        raise ValueError(f"{message}, or package.module:Class; each also with +sam or +warmup")
    return classes[base], preset


def _text(value: object) -> str:
    """Write a value without the address that an object has in this process only."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
