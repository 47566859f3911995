"""Studies in a storage: save one for its workers, find one, read its results.

Workers and the commands ``steppe worker`` and ``steppe report`` find a study here by its name.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from steppe.compare.execution.optuna_trials import optuna_study
from steppe.compare.execution.study_storage import open_storage
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.planning.study import Study
from steppe.compare.records.json_format import from_json
from steppe.compare.records.results import StudyResults, load

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

# The attribute of an Optuna study that describes a study of steppe.
_ATTRIBUTE = "steppe"


def save_study(storage: "RDBStorage", study: Study) -> None:
    """Save a study's description for workers and readers; it replaces an earlier one of that name.

    Parameters
    ----------
    storage : optuna.storages.RDBStorage
        Where the study is kept.
    study : Study
        The study. ``TrialQueue`` adds its trials.
    """
    optuna_study(storage, study).set_user_attr(_ATTRIBUTE, study.to_dict())


def find_study(storage: "RDBStorage", name: str | None = None) -> Study:
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
    saved = {
        each.study_name: each.user_attrs[_ATTRIBUTE]
        for each in storage.get_all_studies()
        if _ATTRIBUTE in each.user_attrs
    }
    if not saved:
        raise ValueError("the storage holds no study of steppe compare")
    if name is None and len(saved) == 1:
        name = next(iter(saved))
    if name not in saved:
        wanted = "several studies" if name is None else f"no study called {name!r}"
        raise ValueError(f"the storage holds {wanted}: name one with --study: {', '.join(saved)}")
    try:
        return from_json(Study, saved[name])
    except ValueError as error:
        raise ValueError(f"{name} was planned with another version of steppe: {error}") from error


def read_study(storage: str, study: str | None = None) -> StudyResults:
    """Read a study's results from its storage, or from a file that ``steppe report --json`` wrote.

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
        If there is none, or the storage holds several and ``study`` does not name one.
    """
    if storage.endswith(".json"):
        return load(Path(storage))
    opened = open_storage(storage)
    return TrialQueue(opened, find_study(opened, study), plan=False).results()
