"""A study's results, put together from its trials in the storage; no optimizer is imported."""

from itertools import product
from typing import TYPE_CHECKING

from steppe.compare.execution.optuna_trials import MAX_LOST_WORKERS, StoredTrials, ended
from steppe.compare.records.json_format import from_json, to_json
from steppe.compare.records.results import PHASES, StudyResults, Trial

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from steppe.compare.planning.study import PlannedStudy

_LOST = f"its worker was lost {MAX_LOST_WORKERS} times"


def results_of(
    study: "PlannedStudy", stored: StoredTrials, known: dict[int, Trial] | None = None
) -> StudyResults:
    """Return all trials that have ended as a study's results.

    Parameters
    ----------
    study : PlannedStudy
        The study's description.
    stored : StoredTrials
        The trials that count.
    known : dict, optional
        Records by the trials' numbers in the storage, to which those of this call are added. A
        trial that has ended does not change, and to read its record takes a millisecond.

    Raises
    ------
    ValueError
        A trial's record is damaged.
    """
    known = {} if known is None else known
    records = []
    for contender, phase in product(study.contenders, PHASES):
        for _, trial in sorted(ended(stored[contender.name, phase]).items()):
            if trial._trial_id not in known:
                known[trial._trial_id] = to_trial(contender.name, phase, trial)
            records.append(known[trial._trial_id])
    return StudyResults(
        name=study.name,
        task=study.setup.task,
        setup={**to_json(study.setup), **study.facts},
        plan=study.plan,
        metric=study.metric,
        versions=study.versions,
        command=study.command,
        contenders=study.contenders,
        trials=tuple(records),
        earlier_plans=study.earlier_plans,
        created=study.created,
        author=study.author,
        note=study.note,
    )


def to_trial(contender: str, phase: str, trial: "FrozenTrial") -> Trial:
    """Return the record of a trial that has ended.

    Raises
    ------
    ValueError
        It is damaged.
    """
    attributes = trial.user_attrs
    complete = trial.state.name == "COMPLETE"
    content = {
        "optimizer": contender,
        "phase": phase,
        "number": attributes["number"],
        "seed": attributes["seed"],
        "settings": attributes["settings"],
        "outcome": attributes["outcome"] if complete else None,
        "error": "" if complete else attributes.get("error", _LOST),
        "where": attributes.get("where", ""),
    }
    return from_json(Trial, content)
