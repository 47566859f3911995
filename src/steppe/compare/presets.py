"""What the papers ran, so that their comparisons can be run again, and what is usual otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from steppe.compare.optimizers import Recipe
from steppe.compare.results import Settings
from steppe.compare.run import Precision, Schedule
from steppe.compare.spaces import PUBLISHED_SWITCH, Choice, Range, find_space
from steppe.compare.tasks import Size, Task
from steppe.names import named


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
        The first is the baseline; empty leaves the task's own.
    budget : int or None
        Tuning trials; None leaves the task's own, likewise the following.
    epochs, batch_size : int or None
        At full scale.
    model : str or None
        Likewise at full scale.
    schedule : str or None
        Of lr.
    precision : str or None
        Of autocast, where there is an accelerator.
    everybody : mapping
        Hyperparameters that are fixed for all that have them.
    each : mapping
        The same by optimizer; it comes before ``everybody``.
    switch_rate : float or None
        DualAdam's ξ at full scale; None leaves the switch after a share of the run.
    spaces : mapping
        What is searched instead of the declared space, by the name of the hyperparameter.
    """

    task: str = "digits"
    small_task: str = "digits"
    optimizers: tuple[str, ...] = ()
    budget: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    model: str | None = None
    schedule: Schedule | None = None
    precision: Precision | None = None
    everybody: Settings = field(default_factory=dict)
    each: Mapping[str, Settings] = field(default_factory=dict)
    switch_rate: float | None = None
    spaces: Mapping[str, Range | Choice] = field(default_factory=dict)

    def task_at(self, scale: str) -> str:
        """Name the task of a scale."""
        return self.small_task if scale == "small" else self.task

    def size(self, task: Task, scale: str) -> Size:
        """Give the sizes of a task: the preset's are those of its own full scale."""
        if scale == "small":
            return task.small
        full = task.full
        return replace(
            full,
            model=self.model or full.model,
            epochs=self.epochs or full.epochs,
            batch_size=self.batch_size or full.batch_size,
        )

    def precision_for(self, task: Task, device: str) -> Precision:
        """Give the precision of a task on a device."""
        return (self.precision if device != "cpu" else None) or task.precision

    def fixed_for(self, recipe: Recipe, scale: str, steps: int) -> dict[str, float]:
        """Give the hyperparameters that are fixed for an optimizer, in a run of so many steps."""
        fixed = {**self.everybody, **self.each.get(recipe.name, {})}
        if self.switch_rate is not None:
            full = scale == "full"
            fixed["switch"] = 1 / (self.switch_rate * steps) if full else PUBLISHED_SWITCH
        return fixed

    def space_for(self, recipe: Recipe, fixed: Settings) -> dict[str, Range | Choice]:
        """Declare what is searched for an optimizer."""
        declared = find_space(recipe, fixed)
        others = {name: space for name, space in self.spaces.items() if recipe.takes(name)}
        return {name: each for name, each in {**declared, **others}.items() if name not in fixed}


USUAL = Preset()

# arXiv 2603.07122, at the weight decay that DualAdam has there.
_DUALADAM = Preset(
    task="cifar10",
    small_task="fashion-mnist",
    optimizers=("adamw", "adam", "radam", "nadam", "dualadam"),
    budget=0,
    epochs=200,
    batch_size=128,
    schedule="cosine-epochs",
    precision="fp16",
    everybody={"lr": 1e-2, "weight_decay": 0.0, "momentum_decay": 4e-3},
    switch_rate=8e-5,
)

PRESETS: Mapping[str, Preset] = {
    "dualadam": _DUALADAM,
    # The released code's own weight decays, which are not the same for all.
    "dualadam-authors": replace(
        _DUALADAM, each={"adamw": {"weight_decay": 1e-2}, "radam": {"weight_decay": 1e-2}}
    ),
    # arXiv 2307.09638.
    "critical-momenta": Preset(
        task="cifar10",
        small_task="fashion-mnist",
        optimizers=("adam", "adamcg", "adam+sam", "adamcm", "adamcm+sam"),
        schedule="constant",
        everybody={"weight_decay": 0.0},
        spaces={"capacity": Choice((5, 10, 20)), "priority_decay": Choice((0.7, 0.99))},
    ),
}


def find_preset(name: str | None) -> Preset:
    """Find the preset of that name; None is what is usual.

    Raises
    ------
    ValueError
        If there is none; the message lists those there are.

    Examples
    --------
    >>> find_preset("dualadam").optimizers[-1]
    'dualadam'
    """
    return USUAL if name is None else named("preset", name, PRESETS)
