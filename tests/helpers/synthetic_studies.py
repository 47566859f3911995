"""Studies made up for tests: what came of every run is given."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from steppe.compare.records.results import (
    TEST,
    TUNE,
    Contender,
    Curvature,
    Epoch,
    FinalScores,
    Metric,
    Outcome,
    RunCosts,
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
    return study(outcomes, setup=setup, metric=Metric("average accuracy"), **changes)


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
    metric = Metric("perplexity", "", 1.0, higher_is_better=False)
    return study(outcomes, setup=setup, metric=metric, **changes)


def scores(*values: float) -> list[Outcome]:
    """Make a run for each score."""
    return [outcome(value) for value in values]


def runs_of(
    name: str, outcomes: Sequence[Outcome | None], settings: Mapping[str, float]
) -> list[Trial]:
    """Make the test runs of a contender, from seed 0 on."""
    return [
        Trial(name, TEST, seed, seed, settings, each, "" if each else "RuntimeError: no")
        for seed, each in enumerate(outcomes)
    ]


def tuning(name: str, tried: Sequence[tuple[Mapping[str, float], Outcome | None]]) -> list[Trial]:
    """Make the tuning trials of a contender from settings and what came of them."""
    return [
        Trial(name, TUNE, number, 1_000, settings, each, "" if each else "RuntimeError: no")
        for number, (settings, each) in enumerate(tried)
    ]


def study(
    outcomes: Mapping[str, Sequence[Outcome | None]],
    *,
    contenders: Sequence[Contender] = (),
    trials: Sequence[Trial] = (),
    **changes: Any,
) -> StudyResults:
    """Make a study from the outcomes of each contender's test seeds.

    Parameters
    ----------
    contenders : sequence of Contender
        In place of those without settings that the names of ``outcomes`` make.
    trials : sequence of Trial
        Besides the test runs that ``outcomes`` make.
    """
    found = {each.name: each for each in contenders}
    tested = [
        trial
        for name, each in outcomes.items()
        for trial in runs_of(name, each, found[name].defaults if name in found else {})
    ]
    fields: dict[str, Any] = {
        "name": "toy-00000000",
        "task": "toy",
        "setup": SETUP,
        "budget": 0,
        "seeds": max(map(len, outcomes.values()), default=0),
        "metric": Metric(),
        "versions": {"torch": "2.13.0"},
        "command": "steppe compare toy",
        "contenders": tuple(contenders) or tuple(Contender(name) for name in outcomes),
        "trials": (*trials, *tested),
    }
    return StudyResults(**{**fields, **changes})


NAMES = (
    "adamw",
    "adam+warmup",
    "dualadam",
    "dualadam-scale-free+sam",
    "adamcm",
    "adamw+sam",
    "sgd-momentum",
    "nadam",
    "radam",
    "adagrad",
    "rmsprop",
    "some.package.module:Optimizer",
)


def plausible(
    contenders: int = 8, seeds: int = 5, budget: int = 20, epochs: int = 20
) -> StudyResults:
    """Make a tuned study that looks like one of images: optimizers differ by tenths of points."""
    random = np.random.default_rng(0)
    by_seed = random.normal(0.0, 0.002, seeds)
    made, trials = [], []
    for place, name in enumerate(NAMES[:contenders]):
        switch = {"switch": 0.16} if "dual" in name or "warmup" in name else {}
        contender = Contender(
            name,
            title=f"{name}, weight decay 0",
            space={"lr": {"low": 1e-4, "high": 1e-1, "log": True}},
            defaults={"lr": 1e-3, **switch},
            control_for=("dualadam",) if name == "adam+warmup" else (),
        )
        score = 0.905 + 0.004 * math.sin(2.3 * place)
        rates = [1e-3, *(10 ** random.uniform(-4, -1, max(budget - 1, 0))).tolist()][:budget]
        tried = [
            (
                {"lr": rate, **switch},
                _plausible(random, score - 0.006 * math.log10(rate / 4e-3) ** 2, place, epochs),
            )
            for rate in rates
        ]
        best = max(tried, key=lambda trial: trial[1].final.validation_score, default=None)
        tested = [_plausible(random, score + shift, place, epochs) for shift in by_seed]
        made.append(contender)
        trials += tuning(name, tried)
        trials += runs_of(name, tested, best[0] if best else contender.defaults)
    setup = {
        **SETUP,
        "model": "small_cnn",
        "parameters": 421_642,
        "epochs": epochs,
        "batch_size": 128,
        "steps_per_epoch": 391,
        "train_samples": 50_000,
        "validation_samples": 10_000,
        "test_samples": 10_000,
    }
    return study(
        {},
        contenders=made,
        trials=trials,
        budget=budget,
        seeds=seeds,
        setup=setup,
        task="fashion-mnist",
    )


def _plausible(random: np.random.Generator, score: float, place: int, epochs: int) -> Outcome:
    score += random.normal(0.0, 0.0008)
    left = np.exp(-np.arange(1, epochs + 1) / (4 + place % 3))
    train = 0.12 + 0.01 * place + 1.2 * left + random.normal(0.0, 0.004, epochs)
    validation = 2.9 * (1 - score) + 0.9 * left + random.normal(0.0, 0.006, epochs)
    reached = score - 0.35 * left + random.normal(0.0, 0.002, epochs)
    curve = tuple(
        Epoch(float(t), float(v), float(s), 1e-3, 2.0 * (epoch + 1))
        for epoch, (t, v, s) in enumerate(zip(train, validation, reached, strict=True))
    )
    loss = float(validation[-1]) + 0.01
    sharp = float(0.02 * math.exp(12 * (loss - 0.27)) * random.lognormal(0.0, 0.15))
    return Outcome(
        curve=curve,
        diverged=False,
        final=FinalScores(
            float(train[-1]), 0.96, float(validation[-1]), float(reached[-1]), loss, score
        ),
        curvature=Curvature(sharp, 2_000 * sharp, 9_000 * sharp, 3.1e4 * sharp, 3.8e4),
        costs=RunCosts(12.0 + place, 2.0 * epochs, 4.0 * (1 + place % 3), 2.0**28),
    )
