"""A study's trials as Optuna stores them: one Optuna study of the same name.

Each trial's user attributes say whose it is (``optimizer``), its ``phase``, ``number``, ``seed``
and ``settings``, so that ``optuna-dashboard`` on the storage shows a study as a user thinks of it.

Only :class:`~steppe.compare.execution.trial_queue.TrialQueue` and
:mod:`~steppe.compare.execution.study_registry` use this module. They decide what is run next; here
is how a trial is added, taken, found lost, and ended in the database.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from steppe._shared.hyperparameters import Settings
from steppe.compare.execution.study_storage import (
    fail_stale_trials,
    ignore_unreachable,
    retry_while_unreachable,
)
from steppe.compare.planning.study import Study
from steppe.compare.records.results import TEST, TUNE, Contender

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

#: How often a trial may lose its worker before the trial itself is taken for the reason.
MAX_LOST_WORKERS = 3

# The user attribute of a trial that tells contenders apart, by all that their trials depend on.
_KEY = "contender"

# Stored trials by (contender, phase), then by the trial's number.
StoredTrials = Mapping[tuple[str, str], "Mapping[int, FrozenTrial]"]


class OptunaTrials:
    """A study's trials in its storage.

    Parameters
    ----------
    storage : optuna.storages.RDBStorage
        Where the study is kept.
    study : Study
        The study.
    """

    def __init__(self, storage: "RDBStorage", study: Study) -> None:
        self.storage, self._study = storage, study
        self._optuna_study = optuna_study(storage, study)
        self._keys = {each.name: _key(study, each) for each in study.contenders}

    def planned_count(self, contender: Contender, phase: str) -> int:
        """Count the trials that a contender is to have in a phase."""
        if phase == TEST:
            return self._study.seeds
        return contender.tuning_trials(self._study.budget)

    def fail_trials_of_silent_workers(self) -> None:
        """Mark the running trials as failed whose workers give no heartbeat any more."""
        retry_while_unreachable(partial(fail_stale_trials, self._optuna_study))

    def add(
        self, contender: Contender, phase: str, number: int, seed: int, settings: Settings
    ) -> None:
        """Add a trial that waits for a worker."""
        from optuna.trial import TrialState, create_trial

        # Optuna refuses parameters outside of their range, as the default weight decay 0 is.
        inside = [
            name
            for name, space in contender.space.items()
            if name in settings and _within(space, settings[name])
        ]
        trial = create_trial(
            state=TrialState.WAITING,
            params={name: settings[name] for name in inside},
            distributions={name: _distribution(contender.space[name]) for name in inside},
            user_attrs={
                "optimizer": contender.name,
                "phase": phase,
                "number": number,
                "seed": seed,
                "settings": dict(settings),
                _KEY: self._keys[contender.name],
            },
        )
        retry_while_unreachable(partial(self._optuna_study.add_trial, trial))

    def read(self) -> StoredTrials:
        """Read, for each contender and phase, the trial that counts for each number."""
        names = {key: name for name, key in self._keys.items()}
        by_part: dict[tuple[str, str], list[FrozenTrial]] = {
            (name, phase): [] for name in self._keys for phase in (TUNE, TEST)
        }
        # Optuna keeps the trials that have ended in memory, and reads the others only.
        for trial in retry_while_unreachable(
            partial(self._optuna_study.get_trials, deepcopy=False)
        ):
            # Trials of other contenders are from a study that differs in its contenders alone.
            if name := names.get(trial.user_attrs.get(_KEY, "")):
                by_part[name, trial.user_attrs["phase"]].append(trial)
        return {
            (each.name, phase): _counting(
                by_part[each.name, phase], self.planned_count(each, phase)
            )
            for each in self._study.contenders
            for phase in (TUNE, TEST)
        }

    def claim(self, trial_id: int) -> bool:
        """Take a waiting trial for this worker.

        Returns
        -------
        bool
            False if another worker has been faster.
        """
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        # Before the trial is taken: Optuna never takes a trial without a heartbeat for lost.
        self.storage.record_heartbeat(trial_id)
        try:
            return self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    def record_epoch(self, trial_id: int, epoch: int, score: float) -> bool:
        """Store an epoch's validation score, from which progress bars are drawn.

        Returns
        -------
        bool
            False if the trial has been given to another worker.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            with ignore_unreachable():
                self.storage.set_trial_intermediate_value(trial_id, epoch, score)
        except UpdateFinishedTrialError:
            return False
        return True

    def end(self, trial_id: int, attributes: Mapping[str, Any], value: float | None) -> bool:
        """End a trial: complete with its value, or failed if that is None.

        The state is written last. A worker that is killed before leaves the trial running, and it
        is run again as if nothing had been written.

        Returns
        -------
        bool
            False if the trial has been given to another worker.
        """
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        values = None if value is None else [value]

        def write() -> None:
            for name, content in attributes.items():
                self.storage.set_trial_user_attr(trial_id, name, content)
            self.storage.set_trial_state_values(trial_id, state, values)

        try:
            retry_while_unreachable(write)
        except UpdateFinishedTrialError:
            return False
        return True


def optuna_study(storage: "RDBStorage", study: Study) -> "optuna.Study":
    """Return the Optuna study of a study, made if it is not there."""
    import optuna

    return optuna.create_study(
        storage=storage,
        study_name=study.name,
        direction="maximize" if study.metric.higher_is_better else "minimize",
        load_if_exists=True,
    )


def ended(trials: "Mapping[int, FrozenTrial]") -> "dict[int, FrozenTrial]":
    """Return the trials that are complete or have failed for good, by number."""
    return {number: trial for number, trial in trials.items() if trial.state.is_finished()}


def _counting(trials: "Iterable[FrozenTrial]", planned: int) -> "dict[int, FrozenTrial]":
    """Return the trial that counts for each number below ``planned``.

    Two workers that find a trial missing at the same time both add it. The first one counts, unless
    it has lost its worker; whoever sees the second sees the first as well.
    """
    lost: dict[int, list[FrozenTrial]] = {}
    found: dict[int, FrozenTrial] = {}
    for trial in trials:
        number = trial.user_attrs["number"]
        if number >= planned:
            continue
        if not _failed(trial) or "error" in trial.user_attrs:
            found.setdefault(number, trial)
        elif "released" not in trial.user_attrs:
            lost.setdefault(number, []).append(trial)
    given_up = {
        number: trials[-1] for number, trials in lost.items() if len(trials) >= MAX_LOST_WORKERS
    }
    return {**given_up, **found}


def _key(study: Study, contender: Contender) -> str:
    """Name a contender with all that its trials depend on.

    One that follows another runs with that one's best settings: its trials depend on both.
    """
    leaders = (each for each in study.contenders if each.name == contender.follows)
    return " after ".join(map(study.key, (contender, *leaders)))


def _failed(trial: "FrozenTrial") -> bool:
    """Whether a trial failed: by an error, by being given back, or because its worker was lost."""
    return trial.state.name == "FAIL"


def _within(space: Mapping[str, Any], value: float) -> bool:
    if "choices" in space:
        return value in space["choices"]
    return bool(space["low"] <= value <= space["high"])


def _distribution(space: Mapping[str, Any]) -> "BaseDistribution":
    """Describe what is searched to Optuna, for its plots; settings come from the design alone.

    A choice of numbers is a range here: within a study Optuna takes one kind of distribution for a
    name, and the buffer's decay is a range for some optimizers and a choice in a preset.
    """
    from optuna.distributions import FloatDistribution

    if "choices" in space:
        return FloatDistribution(min(space["choices"]), max(space["choices"]))
    return FloatDistribution(space["low"], space["high"], log=space["log"])
