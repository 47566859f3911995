"""A study's trials as Optuna stores them: one Optuna study of the same name.

Each trial's user attributes say whose it is (``optimizer``), its ``phase``, ``number``, ``seed``
and ``settings``, so that ``optuna-dashboard`` on the storage shows a study as a user thinks of it.

Only :class:`~steppe.compare.execution.trial_queue.TrialQueue` and
:mod:`~steppe.compare.execution.study_registry` use this module. They decide what is run next; here
is how a trial is added, taken, found lost, and ended in the database.
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from steppe._shared.hyperparameters import Settings
from steppe.compare.execution.study_storage import (
    fail_stale_trials,
    ignore_unreachable,
    retry_while_unreachable,
)
from steppe.compare.records.json_format import to_json
from steppe.compare.records.results import (
    PHASES,
    RECOMMENDED,
    ContenderRecord,
    MetricDescription,
    Outcome,
    Trial,
)

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

    from steppe.compare.planning.study import PlannedStudy

#: How often in a row a trial may lose its worker, without having got further than before, until
#: the trial itself is taken for the reason. A kill from outside looks the same, and hits a trial
#: that often by chance only where workers are killed every few seconds.
MAX_LOST_WORKERS = 10

#: The user attribute of a trial that tells contenders apart, by all that their trials depend on.
CONTENDER_KEY = "contender"

# The user attribute of how many trials a pool has: the best of a larger one is another.
_POOL_SIZE = "pool"

# Stored trials by (contender, phase), then by the trial's number.
StoredTrials = Mapping[tuple[str, str], "Mapping[int, FrozenTrial]"]


class OptunaTrials:
    """A study's trials in its storage.

    Parameters
    ----------
    storage : optuna.storages.RDBStorage
        Where the study is kept.
    study : PlannedStudy
        The study.
    """

    def __init__(self, storage: "RDBStorage", study: "PlannedStudy") -> None:
        self.storage, self._study = storage, study
        self._optuna_study = optuna_study(storage, study)
        self._keys = contender_keys(study)

    def fail_trials_of_silent_workers(self) -> None:
        """Mark the running trials as failed whose workers give no heartbeat any more."""
        retry_while_unreachable(partial(fail_stale_trials, self._optuna_study))

    def add(
        self,
        contender: ContenderRecord,
        phase: str,
        number: int,
        seed: int,
        settings: Settings,
    ) -> None:
        """Add a trial that waits for a worker."""
        from optuna.trial import TrialState

        self._add(contender, phase, number, seed, settings, state=TrialState.WAITING)

    def add_ended(self, contender: ContenderRecord, trial: Trial) -> None:
        """Add a trial that has ended elsewhere."""
        from optuna.trial import TrialState

        value, attributes = self._ending(trial)
        self._add(
            contender,
            trial.phase,
            trial.number,
            trial.seed,
            trial.settings,
            state=TrialState.FAIL if value is None else TrialState.COMPLETE,
            value=value,
            user_attrs=attributes,
        )

    def end_as(self, trial_id: int, trial: Trial) -> None:
        """End a waiting trial as one that has ended elsewhere, unless a worker has taken it."""
        if self.claim(trial_id):
            value, attributes = self._ending(trial)
            self.end(trial_id, {"settings": dict(trial.settings), **attributes}, value)

    def _ending(self, trial: Trial) -> tuple[float | None, dict[str, Any]]:
        if trial.outcome is None:
            return None, {"error": trial.error, "where": trial.where}
        value = trial_value(trial.outcome, self._study.metric)
        return value, {"outcome": to_json(trial.outcome), "where": trial.where}

    def _add(
        self,
        contender: ContenderRecord,
        phase: str,
        number: int,
        seed: int,
        settings: Settings,
        *,
        user_attrs: Mapping[str, Any] | None = None,
        **state: Any,
    ) -> None:
        from optuna.trial import create_trial

        # Optuna refuses parameters outside of their range, as the default weight decay 0 is.
        inside = [
            name
            for name, space in contender.space.items()
            if name in settings and _within(space, settings[name])
        ]
        trial = create_trial(
            params={name: settings[name] for name in inside},
            distributions={name: _distribution(contender.space[name]) for name in inside},
            user_attrs={
                "optimizer": contender.name,
                "phase": phase,
                "number": number,
                "seed": seed,
                "settings": dict(settings),
                CONTENDER_KEY: self._keys[contender.name],
                _POOL_SIZE: self._study.plan.trials,
                **(user_attrs or {}),
            },
            **state,
        )
        retry_while_unreachable(partial(self._optuna_study.add_trial, trial))

    def read(self) -> StoredTrials:
        """Read, for each contender and phase, the trial that counts for each number."""
        # Optuna keeps the trials that have ended in memory, and reads the others only.
        trials = retry_while_unreachable(partial(self._optuna_study.get_trials, deepcopy=False))
        return counting_trials(self._study, self._keys, trials)

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

    def record_settings(self, trial_id: int, settings: Settings) -> None:
        """Store the settings of a run at the recommended settings, known when it is taken."""
        write = partial(self.storage.set_trial_user_attr, trial_id, "settings", dict(settings))
        retry_while_unreachable(write)

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


def optuna_study(storage: "RDBStorage", study: "PlannedStudy") -> "optuna.Study":
    """Return the Optuna study of a study, made if it is not there."""
    import optuna

    return optuna.create_study(
        storage=storage,
        study_name=study.name,
        direction="maximize" if study.metric.higher_is_better else "minimize",
        load_if_exists=True,
    )


def trial_value(outcome: Outcome, metric: MetricDescription) -> float:
    """Return what Optuna shows as a trial's value: its validation score, the worst if it diverged.

    Not a test result, which nobody is to see before the study is complete.
    """
    if outcome.diverged or math.isnan(outcome.final.validation_score):
        return -math.inf if metric.higher_is_better else math.inf
    return outcome.final.validation_score


def contender_keys(study: "PlannedStudy") -> dict[str, str]:
    """Return the key of each contender, which tells its trials from all others.

    It imports the optimizers, on whose source the keys depend.
    """
    return {each.name: study.key(each) for each in study.contenders}


def counting_trials(
    study: "PlannedStudy", keys: Mapping[str, str], trials: "Iterable[FrozenTrial]"
) -> StoredTrials:
    """Sort out, for each contender and phase, the trial that counts for each number.

    Parameters
    ----------
    study : PlannedStudy
        The study.
    keys : mapping
        From :func:`contender_keys`.
    trials : iterable of FrozenTrial
        All trials of the Optuna study.
    """
    names = {key: name for name, key in keys.items()}
    by_part: dict[tuple[str, str], list[FrozenTrial]] = {
        (each.name, phase): [] for each in study.contenders for phase in PHASES
    }
    for trial in trials:
        attributes = trial.user_attrs
        # Trials of other contenders are from a study that differs in its contenders alone.
        name = names.get(attributes.get(CONTENDER_KEY, ""))
        if name and _is_of_pool(attributes, study.plan.trials):
            by_part[name, attributes["phase"]].append(trial)
    return {
        (each.name, phase): _counting(by_part[each.name, phase], study.plan.planned(each, phase))
        for each in study.contenders
        for phase in PHASES
    }


def _is_of_pool(attributes: Mapping[str, Any], size: int) -> bool:
    return attributes["phase"] != RECOMMENDED or attributes.get(_POOL_SIZE) == size


def ended(trials: "Mapping[int, FrozenTrial]") -> "dict[int, FrozenTrial]":
    """Return the trials that are complete or have failed for good, by number."""
    return {number: trial for number, trial in trials.items() if trial.state.is_finished()}


def _counting(trials: "Iterable[FrozenTrial]", planned: int) -> "dict[int, FrozenTrial]":
    """Return the trial that counts for each number below ``planned``.

    Two workers that find a trial missing at the same time both add it. The first one counts, unless
    it was given back or has lost its worker; whoever sees the second sees the first as well.
    """
    lost: dict[int, list[FrozenTrial]] = {}
    found: dict[int, FrozenTrial] = {}
    for trial in trials:
        number = trial.user_attrs["number"]
        if number >= planned or "released" in trial.user_attrs:
            continue
        if not _failed(trial) or "error" in trial.user_attrs:
            found.setdefault(number, trial)
        else:
            lost.setdefault(number, []).append(trial)
    given_up = {
        number: trials[-1]
        for number, trials in lost.items()
        if _lost_without_progress(trials) >= MAX_LOST_WORKERS
    }
    return {**given_up, **found}


def _lost_without_progress(trials: "Iterable[FrozenTrial]") -> int:
    """Count the attempts at a trial since the last one that got to an epoch that none had before.

    A later attempt goes on from the last epoch that was saved.
    """
    furthest, count = -1, 0
    for trial in trials:
        epoch = max(trial.intermediate_values, default=-1)
        count = 1 if epoch > furthest else count + 1
        furthest = max(furthest, epoch)
    return count


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
