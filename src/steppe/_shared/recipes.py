"""From a name on the command line to an optimizer: ``dualadam``, ``adamw+sam``, ``pkg.mod:Cls``."""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

import steppe
from steppe._shared.hyperparameters import Settings
from steppe._shared.names import unknown
from steppe._shared.optimizer_presets import find_optimizer
from steppe._shared.source_hash import class_source

DEFAULT = ("adamw", "dualadam", "adamcm", "adamw+sam")

_MODIFIERS = ("warmup", "2lr", "sam")

# What classes call the choice between decoupled weight decay and L2.
_DECOUPLING = ("decoupled_weight_decay", "weight_decouple")


@dataclass(frozen=True)
class Recipe:
    """An optimizer's class and what its name fixes, before its hyperparameters are known.

    Attributes
    ----------
    name : str
        The name in canonical spelling: lower case, modifiers in the order warmup, 2lr, sam.
    cls : type
        The optimizer's class.
    preset : mapping
        Arguments that the name stands for.
    warmup : bool
        Whether lr rises linearly over the first part of the run, as Adam's share in DualAdam does.
    doubled : bool
        Whether it is the control of a critical-momenta optimizer: at twice that one's lr.
    sam : bool
        Whether SAM goes around it.
    source : str
        Hash of the class's source, torch's and steppe's left out.
    """

    name: str
    cls: type[Optimizer]
    preset: Mapping[str, Any] = field(default_factory=dict)
    warmup: bool = False
    doubled: bool = False
    sam: bool = False
    source: str = ""

    @property
    def switches(self) -> bool:
        """Whether the optimizer switches as DualAdam does, so that it needs the control."""
        return self.accepts("switch_rate")

    def accepts(self, argument: str) -> bool:
        """Whether the class takes this argument."""
        return argument in inspect.signature(self.cls).parameters

    def takes(self, setting: str) -> bool:
        """Whether a hyperparameter is one of this optimizer's."""
        if setting == "switch":
            return self.switches or self.warmup
        return self.sam if setting == "rho" else self.accepts(setting)

    def default(self, argument: str) -> Any:
        """Give what the name, or else the signature, sets the argument to; None if nothing."""
        found = inspect.signature(self.cls).parameters[argument].default
        return self.preset.get(argument, None if found is inspect.Parameter.empty else found)

    def arguments(self, settings: Settings, steps: int) -> dict[str, Any]:
        """Keyword arguments for the class.

        Weight decay is decoupled wherever the class leaves the choice (torch's Adam, NAdam, RAdam),
        so that an equal value does the same everywhere.

        Parameters
        ----------
        settings : mapping
            Hyperparameters, see :mod:`steppe.compare.planning.search_spaces`.
            "switch" is DualAdam's 1/ξ as a share of the run's steps.
        steps : int
            Of the whole run.
        """
        arguments = dict(self.preset)
        arguments |= {name: value for name, value in settings.items() if self.accepts(name)}
        arguments |= dict.fromkeys(filter(self.accepts, _DECOUPLING), True)
        if self.switches:
            arguments["switch_rate"] = min(1.0, 1 / (settings["switch"] * steps))
        return arguments

    def build(self, parameters: Iterable[Tensor], settings: Settings, steps: int) -> Optimizer:
        """Construct the optimizer over ``parameters``, inside SAM if the name says so."""
        optimizer = self.cls(parameters, **self.arguments(settings, steps))
        return steppe.SAM(optimizer, rho=settings["rho"]) if self.sam else optimizer

    def identity(self) -> dict[str, Any]:
        """Everything about the optimizer, hyperparameters apart, that a run's numbers depend on."""
        accepted = inspect.signature(self.cls).parameters.values()
        defaults = {p.name: p.default for p in accepted if p.default is not p.empty}
        arguments = {**defaults, **self.preset}
        return {
            "class": f"{self.cls.__module__}:{self.cls.__qualname__}",
            "source": self.source,
            "arguments": {name: _text(value) for name, value in arguments.items()},
            "warmup": self.warmup,
            "sam": self.sam,
        }


def find_recipe(name: str) -> Recipe:
    """Read one name.

    Parameters
    ----------
    name : str
        A class of steppe or torch.optim in any case, a preset, or ``package.module:Class``; then
        any of ``+warmup``, ``+2lr`` and ``+sam``.

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
    if base.lower() == "sam":
        raise ValueError("sam goes around another optimizer: write adamw+sam")
    cls, preset = find_optimizer(base)
    module = base.partition(":")[0] if ":" in base else cls.__module__
    return Recipe(
        name="+".join((base if ":" in base else base.lower(), *chosen)),
        cls=cls,
        preset=preset,
        warmup="warmup" in chosen,
        doubled="2lr" in chosen,
        sam="sam" in chosen,
        # Now, while the file is what was imported: it may be edited while the study runs.
        source=class_source(cls, module),
    )


def _text(value: object) -> str:
    """Write a value without the address that an object has in this process only."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
