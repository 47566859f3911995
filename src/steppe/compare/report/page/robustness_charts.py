"""The charts of changed weights and inputs: scores by the perturbation, and trials one by one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from steppe._shared.page.parts import Chart
from steppe._shared.statistics import Interval
from steppe.compare.records.measure_names import CLEAN, CORRUPTED
from steppe.compare.records.phases import POOL
from steppe.compare.records.robustness import RobustReadings
from steppe.compare.records.summary import OptimizerSummary, best_trial
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.formatting import format_short
from steppe.compare.report.near_range import NearRange, better_half, near_range, with_zero
from steppe.compare.report.page.comparisons import difference_title
from steppe.compare.report.page.styles import styles
from steppe.compare.report.page.traces import (
    beyond_below,
    error_bars,
    near_and_all,
    null_for_not_finite,
    optimizer_of_trace,
    plotly_text,
)
from steppe.compare.report.robust_scales import amounts, axis_label, level_scale, scale_label
from steppe.compare.report.units import aim, reading_label

# Contenders stand side by side over this share of the way from one amount to the next.
_SPREAD = 0.55

OfMeasure = Callable[[str, str], Interval]


def by_amount(
    readings: Readings, robust: RobustReadings, rows: Sequence[OptimizerSummary]
) -> list[Chart]:
    """Draw what is expected of the best of k by the amount of a perturbation, and differences."""
    if CLEAN not in robust.measures or not robust.scales:
        return []
    label = f"{reading_label(readings, 'score')}, best of k ({aim(readings, 'score')})"
    levels = _variants(readings, robust, rows, plotly_text(label), robust.expected)
    for variant in levels.values():
        known = [y for trace in variant["traces"] for y in trace["y"] if y is not None]
        variant["yaxis"]["type"] = level_scale(known)
    charts = [
        _chart("robustness", "Score of the best of k by perturbation", rows, readings, levels)
    ]
    baseline = readings.results.baseline
    others = [row for row in rows if row.name != baseline]
    if not others:
        return charts

    def change(name: str, measure: str) -> Interval:
        return robust.change(name, baseline, measure)

    title = difference_title(readings, "score")
    found = _variants(readings, robust, others, title, change)
    for place, measures in enumerate(robust.scales.values()):
        found |= _near(readings, others, [CLEAN, *measures], change, scale_value(place))
    label = f"The same, minus {baseline}’s"
    return [*charts, _chart("robustness-differences", label, others, readings, found, zero=True)]


def scale_value(place: int) -> str:
    """Return the value of the page's selection of a kind of perturbations."""
    return f"scale-{place}"


def selectable_scales(robust: RobustReadings) -> list[tuple[str, str]]:
    """Return the kinds of perturbations that can be selected: values, and names."""
    return [(scale_value(place), scale_label(each)) for place, each in enumerate(robust.scales)]


def _variants(
    readings: Readings,
    robust: RobustReadings,
    rows: Sequence[OptimizerSummary],
    title: str,
    value: OfMeasure,
) -> dict[str, dict[str, Any]]:
    """Return for each kind of perturbations the traces and their axes."""
    look = styles(readings.results)
    variants: dict[str, dict[str, Any]] = {}
    for number, (group, measures) in enumerate(robust.scales.items()):
        ticks = [CLEAN, *amounts(measures)]
        traces = []
        for place, row in enumerate(rows):
            found = [value(row.name, measure) for measure in (CLEAN, *measures)]
            aside = _SPREAD * ((place + 0.5) / len(rows) - 0.5)
            traces.append(
                {
                    "x": [round(x + aside, 4) for x in range(len(ticks))],
                    "y": null_for_not_finite([each.mean for each in found]),
                    "text": ticks,
                    "error_y": {
                        **error_bars(found, look[row.name].colour),
                        "thickness": 1,
                        "width": 2,
                    },
                }
            )
        variants[scale_value(number)] = {
            "traces": traces,
            "xaxis": {
                "title": {"text": plotly_text(axis_label(group))},
                "tickvals": list(range(len(ticks))),
                "ticktext": ticks,
                "range": [-0.5, len(ticks) - 0.5],
            },
            "yaxis": {"title": {"text": title}},
        }
    return variants


def _chart(
    name: str,
    label: str,
    rows: Sequence[OptimizerSummary],
    readings: Readings,
    variants: Mapping[str, Mapping[str, Any]],
    *,
    zero: bool = False,
) -> Chart:
    look = styles(readings.results)
    traces = [
        {
            **optimizer_of_trace(row.name),
            "mode": "lines+markers",
            "line": {"color": look[row.name].colour, "dash": look[row.name].dash, "width": 1.5},
            "marker": {"symbol": look[row.name].marker, "size": 7},
            "hovertemplate": "%{y:.4g}, %{text}",
        }
        for row in rows
    ]
    layout = {"xaxis": {"zeroline": False}, "yaxis": {"zeroline": zero}}
    return Chart(name, label, traces, layout, variants)


def _near(
    readings: Readings,
    rows: Sequence[OptimizerSummary],
    measures: Sequence[str],
    change: OfMeasure,
    key: str,
) -> dict[str, dict[str, Any]]:
    """Return the variants of an axis of differences, whose lines may go far beyond the others."""
    up = readings.higher_is_better("score")
    worst = {}
    for row in rows:
        found = [change(row.name, measure) for measure in measures]
        worst[row.name] = (min if up else max)(found, key=lambda each: each.mean)
    near = with_zero(near_range(worst, up))
    means = {name: each.mean for name, each in worst.items()}
    look = styles(readings.results)
    arrows = beyond_below(near, 0.98, means, look, lambda value: f"to {format_short(value)}")
    return near_and_all(near, "yaxis", arrows, key=key)


def by_trial(
    readings: Readings, robust: RobustReadings, rows: Sequence[OptimizerSummary]
) -> list[Chart]:
    """Draw each trial's value after a perturbation by its clean score.

    Trials that diverged are left out; the larger marks are what is expected of the best of k.
    """
    chosen = shown_measures(robust)
    if CLEAN not in robust.measures or not chosen:
        return []
    traces = [trace for row in rows for trace in _point_traces(readings, row.name)]
    variants: dict[str, dict[str, Any]] = {}
    for place, measure in enumerate(chosen):
        key = f"measure-{place}"
        points = [xy for row in rows for xy in _points(readings, robust, row.name, measure)]
        variants[key] = {
            "traces": points,
            "yaxis": {"title": {"text": plotly_text(_measure_label(readings, robust, measure))}},
        }
        variants |= _near_points(points[::3], readings.higher_is_better("score"), key)
    title = f"clean {reading_label(readings, 'score')}"
    layout = {"xaxis": {"title": {"text": plotly_text(title)}}, "yaxis": {}}
    label = "Trials by their clean score and their value after a perturbation"
    return [Chart("robustness-trials", label, traces, layout, variants)]


def selectable_measures(robust: RobustReadings) -> list[tuple[str, str]]:
    """Return the measures that can be selected for the trials: values, and names."""
    return [(f"measure-{place}", name) for place, name in enumerate(shown_measures(robust))]


def shown_measures(robust: RobustReadings) -> list[str]:
    """Return the strongest perturbations of weights, all corruptions together, then other measures.

    Of a single corruption its strongest.
    """
    strongest = {each[-1] for each in robust.scales.values()}
    if CORRUPTED in robust.measures:
        strongest -= {*robust.corruptions}
    scaled = {name for each in robust.scales.values() for name in each}
    chosen = [
        name
        for name in robust.measures
        if name != CLEAN and (name in strongest or name not in scaled)
    ]
    return sorted(chosen, key=lambda name: not robust.is_score(name))


def _point_traces(readings: Readings, name: str) -> list[dict[str, Any]]:
    """Return how a contender's trials, the best of them, and its best of k are drawn."""
    style = styles(readings.results)[name]
    marker = {"symbol": style.marker, "color": style.colour}
    ring = {"color": style.colour, "width": 1.5}
    k = readings.results.plan.budget
    kinds = (
        ({**marker, "size": 6, "opacity": 0.55}, "trial %{text}: %{x:.4g}, %{y:.4g}"),
        (
            {"symbol": "circle-open", "size": 13, "color": style.colour, "line": ring},
            "trial %{text}, the best by validation: %{x:.4g}, %{y:.4g}",
        ),
        (
            {**marker, "size": 13, "line": {"color": "var(--paper)", "width": 1.5}},
            f"best of {k}: %{{x:.4g}}, %{{y:.4g}}",
        ),
    )
    return [
        {
            **optimizer_of_trace(name),
            "mode": "markers",
            "marker": look,
            "hovertemplate": hover,
        }
        for look, hover in kinds
    ]


def _points(
    readings: Readings, robust: RobustReadings, name: str, measure: str
) -> list[dict[str, Any]]:
    """Return the points of the traces that :func:`_point_traces` makes."""
    results = readings.results
    trials = results.trials_of(name, POOL)
    ended = [place for place, trial in enumerate(trials) if trial.finite_outcome]
    clean, changed = (robust.pool(name, each).test for each in (CLEAN, measure))
    best = best_trial(trials, results.metric)
    marked = [place for place in ended if trials[place] is best]
    colour = styles(results)[name].colour
    expected = [robust.expected(name, each) for each in (CLEAN, measure)]
    points: list[dict[str, Any]] = [
        {
            "x": null_for_not_finite(clean[places].tolist()),
            "y": null_for_not_finite(changed[places].tolist()),
            "text": [str(trials[place].number) for place in places],
        }
        for places in (ended, marked)
    ]
    bars = [{**error_bars([each], colour), "thickness": 1.5, "width": 3} for each in expected]
    x, y = (null_for_not_finite([each.mean]) for each in expected)
    return [*points, {"x": x, "y": y, "error_x": bars[0], "error_y": bars[1]}]


def _near_points(
    trials: Sequence[Mapping[str, Any]], higher_is_better: bool, key: str
) -> dict[str, dict[str, Any]]:
    """Return the variants of both axes: the better half of trials by the clean score, or all."""
    pairs = [pair for each in trials for pair in zip(each["x"], each["y"], strict=True)]
    known = np.array([pair for pair in pairs if None not in pair], dtype=float).reshape(-1, 2)
    if not len(known):
        return {}
    near = better_half(known[:, 0].tolist(), higher_is_better)
    inside = known[(known[:, 0] >= near.low) & (known[:, 0] <= near.high), 1]
    margin = 0.06 * np.ptp(inside) or 1.0
    above = NearRange(float(inside.min() - margin), float(inside.max() + margin), ())
    across = near_and_all(near, "xaxis", key=key)
    return {
        name: {**changes, **across[name]}
        for name, changes in near_and_all(above, "yaxis", key=key).items()
    }


def _measure_label(readings: Readings, robust: RobustReadings, measure: str) -> str:
    if robust.is_score(measure):
        return f"{reading_label(readings, 'score')}, {measure}"
    return measure
