"""A realistic study whose runs were measured with changed weights and inputs, too."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np

from helpers.realistic_study import realistic
from steppe.compare.records.packed_numbers import pack_floats
from steppe.compare.records.results import Outcome, PerturbedScores, StudyResults

_SAMPLES, _STRETCHES = 600, 10
# What a perturbation takes from a model, in logits.
_ROUNDING = {"absmax": 1.5, "least error": 0.8, "compensated": 0.6}
_TAILS = {"adamcm": 0.6, "adamcg": 0.7}
_FLATNESS = {"adamw+sam": 0.6}


@cache
def robust(trials: int = 24, budget: int = 4) -> StudyResults:
    """Give the realistic study measures: AdamCM does well rounded, SAM under noise."""
    return with_robustness(realistic(trials, budget))


def with_robustness(results: StudyResults, seed: int = 0) -> StudyResults:
    """Give every run of a study that ended such measures, of about its own accuracy."""
    random = np.random.default_rng(seed)
    trials = [
        replace(
            trial, outcome=replace(outcome, robustness=_measured(trial.optimizer, outcome, random))
        )
        if (outcome := trial.finite_outcome)
        else trial
        for trial in results.trials
    ]
    return replace(
        results, setup={**results.setup, "robustness": {"samples": _SAMPLES}}, trials=tuple(trials)
    )


def _perturbations(name: str) -> Iterator[tuple[str, float]]:
    """Yield perturbations and what they take from a contender's models."""
    for bits in (4, 3, 2):
        for kind, harm in _ROUNDING.items():
            yield f"{bits} bits {kind}", harm * (4.3 - bits) ** 1.2 * _TAILS.get(name, 1.0)
    for share in (0.1, 0.3, 0.5):
        yield f"weight noise {share}", 4.0 * share**2 * _FLATNESS.get(name, 1.0)
    for kind, harm in (("noise", 0.25), ("blur", 0.35), ("shift", 0.2), ("contrast", 0.15)):
        for severity in (1, 3, 5):
            yield f"{kind} {severity}", harm * severity


def _measured(
    name: str, outcome: Outcome, random: np.random.Generator
) -> dict[str, PerturbedScores]:
    score = min(max(outcome.final.test_score, 0.01), 0.99)
    margin = math.log(score / (1 - score))
    luck = random.normal(0.0, 0.2)
    found = {"clean": _scores(margin, random)}
    for perturbation, harm in _perturbations(name):
        harm *= math.exp(luck + random.normal(0.0, 0.1))
        found[perturbation] = _scores(max(margin - harm, -2.2), random)
    kurtosis = 3.0 + 2.0 * _TAILS.get(name, 1.0) * math.exp(luck)
    for measure, value in (("kurtosis", kurtosis), ("outliers", 0.02 * kurtosis)):
        found[measure] = PerturbedScores(value, value)
    for measure, value in (("calibration error", 0.04), ("Brier score", 0.25)):
        noise = np.exp(random.normal(0.0, 0.1, 2))
        found[measure] = PerturbedScores(*(value * (1.5 - score) * noise).tolist())
    return found


def _scores(margin: float, random: np.random.Generator) -> PerturbedScores:
    """Draw right answers in stretches, validation first."""
    share, each = 1 / (1 + math.exp(-margin)), _SAMPLES // _STRETCHES
    parts = random.binomial(each, share, (2, _STRETCHES)) / each
    validation, test = parts.mean(axis=1).tolist()
    loss = math.log1p(math.exp(-margin))
    return PerturbedScores(validation, test, loss, loss, *map(pack_floats, parts))
