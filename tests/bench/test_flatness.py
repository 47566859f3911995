"""benchmarks/flatness.py, on studies whose differences are known, and on the committed ones."""

from pathlib import Path

import flatness
import numpy as np
import pytest
from flatness_pictures import draw_differences, draw_fronts

from helpers.synthetic_studies import outcome, study
from steppe.compare import Readings, RobustReadings
from steppe.compare.records.results import PerturbedScores, StudyPlan, StudyResults

NAMES = ("adamw", *dict.fromkeys(name for name, _ in flatness.FAMILY), "adamw+ema", "adamw+2epochs")
TRIALS = 24
# Of the two studies' effects on accuracy; all else differs by noise alone.
EFFECTS = {("adamcm", flatness.ABSMAX): 0.1, ("adamw+sam", flatness.NOISE): -0.05}


def made(seed: int) -> StudyResults:
    """Make a study with the declared readings and effects, and interactions of none."""
    random = np.random.default_rng(seed)
    base = random.normal(0.0, 0.01, (TRIALS, 8))
    readings = (flatness.CLEAN, flatness.NOISE, flatness.LEAST, flatness.ABSMAX)
    readings += (flatness.COMPENSATED, "blur 1", "blur 3")
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


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(flatness, "RESULTS", tmp_path)
    flatness.readings_of.cache_clear()
    for seed in flatness.SEEDS:
        made(seed).save(flatness.file_of("digits", seed))
    yield tmp_path
    flatness.readings_of.cache_clear()


def test_effects_are_found_and_nothing_else(studies: Path) -> None:
    found = flatness.comparisons(
        flatness.readings_of(flatness.file_of("digits", 0)), flatness.FAMILY
    )
    for each in found:
        effect = EFFECTS.get((each.contender, each.reading), 0.0)
        if each.reading == flatness.KURTOSIS:
            assert each.difference.mean == pytest.approx(-0.5, abs=0.1)
            continue
        assert each.difference.low < 100 * effect < each.difference.high
        assert each.sign == np.sign(effect)
    # The most significant of 14 has 14 times its p, and no corrected p is below that.
    assert min(each.p for each in found) == pytest.approx(14 / 10_000)


def test_the_tables_say_what_both_seeds_say(studies: Path) -> None:
    lines = flatness.family_table(flatness.FAMILY).splitlines()
    said = {tuple(line.split(" | ")[:3]): line.split(" | ")[-1].strip(" |") for line in lines}
    assert said["| adamcm", "2 bits absmax", "digits"] == "more"
    assert said["| adamw+sam", "weight noise 0.5", "digits"] == "less"
    assert said["| adamcm", "log kurtosis", "digits"] == "less"
    assert said["| adamcm", "2 bits least error", "digits"] == "no difference seen"
    assert said["| adamcm", "2 bits absmax", "FashionMNIST"] == "not run"


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        ((1, 1), "more"),
        ((-1, -1), "less"),
        ((0, 0), "no difference seen"),
        ((1, 0), "not replicated"),
        ((1, -1), "not replicated"),
        ((1, None), "not run"),
    ],
)
def test_a_claim_needs_both_seeds(signs: tuple[int | None, ...], said: str) -> None:
    assert flatness.verdict(signs) == said


def test_effects_that_add_up_are_said_to(studies: Path) -> None:
    lines = flatness.interaction_table().splitlines()
    # SAM's harm under noise is AdamW's alone here: an interaction of 5 points.
    assert [line.count("adds up") for line in lines if "digits" in line] == [0, 2]
    found = flatness.interaction(RobustReadings(Readings(made(0))), flatness.NOISE)
    assert found.low < 5 < found.high
    assert all("not run" in line for line in lines if "FashionMNIST" in line)


def test_what_tuning_can_reach_is_drawn(studies: Path) -> None:
    readings = RobustReadings(Readings(made(0)))
    figure = draw_fronts({"digits": readings}, (flatness.NOISE, flatness.ABSMAX))
    noise, rounded = figure.axes
    line = next(each for each in rounded.get_lines() if each.get_label() == "adamcm")
    clean = readings.expected("adamcm", flatness.CLEAN, tuned=True).mean
    robust = readings.expected("adamcm", flatness.ABSMAX, tuned=True).mean
    assert line.get_xdata()[0] == pytest.approx(clean)
    assert line.get_ydata()[-1] == pytest.approx(robust)
    assert noise.get_xlabel() == "clean test accuracy, %"
    tests = {"digits": flatness.comparisons(readings, flatness.FAMILY)}
    labels = [each.get_text() for each in draw_differences(tests).axes[0].get_yticklabels()]
    assert labels[0] == "adamcm: 2 bits absmax"
    assert len(labels) == len(flatness.FAMILY) - 1


@pytest.mark.thorough
def test_the_page_says_what_the_files_hold() -> None:
    assert flatness.rewritten(flatness.PAGE.read_text()) == flatness.PAGE.read_text()
