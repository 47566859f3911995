"""A study made up to look like a real one of images, with packed results of every sample."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers.synthetic_studies import SETUP, diverged
from steppe.compare.records.packed_numbers import pack_bits, pack_floats
from steppe.compare.records.phases import DEFAULT, POOL, RECOMMENDED
from steppe.compare.records.results import (
    ContenderRecord,
    Curvature,
    Epoch,
    FinalScores,
    MetricDescription,
    Outcome,
    RunCosts,
    SampleResults,
    StudyPlan,
    StudyResults,
    Trial,
)
from steppe.compare.records.summary import best_trial

EPOCHS = 12
SAMPLES = 600  # of validation, and of the test
_LR = {"lr": {"low": 1e-5, "high": 1e-1, "log": True}}
_DECAY = {"weight_decay": {"low": 1e-5, "high": 3.0, "log": True}}
_SWITCH = {"switch": {"low": 0.05, "high": 0.5, "log": True}}
_LAMBDA = {"priority_decay": {"low": 0.7, "high": 0.99}}
_RHO = {"rho": {"low": 0.01, "high": 0.5, "log": True}}
_BETA = {"beta1": {"low": 0.8, "high": 0.98}}


@dataclass(frozen=True)
class Kind:
    """How a contender does: its margin over others, in logits, and its costs."""

    space: Mapping[str, Any]
    margin: float
    sharpness: float = 1.0
    state: float = 8.0
    passes: int = 1
    more: dict[str, Any] = field(default_factory=dict)


_WARMUP_FOR = {"control_for": ("dualadam",)}
KINDS = {
    "adamw": Kind(_LR | _DECAY, 2.0),
    "adam+warmup": Kind(_LR | _SWITCH, 2.01, more=_WARMUP_FOR),
    "dualadam": Kind(_LR | _SWITCH, 2.02, state=12.0),
    "adamw+beta1": Kind(_LR | _DECAY | _BETA, 2.02, more={"control_for": ("adamcm", "adamcg")}),
    "adamcm": Kind(_LR | _DECAY | _LAMBDA, 2.06, 0.7, 28.0),
    "adamcg": Kind(_LR | _DECAY | _LAMBDA, 1.35, 0.5, 28.0),
    "adamw+2epochs": Kind(_LR | _DECAY, 2.1, more={"control_for": ("adamw+sam",), "epochs": 2}),
    "adamw+sam": Kind(_LR | _DECAY | _RHO, 2.55, 0.3, passes=2),
}
FAMILY = ("dualadam", "adamcm", "adamcg", "adamw+sam")
_DEFAULTS = {
    "lr": 1e-3,
    "weight_decay": 0.01,
    "switch": 0.16,
    "priority_decay": 0.9,
    "rho": 0.05,
    "beta1": 0.9,
}


@cache
def realistic(
    trials: int = 24, budget: int = 4, *, seed: int = 0, samples: int = SAMPLES
) -> StudyResults:
    """Make a complete study of eight contenders; SAM is best, AdamCG far behind, some diverge."""
    world = _World(np.random.default_rng(seed), trials, samples)
    contenders, made = [], []
    for name, kind in KINDS.items():
        defaults = {key: _DEFAULTS[key] for key in kind.space}
        contender = ContenderRecord(name, f"{name}, a title", kind.space, defaults, **kind.more)
        contenders.append(contender)
        tried = [world.settings(kind, number) for number in range(trials)]
        pool = [
            Trial(name, POOL, i, 100 + i, settings, world.run(kind, settings, i))
            for i, settings in enumerate(tried)
        ]
        best = best_trial(pool, MetricDescription())
        made += pool
        for phase, chosen, first in ((DEFAULT, defaults, 500), (RECOMMENDED, best.settings, 600)):
            made += [
                Trial(name, phase, i, first + i, chosen, world.run(kind, chosen, i, probed=True))
                for i in range(3)
            ]
    setup = SETUP | {
        "epochs": EPOCHS,
        "model": "small_cnn",
        "test_samples": samples,
        "validation_samples": samples,
    }
    return StudyResults(
        name=f"fashion-mnist-{seed:08x}",
        task="fashion-mnist",
        setup=setup,
        plan=StudyPlan(budget, trials, study_seed=seed, family=FAMILY),
        metric=MetricDescription(),
        versions={"python": "3.11.9", "torch": "2.13.0", "steppe": "0.2.0"},
        command=f"steppe compare fashion-mnist --budget {budget} --trials {trials}",
        contenders=tuple(contenders),
        trials=tuple(made),
        created="2026-11-28",
        author="Ada",
        note="The first try.",
    )


class _World:
    """What all contenders share: points of the unit cube, and how hard each sample is."""

    def __init__(self, random: np.random.Generator, trials: int, samples: int) -> None:
        self.random = random
        self.points = random.random((trials, 8))
        self.luck = random.normal(0.0, 0.05, trials)
        self.hardness = {part: random.logistic(0, 1, samples) for part in ("validation", "test")}

    def settings(self, kind: Kind, number: int) -> dict[str, float]:
        shares = self.points[number]
        return {
            name: _at(space, shares[place])
            for place, (name, space) in enumerate(kind.space.items())
        }

    def run(
        self, kind: Kind, settings: Mapping[str, float], number: int, *, probed: bool = False
    ) -> Outcome:
        away = math.log10(settings["lr"] / 2e-3)
        if away > 1.1:
            return diverged()
        margin = kind.margin - 0.5 * away**2 - 2.0 * max(0.0, away - 0.8)
        margin -= 0.02 * abs(math.log10(settings.get("weight_decay", 0.1) / 0.1))
        margin += float(self.luck[number]) + self.random.normal(0.0, 0.05)
        parts = {part: self._samples(margin, part) for part in self.hardness}
        return self._outcome(kind, margin, parts, probed)

    def _samples(self, margin: float, part: str) -> NDArray[np.float64]:
        noise = self.random.normal(0.0, 0.25, len(self.hardness[part]))
        return margin + self.hardness[part] + noise

    def _outcome(
        self, kind: Kind, margin: float, parts: dict[str, NDArray[np.float64]], probed: bool
    ) -> Outcome:
        hits = {part: each > 0 for part, each in parts.items()}
        losses = {part: np.log1p(np.exp(-each)) for part, each in parts.items()}
        epochs = EPOCHS * kind.more.get("epochs", 1)
        step = 2.0 * kind.passes + kind.state / 20
        train = float(0.9 * math.exp(-margin))
        score, loss = float(hits["validation"].mean()), float(losses["validation"].mean())
        sharp = kind.sharpness * float(self.random.lognormal(-3.5, 0.2))
        curve = _curve(self.random, epochs, train, loss, score, step, sharp if probed else math.nan)
        final = FinalScores(
            train, 0.97, loss, score, float(losses["test"].mean()), float(hits["test"].mean())
        )
        largest = 200 * sharp
        curvature = Curvature(sharp, largest, 20 * largest, 900 * largest, 3.8e4, _density(largest))
        packed = SampleResults(
            pack_bits(hits["validation"]),
            pack_floats(losses["validation"]),
            pack_bits(hits["test"]),
            pack_floats(losses["test"]),
        )
        steps = 34.0 * epochs
        costs = RunCosts(step, step * steps / 1e3, kind.state, gradients=steps * kind.passes)
        return Outcome(curve, False, final, curvature if probed else Curvature(), costs, packed)


def _at(space: Mapping[str, Any], share: float) -> float:
    low, high = space["low"], space["high"]
    value = low * (high / low) ** share if space.get("log") else low + (high - low) * share
    return float(f"{value:.4g}")


def _curve(
    random: np.random.Generator,
    epochs: int,
    train: float,
    loss: float,
    score: float,
    step: float,
    sharpness: float,
) -> tuple[Epoch, ...]:
    left = np.exp(-np.arange(1, epochs + 1) / (epochs / 5))
    left -= left[-1]
    noise = random.normal(0.0, 0.003, epochs)
    noise[-1] = 0.0
    return tuple(
        Epoch(
            train + 1.5 * float(left[e]),
            loss + 1.2 * float(left[e]) + float(noise[e]),
            score - 0.4 * float(left[e]) + float(noise[e]),
            1e-3,
            step * 34 * (e + 1) / 1e3,
            probe_loss=train + 1.5 * float(left[e]) if math.isfinite(sharpness) else math.nan,
            sharpness=sharpness * (1 + 3 * float(left[e])),
            largest=200 * sharpness * (1 + 3 * float(left[e])),
        )
        for e in range(epochs)
    )


def _density(largest: float) -> tuple[tuple[float, float], ...]:
    x = np.linspace(-0.1 * largest, 1.1 * largest, 60)
    bulk = np.exp(-((x / (0.04 * largest)) ** 2))
    outlier = 1e-3 * np.exp(-(((x - largest) / (0.03 * largest)) ** 2))
    return tuple(zip(x.tolist(), ((bulk + outlier + 1e-9) / largest).tolist(), strict=True))
