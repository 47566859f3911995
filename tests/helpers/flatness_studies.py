"""Studies as those of docs/flatness-plan.md, whose differences are known."""

import flatness_verdicts as verdicts
import numpy as np

from helpers.synthetic_studies import outcome, study
from steppe.compare.records.results import PerturbedScores, StudyPlan, StudyResults

NAMES = ("adamw", *dict.fromkeys(name for name, _ in verdicts.FAMILY), "adamw+ema", "adamw+2epochs")
NAMES += ("dualadam", "adam+warmup")
TRIALS = 24
# Of the two studies' effects on accuracy; all else differs by noise alone.
EFFECTS = {("adamcm", verdicts.ABSMAX): 0.1, ("adamw+sam", verdicts.NOISE): -0.05}


def made(seed: int) -> StudyResults:
    """Make a study with the declared readings and effects, and interactions of none."""
    random = np.random.default_rng(seed)
    base = random.normal(0.0, 0.01, (TRIALS, 8))
    readings = (verdicts.CLEAN, verdicts.NOISE, verdicts.LEAST, verdicts.ABSMAX)
    readings += (verdicts.COMPENSATED, "blur 1", "blur 3")
    pools = {}
    for name in NAMES:
        own = random.normal(0.0, 0.004, (TRIALS, 8))
        pools[name] = [
            outcome(
                0.8 + base[trial, 7],
                robustness={
                    reading: PerturbedScores(
                        (score := 0.8 + base[trial, i] + own[trial, i]
                         + EFFECTS.get((name, reading), 0.0)), score, 0.5, 0.5,
                    )
                    for i, reading in enumerate(readings)
                }
                | {
                    "kurtosis": PerturbedScores(
                        *[float(np.exp(1 + 20 * own[trial, 0] - 0.5 * (name == "adamcm")))] * 2
                    )
                },
            )
            for trial in range(TRIALS)
        ]  # fmt: skip
    return study(pools, plan=StudyPlan(4, TRIALS, family=NAMES[1:]))


def cells(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [each.strip() for each in line.strip("| ").split("|")[1:]]


def mean_of(cell: str) -> float:
    return float(cell.split()[0].replace("−", "-"))


def forget_studies() -> None:
    """Read all studies again."""
    verdicts.readings_of.cache_clear()
    verdicts.robust_readings_of.cache_clear()
