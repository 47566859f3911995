"""What is shown with changed weights and inputs: charts and pictures say what the tables say."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import synthetic_studies as studies
from helpers.browser import browser
from helpers.realistic_study import realistic
from helpers.robust_study import robust as robust_study
from steppe._shared.page.parts import Chart, HtmlCell
from steppe._shared.pictures import write_png
from steppe._shared.statistics import Interval
from steppe.compare.records.measure_names import CLEAN
from steppe.compare.records.results import MetricDescription, StudyResults
from steppe.compare.records.robustness import RobustReadings
from steppe.compare.records.summary import OptimizerSummary, best_trial, summarise
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.formatting import format_interval
from steppe.compare.report.page import page, write_page
from steppe.compare.report.page.robustness_charts import (
    by_amount,
    by_trial,
    selectable_measures,
    selectable_scales,
)
from steppe.compare.report.robustness_picture import draw_robustness
from steppe.compare.report.tables import all_tables

__all__ = ["browser"]

Read = tuple[Readings, RobustReadings, list[OptimizerSummary]]
NAMES = [each.name for each in realistic().contenders]
SCALES = ("bits absmax", "bits least error", "bits compensated", "weight noise")


def read(results: StudyResults) -> Read:
    readings = Readings(results)
    return readings, RobustReadings(readings), summarise(results, readings)


@pytest.fixture(scope="module")
def study() -> Read:
    return read(robust_study())


@pytest.fixture(scope="module")
def cell(study: Read) -> Callable[[str, str], HtmlCell]:
    """Find a cell of the table by optimizer and column."""
    table = all_tables(study[0], study[2])["robustness"]
    rows = {name: dict(zip(table.columns, cells, strict=True)) for name, cells in table.rows}
    return lambda name, measure: rows[name][measure]


def lines(chart: Chart, key: str) -> dict[str, dict[str, Any]]:
    """Return a chart's traces as the page draws them when a switch has this value."""
    changed = chart.variants[key]["traces"]
    return {
        trace["meta"]: {**trace, **changes}
        for trace, changes in zip(chart.traces, changed, strict=True)
    }


def intervals(trace: dict[str, Any], axis: str = "y") -> list[Interval]:
    bars = trace[f"error_{axis}"]
    return [
        Interval(value, value - below, value + above)
        for value, below, above in zip(trace[axis], bars["arrayminus"], bars["array"], strict=True)
    ]


def test_lines_hold_the_numbers_of_the_table(
    study: Read, cell: Callable[[str, str], HtmlCell]
) -> None:
    levels, differences = by_amount(*study)
    scales = study[1].scales
    assert tuple(scales) == (*SCALES, "noise", "blur", "shift", "contrast")
    for (key, _), measures in zip(selectable_scales(study[1]), scales.values(), strict=True):
        drawn = lines(levels, key)
        assert list(drawn) == NAMES
        for name, trace in drawn.items():
            for measure, found in zip((CLEAN, *measures), intervals(trace), strict=True):
                shown = cell(name, measure)
                assert found.mean == pytest.approx(shown.key)
                assert (found.low, found.high) == pytest.approx(shown.bounds)
        drawn = lines(differences, key)
        assert list(drawn) == NAMES[1:]
        for name, trace in drawn.items():
            for measure, found in zip((CLEAN, *measures), intervals(trace), strict=True):
                shown = cell(name, measure)
                digits = len(shown.text.partition(".")[2])
                assert format_interval(found, digits, sign=True) == shown.aside
        assert not cell("adamw", measures[0]).aside


def test_the_clean_score_is_at_the_left_and_stronger_changes_at_the_right(study: Read) -> None:
    levels, _ = by_amount(*study)
    keys = {label: key for key, label in selectable_scales(study[1])}
    wanted = {
        "rounding, absmax": (["clean", "4", "3", "2"], "bits of each weight, absmax scales"),
        "weight noise": (
            ["clean", "0.1", "0.3", "0.5"],
            "noise on weights, in standard deviations",
        ),
        "blur": (["clean", "1", "3", "5"], "severity of blur"),
    }
    for label, (ticks, title) in wanted.items():
        axis = levels.variants[keys[label]]["xaxis"]
        assert (axis["ticktext"], axis["title"]["text"]) == (ticks, title)
        for trace in lines(levels, keys[label]).values():
            # Side by side, and nobody at another's amount.
            assert np.round(trace["x"]).tolist() == axis["tickvals"] == list(range(4))


def test_points_are_the_trials_that_did_not_diverge(
    study: Read, cell: Callable[[str, str], HtmlCell]
) -> None:
    (chart,) = by_trial(*study)
    measures = dict(selectable_measures(study[1]))
    assert list(measures.values()) == [
        *("2 bits absmax", "2 bits least error", "2 bits compensated", "weight noise 0.5"),
        *("corrupted inputs", "kurtosis", "outliers", "calibration error", "Brier score"),
    ]
    for key, measure in measures.items():
        if measure == "corrupted inputs":
            continue
        factor = 1.0 if measure in list(measures.values())[-4:] else 100.0
        changed = chart.variants[key]["traces"]
        for name, traces in zip(NAMES, zip(*[iter(changed)] * 3, strict=True), strict=True):
            pool = robust_study().trials_of(name, "pool")
            ended = [trial for trial in pool if trial.finite_outcome]
            assert 0 < len(ended) < len(pool)
            best = best_trial(pool, robust_study().metric)
            for trace, trials in zip(traces, (ended, [best]), strict=False):
                scores = [each.outcome.robustness for each in trials]
                assert trace["x"] == pytest.approx(
                    [100 * each[CLEAN].test_score for each in scores]
                )
                found = [factor * each[measure].test_score for each in scores]
                assert trace["y"] == pytest.approx(found)
                assert trace["text"] == [str(each.number) for each in trials]
            for axis, column in (("x", CLEAN), ("y", measure)):
                (expected,) = intervals(traces[2], axis)
                assert expected.mean == pytest.approx(cell(name, column).key)
                assert (expected.low, expected.high) == pytest.approx(cell(name, column).bounds)
    assert [trace["meta"] for trace in chart.traces] == [each for each in NAMES for _ in range(3)]


def test_within_reach_are_the_better_half_of_all_trials(study: Read) -> None:
    (chart,) = by_trial(*study)
    near, every = (chart.variants[f"measure-0 {reach}"] for reach in ("near", "all"))
    assert every == {"xaxis": {"autorange": True}, "yaxis": {"autorange": True}}
    clean = [x for trace in chart.variants["measure-0"]["traces"][::3] for x in trace["x"]]
    low, high = near["xaxis"]["range"]
    assert min(clean) < low < np.median(clean)
    assert max(clean) < high


def test_one_far_behind_squeezes_no_differences() -> None:
    results = robust_study()
    behind = [
        replace(trial, outcome=replace(trial.outcome, robustness={
            name: replace(found, test_score=found.test_score - 5.0)
            for name, found in trial.outcome.robustness.items()
        })) if trial.optimizer == "adamcg" and trial.outcome.robustness else trial
        for trial in results.trials
    ]  # fmt: skip
    _, differences = by_amount(*read(replace(results, trials=tuple(behind))))
    near = differences.variants["scale-0 near"]
    low, high = near["yaxis"]["range"]
    assert -100 < low < 0 < high
    (arrow,) = near["annotations"]
    assert re.fullmatch(r"adamcg to −5\d\d|adamcg to −5e\+02|adamcg to −5\.\de\+02", arrow["text"])


def test_a_contender_alone_has_no_differences() -> None:
    results = robust_study()
    alone = replace(
        results,
        contenders=results.contenders[:1],
        plan=replace(results.plan, family=()),
        trials=tuple(each for each in results.trials if each.optimizer == "adamw"),
    )
    (levels,) = by_amount(*read(alone))
    assert list(lines(levels, "scale-0")) == ["adamw"]
    assert "from adamw’s" not in page(alone)
    assert len(draw_robustness(alone).axes) == len(SCALES)


def test_perplexities_that_multiply_stand_on_a_logarithmic_axis() -> None:
    def perplexity(outcome: Any) -> Any:
        changed = {
            name: replace(each, test_score=math.exp(10 * (1 - each.test_score)), test_samples="")
            for name, each in outcome.robustness.items()
        }
        return replace(outcome, robustness=changed)

    results = replace(
        robust_study(), metric=MetricDescription("perplexity", "", 1.0, higher_is_better=False)
    )
    trials = tuple(replace(each, outcome=perplexity(each.outcome)) for each in results.trials)
    levels, _ = by_amount(*read(replace(results, trials=trials)))
    types = {key: each["yaxis"]["type"] for key, each in levels.variants.items()}
    assert types["scale-0"] == "log"
    levels, _ = by_amount(*read(robust_study()))
    assert {each["yaxis"]["type"] for each in levels.variants.values()} == {"linear"}


@pytest.mark.parametrize(
    "results",
    [
        realistic(),
        replace(robust_study(), trials=robust_study().trials[:100]),
        studies.study({"adamw": [studies.diverged()] * 3}),
    ],
    ids=["not measured", "half done", "all diverged"],
)
def test_nothing_is_shown_of_studies_without_measures(results: StudyResults) -> None:
    text = page(results)
    assert 'id="robust' not in text
    assert 'id="chart-robust' not in text
    assert draw_robustness(results) is None


def test_other_sections_are_what_they_were() -> None:
    """But for contents, and the note on how it was measured."""

    def before_scripts(results: StudyResults) -> str:
        text = page(results)
        text = text[text.index("<main>") : text.index('<section id="method">')]
        return re.sub(
            r'\n<section id="robustness">.*?(?=\n<section id="recommended">)',
            "",
            text,
            flags=re.DOTALL,
        )

    assert before_scripts(robust_study()) == before_scripts(realistic())
    assert '<section id="robustness">' in page(robust_study())


def test_only_the_user_s_own_measures_have_tables_alone(study: Read) -> None:
    """Without a clean score there is nothing to draw."""
    trials = tuple(
        replace(each, outcome=replace(each.outcome, robustness={
            name: found for name, found in each.outcome.robustness.items() if name == "kurtosis"
        }))
        for each in robust_study().trials
    )  # fmt: skip
    results = replace(robust_study(), trials=trials)
    made = read(results)
    assert by_amount(*made) == by_trial(*made) == []
    assert draw_robustness(results) is None
    tables = all_tables(made[0], made[2])
    assert list(tables["robustness"].columns) == ["kurtosis"]
    assert "robustness-tuned" not in tables
    assert 'id="robustness"' in page(results)


@pytest.mark.parametrize("named", [(), ("adamw+sam", "adamcm")])
def test_a_picture_has_rounding_and_noise_and_differences_below(
    study: Read, named: tuple[str, ...], tmp_path: Path
) -> None:
    _, robust, _ = study
    figure = draw_robustness(robust_study(), study[0], named)
    names = ["adamw", *named] if named else NAMES[:6]
    axes = np.array(figure.axes).reshape(2, len(SCALES))
    for column, scale in enumerate(SCALES):
        measures = [CLEAN, *robust.scales[scale]]
        drawn = {each.get_label(): each.lines[0] for each in axes[0, column].containers}
        assert list(drawn) == names
        for name, line in drawn.items():
            wanted = [robust.expected(name, each).mean for each in measures]
            assert line.get_ydata() == pytest.approx(wanted)
        below = {each.get_label(): each for each in axes[1, column].containers}
        assert list(below) == names[1:]
        for name, bars in below.items():
            found = [robust.change(name, "adamw", each) for each in measures]
            assert bars.lines[0].get_ydata() == pytest.approx([each.mean for each in found])
            ends = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
            assert np.array(ends) == pytest.approx(np.array([[e.low, e.high] for e in found]))
    write_png(figure, tmp_path / "robustness.png")
    assert (tmp_path / "robustness.png").stat().st_size > 10_000


def test_a_picture_of_an_unknown_contender_is_refused() -> None:
    with pytest.raises(ValueError, match="adamcm"):
        draw_robustness(robust_study(), optimizers=["adamcn"])


@pytest.mark.thorough
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_s_section_in_a_browser(
    browser: Any, tmp_path: Path, study: Read, width: int
) -> None:
    write_page(robust_study(), tmp_path / "study.html", study[0])
    tab, complaints = browser.new_page(viewport={"width": width, "height": 900}), []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto((tmp_path / "study.html").as_uri())
    assert "With changed weights and inputs" in tab.locator("nav a").all_inner_texts()
    tab.get_by_label("Changed by").select_option(label="weight noise")
    y = "name => document.getElementById(`chart-${name}`).data.map(each => each.y)"
    levels, differences = by_amount(*study)
    key = {label: value for value, label in selectable_scales(study[1])}["weight noise"]
    for chart in (levels, differences):
        wanted = [trace["y"] for trace in lines(chart, key).values()]
        assert np.array(tab.evaluate(y, chart.name)) == pytest.approx(np.array(wanted))
    tab.locator("#robust-trials select").select_option(label="kurtosis")
    (points,) = by_trial(*study)
    drawn = tab.evaluate(y, points.name)
    key = {name: value for value, name in selectable_measures(study[1])}["kurtosis"]
    assert drawn == [pytest.approx(each["y"]) for each in points.variants[key]["traces"]]
    tab.locator("#robustness summary").click()
    assert tab.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    boxes = tab.locator("#robustness .scroll")
    assert boxes.count() == 2
    for box in boxes.all():
        assert box.locator("thead th").count() >= 24
        assert box.evaluate("each => each.scrollWidth > each.clientWidth")
    tab.get_by_role("button", name="adamcm", exact=True).click()
    hidden = "id => document.getElementById(id).data.filter(each => !each.visible).map(e => e.meta)"
    for name, count in (("robustness", 1), ("robustness-differences", 1), ("robustness-trials", 3)):
        assert tab.evaluate(hidden, f"chart-{name}") == ["adamcm"] * count
    tab.close()
    assert not complaints
