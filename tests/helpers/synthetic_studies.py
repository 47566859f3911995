"""Studies made up for tests: what came of every run is given, or looks like a real study's."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from steppe.compare.records.phases import POOL
from steppe.compare.records.results import (
    ContenderRecord,
    Curvature,
    Epoch,
    FinalScores,
    MetricDescription,
    Outcome,
    RunCosts,
    StudyPlan,
    StudyResults,
    Trial,
)

SETUP = {
    "model": "mlp",
    "parameters": 4_810,
    "epochs": 2,
    "batch_size": 32,
    "steps_per_epoch": 34,
    "train_samples": 1_077,
    "validation_samples": 180,
    "test_samples": 540,
    "precision": "float32",
    "schedule": "cosine",
}
CURVATURE = Curvature(0.01, 2.0, 3.0, 400.0, 38_000.0)

# A run that failed has no outcome.
FAILED = None


def outcome(
    score: float = 0.9, test_loss: float = 0.3, train_loss: float = 0.1, **changes: Any
) -> Outcome:
    """Make a run of two epochs that ended in these; validation like the test."""
    final = FinalScores(train_loss, 0.95, test_loss, score, test_loss, score)
    first = Epoch(2.0, 2.2, 0.1, 1e-3, 1.0)
    defaults: dict[str, Any] = {
        "curve": (first, Epoch(train_loss, test_loss, score, 0.0, 2.0)),
        "diverged": False,
        "final": final,
        "curvature": CURVATURE,
        "costs": RunCosts(step_ms=1.5, seconds=2.0, state_bytes=8.0),
    }
    return Outcome(**{**defaults, **changes})


def diverged() -> Outcome:
    """Make a run whose loss stopped being finite in its first epoch."""
    return outcome(curve=(), diverged=True, final=FinalScores(), curvature=Curvature())


def learnt(*accuracies: Sequence[float], **changes: Any) -> Outcome:
    """Make a run of a stream from the tasks' accuracies after each epoch."""
    curve = tuple(
        Epoch(1 / number, 2 / number, fmean(row), 1e-3, 0.5 * number, tuple(row))
        for number, row in enumerate(accuracies, start=1)
    )
    return outcome(fmean(accuracies[-1]), curve=curve, **changes)


def streamed(
    outcomes: Mapping[str, Sequence[Outcome | None]], passes: int = 1, **changes: Any
) -> StudyResults:
    """Make a study of a stream of three tasks, of 30, 10 and 20 steps an epoch."""
    setup = {**SETUP, "epochs": 3 * passes, "steps_per_epoch": 30, "stream": [30, 10, 20]}
    return study(outcomes, setup=setup, metric=MetricDescription("average accuracy"), **changes)


def of_text(outcomes: Mapping[str, Sequence[Outcome | None]], **changes: Any) -> StudyResults:
    """Make a study of a text: 1 000 blocks of 35 words to train on."""
    setup = {
        **SETUP,
        "model": "lstm-200",
        "length": 35,
        "train_samples": 1_000,
        "validation_samples": 200,
        "test_samples": 80,
    }
    metric = MetricDescription("perplexity", "", 1.0, higher_is_better=False)
    return study(outcomes, setup=setup, metric=metric, **changes)


def scores(*values: float) -> list[Outcome]:
    """Make a run for each score."""
    return [outcome(value) for value in values]


def runs_of(
    name: str,
    outcomes: Sequence[Outcome | None],
    settings: Mapping[str, float] | Sequence[Mapping[str, float]],
    phase: str = POOL,
) -> list[Trial]:
    """Make a contender's trials of one phase, from number 0 on, with settings of all or of each."""
    each = [settings] * len(outcomes) if isinstance(settings, Mapping) else settings
    return [
        Trial(name, phase, number, number, each[number], found, "" if found else "RuntimeError: no")
        for number, found in enumerate(outcomes)
    ]


def study(
    outcomes: Mapping[str, Sequence[Outcome | None]],
    *,
    contenders: Sequence[ContenderRecord] = (),
    trials: Sequence[Trial] = (),
    **changes: Any,
) -> StudyResults:
    """Make a study, with a budget of one trial, from the outcomes of each contender's pool.

    Parameters
    ----------
    contenders : sequence of ContenderRecord
        In place of those without a search space that the names of ``outcomes`` make.
    trials : sequence of Trial
        Besides those that ``outcomes`` make.
    """
    found = {each.name: each for each in contenders}
    pool = [
        trial
        for name, each in outcomes.items()
        for trial in runs_of(name, each, found[name].defaults if name in found else {})
    ]
    size = max(3, *map(len, outcomes.values())) if outcomes else 3
    fields: dict[str, Any] = {
        "name": "toy-00000000",
        "task": "toy",
        "setup": SETUP,
        "plan": StudyPlan(budget=1, trials=size, family=tuple(found or outcomes)[1:]),
        "metric": MetricDescription(),
        "versions": {"torch": "2.13.0"},
        "command": "steppe compare toy",
        "contenders": tuple(contenders) or tuple(ContenderRecord(name) for name in outcomes),
        "trials": (*trials, *pool),
    }
    return StudyResults(**{**fields, **changes})


def with_tests(results: StudyResults, loss: float, score: float) -> StudyResults:
    """Give every trial that ended these test results, to find them again wherever they show."""
    from dataclasses import replace

    trials = [
        replace(
            trial,
            outcome=replace(
                trial.outcome,
                final=replace(trial.outcome.final, test_loss=loss, test_score=score),
            ),
        )
        if trial.outcome and math.isfinite(trial.outcome.final.test_loss)
        else trial
        for trial in results.trials
    ]
    return replace(results, trials=tuple(trials))
