"""What README and docs/ say of studies is what the committed files hold."""

import importlib.util
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import pytest

from helpers.committed_studies import RESULTS, STUDIES, committed
from helpers.synthetic_studies import scores, study
from steppe.compare.records.gap_at_common_loss import gaps_at_common_loss
from steppe.compare.records.results import PHASES, StudyResults
from steppe.compare.records.verdicts import Readings

ROOT = Path(__file__).parents[1]


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL, CALIBRATION = _script("results"), _script("calibration")


@pytest.mark.thorough
@pytest.mark.parametrize("page", TOOL.PAGES, ids=lambda page: page.name)
def test_pages_say_what_the_files_hold(page: Path) -> None:
    assert TOOL.rewritten(page.read_text()) == page.read_text()


@pytest.mark.thorough
def test_a_block_that_is_not_true_is_seen() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    assert TOOL.rewritten(page.replace("adamw ", "adamx ")) == page


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_studies_are_whole_and_fair(path: Path) -> None:
    study = committed(path)
    assert study.complete
    assert not study.earlier_plans
    for contender in study.contenders:
        for phase in PHASES:
            ended = study.trials_of(contender.name, phase)
            assert len(ended) == study.plan.planned(contender, phase)


@pytest.mark.parametrize(
    ("name", "budget", "trials"),
    [
        ("digits", 8, 80),
        ("mnist-5k", 8, 80),
        ("fashion-mnist", 8, 80),
        ("permuted-mnist", 4, 40),
        ("shakespeare", 4, 40),
    ],
)
def test_what_is_promised_is_there(name: str, budget: int, trials: int) -> None:
    study = committed(RESULTS / f"{name}.json")
    assert (study.plan.budget, study.plan.primary) == (budget, "score")
    assert study.plan.trials >= trials
    wanted = {"sgd-momentum", "adam+warmup", "dualadam", "adamcm", "adamcg", "adamw+sam"}
    assert wanted | {"adamw+ema"} == set(study.plan.family)
    assert {"adamw+2epochs", "adamw+beta1"} <= {each.name for each in study.contenders}


@pytest.mark.parametrize(
    "path",
    [path for path in STUDIES if path.name.startswith("flatness-")],
    ids=lambda path: path.name,
)
def test_studies_of_flatness_are_those_of_the_plan(path: Path) -> None:
    study = committed(path)
    trials = {"digits": 96, "fashion-mnist": 48}[study.task]
    seed = int(path.name.removesuffix(".json.gz").rpartition("-")[2])
    assert (study.plan.budget, study.plan.trials, study.plan.study_seed) == (4, trials, seed)
    wanted = {"adamw+ema", "sgd-momentum", "adam+warmup", "dualadam", "dualadam-scale-free"}
    wanted |= {"adamcm", "dualadamcm", "adamw+sam", "adamw+msam", "adamw+random", "adamcm+sam"}
    assert set(study.plan.family) == wanted | {"adamcm+msam"}
    assert study.setup["epochs"] == {"digits": 50, "fashion-mnist": 8}[study.task]
    measured = [set(each.outcome.robustness) for each in study.trials if each.finite_outcome]
    declared = {"clean", "weight noise 0.5", "2 bits absmax", "2 bits least error", "kurtosis"}
    assert all(declared | {"2 bits compensated"} <= each for each in measured)


def test_studies_of_equal_compute_are_those_of_the_plan() -> None:
    for path in (each for each in STUDIES if each.name.startswith("equal-compute-")):
        study, seed = committed(path), int(path.name.removesuffix(".json.gz").rpartition("-")[2])
        assert seed in {2, 3}
        assert (study.task, study.baseline) == ("fashion-mnist", "adamw+sam")
        assert (study.plan.budget, study.plan.trials, study.plan.study_seed) == (4, 48, seed)
        assert study.setup["epochs"] == 8
        family = {"adamw+2epochs+ema", "adam+warmup+2epochs", "adamcm+2epochs+msam"}
        assert set(study.plan.family) == family


# By the beginnings of their names: the budget, and each contender's trials.
TRAINED = {"label-noise-": (4, 40), "batch-size-": (4, 40), "forgetting-": (4, 48)}


def test_studies_of_training_are_those_of_the_plan() -> None:
    for path in STUDIES:
        kind = next((each for each in TRAINED if path.name.startswith(each)), None)
        if kind is None:
            continue
        study, name = committed(path), path.name.removeprefix(kind).removesuffix(".json.gz")
        assert (study.plan.budget, study.plan.trials) == TRAINED[kind], path.name
        family = {"adamw+ema", "dualadam", "adamcm", "adamw+sam", "adamw+msam"}
        if kind == "forgetting-":
            assert set(study.plan.family) == family | {"adamw+random"}
            assert name == f"{study.task}-{study.plan.study_seed}"
            assert (study.setup["then"]["task"], study.setup["then"]["loss"]) == (
                "fashion-mnist+few2000",
                1.4,
            )
        else:
            assert set(study.plan.family) == family | {"sgd-momentum", "adamcm+msam"}
            assert (name, study.plan.study_seed) == (study.task, 0)
            assert bool(study.setup.get("early_stopping")) == (kind == "label-noise-")
            epochs = {"digits": 50, "fashion-mnist": 8, "fashion-mnist+batch1024": 32}
            assert study.setup["epochs"] == epochs[name.partition("+noise")[0]]


def test_fine_tuning_is_there() -> None:
    study = committed(RESULTS / "finetune.json")
    assert (study.plan.budget, study.plan.primary) == (4, "score")
    assert study.plan.trials >= 24
    assert set(study.plan.family) == {"adam+warmup", "dualadam", "adamcm"}
    tokens = [study.setup[f"{part}_samples"] * study.setup["length"] for part in ("train", "test")]
    assert tokens == [8192, 8192]


def test_dualadams_smaller_gap_in_fine_tuning_is_less_fitting() -> None:
    found = {
        each.name: each
        for each in gaps_at_common_loss(Readings(committed(RESULTS / "finetune.json")))
    }
    dual, adamw = found["dualadam"], found["adamw"]
    assert dual.gap < adamw.gap
    assert dual.train > adamw.train
    assert dual.difference.low < 0 < dual.difference.high


def test_the_published_critical_momenta_are_there() -> None:
    study = committed(RESULTS / "critical-momenta.json")
    assert (study.plan.budget, study.plan.primary, study.setup["schedule"]) == (
        8,
        "score",
        "constant",
    )
    assert study.plan.trials >= 80
    assert set(study.plan.family) == {"adamcg", "adam+sam", "adamcm", "adamcm+sam"}
    searched = {
        (trial.settings["capacity"], trial.settings["priority_decay"])
        for trial in study.trials_of("adamcm", "pool")
    }
    assert searched == {(c, decay) for c in (5, 10, 20) for decay in (0.7, 0.99)}


def rows(kind: str) -> list[Any]:
    found = json.loads(CALIBRATION.OUTPUT.read_text())[kind]
    return [CALIBRATION.Row(**row) for row in found]


def test_the_calibrations_tables_are_those_of_its_file() -> None:
    page = CALIBRATION.PAGE.read_text()
    assert CALIBRATION.with_tables(page, rows("comparisons"), rows("power")) == page


def test_verdicts_are_as_rarely_wrong_as_they_promise() -> None:
    """Of 400 comparisons of equals, 5 % have a standard error of 1.1 %."""
    equal = [
        row for row in rows("comparisons") if "equal laws" in row.what or "other trials" in row.what
    ]
    assert len(equal) >= 20
    for row in equal:
        assert row.comparisons >= 200
        error = (0.05 * 0.95 / row.comparisons) ** 0.5
        assert row.called_better + row.called_worse <= 0.05 + 2 * error, row
        assert row.covered >= 0.95 - 3 * error, row


def whole(seed: int, gain: float) -> StudyResults:
    """Make a study of four trials in which SGD is better by a gain, up to its noise."""
    steps = (0.5, 0.625, 0.75, 0.875)
    made = study(
        {
            "adamw": scores(*steps),
            "sgd": scores(*(step + gain + 1e-3 * seed * step for step in steps)),
        }
    )
    return replace(made, plan=replace(made.plan, study_seed=seed))


def test_studies_that_differ_in_their_seed_are_put_together() -> None:
    content = CALIBRATION.numbers_of([whole(1, 0.0625), whole(2, 0.0625)])
    # The best of one trial is the mean of all.
    assert content["pools"]["adamw"][2] == [50.0, 62.5, 75.0, 87.5] * 2
    estimates = [each["verdicts"]["score"][0]["estimate"] for each in content["studies"]]
    (together,) = content["together"]["score"]
    assert together["trials"] == 8
    assert together["estimate"] == pytest.approx(fmean(estimates))
    assert estimates == pytest.approx([6.25 + 0.06875, 6.25 + 0.1375])
    head, _, row, _ = CALIBRATION.studies_table(content).splitlines()
    assert head == "| minus adamw | by | seed 1 | seed 2 | all together |"
    assert row.startswith("| sgd | score | +6.32")


def test_other_studies_are_not_put_together() -> None:
    other = replace(whole(2, 0.0), versions={"torch": "1"})
    with pytest.raises(ValueError, match="more than its seed"):
        CALIBRATION.numbers_of([whole(1, 0.0), other])


@pytest.mark.thorough
def test_the_calibration_can_be_repeated() -> None:
    """A small one: each kind of comparison of real pools, and of simulated ones of one plan."""
    found = list(CALIBRATION.real_rows(CALIBRATION.read_pools(), 20))
    found += itertools.islice(CALIBRATION.simulated_rows(20), 5)
    committed = {row.what for row in rows("comparisons")}
    for row in found:
        assert row.what in committed
        assert row.comparisons == 20
        # Chance alone makes six of 20 equal pairs different once in three thousand times.
        if "other trials" in row.what or row.what.endswith("equal laws"):
            assert row.called_better + row.called_worse <= 0.25


def test_a_real_gain_is_never_called_a_loss() -> None:
    (found,) = (
        row
        for row in rows("comparisons")
        if row.what == "adamw+sam − adamw" and (row.reading, row.trials) == ("loss", 24)
    )
    assert found.called_better > 0.3
    assert found.called_worse == 0.0


def test_pictures_are_there() -> None:
    for page in TOOL.PAGES:
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / picture).is_file(), picture
