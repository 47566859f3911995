"""Studies in a storage: save one for its workers, find one, read its results.

Workers and the commands ``steppe worker`` and ``steppe report`` find a study here by its name.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steppe._shared.credentials import scrubbed, shown
from steppe._shared.interrupts import ending_at_once
from steppe._shared.messages import first_line
from steppe._shared.printable import printable
from steppe.compare.execution.optuna_trials import (
    CONTENDER_KEY,
    contender_keys,
    counting_trials,
    optuna_study,
)
from steppe.compare.execution.storage_names import is_json
from steppe.compare.execution.stored_results import results_of
from steppe.compare.execution.study_storage import open_for_reading
from steppe.compare.records.json_format import from_json
from steppe.compare.records.results import StudyResults, load
from steppe.compare.records.validation import check_results

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

    from steppe.compare.planning.study import PlannedStudy

# The attributes of an Optuna study that describe a study of steppe: what is planned, and the keys
# of its contenders' trials, which readers cannot compute without importing the optimizers.
_ATTRIBUTE, _KEYS = "steppe", "steppe keys"


def save_study(storage: "RDBStorage", study: "PlannedStudy") -> "PlannedStudy":
    """Save a study's description for workers and readers; it replaces an earlier one of that name.

    Parameters
    ----------
    storage : optuna.storages.RDBStorage
        Where the study is kept.
    study : PlannedStudy
        The study. ``TrialQueue`` adds its trials.

    Returns
    -------
    PlannedStudy
        The study with what an earlier description of that name has planned otherwise.
    """
    kept = optuna_study(storage, study)
    if _ATTRIBUTE in kept.user_attrs:
        earlier = _described(study.name, kept.user_attrs)
        seen = _results(earlier, kept.user_attrs, kept.get_trials(deepcopy=False)).complete
        study = study.continues(earlier, seen=seen)
    kept.set_user_attr(_KEYS, list(contender_keys(study).values()))
    kept.set_user_attr(_ATTRIBUTE, study.to_dict())
    return study


def find_study(storage: "RDBStorage", name: str | None = None) -> "PlannedStudy":
    """Return a study's description from its storage: the named study, or the only one.

    Parameters
    ----------
    storage : optuna.storages.RDBStorage
        Where the study is kept.
    name : str, optional
        The study's name. Default: the only study of the storage.

    Raises
    ------
    ValueError
        If there is none, none of that name, several to choose from, or one that this version
        cannot read.
    """
    return _described(*_find(storage, name))


def read_study(storage: str, study: str | None = None) -> StudyResults:
    """Read a study's results from its storage, or from a file that ``steppe report --json`` wrote.

    Nothing is written into the storage, and no optimizer is imported: it may be somebody else's.

    Parameters
    ----------
    storage : str
        What ``steppe compare --storage`` takes (a URL, a file or a directory), or a ``.json``
        file.
    study : str, optional
        The study's name. Default: the only study of the storage.

    Raises
    ------
    ValueError, OSError
        If there is none, or the storage holds several and ``study`` does not name one; or it is
        damaged.
    """
    if is_json(storage):
        return load(Path(storage))
    with open_for_reading(storage) as opened:
        try:
            return _read(opened, study)
        except Exception as error:  # a damaged database raises anything
            reason = scrubbed(first_line(error), storage)
            raise ValueError(f"{shown(storage)} cannot be read: {reason}") from None


def _read(storage: "RDBStorage", study: str | None) -> StudyResults:
    import optuna

    name, attributes = _find(storage, study)
    described = _described(name, attributes)
    trials = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    results = _results(described, attributes, trials)
    # The name that it has here, whatever its description has become.
    results = replace(results, name=printable(name))
    check_results(results)
    return results


def _results(
    study: "PlannedStudy", attributes: Mapping[str, Any], trials: "list[FrozenTrial]"
) -> StudyResults:
    keys = _saved_keys(study, attributes) or _latest_keys(study, trials)
    return results_of(study, counting_trials(study, keys, trials))


def _saved_keys(study: "PlannedStudy", attributes: Mapping[str, Any]) -> dict[str, str]:
    keys = from_json(list[str], attributes.get(_KEYS, []))
    if keys and len(keys) != len(study.contenders):
        raise ValueError(f"{_KEYS} must hold {len(study.contenders)} keys, got {len(keys)}")
    return {each.name: key for each, key in zip(study.contenders, keys, strict=False)}


def _latest_keys(study: "PlannedStudy", trials: "list[FrozenTrial]") -> dict[str, str]:
    """Return the keys of the contenders' last trials, where an earlier version has saved none."""
    names = {each.name for each in study.contenders}
    attributes = [trial.user_attrs for trial in trials if CONTENDER_KEY in trial.user_attrs]
    return {
        each["optimizer"]: each[CONTENDER_KEY] for each in attributes if each["optimizer"] in names
    }


def _find(storage: "RDBStorage", name: str | None) -> tuple[str, Mapping[str, Any]]:
    """Return a study's name in the storage, and its attributes there."""
    saved = {
        each.study_name: each.user_attrs
        for each in storage.get_all_studies()
        if _ATTRIBUTE in each.user_attrs
    }
    if not saved:
        raise ValueError("the storage holds no study of steppe compare")
    if name is None and len(saved) == 1:
        name = next(iter(saved))
    if name not in saved:
        wanted = "several studies" if name is None else f"no study called {name!r}"
        known = ", ".join(saved)
        raise ValueError(f"the storage holds {wanted}: name one by study= or --study: {known}")
    return name, saved[name]


def _described(name: str, attributes: Mapping[str, Any]) -> "PlannedStudy":
    # Imported here because torch takes two seconds: results in a file of JSON do without.
    with ending_at_once():
        from steppe.compare.planning.study import PlannedStudy

    try:
        return from_json(PlannedStudy, attributes[_ATTRIBUTE])
    except ValueError as error:
        raise ValueError(f"{name} was planned with another version of steppe: {error}") from error
