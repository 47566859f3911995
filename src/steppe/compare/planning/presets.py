"""What the papers ran, so that their comparisons can be run again, and what is usual otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from steppe._shared.hyperparameters import PUBLISHED_SWITCH, Settings
from steppe._shared.names import look_up
from steppe._shared.recipes import DEFAULT, Recipe
from steppe.compare.planning.search_spaces import (
    Choice,
    Range,
    find_defaults,
    find_space,
)
from steppe.compare.records.choices import Precision, Schedule
from steppe.compare.records.task_modifiers import base_of


@dataclass(frozen=True)
class Preset:
    """What a study is unless its user says otherwise.

    Attributes
    ----------
    task : str
        What is trained.
    small_task : str
        The same at ``--scale small``.
    optimizers : tuple of str
        The first is the baseline.
    budget, trials : int
        k and N: verdicts are on the best of k trials, estimated from N trials of each optimizer.
    model, epochs, batch_size : str, int, int or None
        At full scale; None leaves the task's own.
    schedule : str
        Of lr.
    precision : str
        Of autocast; fp16 only where there is an accelerator.
    everybody : mapping
        Hyperparameters that are fixed for all that have them.
    each : mapping
        The same by optimizer; it comes before ``everybody``.
    switch_rate : float or None
        DualAdam's ξ at full scale; None leaves the switch after a share of the run.
    spaces : mapping
        What is searched instead of the declared space, by the name of the hyperparameter.
    searched : tuple of str or None
        Hyperparameters that are searched at all, the others staying at their defaults; None is all.
    """

    task: str = "digits"
    small_task: str = "digits"
    optimizers: tuple[str, ...] = DEFAULT
    budget: int = 4
    trials: int = 24
    model: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    schedule: Schedule = "cosine"
    precision: Precision = "no"
    everybody: Settings = field(default_factory=dict)
    each: Mapping[str, Settings] = field(default_factory=dict)
    switch_rate: float | None = None
    spaces: Mapping[str, Range | Choice] = field(default_factory=dict)
    searched: tuple[str, ...] | None = None

    def task_at(self, scale: str) -> str:
        """Name the task of a scale."""
        return self.small_task if scale == "small" else self.task

    def model_for(self, task: str, scale: str) -> str | None:
        """Name the model that is published for a task; of another it may be of no use."""
        return self.model if scale == "full" and base_of(task) == self.task else None

    def training_at(self, scale: str) -> tuple[int | None, int | None]:
        """Give epochs and batch size: the preset's are those of full scale."""
        return (self.epochs, self.batch_size) if scale == "full" else (None, None)

    def precision_on(self, device: str) -> Precision:
        """Give the precision on a device."""
        return "no" if device == "cpu" and self.precision == "fp16" else self.precision

    def fixed_for(self, recipe: Recipe, scale: str, steps: int) -> dict[str, float]:
        """Give the hyperparameters that are fixed for an optimizer, in a run of so many steps."""
        fixed = {**self.everybody, **self.each.get(recipe.name, {})}
        if self.switch_rate is not None:
            full = scale == "full"
            fixed["switch"] = 1 / (self.switch_rate * steps) if full else PUBLISHED_SWITCH
        return fixed

    def space_for(self, recipe: Recipe, fixed: Settings) -> dict[str, Range | Choice]:
        """Declare what is searched for an optimizer."""
        free = self._free(recipe, fixed)
        chosen = free if self.searched is None else self.searched
        return {name: space for name, space in free.items() if name in chosen}

    def defaults_for(self, recipe: Recipe, fixed: Settings) -> dict[str, float]:
        """Give the values that a user gets who tunes nothing, of what is not fixed."""
        return find_defaults(recipe, self._free(recipe, fixed))

    def _free(self, recipe: Recipe, fixed: Settings) -> dict[str, Range | Choice]:
        declared = find_space(recipe, fixed)
        others = {name: space for name, space in self.spaces.items() if recipe.takes(name)}
        return {name: each for name, each in {**declared, **others}.items() if name not in fixed}


USUAL = Preset()

# One lr for all that is searched: with few trials, more knobs would be left to chance.
_FINETUNE = Preset(
    task="finetune",
    small_task="finetune",
    optimizers=("adamw", "dualadam"),
    precision="bf16",
    everybody={"weight_decay": 0.01},
    spaces={"lr": Range(1e-5, 1e-2, log=True)},
    searched=("lr",),
)
# Small recurrent networks learn fastest at three to ten times the usual lr.
_LANGUAGE = Preset(task="ptb", small_task="shakespeare", spaces={"lr": Range(1e-4, 1e-1, log=True)})
_ONLINE = Preset(task="5-dataset", small_task="split-mnist", schedule="constant")

# What is usual for a task, if it is not the same as for most.
_USUAL = {
    "shakespeare": _LANGUAGE,
    "ptb": _LANGUAGE,
    "wikitext2": _LANGUAGE,
    "finetune": _FINETUNE,
    "split-mnist": _ONLINE,
    "permuted-mnist": _ONLINE,
    "rotated-mnist": _ONLINE,
    "5-dataset": _ONLINE,
    "tiny-imagenet-stream": _ONLINE,
}

# arXiv 2603.07122, at the weight decay that DualAdam has there.
_DUALADAM = Preset(
    task="cifar10",
    small_task="fashion-mnist",
    optimizers=("adamw", "adam", "radam", "nadam", "dualadam"),
    # Nothing is searched: trials differ by their seeds.
    budget=1,
    trials=5,
    epochs=200,
    batch_size=128,
    schedule="cosine-epochs",
    precision="fp16",
    everybody={"lr": 1e-2, "weight_decay": 0.0, "momentum_decay": 4e-3},
    switch_rate=8e-5,
)

# arXiv 2307.09638.
_CRITICAL_MOMENTA = Preset(
    task="cifar10",
    small_task="fashion-mnist",
    optimizers=("adam", "adamcg", "adam+sam", "adamcm", "adamcm+sam"),
    schedule="constant",
    everybody={"weight_decay": 0.0},
    spaces={"capacity": Choice((5, 10, 20)), "priority_decay": Choice((0.7, 0.99))},
)

PRESETS: Mapping[str, Preset] = {
    "dualadam": _DUALADAM,
    # The released code's own weight decays, which are not the same for all.
    "dualadam-authors": replace(
        _DUALADAM, each={"adamw": {"weight_decay": 1e-2}, "radam": {"weight_decay": 1e-2}}
    ),
    "dualadam-finetune": _FINETUNE,
    "critical-momenta": _CRITICAL_MOMENTA,
    "critical-momenta-language": replace(
        _CRITICAL_MOMENTA, task="ptb", small_task="shakespeare", model="lstm-200"
    ),
    "critical-momenta-online": replace(
        _CRITICAL_MOMENTA, task="5-dataset", small_task="split-mnist"
    ),
}


def usual_for(task: str) -> Preset:
    """Give what is usual for a task: what a study of it is if its user names no preset.

    Modifiers do not change it.

    Examples
    --------
    >>> usual_for("split-mnist").schedule, usual_for("digits").schedule
    ('constant', 'cosine')
    """
    return _USUAL.get(base_of(task), USUAL)


def find_preset(name: str) -> Preset:
    """Find the preset of that name.

    Raises
    ------
    ValueError
        If there is none; the message lists those there are.

    Examples
    --------
    >>> find_preset("dualadam").optimizers[-1]
    'dualadam'
    """
    return look_up("preset", name, PRESETS)
