"""The page's learning curves: losses and scores by epoch, tokens or training time."""

from collections.abc import Callable, Sequence
from typing import Any

from steppe._shared.page.parts import Chart, filled_range
from steppe._shared.page.styles import Style
from steppe._shared.statistics import mean
from steppe.compare.records.results import Epoch, StudyResults
from steppe.compare.records.summary import finished
from steppe.compare.report.page.styles import styles
from steppe.compare.report.page.traces import (
    linear_and_log,
    null_for_not_finite,
    optimizer_of_trace,
    plotly_text,
)
from steppe.compare.report.page.units import score_label


def learning_curves(results: StudyResults) -> list[Chart]:
    """Train loss, validation loss and validation score by epoch, tokens or training time.

    Lines are means over the test seeds that did not diverge, bands reach from the lowest to the
    highest.
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
    for optimizer, style in styles(results).items():
        runs = [outcome.curve for outcome in finished(results, optimizer).values()]
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
            "x": [trace["x"] for trace in traces],
            "xaxis": {"title": {"text": "epoch"}},
        },
        "seconds": {
            "x": seconds,
            "xaxis": {"title": {"text": "training time, s"}},
        },
    }
    if tokens:
        variants["tokens"] = {
            "x": [[tokens * number for number in trace["x"]] for trace in traces],
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
    late = scored and not results.setup.get("stream")
    return Chart(name, f"Learning curves: {label}", traces, layout, variants, late=late)


def by_task(results: StudyResults) -> list[Chart]:
    """Draw the validation score of each task of a stream, from when it is learnt to the end."""
    passes = results.setup["epochs"] // max(1, len(results.setup.get("stream") or ()))
    charts = []
    for task in range(len(results.setup.get("stream") or ())):
        traces = []
        for optimizer, style in styles(results).items():
            runs = [outcome.curve for outcome in finished(results, optimizer).values()]
            # It has a score from the first epoch that trains it.
            later = [epochs[task * passes :] for epochs in runs]
            values = [
                [results.metric.factor * epoch.tasks[task] for epoch in each]
                for each in zip(*later, strict=False)
            ]
            numbers = list(range(task * passes + 1, task * passes + 1 + len(values)))
            if len(runs) > 1:
                traces.append(_range_band(optimizer, style, numbers, values))
            if values:
                traces.append(_mean_line(optimizer, style, numbers, values))
        label = f"task {task + 1}: validation accuracy, {results.metric.unit}"
        layout = {
            "xaxis": {"title": {"text": "epoch"}, "range": [0.5, results.setup["epochs"] + 0.5]},
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
