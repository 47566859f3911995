"""A study's trials as Optuna stores them: an Optuna study for each contender and phase.

Only :class:`~steppe.compare.execution.trial_queue.TrialQueue` uses this module. It decides what is
run next; here is how a trial is added, taken, found lost, and ended in the database.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from steppe.compare.execution.study_storage import expendable, persistent, revive
from steppe.compare.planning.study import Study
from steppe.compare.records.results import TEST, TUNE, Contender, Settings

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

#: How often a trial may lose its worker before the trial itself is taken for the reason.
MAX_LOST_WORKERS = 3

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
        self._optuna_studies = {
            (contender.name, phase): self._optuna_study(contender, phase)
            for contender in study.contenders
            for phase in (TUNE, TEST)
        }
        self._all_ended: dict[tuple[str, str], dict[int, FrozenTrial]] = {}

    def planned_count(self, contender: Contender, phase: str) -> int:
        """Count the trials that a contender is to have in a phase."""
        if phase == TEST:
            return self._study.seeds
        return contender.tuning_trials(self._study.budget)

    def fail_trials_of_silent_workers(self) -> None:
        """Mark the running trials as failed whose workers give no heartbeat any more."""
        for each in self._optuna_studies.values():
            persistent(partial(revive, each))

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
            user_attrs={"number": number, "seed": seed, "settings": dict(settings)},
        )
        persistent(partial(self._optuna_studies[contender.name, phase].add_trial, trial))

    def read(self) -> StoredTrials:
        """Read, for each contender and phase, the trial that counts for each number."""
        return {
            (contender.name, phase): self._counting_trials(contender, phase)
            for contender in self._study.contenders
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
            with expendable():
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
            persistent(write)
        except UpdateFinishedTrialError:
            return False
        return True

    def _optuna_study(self, contender: Contender, phase: str) -> "optuna.Study":
        import optuna

        # A contender that follows another one runs with that one's best settings, so that its
        # trials depend on both.
        leaders = (each for each in self._study.contenders if each.name == contender.follows)
        keys = map(self._study.key, (contender, *leaders))
        return optuna.create_study(
            storage=self.storage,
            study_name=f"{'/'.join(keys)}/{phase}",
            direction="maximize" if self._study.metric.higher_is_better else "minimize",
            load_if_exists=True,
        )

    def _counting_trials(self, contender: Contender, phase: str) -> "dict[int, FrozenTrial]":
        """Return the trial that counts for each number.

        Two workers that find a trial missing at the same time both add it. The first one counts,
        unless it has lost its worker; whoever sees the second sees the first as well.
        """
        part = contender.name, phase
        if part in self._all_ended:
            return self._all_ended[part]
        planned = self.planned_count(contender, phase)
        lost: dict[int, list[FrozenTrial]] = {}
        found: dict[int, FrozenTrial] = {}
        for trial in persistent(partial(self._optuna_studies[part].get_trials, deepcopy=False)):
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
        counting = {**given_up, **found}
        if len(counting) == planned and len(ended(counting)) == planned:
            # They will not change: a study is polled every second, and reading takes longest.
            self._all_ended[part] = counting
        return counting


def ended(trials: "Mapping[int, FrozenTrial]") -> "dict[int, FrozenTrial]":
    """Return the trials that are complete or have failed for good, by number."""
    return {number: trial for number, trial in trials.items() if trial.state.is_finished()}


def _failed(trial: "FrozenTrial") -> bool:
    """Whether a trial failed: by an error, by being given back, or because its worker was lost."""
    return trial.state.name == "FAIL"


def _within(space: Mapping[str, Any], value: float) -> bool:
    if "choices" in space:
        return value in space["choices"]
    return bool(space["low"] <= value <= space["high"])


def _distribution(space: Mapping[str, Any]) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if "choices" in space:
        return CategoricalDistribution(space["choices"])
    return FloatDistribution(space["low"], space["high"], log=space["log"])
