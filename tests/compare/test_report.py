"""The table and its reading, from outcomes made up for it."""

import io
import math

import pytest
from rich.console import Console

from steppe.compare.curvature import Curvature
from steppe.compare.report import report
from steppe.compare.summary import difference, summarise


@pytest.fixture
def printed(make_study, outcome):
    """Print a study whose outcomes are given as accuracies by optimizer."""

    def print_it(finished, width: int = 100, **changes) -> str:
        study = make_study(*finished, **changes)
        console = Console(file=io.StringIO(), width=width)
        report(console, study, finished)
        return console.file.getvalue()

    return print_it


def by_seed(*outcomes):
    return dict(enumerate(outcomes))


def test_a_row_holds_means_over_seeds(outcome) -> None:
    finished = {
        "adamw": by_seed(
            outcome(0.90, test_loss=0.3, train_loss=0.1, step_ms=1.0),
            outcome(0.92, test_loss=0.5, train_loss=0.2, step_ms=9.0),
            outcome(0.94, test_loss=0.4, train_loss=0.0, step_ms=2.0),
        ),
        "sgd": {},
    }
    (row,) = summarise(finished)
    assert (row.name, row.runs, row.diverged) == ("adamw", 3, 0)
    assert row.accuracy.mean == pytest.approx(92.0)
    # t(0.975, 2) · s / √3 with s = 2
    assert row.accuracy.half_width == pytest.approx(4.3027 * 2 / math.sqrt(3), rel=1e-4)
    assert row.test_loss.mean == pytest.approx(0.4)
    assert row.train_loss.mean == pytest.approx(0.1)
    assert row.gap.mean == pytest.approx(0.3)
    assert row.step_ms == 2.0


def test_diverged_runs_are_counted_and_in_no_mean(outcome) -> None:
    finished = {"sgd": by_seed(outcome(0.9), outcome(diverged=True), outcome(0.8))}
    (row,) = summarise(finished)
    assert (row.runs, row.diverged) == (3, 1)
    assert row.accuracy.mean == pytest.approx(85.0)


def test_differences_pair_equal_seeds_that_did_not_diverge(outcome) -> None:
    finished = {
        "adamw": by_seed(outcome(0.5), outcome(0.6), outcome(diverged=True), outcome(0.9)),
        "sgd": by_seed(outcome(0.6), outcome(0.8), outcome(0.1)),
    }
    found = difference(finished, "sgd", "adamw")
    assert found.accuracy.mean == pytest.approx(15.0)
    assert found.test_loss.mean == pytest.approx(0.0)


def test_no_difference_seen_is_said(printed, outcome) -> None:
    text = printed(
        {
            "adamw": by_seed(outcome(0.90), outcome(0.91), outcome(0.92)),
            "sgd": by_seed(outcome(0.91), outcome(0.90), outcome(0.93)),
        }
    )
    line = next(line for line in text.splitlines() if "+0.33 ± 2.87" in line)
    assert line.split()[0] == "sgd"
    assert line.count("no difference seen") == 2


def test_a_difference_that_is_seen_is_said(printed, outcome) -> None:
    text = printed(
        {
            "adamw": by_seed(outcome(0.90, 0.30), outcome(0.91, 0.31), outcome(0.92, 0.32)),
            "sgd": by_seed(outcome(0.951, 0.20), outcome(0.960, 0.21), outcome(0.969, 0.221)),
        }
    )
    line = next(line for line in text.splitlines() if "+5.00 ± " in line)
    assert "higher" in line
    assert "lower" in line
    assert "no difference seen" not in line


def test_dual_adam_is_read_against_its_control(printed, outcome) -> None:
    runs = by_seed(outcome(0.90), outcome(0.91), outcome(0.92))
    text = printed({"adamw": runs, "adam+warmup": runs, "dualadam": runs})
    flat = " ".join(text.split())
    assert "dualadam against its control adam+warmup: test accuracy +0.00" in flat
    # 10 steps at ξ = 0.25
    assert "Switch and warm-up end after 4 of 10 steps (40%; switch rate 0.25)" in flat
    assert "8e-5" in flat


def test_each_that_switches_is_read_against_its_own_control(printed, outcome) -> None:
    def runs(accuracy: float):
        return by_seed(*(outcome(accuracy + step / 100) for step in range(3)))

    text = printed(
        {
            "adamw": runs(0.90),
            "adam+warmup": runs(0.80),
            "adam+warmup+sam": runs(0.70),
            "adamcm+warmup": runs(0.60),
            "dualadam+sam": runs(0.75),
            "dualadamcm": runs(0.67),
        }
    )
    flat = " ".join(text.split())
    assert "dualadam+sam against its control adam+warmup+sam: test accuracy +5.00" in flat
    assert "dualadamcm against its control adamcm+warmup: test accuracy +7.00" in flat


def test_equal_differences_are_called_what_they_are(printed, outcome) -> None:
    adamw = by_seed(outcome(0.50), outcome(0.75), outcome(0.625))
    sgd = by_seed(outcome(0.625), outcome(0.875), outcome(0.75))
    text = printed(
        {"adamw": adamw, "sgd": sgd, "nadam": adamw, "dualadam-scale-free+warmup+sam": sgd}
    )
    lines = {line.split()[0]: line for line in text.splitlines() if " ± – " in line}
    assert "+12.50 ± –  same on every seed" in lines["sgd"]
    assert "+0.00 ± –  no difference seen" in lines["nadam"]
    assert "they are no certainty" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


def test_a_single_pair_of_seeds_has_no_interval_even_if_equal(printed, outcome) -> None:
    text = printed({"adamw": by_seed(outcome(), outcome()), "sgd": by_seed(outcome())})
    line = next(line for line in text.splitlines() if "+0.00 ± –" in line)
    assert line.count("no interval") == 2


def test_a_sharpness_that_is_not_there_is_a_dash_with_its_reason(printed, outcome) -> None:
    flat_out = [outcome(0.9), outcome(0.8, curvature=Curvature()), outcome(0.7)]
    text = printed({"adamw": by_seed(*flat_out), "sgd": by_seed(outcome(), outcome())})
    line = next(line for line in text.splitlines() if line.split()[:1] == ["adamw"])
    assert "–" in line
    assert "nan" not in text
    assert "adamw ended where derivatives are not finite: no curvature there." in text
    assert "sgd ended" not in text


def test_without_a_switch_nothing_is_said_about_one(printed, outcome) -> None:
    text = printed({"adamw": by_seed(outcome()), "sgd": by_seed(outcome())})
    assert "Switch" not in text
    assert "control" not in text


def test_one_seed_gets_no_interval_and_no_claim(printed, outcome) -> None:
    text = printed({"adamw": by_seed(outcome()), "sgd": by_seed(outcome())}, seeds=1)
    assert "90.00 ± –" in text
    assert "nothing can be said about differences" in text
    assert "Difference from" not in text


def test_divergence_is_shown(printed, outcome) -> None:
    lost = outcome(curve=(), diverged=True, curvature=Curvature())
    text = printed(
        {
            "adamw": by_seed(outcome(0.9), outcome(0.8), outcome(0.7)),
            "sgd": by_seed(outcome(0.9), lost, outcome(0.8)),
            "nadam": by_seed(lost, lost, lost),
        }
    )
    assert "† sgd: 1 of 3 runs diverged" in text
    assert "† nadam: 3 of 3 runs diverged" in text
    assert any(line.split()[:3] == ["nadam", "†", "diverged"] for line in text.splitlines())
    assert "nan" not in text.replace("nadam", "")


def test_an_unfinished_study_says_what_is_missing(printed, outcome) -> None:
    text = printed({"adamw": by_seed(outcome(), outcome()), "sgd": by_seed(outcome()), "nadam": {}})
    assert "Not finished; of 3 seeds so far: adamw 2, sgd 1, nadam 0." in text


def test_nothing_finished_is_said(printed) -> None:
    assert printed({"adamw": {}, "sgd": {}}).strip() == "No run has finished."


@pytest.mark.parametrize("width", [80, 100])
def test_every_number_fits(printed, outcome, width: int) -> None:
    names = ("adamw", "adam+warmup", "dualadam", "dualadam-scale-free+sam")
    runs = by_seed(*(outcome(0.9765 + s / 900, 0.086 + s / 90, 3.2e-4) for s in range(3)))
    text = printed(dict.fromkeys(names, runs), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    if width == 100:
        assert sum("97.76 ± 0.28" in line for line in text.splitlines()) == len(names)


def test_learning_rates_are_stated(printed, outcome) -> None:
    runs = by_seed(outcome(), outcome())
    flat = " ".join(printed({"adamw": runs, "adamcm": runs}).split())
    assert "lr 0.001 for all" in flat
    flat = " ".join(printed({"adamw": runs, "rmspropcg": runs}).split())
    assert "each optimizer at its own default lr" in flat
    flat = " ".join(printed({"adamw": runs, "rmspropcg": runs}, lr=0.5).split())
    assert "lr 0.5 for all" in flat
