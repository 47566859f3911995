"""Build optimizers from names of the command line: ``dualadam``, ``adamw+sam``, ``pkg.mod:Cls``.

``steppe compare``, ``steppe play`` and the figures build all optimizers with it.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

import steppe
from steppe._shared.hyperparameters import Settings
from steppe._shared.names import unknown_name_message
from steppe._shared.optimizer_presets import find_optimizer
from steppe._shared.source_hash import class_source

#: The optimizers that are compared unless others are named; the first is the baseline.
DEFAULT = ("adamw", "dualadam", "adamcm", "adamw+sam")

_MODIFIERS = ("warmup", "2lr", "sam")

# Names that classes have for the choice between decoupled weight decay and L2.
_DECOUPLING = ("decoupled_weight_decay", "weight_decouple")


@dataclass(frozen=True)
class Recipe:
    """An optimizer's class and the arguments that its name fixes; hyperparameters come later.

    Attributes
    ----------
    name : str
        The name in canonical spelling: lower case, modifiers in the order warmup, 2lr, sam.
    cls : type
        The optimizer's class.
    preset : mapping
        Arguments that the name fixes.
    warmup : bool
        Whether lr rises linearly over the first part of the run, as Adam's share in DualAdam does.
    doubled : bool
        Whether it is the control of a critical-momenta optimizer, at twice that optimizer's lr.
    sam : bool
        Whether the optimizer is wrapped in SAM.
    source : str
        Hash of the source of the class and its bases, without those of torch and steppe.
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
        """Whether the optimizer switches as DualAdam does, so that a study adds its control."""
        return self.accepts("switch_rate")

    def accepts(self, argument: str) -> bool:
        """Return whether the class takes this argument."""
        return argument in inspect.signature(self.cls).parameters

    def takes(self, setting: str) -> bool:
        """Return whether this optimizer has the hyperparameter."""
        if setting == "switch":
            return self.switches or self.warmup
        return self.sam if setting == "rho" else self.accepts(setting)

    def default(self, argument: str) -> Any:
        """Return the default of an argument by the name, else by the signature, else None."""
        found = inspect.signature(self.cls).parameters[argument].default
        return self.preset.get(argument, None if found is inspect.Parameter.empty else found)

    def arguments(self, settings: Settings, steps: int) -> dict[str, Any]:
        """Return the keyword arguments for the class.

        Weight decay is decoupled wherever the class leaves the choice (torch's Adam, NAdam, RAdam),
        so that an equal value does the same everywhere.

        Parameters
        ----------
        settings : mapping
            Hyperparameters, of which those that the class does not take are ignored. "switch" is
            DualAdam's 1/ξ as a share of the run's steps.
        steps : int
            Number of steps of the whole run.
        """
        arguments = dict(self.preset)
        arguments |= {name: value for name, value in settings.items() if self.accepts(name)}
        arguments |= dict.fromkeys(filter(self.accepts, _DECOUPLING), True)
        if self.switches:
            arguments["switch_rate"] = min(1.0, 1 / (settings["switch"] * steps))
        return arguments

    def build(self, parameters: Iterable[Tensor], settings: Settings, steps: int) -> Optimizer:
        """Construct the optimizer over ``parameters``, in SAM if the name ends in ``+sam``."""
        optimizer = self.cls(parameters, **self.arguments(settings, steps))
        return steppe.SAM(optimizer, rho=settings["rho"]) if self.sam else optimizer

    def identity(self) -> dict[str, Any]:
        """Return all of the optimizer but hyperparameters that the numbers of a run depend on."""
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
    """Return the recipe that a name means.

    Parameters
    ----------
    name : str
        A class of steppe or torch.optim in any case, a preset, or ``package.module:Class``; then
        any of ``+warmup``, ``+2lr`` and ``+sam``.

    Raises
    ------
    ValueError
        There is no such optimizer or modifier, and the message lists the names; or the class
        cannot be imported.

    Examples
    --------
    >>> recipe = find_recipe("AdamW+warmup")
    >>> recipe.name, recipe.cls.__name__, recipe.warmup, recipe.sam
    ('adamw+warmup', 'AdamW', True, False)
    """
    base, *modifiers = name.strip().split("+")
    for modifier in modifiers:
        if modifier.lower() not in _MODIFIERS:
            raise ValueError(unknown_name_message(f"modifier of {base}", modifier, _MODIFIERS))
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
        # Hashed now, as the file may be edited while the study runs.
        source=class_source(cls, module),
    )


def _text(value: object) -> str:
    """Return a value's repr without addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
