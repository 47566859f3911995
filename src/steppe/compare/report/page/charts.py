"""The charts of the page: for each its traces and layout, as plotly.js takes them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import filterfalse
from statistics import fmean
from typing import Any

from steppe._shared.page.parts import Chart
from steppe._shared.page.styles import INK, Style
from steppe._shared.statistics import Interval
from steppe.compare.records.results import TUNE, Epoch, StudyResults, Trial
from steppe.compare.records.summary import OptimizerSummary, chosen_trial, finished
from steppe.compare.report.formatting import unit_of_change
from steppe.compare.report.page.styles import styles
from steppe.compare.report.page.units import labelled

# Decades of a density that are shown: what lies below the highest by more is the smoothing's tail.
_DECADES = 7
# Where tuning trials without a score stand.
_STRIP = {
    "domain": [0, 0.16],
    "type": "category",
    "categoryorder": "array",
    "categoryarray": ["failed", "diverged"],
    "range": [-0.6, 1.6],
}


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
            labelled(results.metric, "validation"),
            lambda epoch: factor * epoch.validation_score,
        ),
    )
    return [
        chart
        for name, label, measure in panels
        if (chart := _curves(results, name, label, measure)).traces
    ]


def _curves(
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
        times = [fmean(epoch.seconds for epoch in each) for each in epochs]
        if len(runs) > 1:
            traces.append(_band(optimizer, style, numbers, values))
            seconds.append(_finite([*times, *reversed(times)]))
        traces.append(_mean(optimizer, style, numbers, values))
        seconds.append(_finite(times))
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
        variants |= _scales("yaxis")
    layout = {
        "xaxis": {"title": {"text": "epoch"}},
        "yaxis": {"title": {"text": _literal(label)}, "type": "linear" if scored else "log"},
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
                traces.append(_band(optimizer, style, numbers, values))
            if values:
                traces.append(_mean(optimizer, style, numbers, values))
        label = f"task {task + 1}: validation accuracy, {results.metric.unit}"
        layout = {
            "xaxis": {"title": {"text": "epoch"}, "range": [0.5, results.setup["epochs"] + 0.5]},
            "yaxis": {"title": {"text": _literal(label)}},
        }
        charts += [Chart(f"task-{task + 1}", label, traces, layout)] if traces else []
    return charts


def _mean(
    optimizer: str, style: Style, x: Sequence[float], values: Sequence[Sequence[float]]
) -> dict[str, Any]:
    return {
        **_identity(optimizer),
        "x": x,
        "y": _finite([fmean(each) for each in values]),
        "mode": "lines+markers",
        "line": {"color": style.colour, "dash": style.dash, "width": 2},
        "marker": {"symbol": style.marker, "size": 7, "maxdisplayed": 6},
        "hovertemplate": "%{y:.4g} at %{x:.4g}",
    }


def _band(
    optimizer: str, style: Style, x: Sequence[float], values: Sequence[Sequence[float]]
) -> dict[str, Any]:
    high, low = [max(each) for each in values], [min(each) for each in values]
    return {
        **_identity(optimizer),
        "x": [*x, *reversed(x)],
        "y": _finite([*high, *reversed(low)]),
        "mode": "lines",
        "line": {"width": 0},
        "fill": "toself",
        "fillcolor": style.colour,
        "opacity": 0.15,
        "hoverinfo": "skip",
    }


def differences(results: StudyResults, rows: Sequence[OptimizerSummary]) -> list[Chart]:
    """Draw each optimizer minus the baseline, with its interval: test score and test loss."""
    metric = results.metric
    better = "→" if metric.higher_is_better else "←"
    changes = [row for row in rows if row.score_change and row.loss_change]
    scores = {row.name: row.score_change.difference for row in changes if row.score_change}
    losses = {row.name: row.loss_change.difference for row in changes if row.loss_change}
    score = f"test {metric.name}{unit_of_change(metric)}"
    panels = (("score-change", score, better, scores), ("loss-change", "test loss", "←", losses))
    return [
        _by_optimizer(name, label, f"{_literal(label)}<br>(better {way})", traces)
        for name, label, way, found in panels
        if (traces := _means(results, found, size=9))
    ]


def gaps(results: StudyResults, rows: Sequence[OptimizerSummary]) -> list[Chart]:
    """Draw test loss − train loss, a point for each seed, and the mean with its interval."""
    look = styles(results)
    seeds = [
        {
            **_identity(name),
            "x": _finite([run.final.test_loss - run.final.train_loss for run in runs.values()]),
            "y": [_literal(name)] * len(runs),
            "text": [f"seed {seed}" for seed in runs],
            "mode": "markers",
            "marker": {"symbol": style.marker, "size": 8, "color": style.colour, "opacity": 0.55},
            "hovertemplate": "%{x:.4g}, %{text}",
        }
        for name, style in look.items()
        if (runs := finished(results, name))
    ]
    means = _means(results, {row.name: row.gap for row in rows}, symbol="line-ns-open", size=16)
    label = "test loss − train loss"
    return [_by_optimizer("gap", label, label, [*seeds, *means])] if seeds else []


def _means(
    results: StudyResults, found: Mapping[str, Interval], *, size: int, symbol: str = ""
) -> list[dict[str, Any]]:
    look = styles(results)
    return [
        {
            **_identity(name),
            "x": [value.mean],
            "y": [_literal(name)],
            "mode": "markers",
            "marker": {
                "symbol": symbol or look[name].marker,
                "size": size,
                "color": look[name].colour,
                "line": {"width": 2 if symbol else 0, "color": look[name].colour},
            },
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": _finite([value.high - value.mean]),
                "arrayminus": _finite([value.mean - value.low]),
                "color": look[name].colour,
                "thickness": 2,
                "width": 5,
            },
            "hovertemplate": "mean %{x:.4g}",
        }
        for name, value in found.items()
        if math.isfinite(value.mean)
    ]


def _by_optimizer(name: str, label: str, title: str, traces: list[dict[str, Any]]) -> Chart:
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
    return Chart(name, f"{label}, by optimizer", traces, layout, rows=len(names))


# Of Curvature: the name on the switch, and on the axis.
_MEASURES = {
    "sharpness": ("sharpness", "SAM's sharpness, radius 0.05"),
    "largest": ("λ_max", "λ_max of the Hessian"),
    "trace": ("trace", "trace of the Hessian"),
    "preconditioned": ("λ_max(PH)", "λ_max(PH), after the optimizer's preconditioner"),
}


def measures_of(chart: Chart) -> dict[str, str]:
    """Return the names of the measures of curvature that a chart can show, by its variants."""
    return {each: _MEASURES[each][0] for each in chart.variants}


def flatness(results: StudyResults) -> list[Chart]:
    """Draw test loss by a measure of curvature, a point for each run that did not diverge."""
    runs = {name: finished(results, name) for name in styles(results)}
    traces = [
        {
            **_identity(name),
            "y": _finite([run.final.test_loss for run in runs[name].values()]),
            "text": [
                f"seed {seed}, train loss {run.final.train_loss:.3g}"
                for seed, run in runs[name].items()
            ],
            "mode": "markers",
            "marker": {"symbol": style.marker, "size": 10, "color": style.colour, "opacity": 0.85},
            "hovertemplate": "%{x:.3g}, test loss %{y:.4g}<br>%{text}",
        }
        for name, style in styles(results).items()
        if runs[name]
    ]
    variants = {}
    for measure, (_, label) in _MEASURES.items():
        x = [
            _finite([getattr(run.curvature, measure) for run in runs[trace["meta"]].values()])
            for trace in traces
        ]
        values = [value for each in x for value in each if value is not None]
        if values:
            scale = "log" if min(values) > 0 else "linear"
            variants[measure] = {"x": x, "xaxis": {"title": {"text": label}, "type": scale}}
    if not variants:
        return []
    layout = {"xaxis": {}, "yaxis": {"title": {"text": "test loss"}}}
    return [Chart("flatness", "Test loss by curvature", traces, layout, variants)]


def densities(results: StudyResults) -> list[Chart]:
    """Draw the spectral density of the Hessian of every run that has one."""
    traces = [
        {
            **_identity(name),
            "x": [eigenvalue for eigenvalue, _ in run.curvature.density],
            "y": _finite([density for _, density in run.curvature.density]),
            "mode": "lines",
            "line": {"color": style.colour, "dash": style.dash, "width": 1.4},
            "hovertemplate": f"density %{{y:.2g}} at %{{x:.3g}}, seed {seed}",
        }
        for name, style in styles(results).items()
        for seed, run in finished(results, name).items()
        if run.curvature.density
    ]
    heights = [y for trace in traces for y in trace["y"] if y]
    if not heights:
        return []
    top = math.log10(max(heights))
    layout = {
        "xaxis": {"title": {"text": "eigenvalue of the Hessian"}, "zeroline": True},
        "yaxis": {
            "title": {"text": "density"},
            "type": "log",
            "range": [top - _DECADES, top + 0.3],
            "exponentformat": "power",
        },
    }
    return [Chart("densities", "Densities of eigenvalues", traces, layout, _scales("xaxis"))]


def sensitivity(results: StudyResults) -> list[Chart]:
    """Draw the validation score of all tuning trials by their learning rate.

    Those without a score stand in a strip of their own below. The chosen ones have a rim.
    """
    scored, lost = [], []
    for name, style in styles(results).items():
        trials = [trial for trial in results.of(name, TUNE) if "lr" in trial.settings]
        scored.append(_trials(results, name, style, filter(_scored, trials)))
        lost.append(_trials(results, name, style, filterfalse(_scored, trials)) | {"yaxis": "y2"})
    traces, below = [each for each in scored if each["x"]], [each for each in lost if each["x"]]
    layout: dict[str, Any] = {
        "xaxis": {
            "title": {"text": "learning rate"},
            "type": "log",
            "exponentformat": "power",
            "nticks": 4,
        },
        "yaxis": {"title": {"text": _literal(labelled(results.metric, "validation"))}},
    }
    if below:
        layout["xaxis"]["anchor"] = "y2"
        layout["yaxis"]["domain"] = [0.24, 1]
        layout["yaxis2"] = _STRIP
    if not traces + below:
        return []
    return [Chart("sensitivity", "Validation score by learning rate", traces + below, layout)]


def _scored(trial: Trial) -> bool:
    return (
        trial.outcome is not None
        and not trial.outcome.diverged
        and math.isfinite(trial.outcome.final.validation_score)
    )


def _trials(
    results: StudyResults, name: str, style: Style, found: Iterable[Trial]
) -> dict[str, Any]:
    trials, chosen = list(found), chosen_trial(results, name)
    rims = [2 if trial is chosen else 0 for trial in trials]
    return {
        **_identity(name),
        "x": [trial.settings["lr"] for trial in trials],
        "y": [_validated(results, trial) for trial in trials],
        "text": [f"trial {trial.number}" for trial in trials],
        "mode": "markers",
        "marker": {
            "symbol": style.marker,
            "size": 10,
            "color": style.colour,
            "opacity": 0.85,
            "line": {"width": rims, "color": INK},
        },
        "hovertemplate": "%{y:.4g} at lr %{x:.3g}, %{text}",
    }


def _validated(results: StudyResults, trial: Trial) -> float | str:
    if trial.outcome is None:
        return "failed"
    if not _scored(trial):
        return "diverged"
    return results.metric.factor * trial.outcome.final.validation_score


def _scales(axis: str) -> dict[str, dict[str, Any]]:
    return {scale: {axis: {"type": scale}} for scale in ("log", "linear")}


def _identity(optimizer: str) -> dict[str, Any]:
    """Say whose trace it is."""
    return {"name": _literal(optimizer), "meta": optimizer}


def _literal(text: str) -> str:
    """Write text for Plotly, which reads some HTML in it, but not every entity."""
    return escape(text, quote=False)


def _finite(values: Sequence[float]) -> list[float | None]:
    """JSON has no word for what is not finite; Plotly leaves a gap at null."""
    return [value if math.isfinite(value) else None for value in values]
