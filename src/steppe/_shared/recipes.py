"""Build optimizers from names of the command line: ``dualadam``, ``adamw+sam``, ``pkg.mod:Cls``.

``steppe compare``, ``steppe play`` and the figures build all optimizers with it.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

import steppe
from steppe._shared.contender import Contender
from steppe._shared.hyperparameters import Settings
from steppe._shared.names import unknown_name_message
from steppe._shared.optimizer_classes import imported_attribute
from steppe._shared.optimizer_presets import find_optimizer
from steppe._shared.source_hash import class_source, first_source

#: The optimizers that are compared unless others are named; the first is the baseline.
DEFAULT = ("adamw", "dualadam", "adamcm", "adamw+sam")

#: SAM's family by the names of modifiers: what they give to :class:`steppe.SAM`.
SAMS: dict[str, dict[str, Any]] = {
    "sam": {},
    "asam": {"metric": "adaptive"},
    "psam": {"metric": "preconditioned"},
    "msam": {"direction": "momentum"},
    "random": {"direction": "random"},
    "latesam": {"start": 0.8},
}

_MODIFIERS = ("warmup", "beta1", "2epochs", "ema", *SAMS)

# Arguments of classes that hold the first moment's decay: in betas it is the first.
_FIRST_MOMENT = ("betas", "momentum")

# Schedule-Free's linear warm-up, as a share of the run's steps: that of its authors' submission to
# AlgoPerf, which comes with the package.
_SCHEDULE_FREE_WARMUP = 0.02

# Names that classes have for the choice between decoupled weight decay and L2.
_DECOUPLING = ("decoupled_weight_decay", "weight_decouple")


@dataclass(frozen=True)
class Recipe:
    """An optimizer's class and the arguments that its name fixes; hyperparameters come later.

    Attributes
    ----------
    name : str
        The name in canonical spelling: lower case, modifiers in the order warmup, beta1, 2epochs,
        ema, and that of SAM's family.
    cls : type
        The optimizer's class.
    preset : mapping
        Arguments that the name fixes.
    warmup : bool
        Whether lr rises linearly over the first part of the run, as Adam's share in DualAdam does.
    beta1 : bool
        Whether the first moment's decay is a hyperparameter, "beta1": the first of ``betas``, or
        ``momentum``.
    epochs : int
        Factor on the run's length: 2 for the equal-compute control of two-pass methods, else 1.
    ema : bool
        Whether an exponential moving average of the weights is evaluated and saved instead of them.
    sam : str
        Which of SAM's family the optimizer is wrapped in: "sam", "asam", …; "" if in none.
    source : str
        Hash of the source of the class and its bases, without those of torch and steppe.
    """

    name: str
    cls: type[Optimizer]
    preset: Mapping[str, Any] = field(default_factory=dict)
    warmup: bool = False
    beta1: bool = False
    epochs: int = 1
    ema: bool = False
    sam: str = ""
    source: str = ""

    @property
    def switches(self) -> bool:
        """Whether the optimizer switches as DualAdam does, so that a study adds its control."""
        return self.accepts("switch_rate")

    @property
    def schedule_free(self) -> bool:
        """Whether lr stays constant under it, whatever the study's schedule and warm-up are."""
        return self.cls.__module__.partition(".")[0] == "schedulefree"

    @property
    def first_moment(self) -> str:
        """The argument that holds the first moment's decay: betas or momentum; "" if none does."""
        held = (
            name for name in _FIRST_MOMENT if self.accepts(name) and self.default(name) is not None
        )
        return next(held, "")

    def accepts(self, argument: str) -> bool:
        """Return whether the class takes this argument."""
        return argument in inspect.signature(self.cls).parameters

    def takes(self, setting: str) -> bool:
        """Return whether this optimizer has the hyperparameter."""
        if setting == "switch":
            return self.switches or self.warmup
        if setting == "beta1":
            return self.beta1
        return bool(self.sam) if setting == "rho" else self.accepts(setting)

    def default(self, argument: str) -> Any:
        """Return the default of an argument by the name, else by the signature, else None.

        That of "beta1" is the first moment's decay, under whichever name the class has it; that of
        "rho", in SAM's family, the family's.
        """
        if argument == "rho" and self.sam:
            kind = {k: v for k, v in SAMS[self.sam].items() if k != "start"}
            return steppe.SAM.default_rho(**kind)
        if argument == "beta1":
            value = self.default(self.first_moment)
            return value[0] if self.first_moment == "betas" else value
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
            DualAdam's 1/ξ as a share of the run's steps; "beta1" counts with ``+beta1`` only.
        steps : int
            Number of steps of the whole run.
        """
        arguments = dict(self.preset)
        arguments |= {name: value for name, value in settings.items() if self.accepts(name)}
        arguments |= dict.fromkeys(filter(self.accepts, _DECOUPLING), True)
        if self.switches:
            arguments.pop("switch", None)
            arguments["switch_rate"] = min(1.0, 1 / (settings["switch"] * steps))
        if self.beta1 and "beta1" in settings:
            decay, others = settings["beta1"], self.default(self.first_moment)
            arguments |= {
                self.first_moment: (decay, *others[1:]) if self.first_moment == "betas" else decay
            }
        if self.schedule_free and self.accepts("warmup_steps"):
            arguments["warmup_steps"] = int(_SCHEDULE_FREE_WARMUP * steps)
        return arguments

    def build(self, parameters: Iterable[Tensor], settings: Settings, steps: int) -> Optimizer:
        """Construct the optimizer over ``parameters``, in SAM if the name ends so."""
        optimizer = self.cls(parameters, **self.arguments(settings, steps))
        if not self.sam:
            return optimizer
        kind = SAMS[self.sam]
        return steppe.SAM(optimizer, rho=settings["rho"], total_steps=steps, **kind)

    def build_for(self, model: nn.Module, settings: Settings, steps: int) -> Optimizer:
        """Construct the optimizer of a model's parameters that require a gradient."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return self.build(trained, settings, steps)

    @property
    def space(self) -> Mapping[str, Any] | None:
        """What is searched, where the optimizer itself says so."""
        return None

    @property
    def title(self) -> str:
        """The class, for readers."""
        return f"{self.cls.__module__.partition('.')[0]}.{self.cls.__qualname__}"

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
            "beta1": self.beta1,
            "epochs": self.epochs,
            "ema": self.ema,
            # As before there was a family.
            "sam": {"": False, "sam": True}.get(self.sam, self.sam),
        }


@dataclass(frozen=True)
class OwnRecipe(Recipe):
    """An optimizer that a :class:`~steppe.compare.Contender` makes.

    Attributes
    ----------
    contender : Contender
        It knows its settings, and what is searched.
    """

    contender: Contender = field(kw_only=True)

    @property
    def switches(self) -> bool:
        """Whether it is DualAdam: what it makes is its own affair."""
        return False

    @property
    def first_moment(self) -> str:
        """None that a study knows of."""
        return ""

    @property
    def space(self) -> Mapping[str, Any]:
        """What is searched."""
        return self.contender.space

    @property
    def title(self) -> str:
        """The function that makes it, for readers."""
        return getattr(self.contender.make, "__qualname__", type(self.contender.make).__name__)

    def accepts(self, argument: str) -> bool:
        """Return whether the function that makes it takes this argument."""
        return self.contender.takes(argument)

    def takes(self, setting: str) -> bool:
        """Return whether this optimizer has the hyperparameter."""
        return self.contender.takes(setting)

    def default(self, argument: str) -> Any:
        """Return the value of who tunes nothing."""
        return self.contender.default(argument)

    def build_for(self, model: nn.Module, settings: Settings, steps: int) -> Optimizer:
        """Construct the optimizer of a model's parameters."""
        return self.contender.build(model, settings, steps)

    def identity(self) -> dict[str, Any]:
        """Return what the numbers of a run depend on, besides hyperparameters."""
        space = {name: repr(dimension) for name, dimension in self.contender.space.items()}
        defaults = dict(self.contender.defaults)
        return {"own": self.title, "source": self.source, "space": space, "defaults": defaults}


# Contenders by their names, each hashed when it was first named: what it computes with may change
# while it trains, as counters do.
_OWN: dict[str, OwnRecipe] = {}


def content_of(contender: Contender) -> list[Any]:
    """Return what a contender computes with."""
    return [contender.make, contender.defaults]


def _own_recipe(name: str, contender: Contender) -> OwnRecipe:
    source = first_source(content_of(contender))
    return OwnRecipe(name, Optimizer, source=source, contender=contender)


def named(optimizer: str | Contender) -> str:
    """Return an optimizer's name, by which :func:`find_recipe` finds it in this process.

    Raises
    ------
    TypeError
        It is neither a name nor a contender.
    ValueError
        A contender has the name of another optimizer.
    """
    if isinstance(optimizer, str):
        return optimizer
    if not isinstance(optimizer, Contender):
        raise TypeError(
            f"optimizers must be names or Contender, got {optimizer!r}: "
            "make one, as Contender('mine', make)"
        )
    if "+" in optimizer.name or ":" in optimizer.name:
        raise ValueError(f"name={optimizer.name!r} must have neither + nor :, which mean modifiers")
    try:
        find_optimizer(optimizer.name)
    except ValueError:
        _OWN[optimizer.name] = _own_recipe(optimizer.name, optimizer)
        return optimizer.name
    raise ValueError(f"name={optimizer.name!r} is that of another optimizer: choose another one")


def _find_own(name: str) -> OwnRecipe | None:
    found = _OWN.get(name)
    if ":" not in name or "+" in name:
        return found
    contender: Any = imported_attribute(name)
    if not isinstance(contender, Contender):
        return None
    if found is None or found.contender is not contender:
        found = _OWN[name] = _own_recipe(name, contender)
    return found


def find_recipe(name: str) -> Recipe:
    """Return the recipe that a name means.

    Parameters
    ----------
    name : str
        A class of steppe or torch.optim in any case, a preset, ``package.module:Class`` or
        ``file.py:Class``, or a :class:`~steppe.compare.Contender` in the place of the class; then
        any of ``+warmup`` (lr rises linearly at first), ``+beta1`` (the first moment's decay is a
        hyperparameter too), ``+2epochs`` (twice the epochs: equal compute with two-pass methods),
        ``+ema`` (an average of the weights is evaluated), and one of SAM's family: ``+sam``,
        ``+asam`` (adaptive), ``+psam`` (preconditioned), ``+msam`` (along the momentum),
        ``+random`` or ``+latesam`` (in the last fifth of the run).

    Raises
    ------
    ValueError
        There is no such optimizer or modifier, and the message lists the names; the class cannot
        be imported; or it has neither betas nor momentum, and ``+beta1`` is asked for.

    Examples
    --------
    >>> recipe = find_recipe("AdamW+warmup")
    >>> recipe.name, recipe.cls.__name__, recipe.warmup, recipe.sam
    ('adamw+warmup', 'AdamW', True, '')
    """
    if (own := _find_own(name.strip())) is not None:
        return own
    base, *modifiers = name.strip().split("+")
    for modifier in modifiers:
        if modifier.lower() not in _MODIFIERS:
            raise ValueError(unknown_name_message(f"modifier of {base}", modifier, _MODIFIERS))
    chosen = [known for known in _MODIFIERS if known in map(str.lower, modifiers)]
    if base.lower() in SAMS:
        raise ValueError(f"{base} goes around another optimizer: write adamw+{base.lower()}")
    sams = [each for each in chosen if each in SAMS]
    if len(sams) > 1:
        raise ValueError(
            f"{name} has {len(sams)} of SAM's family: expected one of {', '.join(sams)}"
        )
    cls, preset = find_optimizer(base)
    module = base.partition(":")[0] if ":" in base else cls.__module__
    recipe = Recipe(
        name="+".join((base if ":" in base else base.lower(), *chosen)),
        cls=cls,
        preset=preset,
        warmup="warmup" in chosen,
        beta1="beta1" in chosen,
        epochs=2 if "2epochs" in chosen else 1,
        ema="ema" in chosen,
        sam=next(iter(sams), ""),
        # Hashed now, as the file may be edited while the study runs.
        source=class_source(cls, module),
    )
    if recipe.beta1 and not recipe.first_moment:
        raise ValueError(
            f"{recipe.name}: {cls.__qualname__} has neither betas nor momentum, so no first moment "
            "whose decay could be searched: leave +beta1 out"
        )
    return recipe


def _text(value: object) -> str:
    """Return a value's repr without addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
