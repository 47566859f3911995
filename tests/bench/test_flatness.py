"""benchmarks/flatness.py, on studies whose differences are known, and on the committed ones."""

from dataclasses import replace
from pathlib import Path

import flatness
import flatness_training_tables as training_tables
import flatness_verdicts as verdicts
import numpy as np
import pytest
from flatness_pictures import draw_differences, draw_forgetting, draw_fronts, draw_strengths
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

from helpers.synthetic_studies import SETUP, outcome, study
from steppe._shared.statistics import Interval
from steppe.compare import POOL, Readings, RobustReadings
from steppe.compare.records.json_format import to_json
from steppe.compare.records.results import (
    FineTuningCurve,
    Outcome,
    PerturbedScores,
    StudyPlan,
    StudyResults,
    Trial,
)
from steppe.compare.records.second_task import SecondTask

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


def forget_files() -> None:
    verdicts.readings_of.cache_clear()
    verdicts.robust_readings_of.cache_clear()


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(verdicts, "RESULTS", tmp_path)
    forget_files()
    for seed in verdicts.SEEDS:
        made(seed).save(tmp_path / f"flatness-digits-{seed}.json.gz")
    yield tmp_path
    forget_files()


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
    cells = {key: line.strip("| ").split(" | ")[2:] for key, line in lines.items()}
    rounded = cells["| adamcm", "digits"][2]
    assert rounded.endswith("*")
    assert [float(each) for each in rounded.rstrip("*").split(",")] == pytest.approx(
        [10, 10], abs=1
    )
    assert "*" not in cells["| adamcm", "digits"][0] + cells["| adamw+msam", "digits"][2]
    assert set(cells["| adamcm", "FashionMNIST"]) == {"not run"}
    own = [float(each) for each in cells["| adamw itself", "digits"][0].split(",")]
    found = [RobustReadings(Readings(made(seed))) for seed in verdicts.SEEDS]
    assert own == pytest.approx(
        [each.expected("adamw", verdicts.CLEAN).mean for each in found], abs=0.051
    )


def test_the_third_task_is_that_of_forgetting(studies: Path) -> None:
    for seed in verdicts.SEEDS:
        made(seed).save(studies / f"forgetting-mnist-5k-{seed}.json.gz")
    lines = {each.split(" | ")[0]: each for each in third_task_table().splitlines()}
    _, clean, noise, absmax, least, _ = lines["| adamcm"].strip("| ").split(" | ")
    assert absmax.endswith("*")
    assert [float(each) for each in absmax.rstrip("*").split(",")] == pytest.approx([10, 10], abs=1)
    assert "*" not in clean + noise + least
    assert lines["| adamw+sam"].strip("| ").split(" | ")[2].endswith("*")


def test_differences_are_drawn_by_how_much_is_changed(studies: Path) -> None:
    found = [RobustReadings(Readings(with_mild_changes(made(seed)))) for seed in verdicts.SEEDS]
    _, rounded = draw_strengths({"digits": found}).axes
    lines = {each.get_label(): each for each in rounded.get_lines()}
    changes = [each.change("adamcm", "adamw", "4 bits least error") for each in found]
    assert lines["adamcm"].get_ydata()[1] == pytest.approx(np.mean([each.mean for each in changes]))
    # A mean of two independent numbers has half of the hypotenuse to each side.
    low, high = rounded.containers[0].lines[2][0].get_segments()[1][:, 1]
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


def scored(gains: dict[str, float], seed: int = 0) -> StudyResults:
    """Make a study of contenders whose test accuracies differ by a gain, up to noise."""
    random = np.random.default_rng(seed)
    base = random.normal(0.8, 0.01, TRIALS)
    pools = {
        name: [outcome(float(x)) for x in base + random.normal(gains.get(name, 0.0), 0.002, TRIALS)]
        for name in ("adamw", *training_tables.NOISY)
    }
    return study(pools, plan=StudyPlan(4, TRIALS, family=training_tables.NOISY))


def cells(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [each.strip() for each in line.strip("| ").split("|")[1:]]


def mean_of(cell: str) -> float:
    return float(cell.split()[0].replace("−", "-"))


def test_sams_gain_grows_with_noise_where_it_does(studies: Path) -> None:
    scored({}).save(studies / "label-noise-digits.json.gz")
    scored({"adamw+sam": 0.05}, seed=1).save(studies / "label-noise-digits+noise60.json.gz")
    none, twenty, forty, sixty = cells(training_tables.label_noise_table("digits"), "adamw+sam")
    assert twenty == forty == "not run"
    assert "would find" in none
    assert mean_of(sixty) == pytest.approx(5, abs=0.3)
    assert "would find" not in sixty
    assert mean_of(training_tables.label_noise_growth()) == pytest.approx(5, abs=0.3)
    assert cells(training_tables.label_noise_table("FashionMNIST"), "adamcm") == ["not run"] * 2


def test_batches_are_compared_by_each_studys_difference(studies: Path) -> None:
    large = {"adamcm": -0.02}
    scored(large).save(studies / "batch-size-fashion-mnist+batch1024.json.gz")
    assert cells(training_tables.batch_table(), "adamcm")[1:] == ["not run"] * 2
    scored({"adamcm": 0.01}, seed=1).save(studies / "flatness-fashion-mnist-0.json.gz")
    forget_files()
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
        curve = FineTuningCurve(0.01, (0, 1), *(first, flat) * 2, *(second, flat) * 2)
        return outcome(0.9 + base[trial] / 10, fine_tuning=(curve,))

    names = ("adamw", *verdicts.FORGETS, "adamw+2epochs", "adam+warmup", "adamw+beta1")
    pools = {name: [fine_tuned(name, trial) for trial in range(TRIALS)] for name in names}
    return study(
        pools,
        plan=StudyPlan(4, TRIALS, family=verdicts.FORGETS),
        setup={**SETUP, "then": to_json(task)},
    )


def test_who_forgets_less_is_found(studies: Path) -> None:
    for seed in verdicts.SEEDS:
        forgetful(seed).save(studies / f"forgetting-mnist-5k-{seed}.json.gz")
    table = training_tables.forgetting_table()
    *seeds, said = cells(table, "adamw+sam")
    assert [mean_of(cell) for cell in seeds] == pytest.approx([-0.5, -0.5], abs=0.05)
    assert said == "less"
    assert cells(table, "adamcm")[-1] == "no difference seen"
    seeds = cells(table, "adamw+sam minus adamw+2epochs")
    assert [mean_of(cell) for cell in seeds] == pytest.approx([-0.5, -0.5], abs=0.05)
    assert "p" not in "".join(seeds)
    assert mean_of(cells(table, "adam+warmup minus adamw")[0]) == pytest.approx(0, abs=0.05)


def test_forgetting_is_drawn_along_the_second_loss(studies: Path) -> None:
    figure = draw_forgetting({"seed 0": Readings(forgetful(0))})
    lines = {each.get_label(): each for each in figure.axes[0].get_lines()}
    others, ours = (lines[name].get_ydata() for name in ("adamw", "adamw+sam"))
    # From a loss of 4 to one of 1 digits lose 2 · 1.0 of theirs, and 2 · 0.5 after SAM.
    shares = np.log(np.array(lines["adamw"].get_xdata()) / 4) / np.log(1 / 4)
    assert others - ours == pytest.approx(shares, abs=0.1)
    assert np.all(np.diff(ours) > 0)


@pytest.mark.thorough
def test_the_pages_say_what_the_files_hold() -> None:
    tables = flatness.tables()
    pages = {page: page.read_text(encoding="utf-8") for page in flatness.PAGES}
    for page, text in pages.items():
        assert flatness.rewritten(text, tables) == text, page
    for part in tables:
        block = f"<!-- benchmarks/flatness.py {part} -->"
        assert sum(text.count(block) for text in pages.values()) == 1, part
