"""A study: what is compared with what, and how; checked before anything is trained."""

import hashlib
import importlib
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

import steppe
from steppe._shared.devices import find_device
from steppe._shared.hyperparameters import Settings
from steppe._shared.messages import first_line
from steppe._shared.printable import printable
from steppe._shared.quiet_imports import quiet_imports
from steppe._shared.recipes import Recipe, find_recipe
from steppe._shared.source_hash import steppe_source
from steppe.compare.planning.controls import contenders_controlled_by, recipes_with_controls
from steppe.compare.planning.options import StudyOptions, check_where
from steppe.compare.planning.presets import Preset
from steppe.compare.planning.search_spaces import (
    Choice,
    Range,
    space_as_json,
    trial_settings,
    with_lr_decades,
)
from steppe.compare.planning.setup import plan_setup
from steppe.compare.records.best_of_k import MOST_TRIALS, TRIALS_PER_BUDGET
from steppe.compare.records.choices import CurvatureExtent, file_name
from steppe.compare.records.json_format import to_json
from steppe.compare.records.results import (
    POOL,
    RECOMMENDED,
    ContenderRecord,
    MetricDescription,
    StudyPlan,
)
from steppe.compare.tasks.source import TaskSource, find_task
from steppe.compare.tasks.task import LoadedTask, Task
from steppe.compare.tasks.trace import with_own_lines
from steppe.compare.training.run import (
    Run,
    RunContext,
    RunSettings,
)
from steppe.compare.training.train import take_trial_step

# The report and the page need them: better missed now than after hours of training.
_NEEDED = ("scipy.special", "plotly.offline", "jinja2", "optuna", "accelerate")


#: Of so many trials of each pool curvature is measured too, the first ones.
CURVATURE_TRIALS = 4


@dataclass(frozen=True)
class PlannedStudy:
    """What is compared, under which common setup, by which plan.

    Attributes
    ----------
    setup : RunSettings
        What all runs share.
    plan : StudyPlan
        How many trials, and what is concluded from them.
    contenders : tuple of ContenderRecord
        The first is the baseline.
    metric : MetricDescription
        What scores are.
    facts : mapping
        Numbers of samples and parameters, for the reader.
    command : str
        What the user typed.
    versions : mapping
        Of what computes the numbers.
    earlier_plans : tuple of StudyPlan
        What was planned before, in the same storage.
    created : str
        The day it was planned, as YYYY-MM-DD.
    author, note : str
        What the user says of the study.
    location : str
        Where the file of the user's task is, for workers on the same machine.
    then_location : str
        The same of a second task.
    """

    setup: RunSettings
    plan: StudyPlan
    contenders: tuple[ContenderRecord, ...]
    metric: MetricDescription
    facts: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    earlier_plans: tuple[StudyPlan, ...] = ()
    created: str = ""
    author: str = ""
    note: str = ""
    location: str = ""
    then_location: str = ""

    @property
    def name(self) -> str:
        """The same for studies that differ in contenders and numbers alone: they share trials."""
        content = [asdict(self.setup), self.plan.study_seed, self.versions]
        return f"{file_name(self.setup.task)}-{_digest(content)}"

    def key(self, contender: ContenderRecord) -> str:
        """Name a contender so that its trials are nobody else's, whatever is edited meanwhile."""
        identity = find_recipe(contender.name).identity()
        content = [identity, contender.space, contender.defaults]
        return f"{self.name}/{contender.name}-{_digest(content)}"

    def settings(self, contender: ContenderRecord, phase: str, number: int) -> dict[str, float]:
        """Return the settings of a trial of the pool, or of a run at the default settings."""
        if phase != POOL:
            return dict(contender.defaults)
        space = {name: _dimension(each) for name, each in contender.space.items()}
        return trial_settings(space, contender.defaults, self.plan.study_seed, number)

    def curvature(self, contender: ContenderRecord, phase: str, number: int) -> CurvatureExtent:
        """Return how much curvature is measured of a trial.

        In full at the recommended settings, which are everybody's where nothing is searched, and
        quickly of the first few trials of the pool: of a small run it takes longer than training.
        """
        recommended = phase == RECOMMENDED or (phase == POOL and not contender.space)
        if recommended and number < self.plan.repeats:
            return "full"
        return "quick" if phase == POOL and number < CURVATURE_TRIALS else "none"

    def continues(self, earlier: "PlannedStudy", *, seen: bool) -> "PlannedStudy":
        """Return this study as the continuation of one of the same name.

        Parameters
        ----------
        earlier : PlannedStudy
            The other.
        seen : bool
            Whether its results could be seen: then its plan is remembered if this is another.
        """
        plans = [*earlier.earlier_plans, *self.earlier_plans, *([earlier.plan] if seen else [])]
        others = dict.fromkeys(plan for plan in plans if plan != self.plan)
        return replace(self, earlier_plans=tuple(others), created=earlier.created)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values for JSON."""
        content: dict[str, Any] = to_json(self)
        return content


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Give the versions of what a run's numbers depend on, builds of torch apart.

    Parameters
    ----------
    packages : sequence of str
        What a task depends on besides.
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
        **{name: version(name) for name in packages},
        "steppe": steppe.__version__,
        "source": steppe_source(),
    }


def plan_study(
    task: str | Task | TaskSource,
    options: StudyOptions,
    preset: Preset,
    place: RunContext,
    command: str = "",
) -> PlannedStudy:
    """Check everything that can be checked, and take one trial step with every optimizer.

    Parameters
    ----------
    task : str or Task
        As for :func:`steppe.compare.find_task`.
    options : StudyOptions
        What the user asks for.
    preset : Preset
        What else is published, or usual.
    place : RunContext
        Where it is to run.
    command : str
        What reproduces it.

    Raises
    ------
    ValueError
        If an option is out of its range, a name is not known, or an optimizer cannot take a step.
    FileNotFoundError
        If the data is not there.
    ModuleNotFoundError
        If a package is not installed that the study, its table or its page need.
    """
    with quiet_imports():
        for module in _NEEDED:
            importlib.import_module(module)
    names = options.optimizers or preset.optimizers
    recipes = recipes_with_controls(names)
    check_place(place)
    options.check()
    plan = _plan(options, preset, names)
    source = find_task(task)
    loaded, setup, facts, then_location = plan_setup(source, options, preset, place)
    fixed = _fixed(options, setup.steps)

    def given(recipe: Recipe) -> dict[str, float]:
        return {**preset.fixed_for(recipe, options.scale, setup.steps), **fixed}

    contenders = tuple(
        _contender(each, recipes, given(each), preset, options.lr_decades) for each in recipes
    )
    if options.lr_decades is not None and not any("lr" in each.space for each in contenders):
        raise ValueError("lr-decades is for an lr that is searched, and here it is fixed")
    study = PlannedStudy(
        setup=setup,
        plan=_with_what_is_searched(plan, contenders),
        contenders=contenders,
        metric=loaded.task.score,
        facts=facts,
        command=command,
        versions=versions(loaded.task.packages),
        created=datetime.now(UTC).date().isoformat(),
        author=printable(options.author),
        note=printable(options.note),
        location=source.location,
        then_location=then_location,
    )
    for contender in contenders:
        check_trainable(study, contender, loaded, place)
    return study


def check_trainable(
    study: PlannedStudy, contender: ContenderRecord, loaded: LoadedTask, place: RunContext
) -> None:
    """Take one step with a throw-away model, so that no study dies later.

    Raises
    ------
    ValueError
        If the optimizer, or the processes of a launch, cannot.
    """
    recipe = find_recipe(contender.name)
    run = Run(study.setup, recipe, contender.defaults, seed=0)
    try:
        take_trial_step(run, loaded, place)
    except Exception as error:
        reason = first_line(error)
        said = f"{recipe.name} cannot train {study.setup.task}: {reason}"
        raise with_own_lines(ValueError(said), error) from error


def check_place(place: RunContext) -> None:
    """Check where runs are to be trained, as far as that is the user's choice.

    Raises
    ------
    ValueError
        If there are no threads, or the device or the tracker is not known or not usable.
    ModuleNotFoundError
        If the tracker is not installed.
    """
    check_where(place.threads, place.track)
    find_device(place.device)
    if place.track:
        importlib.import_module(place.track)


def _plan(options: StudyOptions, preset: Preset, names: Iterable[str]) -> StudyPlan:
    """Return the plan that the user asks for; more trials for a larger budget."""
    budget = preset.budget if options.budget is None else options.budget
    usual = preset.trials * math.ceil(budget / preset.budget)
    trials = usual if options.trials is None else options.trials
    fewest = TRIALS_PER_BUDGET * budget
    if trials < fewest:
        raise ValueError(
            f"trials must be at least {fewest}, {TRIALS_PER_BUDGET} times the budget of {budget}, "
            f"got {trials}"
        )
    if trials > MOST_TRIALS:
        raise ValueError(f"trials must be at most {MOST_TRIALS}, got {trials}")
    _, *family = dict.fromkeys(find_recipe(name).name for name in names)
    return StudyPlan(budget, trials, options.primary, options.study_seed, tuple(sorted(family)))


def _with_what_is_searched(plan: StudyPlan, contenders: Sequence[ContenderRecord]) -> StudyPlan:
    """Make what is compared a part of the plan; in which order it was named is none."""
    baseline, *others = contenders
    compared = [baseline, *sorted(others, key=lambda each: each.name)]
    content = [
        [each.name, find_recipe(each.name).identity(), each.space, each.defaults]
        for each in compared
        if each is baseline or each.name in plan.family
    ]
    return replace(plan, searched=_digest(content))


def _fixed(options: StudyOptions, steps: int) -> dict[str, float]:
    """Give what the user has set for all."""
    fixed: dict[str, float] = {}
    if options.lr is not None:
        fixed["lr"] = options.lr
    if options.weight_decay is not None:
        fixed["weight_decay"] = options.weight_decay
    if options.switch_rate is not None:
        fixed["switch"] = 1 / (options.switch_rate * steps)
    return fixed


def _contender(
    recipe: Recipe,
    recipes: Sequence[Recipe],
    given: Settings,
    preset: Preset,
    lr_decades: float | None,
) -> ContenderRecord:
    if "lr" in given and not recipe.accepts("lr"):
        raise ValueError(f"{recipe.name} takes no lr: leave --lr out")
    own = {name: value for name, value in given.items() if recipe.takes(name)}
    space = preset.space_for(recipe, own)
    if lr_decades is not None:
        space = with_lr_decades(space, lr_decades)
    return ContenderRecord(
        name=recipe.name,
        title=recipe.title,
        space=space_as_json(space),
        defaults={**preset.defaults_for(recipe, own), **own},
        control_for=contenders_controlled_by(recipe, recipes),
        epochs=recipe.epochs,
        source=recipe.source,
    )


def _dimension(content: Mapping[str, Any]) -> Range | Choice:
    return Choice(tuple(content["choices"])) if "choices" in content else Range(**content)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
