"""The charts that compare: differences, the curve over the tuning budget, result and compute."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steppe._shared.page.parts import Chart, filled_range
from steppe._shared.statistics import Interval
from steppe.compare.records.choices import Primary
from steppe.compare.records.summary import OptimizerSummary
from steppe.compare.records.verdicts import Readings, difference_by_budget
from steppe.compare.report.formatting import format_number
from steppe.compare.report.near_range import fitted_range, near_range, with_zero
from steppe.compare.report.page.styles import styles
from steppe.compare.report.page.traces import (
    beyond_below,
    beyond_beside,
    error_bars,
    near_and_all,
    null_for_not_finite,
    optimizer_of_trace,
    plotly_text,
)
from steppe.compare.report.units import (
    aim,
    change_label,
    other_reading,
    reading_decimals,
    reading_label,
)


def differences(
    readings: Readings, rows: Sequence[OptimizerSummary], reading: Primary, name: str
) -> list[Chart]:
    """Draw each optimizer minus the baseline at the declared budget, with its interval."""
    results, look = readings.results, styles(readings.results)
    found = {}
    for row in rows:
        if row.name != results.baseline:
            made = readings.difference(row.name, results.baseline, reading, results.plan.budget)
            found[row.name] = Interval(made.estimate, made.low, made.high)
    if not found:
        return []
    traces = [
        {
            **optimizer_of_trace(optimizer),
            "x": [value.mean],
            "y": [plotly_text(optimizer)],
            "mode": "markers",
            "marker": {
                "symbol": look[optimizer].marker,
                "size": 9,
                "color": look[optimizer].colour,
            },
            "error_x": error_bars([value], look[optimizer].colour),
            "hovertemplate": "%{x:.4g}",
        }
        for optimizer, value in found.items()
    ]
    digits = reading_decimals(rows, reading)
    near = with_zero(near_range(found, readings.higher_is_better(reading)))
    beyond = beyond_beside(
        near,
        {optimizer: value.mean for optimizer, value in found.items()},
        look,
        lambda value: format_number(value, digits, sign=True),
    )
    label = f"{change_label(readings, reading)}, {_minus(results.baseline)}, by optimizer"
    title = difference_title(readings, reading)
    return [row_chart(name, label, title, traces, near_and_all(near, "xaxis", beyond))]


def difference_title(readings: Readings, reading: Primary) -> str:
    """Return the title of an axis of differences from the baseline, in two lines."""
    changed = plotly_text(change_label(readings, reading))
    minus = plotly_text(_minus(readings.results.baseline))
    return f"{changed},<br>{minus} ({aim(readings, reading)})"


def _minus(baseline: str) -> str:
    return f"minus {baseline}’s"


def row_chart(
    name: str,
    label: str,
    title: str,
    traces: Sequence[Mapping[str, Any]],
    variants: Mapping[str, Mapping[str, Any]] | None = None,
) -> Chart:
    """Make a chart with a row for each optimizer."""
    names = list(dict.fromkeys(trace["y"][0] for trace in traces))
    layout = {
        "xaxis": {"title": {"text": title}, "zeroline": True},
        "yaxis": {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": names,
            "autorange": "reversed",
        },
    }
    return Chart(name, label, traces, layout, variants or {}, rows=len(names))


def budget_curves(readings: Readings, rows: Sequence[OptimizerSummary]) -> list[Chart]:
    """Draw the expected test result of the best of k by k, and its distance to the baseline's."""

    def level(name: str, reading: Primary) -> list[Interval]:
        return [readings.expected(name, reading, k, samples=False) for k in readings.budgets]

    label = "Expected test result of the best of k trials, by k; bands are 95 % over the trials"
    charts = [_by_budget("budgets", label, readings, rows, level)]
    baseline = readings.results.baseline
    others = [row for row in rows if row.name != baseline]
    if not others:
        return charts

    def difference(name: str, reading: Primary) -> list[Interval]:
        return difference_by_budget(readings, name, baseline, reading)

    label = f"The same, {_minus(baseline)}; bands are 95 % intervals of the difference"
    name = "budget-differences"
    return [*charts, _by_budget(name, label, readings, others, difference, is_difference=True)]


def _by_budget(
    name: str,
    label: str,
    readings: Readings,
    rows: Sequence[OptimizerSummary],
    found: Callable[[str, Primary], list[Interval]],
    *,
    is_difference: bool = False,
) -> Chart:
    """Draw a value of each contender by k, the primary reading first."""
    order = (readings.results.plan.primary, other_reading(readings))
    by_reading = {
        reading: _budget_traces(
            readings,
            rows,
            reading,
            {row.name: found(row.name, reading) for row in rows},
            is_difference=is_difference,
        )
        for reading in order
    }
    variants: dict[str, dict[str, Any]] = {}
    for reading in order:
        traces, changes = by_reading[reading]
        title = f"{plotly_text(reading_label(readings, reading))} ({aim(readings, reading)})"
        if is_difference:
            title = difference_title(readings, reading)
        variants[reading] = {"traces": traces, "yaxis": {"title": {"text": title}}}
        variants |= changes
    layout = {
        "xaxis": {
            "title": {"text": "k, the tuning budget in trials"},
            "dtick": max(1, len(readings.budgets) // 8),
        },
        "yaxis": {"zeroline": is_difference},
    }
    return Chart(name, label, by_reading[order[0]][0], layout, variants)


def _budget_traces(
    readings: Readings,
    rows: Sequence[OptimizerSummary],
    reading: Primary,
    by_name: Mapping[str, list[Interval]],
    *,
    is_difference: bool,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return a band and a line for each contender, and the variants of their axis."""
    budgets, declared = list(readings.budgets), readings.results.plan.budget
    look, traces, at_declared = styles(readings.results), [], {}
    for row in rows:
        style = look[row.name]
        found = by_name[row.name]
        at_declared[row.name] = found[declared - 1]
        band = {
            **filled_range(style.colour),
            "opacity": 0.05,
            "x": [*budgets, *reversed(budgets)],
            "y": null_for_not_finite(
                [*(each.high for each in found), *(each.low for each in reversed(found))]
            ),
        }
        line = {
            "x": budgets,
            "y": null_for_not_finite([each.mean for each in found]),
            "mode": "lines+markers",
            "line": {"color": style.colour, "dash": style.dash, "width": 2},
            "marker": {
                "symbol": style.marker,
                "size": [10 if k == declared else 4 for k in budgets],
            },
            "hovertemplate": "%{y:.4g} at k = %{x}",
        }
        traces += [{**optimizer_of_trace(row.name), **each} for each in (band, line)]
    digits = reading_decimals(rows, reading)
    near = fitted_range(at_declared, readings.higher_is_better(reading))
    if is_difference:
        near = with_zero(near)
    arrows = beyond_below(
        near,
        0.98,
        {name: value.mean for name, value in at_declared.items()},
        look,
        lambda value: f"{format_number(value, digits, sign=is_difference)} at k = {declared}",
    )
    return traces, near_and_all(near, "yaxis", arrows, key=reading)


def result_by_compute(readings: Readings, rows: Sequence[OptimizerSummary]) -> list[Chart]:
    """Draw the expected result of the best of k by the gradient evaluations of k runs."""
    plan, look = readings.results.plan, styles(readings.results)
    reading, budgets = plan.primary, list(readings.budgets)
    traces, at_declared = [], {}
    for row in rows:
        if not math.isfinite(row.gradients):
            continue
        style = look[row.name]
        found = [readings.expected(row.name, reading, k, samples=False) for k in budgets]
        at_declared[row.name] = found[plan.budget - 1]
        line = {
            "x": [k * row.gradients for k in budgets],
            "y": null_for_not_finite([each.mean for each in found]),
            "text": [f"k = {k}" for k in budgets],
            "mode": "lines",
            "line": {"color": style.colour, "dash": style.dash, "width": 1.5},
            "hovertemplate": "%{y:.4g}, %{text}, %{x} gradients",
        }
        point = {
            "x": [plan.budget * row.gradients],
            "y": null_for_not_finite([at_declared[row.name].mean]),
            "mode": "markers",
            "marker": {"symbol": style.marker, "size": 10, "color": style.colour},
            "error_y": error_bars([at_declared[row.name]], style.colour),
            "hovertemplate": f"%{{y:.4g}} at k = {plan.budget}, %{{x}} gradients",
        }
        traces += [{**optimizer_of_trace(row.name), **each} for each in (line, point)]
    if not traces:
        return []
    digits = reading_decimals(rows, reading)
    near = fitted_range(at_declared, readings.higher_is_better(reading))
    means = {name: value.mean for name, value in at_declared.items()}
    arrows = beyond_below(near, 0.98, means, look, lambda value: format_number(value, digits))
    title = f"{plotly_text(reading_label(readings, reading))} ({aim(readings, reading)})"
    layout = {
        "xaxis": {
            "title": {"text": "gradient evaluations of k runs"},
            "type": "log",
            "tickformat": "~s",
            "dtick": "D2",
        },
        "yaxis": {"title": {"text": title}},
    }
    label = "Expected test result by gradient evaluations"
    return [Chart("compute", label, traces, layout, near_and_all(near, "yaxis", arrows))]
