"""Check that a study can be continued here: the code and the data must be those of its plan.

``steppe compare --continue`` takes a study over from a file by :func:`continue_study`; every worker
checks code and data before its first trial.
"""

from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version

from steppe._shared.recipes import find_recipe
from steppe.compare.planning.rehearsal import new_model
from steppe.compare.planning.search_spaces import trial_seed
from steppe.compare.planning.second_task import load_second_task
from steppe.compare.planning.study import PlannedStudy, check_place, check_trainable, versions
from steppe.compare.records.results import (
    POOL,
    RECOMMENDED,
    ContenderRecord,
    StudyResults,
    Trial,
    trial_label,
)
from steppe.compare.records.summary import best_trial
from steppe.compare.tasks.source import find_task
from steppe.compare.tasks.task import LoadedTask, Task
from steppe.compare.training.run import RunContext, RunSettings, run_settings_from_dict


def continue_study(results: StudyResults, place: RunContext) -> PlannedStudy:
    """Take a study over from its exported results, to go on with it here.

    Parameters
    ----------
    results : StudyResults
        Of a study, finished or not, as ``steppe report --json`` wrote them.
    place : RunContext
        Where it is to go on.

    Raises
    ------
    ValueError
        If the code or the data here is not what it was planned with, the file says something that
        its study does not, such as other settings or another seed of a trial, or an optimizer
        cannot take a step.
    """
    check_place(place)
    setup = run_settings_from_dict(results.setup)
    own = {each.name for each in fields(RunSettings)}
    study = PlannedStudy(
        setup=setup,
        plan=results.plan,
        contenders=results.contenders,
        metric=results.metric,
        facts={name: value for name, value in results.setup.items() if name not in own},
        command=results.command,
        versions=results.versions,
        earlier_plans=results.earlier_plans,
        created=results.created,
        author=results.author,
        note=results.note,
    )
    check_versions(study)
    if study.setup.task != results.task:
        raise ValueError(f"task must be {study.setup.task!r}, by its setup: {results.task!r}")
    if setup.robustness and replace(study, setup=replace(setup, robustness=False)).name == (
        results.name
    ):
        raise ValueError(
            "the file's robustness was measured by steppe report after its trials had ended: go on "
            "from one that steppe report --json writes without --robustness"
        )
    if study.name != results.name:
        raise ValueError(f"name must be {study.name}, by its setup and versions: {results.name}")
    loaded = load_same_task(study, place)
    check_contents(study, loaded.task)
    # Before anything is stored: a worker would end at once.
    load_second_task(setup.then, "", loaded, place.task)
    _check_trials(study, results)
    for contender in study.contenders:
        check_trainable(study, contender, loaded, place)
    return study


def check_versions(study: PlannedStudy) -> None:
    """Refuse a study that was planned with other code: its trials would not be comparable.

    Raises
    ------
    ValueError
        With each package that differs, what is here, and what the study was planned with.
    """
    # What else it was planned with are packages of its task.
    own = versions()
    named = {**own, **{name: _version_here(name) for name in study.versions if name not in own}}
    other = [name for name in named if name != "python" and named[name] != study.versions.get(name)]
    if other:
        pairs = ", ".join(f"{name} {named[name]} for {study.versions.get(name)}" for name in other)
        raise ValueError(f"this is not the code that the study was planned with: {pairs}")


def _version_here(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def load_same_task(study: PlannedStudy, place: RunContext) -> LoadedTask:
    """Load the task that a study was planned with, and its data, by :func:`load_task`."""
    return load_task(study.setup, study.location, place)


def load_task(setup: RunSettings, location: str, place: RunContext) -> LoadedTask:
    """Load the task that a study's runs train, and its data.

    Parameters
    ----------
    setup : RunSettings
        What the runs share.
    location : str
        Where the file of the user's task was when the study was planned; "" if it is not known.
    place : RunContext
        Where it is here, and its files.

    Raises
    ------
    ValueError
        If the one or the other is not the same here.
    """
    where = place.task or location
    if setup.source and not where:
        raise ValueError(
            f"{setup.task} is a task in a file that is not named: name it, as mytask.py:task"
        )
    found = find_task(where or setup.task)
    task = found.task({**setup.options, "data": place.data})
    if task.name != setup.task:
        raise ValueError(f"{found.label} is the task {task.name!r}, not {setup.task!r}")
    identity = found.identity(task, new_model(task)) if found.source else ""
    if identity != setup.source:
        raise ValueError(
            f"{found.label} ({identity or 'a task of steppe'}) is not the version of "
            f"{setup.task} that the study was planned with ({setup.source or 'a task of steppe'})"
        )
    loaded = task.load()
    if loaded.data.fingerprint != setup.fingerprint:
        raise ValueError(
            f"the data of {setup.task} here ({loaded.data.fingerprint}) is not what the study was "
            f"planned with ({setup.fingerprint})"
        )
    return loaded


def check_contents(study: PlannedStudy, task: Task) -> None:
    """Refuse what follows from the task's and the optimizers' names, but is something else.

    Raises
    ------
    ValueError
        With the first of these, such as a class of the user's own whose source has changed.
    """
    if study.metric != task.score:
        raise ValueError(f"metric must be {task.score}, got {study.metric}")
    for contender in study.contenders:
        recipe = find_recipe(contender.name)
        if contender.epochs != recipe.epochs:
            raise ValueError(
                f"epochs of {contender.name} must be {recipe.epochs}, got {contender.epochs}"
            )
        if contender.source != recipe.source:
            raise ValueError(
                f"source of {contender.name} must be {recipe.source!r}, that of the class here, "
                f"got {contender.source!r}: the study was planned with another version of it"
            )


def _check_trials(study: PlannedStudy, results: StudyResults) -> None:
    contenders = {each.name: each for each in study.contenders}
    for trial in results.trials:
        label = trial_label(trial.optimizer, trial.phase, trial.number)
        seed = trial_seed(study.plan.study_seed, trial.phase, trial.number)
        if trial.seed != seed:
            raise ValueError(f"seed of {label} must be {seed}, got {trial.seed}")
        settings = _settings(study, results, contenders[trial.optimizer], trial)
        if dict(trial.settings) != settings:
            raise ValueError(f"settings of {label} must be {settings}, got {dict(trial.settings)}")


def _settings(
    study: PlannedStudy, results: StudyResults, contender: ContenderRecord, trial: Trial
) -> dict[str, float]:
    if trial.phase != RECOMMENDED:
        return study.settings(contender, trial.phase, trial.number)
    best = best_trial(results.trials_of(contender.name, POOL), study.metric)
    return dict(best.settings) if best else {}
