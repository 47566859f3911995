"""The charts of curvature: beside the test loss, and the densities of eigenvalues."""

import math
from collections.abc import Callable
from typing import Any

from steppe._shared.page.parts import Chart
from steppe.compare.records.results import Outcome, StudyResults
from steppe.compare.records.summary import (
    common_train_loss,
    curvature_at,
    outcomes,
    repeated_trials,
)
from steppe.compare.report.page.styles import styles
from steppe.compare.report.page.traces import (
    linear_and_log,
    null_for_not_finite,
    optimizer_of_trace,
)

# Decades of a density that are shown: what lies below the highest by more is the smoothing's tail.
_DECADES = 7


def recommended_runs(results: StudyResults) -> dict[str, list[Outcome]]:
    """Return each contender's runs at its recommended settings that ended with a finite loss."""
    return {each.name: outcomes(repeated_trials(results, each)) for each in results.contenders}


def _measures(results: StudyResults) -> dict[str, tuple[str, str, Callable[[Outcome], float]]]:
    """Return by a measure's key its name on the switch, on the axis, and where it is found."""
    common = common_train_loss(results)
    return {
        "common-sharpness": (
            "sharpness at common train loss",
            "SAM’s sharpness, radius 0.05,<br>at a common train loss",
            lambda run: curvature_at(run.curve, common, "sharpness"),
        ),
        "common-largest": (
            "λ_max at common train loss",
            "λ_max of the Hessian,<br>at a common train loss",
            lambda run: curvature_at(run.curve, common, "largest"),
        ),
        "sharpness": (
            "sharpness at the end",
            "SAM’s sharpness, radius 0.05,<br>at the end",
            lambda run: run.curvature.sharpness,
        ),
        "largest": (
            "λ_max at the end",
            "λ_max of the Hessian, at the end",
            lambda run: run.curvature.largest,
        ),
        "trace": (
            "trace at the end",
            "trace of the Hessian, at the end",
            lambda run: run.curvature.trace,
        ),
        "preconditioned": (
            "λ_max(PH) at the end",
            "λ_max(PH), after the optimizer’s<br>preconditioner, at the end",
            lambda run: run.curvature.preconditioned,
        ),
    }


def measures_of(results: StudyResults, chart: Chart) -> dict[str, str]:
    """Return the names of the measures of curvature that a chart can show, by its variants."""
    names = {key: name for key, (name, _, _) in _measures(results).items()}
    return {each: names[each] for each in chart.variants}


def flatness(results: StudyResults) -> list[Chart]:
    """Draw test loss by a measure of curvature, a point for each run at recommended settings."""
    look = styles(results)
    runs = {name: found for name, found in recommended_runs(results).items() if found}
    traces = [
        {
            **optimizer_of_trace(name),
            "y": null_for_not_finite([run.final.test_loss for run in found]),
            "text": [f"train loss {run.final.train_loss:.3g} at the end" for run in found],
            "mode": "markers",
            "marker": {
                "symbol": look[name].marker,
                "size": 10,
                "color": look[name].colour,
                "opacity": 0.85,
            },
            "hovertemplate": "%{x:.3g}, test loss %{y:.4g}<br>%{text}",
        }
        for name, found in runs.items()
    ]
    variants: dict[str, dict[str, Any]] = {}
    for key, (_, label, measure) in _measures(results).items():
        x = [null_for_not_finite([measure(run) for run in found]) for found in runs.values()]
        values = [value for each in x for value in each if value is not None]
        if values:
            scale = "log" if min(values) > 0 else "linear"
            axis = {"title": {"text": label}, "type": scale, "nticks": 5}
            variants[key] = {"traces": [{"x": each} for each in x], "xaxis": axis}
    if not variants:
        return []
    layout = {"xaxis": {}, "yaxis": {"title": {"text": "test loss"}}}
    return [Chart("flatness", "Test loss by curvature", traces, layout, variants)]


def densities(results: StudyResults) -> list[Chart]:
    """Draw one spectral density for each contender: that of the run whose λ_max is the median."""
    look, traces = styles(results), []
    for name, found in recommended_runs(results).items():
        measured = [run for run in found if run.curvature.density]
        if not measured:
            continue
        measured.sort(key=lambda run: run.curvature.largest)
        density = measured[(len(measured) - 1) // 2].curvature.density
        traces.append(
            {
                **optimizer_of_trace(name),
                "x": [eigenvalue for eigenvalue, _ in density],
                "y": null_for_not_finite([height for _, height in density]),
                "mode": "lines",
                "line": {"color": look[name].colour, "dash": look[name].dash, "width": 1.7},
                "hovertemplate": "density %{y:.2g} at %{x:.3g}",
            }
        )
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
