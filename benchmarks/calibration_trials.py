"""The trials that ``calibration.py`` draws from: of studies that differ in their seed alone."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steppe.compare import POOL, Pool, Readings, StudyResults

POOLS = Path(__file__).parents[1] / "docs" / "results" / "calibration-pools.json"
READINGS: tuple[Literal["score", "loss"], ...] = ("score", "loss")


def numbers_of(studies: Sequence[StudyResults]) -> dict[str, Any]:
    """Return what is needed of studies: what they said, and all trials' results.

    Raises
    ------
    ValueError
        They differ in more than the study seed.
    """
    whole = together(studies)
    readings = Readings(whole)
    pools = {}
    lrs = [t.settings.get("lr") for t in whole.trials_of(whole.baseline, POOL)]
    for name in (each.name for each in whole.contenders):
        by_score, by_loss = (readings.pool(name, reading) for reading in READINGS)
        columns = (by_score.score, by_score.loss, by_score.test, by_loss.test)
        # Null for −∞ and ∞: of a trial that diverged.
        pools[name] = [
            [float(f"{x:.6g}") if math.isfinite(x) else None for x in column] for column in columns
        ]
    return {
        "studies": [
            {
                "command": each.command,
                "versions": dict(each.versions),
                "study_seed": each.plan.study_seed,
                "verdicts": _said(each),
            }
            for each in studies
        ],
        "together": _said(whole),
        "lr": lrs,
        "pools": pools,
    }


def together(studies: Sequence[StudyResults]) -> StudyResults:
    """Return studies that differ in the study seed alone as one, with the trials of all.

    Raises
    ------
    ValueError
        They differ in more.
    """
    first = studies[0]
    trials = [trial for trial in first.trials if trial.phase != POOL]
    for index, each in enumerate(studies):
        plan = replace(each.plan, study_seed=first.plan.study_seed)
        same = (plan, each.contenders, each.setup, each.versions)
        if same != (first.plan, first.contenders, first.setup, first.versions):
            raise ValueError(f"study {each.name} differs from {first.name} in more than its seed")
        trials += [
            replace(trial, number=trial.number + index * plan.trials)
            for trial in each.trials
            if trial.phase == POOL
        ]
    plan = replace(first.plan, trials=len(studies) * first.plan.trials)
    return replace(first, plan=plan, trials=tuple(trials))


def _said(results: StudyResults) -> dict[str, list[dict[str, Any]]]:
    """Return a study's verdicts, and those that it would have given had the loss been primary."""
    return {
        reading: [
            vars(each)
            for each in Readings(
                replace(results, plan=replace(results.plan, primary=reading))
            ).verdicts
        ]
        for reading in READINGS
    }


def read_lrs() -> NDArray[np.float64]:
    """Read the baseline's learning rate in each trial, which is that of the others as well."""
    return np.array(json.loads(POOLS.read_text(encoding="utf-8"))["lr"], dtype=float)


def read_pools() -> dict[str, dict[str, Pool]]:
    """Read the pools of all studies together, by reading and contender."""
    content = json.loads(POOLS.read_text(encoding="utf-8"))["pools"]
    found: dict[str, dict[str, Pool]] = {"score": {}, "loss": {}}
    for name, columns in content.items():
        score, loss, by_score, by_loss = (np.array(each, dtype=float) for each in columns)
        score, loss = np.nan_to_num(score, nan=-np.inf), np.nan_to_num(loss, nan=np.inf)
        found["score"][name] = Pool(score, loss, by_score)
        found["loss"][name] = Pool(score, loss, by_loss)
    return found
