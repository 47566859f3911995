"""The charts of the page, each with its traces and layout as plotly.js takes them.

Learning curves are in :mod:`steppe.compare.report.page.learning_curves`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import filterfalse
from typing import Any

from steppe._shared.page.parts import Chart
from steppe._shared.page.styles import INK, Style
from steppe._shared.statistics import Interval
from steppe.compare.records.results import TUNE, StudyResults, Trial
from steppe.compare.records.summary import OptimizerSummary, chosen_trial, finished
from steppe.compare.report.formatting import unit_of_change
from steppe.compare.report.page.styles import styles
from steppe.compare.report.page.traces import (
    linear_and_log,
    null_for_not_finite,
    optimizer_of_trace,
    plotly_text,
)
from steppe.compare.report.page.units import score_label

# Decades of a density that are shown: what lies below the highest by more is the smoothing's tail.
_DECADES = 7
# Where tuning trials without a score stand.
_UNSCORED_AXIS = {
    "domain": [0, 0.16],
    "type": "category",
    "categoryorder": "array",
    "categoryarray": ["failed", "diverged"],
    "range": [-0.6, 1.6],
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
        _row_chart(name, label, f"{plotly_text(label)}<br>(better {way})", traces)
        for name, label, way, found in panels
        if (traces := _means_with_intervals(results, found, size=9))
    ]


def gaps(results: StudyResults, rows: Sequence[OptimizerSummary]) -> list[Chart]:
    """Draw test loss − train loss, a point for each seed, and the mean with its interval."""
    look = styles(results)
    seeds = [
        {
            **optimizer_of_trace(name),
            "x": null_for_not_finite(
                [run.final.test_loss - run.final.train_loss for run in runs.values()]
            ),
            "y": [plotly_text(name)] * len(runs),
            "text": [f"seed {seed}" for seed in runs],
            "mode": "markers",
            "marker": {"symbol": style.marker, "size": 8, "color": style.colour, "opacity": 0.55},
            "hovertemplate": "%{x:.4g}, %{text}",
        }
        for name, style in look.items()
        if (runs := finished(results, name))
    ]
    means = _means_with_intervals(
        results, {row.name: row.gap for row in rows}, symbol="line-ns-open", size=16
    )
    label = "test loss − train loss"
    return [_row_chart("gap", label, label, [*seeds, *means])] if seeds else []


def _means_with_intervals(
    results: StudyResults, found: Mapping[str, Interval], *, size: int, symbol: str = ""
) -> list[dict[str, Any]]:
    look = styles(results)
    return [
        {
            **optimizer_of_trace(name),
            "x": [value.mean],
            "y": [plotly_text(name)],
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
                "array": null_for_not_finite([value.high - value.mean]),
                "arrayminus": null_for_not_finite([value.mean - value.low]),
                "color": look[name].colour,
                "thickness": 2,
                "width": 5,
            },
            "hovertemplate": "mean %{x:.4g}",
        }
        for name, value in found.items()
        if math.isfinite(value.mean)
    ]


def _row_chart(name: str, label: str, title: str, traces: list[dict[str, Any]]) -> Chart:
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
            **optimizer_of_trace(name),
            "y": null_for_not_finite([run.final.test_loss for run in runs[name].values()]),
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
            null_for_not_finite(
                [getattr(run.curvature, measure) for run in runs[trace["meta"]].values()]
            )
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
            **optimizer_of_trace(name),
            "x": [eigenvalue for eigenvalue, _ in run.curvature.density],
            "y": null_for_not_finite([density for _, density in run.curvature.density]),
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
    return [Chart("densities", "Densities of eigenvalues", traces, layout, linear_and_log("xaxis"))]


def sensitivity(results: StudyResults) -> list[Chart]:
    """Draw the validation score of all tuning trials by their learning rate.

    Those without a score stand in a strip of their own below. The chosen ones have a rim.
    """
    scored, unscored = [], []
    for name, style in styles(results).items():
        trials = [trial for trial in results.trials_of(name, TUNE) if "lr" in trial.settings]
        scored.append(_trial_points(results, name, style, filter(_has_score, trials)))
        unscored.append(
            _trial_points(results, name, style, filterfalse(_has_score, trials)) | {"yaxis": "y2"}
        )
    traces, below = [each for each in scored if each["x"]], [each for each in unscored if each["x"]]
    layout: dict[str, Any] = {
        "xaxis": {
            "title": {"text": "learning rate"},
            "type": "log",
            "exponentformat": "power",
            "nticks": 4,
        },
        "yaxis": {"title": {"text": plotly_text(score_label(results.metric, "validation"))}},
    }
    if below:
        layout["xaxis"]["anchor"] = "y2"
        layout["yaxis"]["domain"] = [0.24, 1]
        layout["yaxis2"] = _UNSCORED_AXIS
    if not traces + below:
        return []
    return [Chart("sensitivity", "Validation score by learning rate", traces + below, layout)]


def _has_score(trial: Trial) -> bool:
    return (
        trial.outcome is not None
        and not trial.outcome.diverged
        and math.isfinite(trial.outcome.final.validation_score)
    )


def _trial_points(
    results: StudyResults, name: str, style: Style, found: Iterable[Trial]
) -> dict[str, Any]:
    trials, chosen = list(found), chosen_trial(results, name)
    rims = [2 if trial is chosen else 0 for trial in trials]
    return {
        **optimizer_of_trace(name),
        "x": [trial.settings["lr"] for trial in trials],
        "y": [_score_or_failure(results, trial) for trial in trials],
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


def _score_or_failure(results: StudyResults, trial: Trial) -> float | str:
    if trial.outcome is None:
        return "failed"
    if not _has_score(trial):
        return "diverged"
    return results.metric.factor * trial.outcome.final.validation_score
