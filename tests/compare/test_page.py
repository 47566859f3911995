"""The page, in a browser: what it shows, what its controls do, and that nothing breaks it."""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import studies

from steppe.compare.page import page, write_page
from steppe.compare.results import (
    Contender,
    Costs,
    Curvature,
    Epoch,
    Final,
    Metric,
    Outcome,
    StudyResults,
    Trial,
    study_from_dict,
)

LR = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}}
SWITCH = {"switch": {"choices": [0.08, 0.16, 0.32]}}
CONTENDERS = (
    Contender("adamw", "AdamW, decoupled weight decay", LR, {"lr": 1e-3}),
    Contender(
        "adam+warmup",
        "Adam, lr warmed up",
        LR | SWITCH,
        {"lr": 1e-3, "switch": 0.16},
        control_for=("dualadam", "dualadam-scale-free"),
    ),
    Contender("dualadam", "DualAdam", LR | SWITCH, {"lr": 1e-3, "switch": 0.16}),
    Contender("dualadam-scale-free", "DualAdam", LR | SWITCH, {"lr": 1e-3, "switch": 0.16}),
    Contender("adamcm", "AdamCM, 5 critical momenta", LR, {"lr": 1e-3}),
    Contender("adam+2lr", "Adam", {}, {"lr": 2e-3}, control_for=("adamcm",), follows="adamcm"),
    Contender("adamcg", "AdamCG, 5 critical gradients", LR, {"lr": 1e-3}),
    Contender("adamw+sam", "AdamW under SAM, rho 0.05", LR, {"lr": 1e-3}),
)
SEEDS, BUDGET, EPOCHS = 5, 8, 12
DIVERGED = Outcome((), True, Final(), Curvature(), Costs(2.0, 1.0, 8.0))


def run(random: np.random.Generator, place: int, score: float, density: bool = True) -> Outcome:
    """Make a run that learns; sharper ones end in a higher test loss."""
    left = np.exp(-np.arange(1, EPOCHS + 1) / (2.5 + place % 3))
    noise = random.normal(0.0, 0.004, (3, EPOCHS))
    train = 0.05 + 0.01 * place + 1.5 * left * np.exp(noise[0])
    validation = 3.0 * (1 - score) + 1.2 * left + noise[1]
    reached = score - 0.4 * left + noise[2] / 4
    step = 3.0 + (3.0 if place == 7 else 0.3 * place)
    curve = tuple(
        Epoch(float(t), float(v), float(s), 1e-3, step * 0.4 * (epoch + 1))
        for epoch, (t, v, s) in enumerate(zip(train, validation, reached, strict=True))
    )
    loss = float(validation[-1]) + 0.01
    largest = 4.0 * math.exp(15 * (loss - 0.3)) * random.lognormal(0.0, 0.2)
    x = np.linspace(-0.1 * largest, 1.1 * largest, 80)
    y = np.exp(-((x / (0.03 * largest)) ** 2)) + 1e-4 * np.exp(
        -(((x - largest) / (0.03 * largest)) ** 2)
    )
    return Outcome(
        curve,
        False,
        Final(float(train[-1]), 0.99, float(validation[-1]), float(reached[-1]), loss, score),
        Curvature(
            largest / 200,
            largest,
            30 * largest,
            9_000 * largest,
            38_000.0,
            tuple(zip(x.tolist(), (y / largest).tolist(), strict=True)) if density else (),
        ),
        Costs(step, step * 0.4 * EPOCHS, (8.0, 8.0, 12.0, 12.0, 28.0, 8.0, 28.0, 8.0)[place % 8]),
    )


def make_study(**changes: Any) -> StudyResults:
    """Make a tuned study in which some runs diverged and one failed, and adamcm is better."""
    random = np.random.default_rng(5)
    outcomes: dict[str, list[Outcome | None]] = {}
    trials: list[Trial] = []
    settings: dict[str, Any] = {}
    for place, each in enumerate(CONTENDERS):
        score = 0.90 + (0.012 if each.name == "adamcm" else 0.001 * (place % 3))
        outcomes[each.name] = [
            run(random, place, score + 0.001 * seed + random.normal(0, 0.0015))
            for seed in range(SEEDS)
        ]
        tried = [] if each.follows else tuned(random, place, each, score)
        trials += tried
        settings[each.name] = max(tried, key=validated).settings if tried else settings["adamcm"]
    outcomes["adamcg"][2:4] = [DIVERGED, DIVERGED]
    outcomes["adamw+sam"][4] = None
    for name, each in outcomes.items():
        trials += studies.tests(name, each, settings[name])
    return studies.study(
        {},
        contenders=CONTENDERS,
        trials=trials,
        **{
            "task": "fashion-mnist",
            "budget": BUDGET,
            "seeds": SEEDS,
            "setup": studies.SETUP | {"epochs": EPOCHS},
            "command": "steppe compare fashion-mnist --trials 8 --seeds 5",
            "versions": {"python": "3.11.9", "torch": "2.13.0", "steppe": "0.1.0"},
        }
        | changes,
    )


def validated(trial: Trial) -> float:
    return trial.outcome.final.validation_score if trial.outcome != DIVERGED else -math.inf


def tuned(
    random: np.random.Generator, place: int, contender: Contender, score: float
) -> list[Trial]:
    rates = [1e-3, *(10 ** random.uniform(-4, -1, BUDGET - 1)).tolist()]
    return studies.tuning(
        contender.name,
        [
            (
                {**contender.defaults, "lr": rate},
                DIVERGED
                if rate > 0.05
                else run(random, place, score - 0.02 * abs(math.log10(rate / 2e-3)) ** 2, False),
            )
            for rate in rates
        ],
    )
