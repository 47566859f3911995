"""The page's learning curves: losses and scores by epoch, tokens or training time.

They are of runs at the recommended settings.
"""

from collections.abc import Callable, Sequence
from typing import Any

from steppe._shared.page.parts import Chart, filled_range
from steppe._shared.page.styles import Style
from steppe._shared.statistics import Interval, interval, mean
from steppe.compare.records.results import Epoch, StudyResults
from steppe.compare.report.near_range import fitted_range
from steppe.compare.report.page.comparisons import row_chart
from steppe.compare.report.page.curvature_charts import recommended_runs
from steppe.compare.report.page.styles import styles
from steppe.compare.report.page.traces import (
    beyond_below,
    error_bars,
    linear_and_log,
    near_and_all,
    null_for_not_finite,
    optimizer_of_trace,
    plotly_text,
)
from steppe.compare.report.units import score_label


def learning_curves(results: StudyResults) -> list[Chart]:
    """Train loss, validation loss and validation score by epoch, tokens or training time.

    Lines are means over the runs that did not diverge, bands reach from the lowest to the highest.
    A contender with more epochs has longer lines.
    """
    factor = results.metric.factor
    panels: tuple[tuple[str, str, Callable[[Epoch], float]], ...] = (
        ("train-loss", "train loss", lambda epoch: epoch.train_loss),
        ("validation-loss", "validation loss", lambda epoch: epoch.validation_loss),
        (
            "validation-score",
            score_label(results.metric, "validation"),
            lambda epoch: factor * epoch.validation_score,
        ),
    )
    return [
        chart
        for name, label, measure in panels
        if (chart := _learning_curve(results, name, label, measure)).traces
    ]


def _learning_curve(
    results: StudyResults, name: str, label: str, measure: Callable[[Epoch], float]
) -> Chart:
    traces: list[dict[str, Any]] = []
    seconds: list[list[float | None]] = []
    tokens = results.setup["train_samples"] * (results.setup.get("length") or 0)
    found = recommended_runs(results)
    for optimizer, style in styles(results).items():
        runs = [outcome.curve for outcome in found[optimizer]]
        epochs = list(zip(*runs, strict=False))
        if not epochs:
            continue
        values = [[measure(epoch) for epoch in each] for each in epochs]
        numbers = list(range(1, len(epochs) + 1))
        times = [mean(epoch.seconds for epoch in each) for each in epochs]
        if len(runs) > 1:
            traces.append(_range_band(optimizer, style, numbers, values))
            seconds.append(null_for_not_finite([*times, *reversed(times)]))
        traces.append(_mean_line(optimizer, style, numbers, values))
        seconds.append(null_for_not_finite(times))
    variants: dict[str, dict[str, Any]] = {
        "epochs": {
            "traces": [{"x": trace["x"]} for trace in traces],
            "xaxis": {"title": {"text": "epoch"}},
        },
        "seconds": {
            "traces": [{"x": each} for each in seconds],
            "xaxis": {"title": {"text": "training time, s"}},
        },
    }
    if tokens:
        variants["tokens"] = {
            "traces": [{"x": [tokens * number for number in trace["x"]]} for trace in traces],
            "xaxis": {"title": {"text": "tokens trained on"}},
        }
    scored = name == "validation-score"
    if not scored:
        variants |= linear_and_log("yaxis")
    layout = {
        "xaxis": {"title": {"text": "epoch"}},
        "yaxis": {"title": {"text": plotly_text(label)}, "type": "linear" if scored else "log"},
    }
    # Of a stream the beginning says as much as the end.
    if scored and not results.setup.get("stream"):
        variants |= _late_range(results, traces)
    return Chart(name, f"Learning curves: {label}", traces, layout, variants)


def _late_range(
    results: StudyResults, traces: Sequence[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Fit the axis of scores to the later half of the lines of contenders within reach."""
    found = {}
    for trace in traces:
        if "fill" not in trace:
            late = [y for y in trace["y"][len(trace["y"]) // 2 :] if y is not None]
            if late:
                found[trace["meta"]] = Interval(late[-1], min(late), max(late))
    near = fitted_range(found, results.metric.higher_is_better)
    ends = {name: value.mean for name, value in found.items()}
    arrows = beyond_below(near, 0.98, ends, styles(results), lambda value: f"{value:.4g}")
    return near_and_all(near, "yaxis", arrows)


def by_task(results: StudyResults) -> list[Chart]:
    """Draw the validation score of each task of a stream, from when it is learnt to the end."""
    passes = results.setup["epochs"] // max(1, len(results.setup.get("stream") or ()))
    factors = {each.name: each.epochs for each in results.contenders}
    charts, found = [], recommended_runs(results)
    for task in range(len(results.setup.get("stream") or ())):
        traces = []
        for optimizer, style in styles(results).items():
            runs = [outcome.curve for outcome in found[optimizer]]
            # It has a score from the first epoch that trains it.
            start = task * passes * factors[optimizer]
            later = [epochs[start:] for epochs in runs]
            values = [
                [results.metric.factor * epoch.tasks[task] for epoch in each]
                for each in zip(*later, strict=False)
            ]
            numbers = list(range(start + 1, start + 1 + len(values)))
            if len(runs) > 1:
                traces.append(_range_band(optimizer, style, numbers, values))
            if values:
                traces.append(_mean_line(optimizer, style, numbers, values))
        label = f"task {task + 1}: validation accuracy, {results.metric.unit}"
        layout = {
            "xaxis": {
                "title": {"text": "epoch"},
                "range": [0.5, max(factors.values()) * results.setup["epochs"] + 0.5],
            },
            "yaxis": {"title": {"text": plotly_text(label)}},
        }
        charts += [Chart(f"task-{task + 1}", label, traces, layout)] if traces else []
    return charts


def _mean_line(
    optimizer: str, style: Style, x: Sequence[float], values: Sequence[Sequence[float]]
) -> dict[str, Any]:
    return {
        **optimizer_of_trace(optimizer),
        "x": x,
        "y": null_for_not_finite([mean(each) for each in values]),
        "mode": "lines+markers",
        "line": {"color": style.colour, "dash": style.dash, "width": 2},
        "marker": {"symbol": style.marker, "size": 7, "maxdisplayed": 6},
        "hovertemplate": "%{y:.4g} at %{x:.4g}",
    }


def _range_band(
    optimizer: str, style: Style, x: Sequence[float], values: Sequence[Sequence[float]]
) -> dict[str, Any]:
    high, low = [max(each) for each in values], [min(each) for each in values]
    return {
        **optimizer_of_trace(optimizer),
        "x": [*x, *reversed(x)],
        "y": null_for_not_finite([*high, *reversed(low)]),
        **filled_range(style.colour),
    }


def gaps(results: StudyResults) -> list[Chart]:
    """Draw test loss − train loss, a point for each run, and the mean with its interval."""
    look, traces = styles(results), []
    for name, runs in recommended_runs(results).items():
        values = [run.final.test_loss - run.final.train_loss for run in runs]
        if not values:
            continue
        points = {
            "x": null_for_not_finite(values),
            "y": [plotly_text(name)] * len(values),
            "mode": "markers",
            "marker": {
                "symbol": look[name].marker,
                "size": 8,
                "color": look[name].colour,
                "opacity": 0.55,
            },
            "hovertemplate": "%{x:.4g}",
        }
        middle = interval(values)
        stroke = {
            "x": null_for_not_finite([middle.mean]),
            "y": [plotly_text(name)],
            "mode": "markers",
            "marker": {
                "symbol": "line-ns-open",
                "size": 16,
                "color": look[name].colour,
                "line": {"width": 2, "color": look[name].colour},
            },
            "error_x": error_bars([middle], look[name].colour),
            "hovertemplate": "mean %{x:.4g}",
        }
        traces += [{**optimizer_of_trace(name), **each} for each in (points, stroke)]
    label = "test loss − train loss"
    return [row_chart("gap", label, label, traces)] if traces else []
