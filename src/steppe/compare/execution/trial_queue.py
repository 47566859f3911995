"""The queue of a study's trials: what is planned, which trial is next, what has ended.

Every worker has a queue of its own on the shared storage. The queue decides the order of trials,
the recommended settings, and what is kept of a trial that ended, failed or was given back.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from steppe._shared.hyperparameters import Settings
from steppe.compare.execution.optuna_trials import (
    OptunaTrials,
    StoredTrials,
    ended,
    trial_value,
)
from steppe.compare.execution.stored_results import results_of, to_trial
from steppe.compare.execution.study_registry import save_study
from steppe.compare.execution.study_storage import open_storage, retry_while_unreachable
from steppe.compare.planning.search_spaces import trial_seed
from steppe.compare.planning.study import PlannedStudy
from steppe.compare.records.json_format import to_json
from steppe.compare.records.results import (
    PHASES,
    POOL,
    RECOMMENDED,
    ContenderRecord,
    Epoch,
    Outcome,
    StudyResults,
    Trial,
    trial_label,
)
from steppe.compare.records.summary import best_trial

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Assignment:
    """A trial that a worker has taken.

    Attributes
    ----------
    contender : ContenderRecord
        Whose trial it is.
    phase : str
        "pool", "default" or "recommended".
    number : int
        As in :class:`~steppe.compare.records.results.Trial`.
    seed : int
        The seed of weights and data order.
    settings : mapping
        The trial's hyperparameters.
    trial_id : int
        The trial's id in the storage.
    """

    contender: ContenderRecord
    phase: str
    number: int
    seed: int
    settings: Settings
    trial_id: int

    @property
    def label(self) -> str:
        """The trial's name for the reader."""
        return trial_label(self.contender.name, self.phase, self.number)


def open_queue(
    study: PlannedStudy, storage: str, heartbeat: int, exported: Iterable[Trial] = ()
) -> "TrialQueue":
    """Open or make the place where a study is kept, and plan what of it is missing there.

    Parameters
    ----------
    study : PlannedStudy
        The study.
    storage : str
        Where, as :func:`steppe.compare.execution.storage_names.parse_storage` reads it.
    heartbeat : int
        Seconds between a worker's signs of life.
    exported : iterable of Trial, default ()
        Trials of the same study that have ended elsewhere.

    Raises
    ------
    ValueError
        The storage cannot be opened, or is not one of Optuna's.
    """
    opened = open_storage(storage, heartbeat=heartbeat, create=True)
    queue = TrialQueue(opened, save_study(opened, study), plan=False)
    queue.take_over(exported)
    queue.add_missing_trials()
    return queue


class TrialQueue:
    """A study's trials: planned, taken by workers, ended.

    All trials are in the storage from the beginning, waiting, so that workers that come and go
    cannot exceed a budget.

    Parameters
    ----------
    storage : optuna.storages.RDBStorage
        Where the study is kept.
    study : PlannedStudy
        The study.
    plan : bool, default True
        Whether to add the trials that are missing; readers do not.
    """

    def __init__(self, storage: "RDBStorage", study: PlannedStudy, *, plan: bool = True) -> None:
        self.study, self.storage = study, storage
        self._trials = OptunaTrials(storage, study)
        self._records: dict[int, Trial] = {}
        if plan:
            self.add_missing_trials()

    def add_missing_trials(self) -> None:
        """Add the trials that are missing: never planned, given back, or lost with their worker."""
        self._trials.fail_trials_of_silent_workers()
        stored = self._trials.read()
        study, plan = self.study, self.study.plan
        for contender in study.contenders:
            for phase in PHASES:
                for number in range(plan.planned(contender, phase)):
                    if number in stored[contender.name, phase]:
                        continue
                    # Recommended settings are known once the pool is complete.
                    known = phase != RECOMMENDED
                    settings = study.settings(contender, phase, number) if known else {}
                    seed = trial_seed(plan.study_seed, phase, number)
                    self._trials.add(contender, phase, number, seed, settings)

    def take_over(self, trials: Iterable[Trial]) -> None:
        """Add trials of the same study that have ended elsewhere, where they are missing or wait.

        Call it before :meth:`add_missing_trials`, on a queue that was made with ``plan=False``.
        """
        stored = self._trials.read()
        contenders = {each.name: each for each in self.study.contenders}
        for trial in trials:
            planned = stored[trial.optimizer, trial.phase].get(trial.number)
            if planned is None:
                self._trials.add_ended(contenders[trial.optimizer], trial)
            elif planned.state.name == "WAITING":
                self._trials.end_as(planned._trial_id, trial)

    def take(self) -> Assignment | None:
        """Take the next trial that is waiting and can be run; None if there is none."""
        stored = self._trials.read()
        for contender, phase, trial in self._waiting(stored):
            if not retry_while_unreachable(partial(self._trials.claim, trial._trial_id)):
                continue
            settings = trial.user_attrs["settings"]
            if phase == RECOMMENDED:
                settings = self._recommended_settings(contender, stored)
            number, seed = trial.user_attrs["number"], trial.user_attrs["seed"]
            assignment = Assignment(contender, phase, number, seed, settings or {}, trial._trial_id)
            if settings is not None:
                if phase == RECOMMENDED:
                    self._trials.record_settings(trial._trial_id, settings)
                return assignment
            self.fail(assignment, "no trial ended with a finite loss", "")
        return None

    def record_epoch(self, assignment: Assignment, number: int, epoch: Epoch) -> bool:
        """Keep an epoch's validation score, for progress bars.

        Returns
        -------
        bool
            False if the trial has been given to another worker.
        """
        return self._trials.record_epoch(assignment.trial_id, number, epoch.validation_score)

    def finish(self, assignment: Assignment, outcome: Outcome, where: str) -> bool:
        """Keep a trial's outcome.

        Parameters
        ----------
        assignment : Assignment
            The trial.
        outcome : Outcome
            What came of it.
        where : str
            The hardware it ran on.

        Returns
        -------
        bool
            False if the trial has been given to another worker, whose outcome counts.
        """
        attributes = {
            "settings": dict(assignment.settings),
            "outcome": to_json(outcome),
            "where": where,
        }
        value = trial_value(outcome, self.study.metric)
        return self._trials.end(assignment.trial_id, attributes, value)

    def fail(self, assignment: Assignment, error: str, where: str) -> bool:
        """Keep why a trial cannot be run; it is not tried again.

        Returns
        -------
        bool
            False if the trial has been given to another worker.
        """
        attributes = {"settings": dict(assignment.settings), "error": error, "where": where}
        return self._trials.end(assignment.trial_id, attributes, None)

    def release(self, assignment: Assignment) -> None:
        """Give a trial back, so that another worker can take it at once."""
        if self._trials.end(assignment.trial_id, {"released": True}, None):
            self.add_missing_trials()

    def all_ended(self) -> bool:
        """Whether every trial has ended."""
        return self.progress()[0] == self.trial_count()

    def progress(self) -> tuple[int, int]:
        """Count the trials that have ended, and the epochs of ended and running trials.

        An ended trial counts with all its epochs, also if it diverged or failed before.
        """
        stored, done, epochs = self._trials.read(), 0, 0
        for contender in self.study.contenders:
            for phase in PHASES:
                for trial in stored[contender.name, phase].values():
                    over = trial.state.is_finished()
                    done += over
                    epochs += self._epochs(contender) if over else len(trial.intermediate_values)
        return done, epochs

    def trial_count(self) -> int:
        """Count all trials, ended or not."""
        return sum(map(self._planned, self.study.contenders))

    def epoch_count(self) -> int:
        """Count the epochs of all trials, ended or not."""
        return sum(self._planned(each) * self._epochs(each) for each in self.study.contenders)

    def results(self) -> StudyResults:
        """Read all trials that have ended."""
        return results_of(self.study, self._trials.read(), self._records)

    def _planned(self, contender: ContenderRecord) -> int:
        return sum(self.study.plan.planned(contender, phase) for phase in PHASES)

    def _epochs(self, contender: ContenderRecord) -> int:
        return contender.epochs * self.study.setup.epochs

    def _waiting(self, stored: StoredTrials) -> "list[tuple[ContenderRecord, str, FrozenTrial]]":
        """List the trials that can be taken, in their order.

        The pool comes first, and every contender's first trial before anyone's second. Runs at the
        recommended settings wait for their contender's pool.
        """
        found = []
        for phase in PHASES:
            waiting = [
                (number, order, trial, contender)
                for order, contender in enumerate(self.study.contenders)
                if phase != RECOMMENDED or self._has_pool(contender, stored)
                for number, trial in stored[contender.name, phase].items()
                if trial.state.name == "WAITING"
            ]
            waiting.sort(key=lambda each: each[:2])
            found += [(contender, phase, trial) for _, _, trial, contender in waiting]
        return found

    def _has_pool(self, contender: ContenderRecord, stored: StoredTrials) -> bool:
        return len(ended(stored[contender.name, POOL])) == self.study.plan.trials

    def _recommended_settings(
        self, contender: ContenderRecord, stored: StoredTrials
    ) -> dict[str, float] | None:
        """Return the settings of the pool's best trial; None if none ended with a finite loss."""
        pool = sorted(ended(stored[contender.name, POOL]).items())
        trials = [to_trial(contender.name, POOL, trial) for _, trial in pool]
        best = best_trial(trials, self.study.metric)
        return None if best is None else dict(best.settings)
