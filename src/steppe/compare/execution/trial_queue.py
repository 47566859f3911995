"""The trials of a study in its storage: planned, taken, ended, each once."""

import math
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from steppe._shared.hyperparameters import Settings
from steppe._shared.plurals import many
from steppe._shared.recipes import find_recipe
from steppe.compare.execution.study_storage import expendable, persistent, revive
from steppe.compare.planning.controls import followed_settings
from steppe.compare.planning.study import Study, study_from_dict
from steppe.compare.records.results import (
    TEST,
    TUNE,
    Contender,
    Epoch,
    Outcome,
    StudyResults,
    Trial,
    outcome_from_dict,
    outcome_to_dict,
    trial_label,
)

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

#: Of all tuning trials; no test run has it.
TUNING_SEED = 1_000_000

# So often a trial may lose its worker before the trial itself is thought to be the reason.
_MOST_LOST = 3

_STUDY = "steppe"

# Trials by contender, phase and number.
_Books = Mapping[tuple[str, str], "Mapping[int, FrozenTrial]"]


@dataclass(frozen=True)
class Assignment:
    """A trial that a worker has taken.

    Attributes
    ----------
    contender : Contender
        Whose trial it is.
    phase : str
        "tune" or "test".
    number : int
        As in :class:`~steppe.compare.records.results.Trial`.
    seed : int
        Of weights and order.
    settings : mapping
        Its hyperparameters.
    trial_id : int
        In the storage.
    """

    contender: Contender
    phase: str
    number: int
    seed: int
    settings: Settings
    trial_id: int

    @property
    def label(self) -> str:
        """The trial, for the reader."""
        return trial_label(self.contender.name, self.phase, self.number)


class TrialQueue:
    """What has been done of a study, and what is left.

    There is an Optuna study for each contender and phase. All its trials stand there from the
    beginning, waiting, so that a budget cannot be exceeded by workers that come and go.

    Parameters
    ----------
    storage : optuna.storages.RDBStorage
        Where the study is kept.
    study : Study
        The study.
    plan : bool, default True
        Whether to add the trials that are missing.
    """

    def __init__(self, storage: "RDBStorage", study: Study, *, plan: bool = True) -> None:
        self.study, self.storage = study, storage
        self._parts = {
            (contender.name, phase): self._part(contender, phase)
            for contender in study.contenders
            for phase in (TUNE, TEST)
        }
        self._over: dict[tuple[str, str], dict[int, FrozenTrial]] = {}
        if plan:
            self.complement()

    def complement(self) -> None:
        """Add the trials that are missing: never planned, or lost with their worker."""
        for part in self._parts.values():
            persistent(partial(revive, part))
        books = self._books()
        for contender in self.study.contenders:
            tuning = ((TUNING_SEED, settings) for settings in self.study.points(contender))
            testing: Iterable[tuple[int, Settings]] = ((n, {}) for n in range(self.study.seeds))
            for phase, trials in ((TUNE, tuning), (TEST, testing)):
                for number, (seed, settings) in enumerate(trials):
                    if number not in books[contender.name, phase]:
                        self._plan(contender, phase, number, seed, settings)

    def take(self) -> Assignment | None:
        """Take the next trial that is waiting and can be run; None if there is none."""
        books = self._books()
        for contender, phase, trial in self._waiting(books):
            if not persistent(partial(self._claim, trial._trial_id)):
                continue
            settings = trial.user_attrs["settings"]
            if phase == TEST:
                settings = self._chosen(contender, books)
            number, seed = trial.user_attrs["number"], trial.user_attrs["seed"]
            assignment = Assignment(contender, phase, number, seed, settings or {}, trial._trial_id)
            if settings is not None:
                return assignment
            self.fail(assignment, "no tuning trial ended with a finite loss", "")
        return None

    def note(self, assignment: Assignment, number: int, epoch: Epoch) -> bool:
        """Keep an epoch's score, for those who watch; whether the trial was still ours."""
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            with expendable():
                self.storage.set_trial_intermediate_value(
                    assignment.trial_id, number, epoch.validation_score
                )
        except UpdateFinishedTrialError:
            return False
        return True

    def finish(self, assignment: Assignment, outcome: Outcome, where: str) -> bool:
        """Keep what came of a trial; whether it was still ours."""
        score = outcome.final.test_score
        if assignment.phase == TUNE:
            score = outcome.final.validation_score
        worst = -math.inf if self.study.metric.higher_is_better else math.inf
        attributes = {
            "settings": dict(assignment.settings),
            "outcome": outcome_to_dict(outcome),
            "where": where,
        }
        return self._end(assignment, attributes, worst if outcome.diverged else score)

    def fail(self, assignment: Assignment, error: str, where: str) -> bool:
        """Keep why a trial cannot be run; it is not tried again."""
        attributes = {"settings": dict(assignment.settings), "error": error, "where": where}
        return self._end(assignment, attributes, None)

    def release(self, assignment: Assignment) -> None:
        """Give a trial back, for another worker to take up."""
        if self._end(assignment, {"released": True}, None):
            self.complement()

    def ended(self) -> bool:
        """Whether every trial has ended."""
        return self.progress()[0] == self.trials()

    def progress(self) -> tuple[int, int]:
        """Count the trials that have ended, and the epochs: theirs in full, and those running."""
        whole = self.study.setup.epochs
        standing = [trial for trials in self._books().values() for trial in trials.values()]
        ended = [trial for trial in standing if trial.state.is_finished()]
        running = sum(len(t.intermediate_values) for t in standing if not t.state.is_finished())
        return len(ended), whole * len(ended) + running

    def trials(self) -> int:
        """Count all trials, ended or not."""
        return sum(
            self._count(contender, phase)
            for contender in self.study.contenders
            for phase in (TUNE, TEST)
        )

    def results(self) -> StudyResults:
        """Read all that has ended."""
        study, books = self.study, self._books()
        found = [
            self._read(contender, phase, trial, books)
            for contender in study.contenders
            for phase in (TUNE, TEST)
            for _, trial in sorted(_ended(books[contender.name, phase]).items())
        ]
        return StudyResults(
            name=study.name,
            task=study.setup.task,
            setup={**vars(study.setup), **study.facts},
            budget=study.budget,
            seeds=study.seeds,
            metric=study.metric,
            versions=study.versions,
            command=study.command,
            contenders=study.contenders,
            trials=tuple(found),
        )

    def _part(self, contender: Contender, phase: str) -> "optuna.Study":
        import optuna

        # What follows another runs with that one's best settings: its trials are theirs too.
        leaders = (each for each in self.study.contenders if each.name == contender.follows)
        keys = map(self.study.key, (contender, *leaders))
        return optuna.create_study(
            storage=self.storage,
            study_name=f"{'/'.join(keys)}/{phase}",
            direction="maximize" if self.study.metric.higher_is_better else "minimize",
            load_if_exists=True,
        )

    def _contender(self, name: str) -> Contender:
        return next(each for each in self.study.contenders if each.name == name)

    def _count(self, contender: Contender, phase: str) -> int:
        if phase == TEST:
            return self.study.seeds
        return contender.tuning_trials(self.study.budget)

    def _plan(
        self, contender: Contender, phase: str, number: int, seed: int, settings: Settings
    ) -> None:
        from optuna.trial import TrialState, create_trial

        # A default may lie outside of what is searched, as weight decay 0 does.
        inside = [
            n for n, d in contender.space.items() if n in settings and _within(d, settings[n])
        ]
        trial = create_trial(
            state=TrialState.WAITING,
            params={name: settings[name] for name in inside},
            distributions={name: _distribution(contender.space[name]) for name in inside},
            user_attrs={"number": number, "seed": seed, "settings": dict(settings)},
        )
        persistent(partial(self._parts[contender.name, phase].add_trial, trial))

    def _books(self) -> _Books:
        """Read the trial that stands for each number."""
        return {
            (contender.name, phase): self._standing(contender, phase)
            for contender in self.study.contenders
            for phase in (TUNE, TEST)
        }

    def _standing(self, contender: Contender, phase: str) -> "dict[int, FrozenTrial]":
        """Find the trials that stand for their numbers.

        Two workers may both have found one missing, and added it. The first then counts, whatever
        becomes of it but the loss of its worker; who sees the second sees the first as well.
        """
        part = contender.name, phase
        if part in self._over:
            return self._over[part]
        lost: dict[int, list[FrozenTrial]] = {}
        found: dict[int, FrozenTrial] = {}
        for trial in persistent(partial(self._parts[part].get_trials, deepcopy=False)):
            number = trial.user_attrs["number"]
            if number >= self._count(contender, phase):
                continue
            if _counts(trial):
                found.setdefault(number, trial)
            elif _lost(trial):
                lost.setdefault(number, []).append(trial)
        given_up = {number: some[-1] for number, some in lost.items() if len(some) >= _MOST_LOST}
        standing = {**given_up, **found}
        whole = len(standing) == self._count(contender, phase)
        if whole and all(trial.state.is_finished() for trial in standing.values()):
            # Nothing about them will change: they need not be read at each look.
            self._over[part] = standing
        return standing

    def _waiting(self, books: _Books) -> "list[tuple[Contender, str, FrozenTrial]]":
        """List what can be taken: tuning first, and everybody's first trials before the second."""
        found = []
        for phase in (TUNE, TEST):
            some = [
                (number, order, trial, contender)
                for order, contender in enumerate(self.study.contenders)
                if phase == TUNE or self._tuned(contender, books)
                for number, trial in books[contender.name, phase].items()
                if trial.state.name == "WAITING"
            ]
            some.sort(key=lambda each: each[:2])
            found += [(contender, phase, trial) for _, _, trial, contender in some]
        return found

    def _claim(self, trial_id: int) -> bool:
        """Make a waiting trial ours; whether nobody else has been faster."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        # Before it is taken, as a trial without a sign of life is never thought dead.
        self.storage.record_heartbeat(trial_id)
        try:
            return self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    def _tuned(self, contender: Contender, books: _Books) -> bool:
        leader = self._contender(contender.follows) if contender.follows else contender
        return len(_ended(books[leader.name, TUNE])) == self._count(leader, TUNE)

    def _chosen(self, contender: Contender, books: _Books) -> Settings | None:
        """Return the best setting on validation data, of equal scores that of the lower loss."""
        if contender.follows:
            leader = self._chosen(self._contender(contender.follows), books)
            return leader and followed_settings(find_recipe(contender.name), leader)
        if self.study.budget == 0:
            return contender.defaults
        sign = 1 if self.study.metric.higher_is_better else -1
        best, best_key = None, (-math.inf, -math.inf)
        for _, trial in sorted(books[contender.name, TUNE].items()):
            if trial.state.name != "COMPLETE":
                continue
            outcome = outcome_from_dict(trial.user_attrs["outcome"])
            final = outcome.final
            key = (sign * final.validation_score, -final.validation_loss)
            if not outcome.diverged and key > best_key:
                best, best_key = trial.user_attrs["settings"], key
        return best

    def _read(self, contender: Contender, phase: str, trial: "FrozenTrial", books: _Books) -> Trial:
        attributes = trial.user_attrs
        complete = trial.state.name == "COMPLETE"
        lost = f"its worker was lost {_MOST_LOST} times"
        return Trial(
            optimizer=contender.name,
            phase=phase,
            number=attributes["number"],
            seed=attributes["seed"],
            # A test run that was lost has left none.
            settings=attributes["settings"] or self._chosen(contender, books) or {},
            outcome=outcome_from_dict(attributes["outcome"]) if complete else None,
            error="" if complete else attributes.get("error", lost),
            where=attributes.get("where", ""),
        )

    def _end(
        self, assignment: Assignment, attributes: Mapping[str, Any], value: float | None
    ) -> bool:
        """Write what came of it, then its state: before that, it is as if it had not been."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        values = None if value is None else [value]

        def write() -> None:
            for name, content in attributes.items():
                self.storage.set_trial_user_attr(assignment.trial_id, name, content)
            self.storage.set_trial_state_values(assignment.trial_id, state, values)

        try:
            persistent(write)
        except UpdateFinishedTrialError:
            # It was thought dead, and given to another.
            return False
        return True


def record(storage: "RDBStorage", study: Study) -> None:
    """Describe a study in the storage, for workers and readers; the latest plan counts."""
    import optuna

    entry = optuna.create_study(storage=storage, study_name=study.name, load_if_exists=True)
    entry.set_user_attr(_STUDY, study.to_dict())


def recorded(storage: "RDBStorage", name: str | None = None) -> Study:
    """Find the study of a storage: the named one, or the only one.

    Raises
    ------
    ValueError
        If there is none, none of that name, several to choose from, or one that this version
        cannot read.
    """
    kept = {
        each.study_name: each.user_attrs[_STUDY]
        for each in storage.get_all_studies()
        if _STUDY in each.user_attrs
    }
    if not kept:
        raise ValueError("the storage holds no study of steppe compare")
    if name is None and len(kept) == 1:
        name = next(iter(kept))
    if name not in kept:
        wanted = "several studies" if name is None else f"no study called {name!r}"
        raise ValueError(f"the storage holds {wanted}: name one with --study: {', '.join(kept)}")
    try:
        return study_from_dict(kept[name])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{name} was planned with another version of steppe") from error


def whereabouts(device: str, threads: int, processes: int = 1) -> str:
    """Say on what a trial ran, as far as its times depend on it."""
    if processes > 1:
        return f"{processes} × {whereabouts(device, threads)}"
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(torch.device(device)))
    kind = f"{platform.machine()} CPU with {os.cpu_count()} cores" if device == "cpu" else device
    return f"{many(threads, 'thread')} of a {kind}"


def _counts(trial: "FrozenTrial") -> bool:
    """Whether a trial stands for its number: waiting, running, complete, or failed for good."""
    return trial.state.name != "FAIL" or "error" in trial.user_attrs


def _lost(trial: "FrozenTrial") -> bool:
    known = {"error", "released"}
    return trial.state.name == "FAIL" and not known & trial.user_attrs.keys()


def _ended(trials: "Mapping[int, FrozenTrial]") -> "dict[int, FrozenTrial]":
    """Pick the trials that need not be run any more."""
    return {number: trial for number, trial in trials.items() if trial.state.is_finished()}


def _within(space: Mapping[str, Any], value: float) -> bool:
    if "choices" in space:
        return value in space["choices"]
    return bool(space["low"] <= value <= space["high"])


def _distribution(space: Mapping[str, Any]) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if "choices" in space:
        return CategoricalDistribution(space["choices"])
    return FloatDistribution(space["low"], space["high"], log=space["log"])
