"""benchmarks/flatness.py on noisy labels, large batches and forgetting, with known differences."""

from pathlib import Path

import flatness_training_tables as training_tables
import flatness_verdicts as verdicts
import numpy as np
import pytest
from flatness_training_pictures import draw_forgetting, draw_label_noise

from helpers.flatness_studies import TRIALS, cells, forget_studies, mean_of
from helpers.synthetic_studies import SETUP, outcome, study
from steppe._shared.statistics import Interval
from steppe.compare import Readings
from steppe.compare.records.json_format import to_json
from steppe.compare.records.results import FineTuningCurve, Outcome, StudyPlan, StudyResults
from steppe.compare.records.second_task import SecondTask


def scored(gains: dict[str, float], seed: int = 0) -> StudyResults:
    """Make a study of contenders whose test accuracies differ by a gain, up to noise."""
    random = np.random.default_rng(seed)
    base = random.normal(0.8, 0.01, TRIALS)
    pools = {
        name: [outcome(float(x)) for x in base + random.normal(gains.get(name, 0.0), 0.002, TRIALS)]
        for name in ("adamw", *training_tables.NOISY, *training_tables.NOISY_CONTROLS)
    }
    return study(pools, plan=StudyPlan(4, TRIALS, family=training_tables.NOISY))


def test_sams_gain_grows_with_noise_where_it_does(flatness_results: Path) -> None:
    scored({}).save(flatness_results / "label-noise-digits.json.gz")
    scored({"adamw+sam": 0.05}, seed=1).save(
        flatness_results / "label-noise-digits+noise60.json.gz"
    )
    none, twenty, forty, sixty = cells(training_tables.label_noise_table("digits"), "adamw+sam")
    assert twenty == forty == "not run"
    assert "would find" in none
    assert mean_of(sixty) == pytest.approx(5, abs=0.3)
    assert "would find" not in sixty
    assert mean_of(training_tables.label_noise_growth()) == pytest.approx(5, abs=0.3)
    assert cells(training_tables.label_noise_table("FashionMNIST"), "adamcm") == ["not run"] * 2
    assert float(cells(training_tables.label_noise_table("digits"), "adamw itself")[0]) > 80
    # Not all of a task's studies are there.
    assert training_tables.noisy_studies() == {}


def test_label_noise_is_drawn_by_its_share() -> None:
    tasks = {"digits": {0: Readings(scored({})), 40: Readings(scored({"adamw+sam": 0.05}))}}
    (axes,) = draw_label_noise(tasks).axes
    lines = {each.get_label(): each for each in axes.get_lines()}
    assert lines["adamw+sam"].get_ydata() == pytest.approx([0, 5], abs=0.5)
    assert lines["adamw+sam"].get_xdata() == pytest.approx([0, 40], abs=5)
    assert [each.get_text() for each in axes.get_xticklabels()] == ["0 %", "40 %"]


def test_batches_are_compared_by_each_studys_difference(flatness_results: Path) -> None:
    large = {"adamcm": -0.02}
    scored(large).save(flatness_results / "batch-size-fashion-mnist+batch1024.json.gz")
    assert cells(training_tables.batch_table(), "adamcm")[1:] == ["not run"] * 2
    scored({"adamcm": 0.01}, seed=1).save(flatness_results / "flatness-fashion-mnist-0.json.gz")
    forget_studies()
    table = training_tables.batch_table()
    found = [mean_of(cell) for cell in cells(table, "adamcm")]
    assert found == pytest.approx([-2, 1, -3], abs=0.2)
    assert [mean_of(cell) for cell in cells(table, "adamw+sam")] == pytest.approx([0] * 3, abs=0.2)


def test_changes_between_studies_have_both_errors() -> None:
    found = verdicts.change_between(Interval(2.0, -1.0, 5.0), Interval(0.5, -3.5, 4.5))
    assert (found.mean, found.low, found.high) == pytest.approx((1.5, -3.5, 6.5))


def forgetful(seed: int) -> StudyResults:
    """Make a study in which SAM forgets less by a loss of 0.5."""
    random = np.random.default_rng(seed)
    base = random.normal(0.0, 0.1, TRIALS)
    task = SecondTask("other", "other", batch_size=4, steps=1, lrs=(0.01,), loss=2.0)
    assert task.measured_steps() == (0, 1)

    def fine_tuned(name: str, trial: int) -> Outcome:
        lost = 1.0 + base[trial] + random.normal(0.0, 0.02) - 0.5 * (name == "adamw+sam")
        first = (0.3, 0.3 + 2 * lost)
        flat = (0.5, 0.5)
        # The second task's loss comes down to its common one half-way, in its logarithm.
        second = (4.0, 1.0)
        # Half-way a score has come down by a tenth of what is lost.
        scores = (0.9, 0.9 - 0.2 * lost)
        curve = FineTuningCurve(0.01, (0, 1), *(first, scores) * 2, *(second, flat) * 2)
        return outcome(0.9 + base[trial] / 10, fine_tuning=(curve,))

    names = ("adamw", *verdicts.FORGETS, "adamw+2epochs", "adam+warmup", "adamw+beta1")
    pools = {name: [fine_tuned(name, trial) for trial in range(TRIALS)] for name in names}
    return study(
        pools,
        plan=StudyPlan(4, TRIALS, family=verdicts.FORGETS),
        setup={**SETUP, "then": to_json(task)},
    )


def test_who_forgets_less_is_found(flatness_results: Path) -> None:
    for seed in verdicts.SEEDS:
        forgetful(seed).save(flatness_results / f"forgetting-mnist-5k-{seed}.json.gz")
    table = training_tables.forgetting_table()
    *seeds, said, lost, also_lost = cells(table, "adamw+sam")
    assert [mean_of(cell) for cell in seeds] == pytest.approx([-0.5, -0.5], abs=0.05)
    assert said == "less"
    assert [mean_of(cell) for cell in (lost, also_lost)] == pytest.approx([-5, -5], abs=0.5)
    assert cells(table, "adamcm")[2] == "no difference seen"
    seeds = cells(table, "adamw+sam minus adamw+2epochs")[:2]
    assert [mean_of(cell) for cell in seeds] == pytest.approx([-0.5, -0.5], abs=0.05)
    assert "p" not in "".join(seeds)
    assert mean_of(cells(table, "adam+warmup minus adamw")[0]) == pytest.approx(0, abs=0.05)


def test_forgetting_is_drawn_along_the_second_loss(flatness_results: Path) -> None:
    figure = draw_forgetting({"seed 0": Readings(forgetful(0))})
    lines = {each.get_label(): each for each in figure.axes[0].get_lines()}
    others, ours = (lines[name].get_ydata() for name in ("adamw", "adamw+sam"))
    # From a loss of 4 to one of 1 digits lose 2 · 1.0 of theirs, and 2 · 0.5 after SAM.
    shares = np.log(np.array(lines["adamw"].get_xdata()) / 4) / np.log(1 / 4)
    assert others - ours == pytest.approx(shares, abs=0.1)
    assert np.all(np.diff(ours) > 0)
