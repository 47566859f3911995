"""benchmarks/flatness.py, on studies whose differences are known, and on the committed ones."""

from dataclasses import replace
from pathlib import Path

import flatness
import flatness_verdicts as verdicts
import numpy as np
import pytest
from flatness_pictures import draw_differences, draw_fronts, draw_strengths
from flatness_tables import (
    compute_table,
    equal_compute_table,
    family_table,
    interaction_table,
    mild_table,
    recipe_table,
    summary_table,
    third_task_table,
)

from helpers.flatness_studies import EFFECTS, TRIALS, cells, made, mean_of
from helpers.synthetic_studies import study
from steppe.compare import POOL, Readings, RobustReadings
from steppe.compare.records.results import PerturbedScores, StudyPlan, StudyResults, Trial


@pytest.fixture
def studies(flatness_results: Path) -> Path:
    for seed in verdicts.SEEDS:
        made(seed).save(flatness_results / f"flatness-digits-{seed}.json.gz")
    return flatness_results


def test_effects_are_found_and_nothing_else(studies: Path) -> None:
    found = verdicts.comparisons(verdicts.studies_of("digits")[0], verdicts.FAMILY)
    for each in found:
        effect = EFFECTS.get((each.contender, each.reading), 0.0)
        if each.reading == verdicts.KURTOSIS:
            assert each.difference.mean == pytest.approx(-0.5, abs=0.1)
            continue
        assert each.difference.low < 100 * effect < each.difference.high
        assert each.sign == np.sign(effect)
    # The most significant of 14 has 14 times its p, and no corrected p is below that.
    assert min(each.p for each in found) == pytest.approx(14 / 10_000)


def test_the_tables_say_what_both_seeds_say(studies: Path) -> None:
    lines = family_table(verdicts.FAMILY).splitlines()
    said = {tuple(line.split(" | ")[:3]): line.split(" | ")[-1].strip(" |") for line in lines}
    assert said["| adamcm", "2 bits absmax", "digits"] == "more"
    assert said["| adamw+sam", "weight noise 0.5", "digits"] == "less"
    assert said["| adamcm", "log kurtosis", "digits"] == "less"
    assert said["| adamcm", "2 bits least error", "digits"] == "no difference seen"
    assert said["| adamcm", "2 bits absmax", "FashionMNIST"] == "not run"


def test_a_claim_is_put_in_short(studies: Path) -> None:
    table = summary_table()
    line = next(each for each in table.splitlines() if "adamcm | 2 bits absmax" in each)
    cells = [each.strip() for each in line.strip("| ").split("|")[2:]]
    assert [each.partition(":")[0] for each in cells] == ["more", "more", "not run", "not run"]
    found = [float(each) for each in cells[0].partition(":")[2].split(",")]
    assert found == pytest.approx([10, 10], abs=1)
    assert "kurtosis" not in table


def test_sam_stands_beside_what_has_as_many_gradients(studies: Path) -> None:
    lines = [line for line in compute_table().splitlines() if "weight noise 0.5 | digits" in line]
    found = [[mean_of(each) for each in line.strip("| ").split(" | ")[3:]] for line in lines]
    assert found == pytest.approx(
        5 * np.array([[each] * 2 for each in (0, 0, 0, -1, 1, 1, 1, -1, 0)]), abs=0.5
    )


def test_a_recipe_is_that_of_the_trials_that_keep_most(studies: Path) -> None:
    """Of each 24 trials the best two, by validation: here those with the largest rho."""
    for seed in verdicts.SEEDS:
        found = made(seed)
        trials = [
            with_rho(each) if each.optimizer == "adamw+sam" else each for each in found.trials
        ]
        replace(found, trials=tuple(trials)).save(studies / f"flatness-digits-{seed}.json.gz")
    start = "| adamw+sam | weight noise 0.5 |"
    (line,) = (each for each in recipe_table().splitlines() if each.startswith(start))
    # Quartiles of 0.22 and 0.23, twice.
    assert line == f"{start} lr 0.001–0.001, rho 0.22–0.23 | not run |"


def with_rho(trial: Trial) -> Trial:
    """Return a trial whose rho, and what is left under noise, rise with its number."""
    scores = PerturbedScores(trial.number / 100, 0.5, 0.5, 0.5)
    robustness = {**trial.outcome.robustness, verdicts.NOISE: scores}
    return replace(
        trial,
        settings={"lr": 0.001, "rho": 0.01 * trial.number},
        outcome=replace(trial.outcome, robustness=robustness),
    )


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        ((1, 1), "more"),
        ((-1, -1), "less"),
        ((0, 0), "no difference seen"),
        ((1, 0), "not replicated"),
        ((1, -1), "not replicated"),
        ((1, None), "one study, more"),
        ((None, -1), "one study, less"),
        ((0, None), "one study, not seen"),
        ((None, None), "not run"),
    ],
)
def test_a_claim_needs_both_seeds(signs: tuple[int | None, ...], said: str) -> None:
    assert verdicts.verdict(signs) == said


def test_effects_that_add_up_are_said_to(studies: Path) -> None:
    lines = interaction_table().splitlines()
    # SAM's harm under noise is AdamW's alone here: an interaction of 5 points.
    assert [line.count("adds up") for line in lines if "digits" in line] == [0, 2]
    found = verdicts.interaction(RobustReadings(Readings(made(0))), verdicts.NOISE)
    assert found.low < 5 < found.high
    assert all("not run" in line for line in lines if "FashionMNIST" in line)


def test_what_tuning_can_reach_is_drawn(studies: Path) -> None:
    readings = RobustReadings(Readings(made(0)))
    figure = draw_fronts({"digits": readings}, (verdicts.NOISE, verdicts.ABSMAX))
    noise, rounded = figure.axes
    line = next(each for each in rounded.get_lines() if each.get_label() == "adamcm")
    clean = readings.expected("adamcm", verdicts.CLEAN, tuned=True).mean
    robust = readings.expected("adamcm", verdicts.ABSMAX, tuned=True).mean
    assert line.get_xdata()[0] == pytest.approx(clean)
    assert line.get_ydata()[-1] == pytest.approx(robust)
    assert noise.get_xlabel() == "clean test accuracy, %"
    found = verdicts.comparisons(readings, verdicts.FAMILY)
    tests = {"digits": {"seed 0": found}, "FashionMNIST": {"seed 0": found, "seed 1": found}}
    labels = [each.get_text() for each in draw_differences(tests).axes[0].get_yticklabels()]
    assert labels[0] == "adamcm: 2 bits absmax"
    assert len(labels) == len(verdicts.FAMILY) - 1


def with_mild_changes(found: StudyResults) -> StudyResults:
    """Return a study whose contenders differ at 4 bits as at 2 with absmax scales."""
    copied = {
        "weight noise 0.1": verdicts.CLEAN,
        "weight noise 0.3": verdicts.NOISE,
        "4 bits least error": verdicts.ABSMAX,
        "3 bits least error": verdicts.LEAST,
        "calibration error": verdicts.CLEAN,
    }
    trials = []
    for trial in found.trials:
        measured = trial.outcome.robustness
        mild = {name: measured[other] for name, other in copied.items()}
        changed = replace(trial.outcome, robustness={**measured, **mild})
        trials.append(replace(trial, outcome=changed))
    return replace(found, trials=tuple(trials))


def test_small_changes_stand_beside_large_ones(studies: Path) -> None:
    for seed in verdicts.SEEDS:
        with_mild_changes(made(seed)).save(studies / f"flatness-digits-{seed}.json.gz")
    lines = {tuple(each.split(" | ")[:2]): each for each in mild_table().splitlines()}
    found = {key: line.strip("| ").split(" | ")[2:] for key, line in lines.items()}
    rounded = found["| adamcm", "digits"][2]
    assert rounded.endswith("*")
    assert [float(each) for each in rounded.rstrip("*").split(",")] == pytest.approx(
        [10, 10], abs=1
    )
    assert "*" not in found["| adamcm", "digits"][0] + found["| adamw+msam", "digits"][2]
    assert set(found["| adamcm", "FashionMNIST"]) == {"not run"}
    own = [float(each) for each in found["| adamw itself", "digits"][0].split(",")]
    readings = [RobustReadings(Readings(made(seed))) for seed in verdicts.SEEDS]
    assert own == pytest.approx(
        [each.expected("adamw", verdicts.CLEAN).mean for each in readings], abs=0.051
    )


def test_the_third_task_is_that_of_forgetting(studies: Path) -> None:
    for seed in verdicts.SEEDS:
        made(seed).save(studies / f"forgetting-mnist-5k-{seed}.json.gz")
    table = third_task_table()
    clean, noise, absmax, least, _ = cells(table, "adamcm")
    assert absmax.endswith("*")
    assert [float(each) for each in absmax.rstrip("*").split(",")] == pytest.approx([10, 10], abs=1)
    assert "*" not in clean + noise + least
    assert cells(table, "adamw+sam")[1].endswith("*")


def test_differences_are_drawn_by_how_much_is_changed(studies: Path) -> None:
    found = [RobustReadings(Readings(with_mild_changes(made(seed)))) for seed in verdicts.SEEDS]
    _, rounded = draw_strengths({"digits": found}).axes
    lines = {each.get_label(): each for each in rounded.get_lines()}
    changes = [each.change("adamcm", "adamw", "4 bits least error") for each in found]
    assert lines["adamcm"].get_ydata()[1] == pytest.approx(np.mean([each.mean for each in changes]))
    # AdamW's line of 0, and each contender's line with four intervals.
    (_, _, _, bar, *_) = rounded.get_lines()
    low, high = bar.get_ydata()
    # A mean of two independent numbers has half of the hypotenuse to each side.
    halves = [(each.high - each.low) / 2 for each in changes]
    assert high - low == pytest.approx(np.hypot(*halves))


def test_a_candidate_is_judged_on_fresh_seeds(studies: Path) -> None:
    others = ["adamw+sam", "adamw+2epochs+ema", "adam+warmup+2epochs"]
    names = dict(zip(("adamw", "adamcm", "dualadam"), others, strict=True))
    names["adamw+sam"] = verdicts.CANDIDATE
    for seed in verdicts.FRESH_SEEDS:
        found = made(seed)
        pools = {new: [t.outcome for t in found.trials_of(old, POOL)] for old, new in names.items()}
        path = studies / f"equal-compute-fashion-mnist-{seed}.json.gz"
        study(pools, plan=StudyPlan(4, TRIALS, family=tuple(pools)[1:])).save(path)
    lines = [line for line in equal_compute_table().splitlines() if verdicts.NOISE in line]
    found = [line.strip("| ").split(" | ") for line in lines]
    assert [each[0] for each in found] == others
    # What stands for the candidate has lost 5 points under noise.
    assert [each[-1] for each in found] == ["less"] * 3
    means = [mean_of(cell) for each in found for cell in each[2:4]]
    assert means == pytest.approx([-5] * 6, abs=0.5)
    tests = verdicts.equal_compute_comparisons(verdicts.equal_compute_studies()[0])
    assert [each.p for each in tests] == pytest.approx([3 / 10_000] * 3)


@pytest.mark.thorough
def test_the_pages_say_what_the_files_hold() -> None:
    tables = flatness.tables()
    pages = {page: page.read_text(encoding="utf-8") for page in flatness.PAGES}
    for page, text in pages.items():
        assert flatness.rewritten(text, tables) == text, page
    for part in tables:
        block = f"<!-- benchmarks/flatness.py {part} -->"
        assert sum(text.count(block) for text in pages.values()) == 1, part
