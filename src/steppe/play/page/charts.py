"""Make the charts of the page, each with its traces and layout as plotly.js takes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from steppe._shared.array_types import Floats
from steppe._shared.json_values import json_ready
from steppe._shared.page.parts import Chart, filled_range
from steppe._shared.page.styles import INK, Style, styles_of
from steppe.play.pictures import quartiles, shown_range
from steppe.play.results import OptimizerResult, SweepResult
from steppe.play.surface_grid import SurfaceGrid, sample_surface

# Greys of the style sheet, on which all colours of the paths can be seen.
_SCALE = [[0.0, "var(--low)"], [0.5, "var(--middle)"], [1.0, "var(--high)"]]
_POINTS = {1: 801, 2: 101}
# The largest number of steps of a path that are drawn.
_STEPS = 300
_DIGITS = 5
_MINIMUM = "#D55E00"
_FEW_DECADES = 2
# Distance of a path above the surface, as a share of the surface's height.
_LIFT = 0.015


def surface_charts(result: SweepResult) -> list[Chart]:
    """Return the charts of the function and the paths; none for more than two variables."""
    if result.function.dimension > 2:
        return []
    drawn = sample_surface(result, _POINTS[result.function.dimension])
    if result.function.dimension == 1:
        return [_curve(result, drawn), _positions(result)]
    return [_contour(result, drawn), _surface(result, drawn)]


def losses(result: SweepResult) -> list[Chart]:
    """Return the chart of the loss above the minimum: medians and quartiles over the starts."""
    traces: list[dict[str, Any]] = []
    steps = _thinned(result.steps)
    found = [quartiles(result, optimizer.descent.losses) for optimizer in result.optimizers]
    for (optimizer, style), each in zip(_styled(result), found, strict=True):
        low, middle, high = each[:, steps]
        finite = np.isfinite(high)
        traces.append(
            {
                **_identity(optimizer),
                "x": [*steps[finite].tolist(), *steps[finite][::-1].tolist()],
                "y": json_ready(np.concatenate([high[finite], low[finite][::-1]]), _DIGITS),
                **filled_range(style.colour),
            }
        )
        traces.append(
            {
                **_identity(optimizer),
                "x": steps.tolist(),
                "y": json_ready(middle, _DIGITS),
                "mode": "lines",
                "line": {"color": style.colour, "dash": style.dash, "width": 2},
                "hovertemplate": "%{y:.3g} at step %{x}",
            }
        )
    lowest, highest = np.log10(shown_range(found)) + np.array([-0.1, 0.1])
    layout = {
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {
            "title": {"text": "f − its global minimum"},
            "type": "log",
            "exponentformat": "power",
            "range": [float(lowest), float(highest)],
            # Over few decades Plotly would label all nine digits of each.
            **({"dtick": "D2"} if highest - lowest < _FEW_DECADES else {}),
        },
    }
    return [Chart("losses", "Losses by step", traces, layout)]


def _contour(result: SweepResult, drawn: SurfaceGrid) -> Chart:
    x, y = drawn.axes
    positions, labels = drawn.ticks()
    background = {
        "type": "contour",
        "x": json_ready(x, _DIGITS),
        "y": json_ready(y, _DIGITS),
        "z": json_ready(drawn.to_scale(drawn.values), _DIGITS),
        "customdata": json_ready(drawn.values, _DIGITS),
        "colorscale": _SCALE,
        "ncontours": 25,
        "line": {"width": 0.5, "color": "var(--contour)"},
        "colorbar": {
            "tickvals": json_ready(positions, _DIGITS),
            "ticktext": labels,
            "thickness": 10,
            "len": 0.9,
            "title": {"text": "f", "side": "top"},
        },
        "hovertemplate": "f(%{x:.3g}, %{y:.3g}) = %{customdata:.4g}<extra></extra>",
    }
    traces: list[dict[str, Any]] = [background, _minima(result)]
    for optimizer, style in _styled(result):
        path = _near(optimizer.descent.points[:, _thinned(result.steps)], drawn)
        traces += _path(optimizer, style, path[..., 0], path[..., 1])
    layout = {
        "xaxis": {"title": {"text": "x"}, "range": json_ready(x[[0, -1]], _DIGITS)},
        "yaxis": {"title": {"text": "y"}, "range": json_ready(y[[0, -1]], _DIGITS)},
    }
    return Chart("contour", "The paths from above", traces, layout)


def _surface(result: SweepResult, drawn: SurfaceGrid) -> Chart:
    # Paths and minima lie a little above the surface, or half of each line would be hidden in it.
    lift = _LIFT * float(np.ptp(drawn.to_scale(drawn.values)))
    traces = [
        _surface_background(drawn),
        *_surface_paths(result, drawn, lift),
        *_surface_minima(result, drawn, lift),
    ]
    x, y = drawn.axes
    positions, labels = drawn.ticks()
    scene = {
        "xaxis": {"title": {"text": "x"}, "range": json_ready(x[[0, -1]], _DIGITS)},
        "yaxis": {"title": {"text": "y"}, "range": json_ready(y[[0, -1]], _DIGITS)},
        "zaxis": {
            "title": {"text": "f"},
            "tickvals": json_ready(positions, _DIGITS),
            "ticktext": labels,
        },
        "aspectmode": "manual",
        "aspectratio": {"x": 1.2, "y": 1.2, "z": 0.7},
        "camera": {
            "eye": {"x": 1.4, "y": -1.4, "z": 1.1},
            "center": {"x": 0, "y": 0, "z": -0.12},
        },
    }
    return Chart("surface", "The paths on the surface", traces, {"scene": scene})


def _surface_background(drawn: SurfaceGrid) -> dict[str, Any]:
    x, y = drawn.axes
    return {
        "type": "surface",
        "x": json_ready(x, _DIGITS),
        "y": json_ready(y, _DIGITS),
        "z": json_ready(drawn.to_scale(drawn.values), _DIGITS),
        "customdata": json_ready(drawn.values, _DIGITS),
        "colorscale": _SCALE,
        "showscale": False,
        "lighting": {"ambient": 0.75, "diffuse": 0.5, "specular": 0.05},
        "hovertemplate": "f(%{x:.3g}, %{y:.3g}) = %{customdata:.4g}<extra></extra>",
    }


def _surface_paths(result: SweepResult, drawn: SurfaceGrid, lift: float) -> list[dict[str, Any]]:
    steps = _thinned(result.steps)
    traces = []
    for optimizer, style in _styled(result):
        path = _within(optimizer.descent.points[:, steps], drawn)
        height = drawn.to_scale(optimizer.descent.losses[:, steps]) + lift
        traces.append(
            {
                **_identity(optimizer),
                "type": "scatter3d",
                "mode": "lines",
                "x": _joined(path[..., 0]),
                "y": _joined(path[..., 1]),
                "z": _joined(np.where(np.isfinite(path[..., 0]), height, np.nan)),
                "line": {"color": style.colour, "width": 5},
                "hoverinfo": "name",
            }
        )
    return traces


def _surface_minima(result: SweepResult, drawn: SurfaceGrid, lift: float) -> list[dict[str, Any]]:
    return [
        {
            "type": "scatter3d",
            "mode": "markers",
            "x": [minimum.point[0]],
            "y": [minimum.point[1]],
            "z": [float(drawn.to_scale(np.array(minimum.value))) + lift],
            "marker": {
                "symbol": "diamond" if minimum.is_global else "cross",
                "size": 6 if minimum.is_global else 4,
                "color": _MINIMUM,
                "line": {"color": "white", "width": 1},
            },
            "hovertemplate": f"minimum {minimum.value:.4g}<extra></extra>",
        }
        for minimum in result.function.minima
    ]


def _curve(result: SweepResult, drawn: SurfaceGrid) -> Chart:
    x = drawn.axes[0]
    background = {
        "type": "scatter",
        "x": json_ready(x, _DIGITS),
        "y": json_ready(drawn.values, _DIGITS),
        "mode": "lines",
        "line": {"color": INK, "width": 1.5},
        "hovertemplate": "f(%{x:.3g}) = %{y:.4g}<extra></extra>",
    }
    ends = [
        {
            **_identity(optimizer),
            "x": json_ready(optimizer.descent.points[:, -1, 0], _DIGITS),
            "y": json_ready(optimizer.descent.losses[:, -1], _DIGITS),
            "mode": "markers",
            "marker": {"symbol": style.marker, "color": style.colour, "size": 10, "opacity": 0.75},
            "hovertemplate": "ended at %{x:.4g}, f = %{y:.3g}",
        }
        for optimizer, style in _styled(result)
    ]
    layout = {
        "xaxis": {"title": {"text": "x"}, "range": json_ready(x[[0, -1]], _DIGITS)},
        "yaxis": {"title": {"text": "f(x)"}, "range": [-0.05, 1.05 * float(drawn.values.max())]},
    }
    return Chart("curve", "The function, and where they ended", [background, *ends], layout)


def _positions(result: SweepResult) -> Chart:
    steps = _thinned(result.steps)
    traces = []
    for optimizer, style in _styled(result):
        x = optimizer.descent.points[:, steps, 0]
        traces += _path(optimizer, style, np.broadcast_to(steps.astype(float), x.shape), x)
    ((low, high),) = result.function.bounds
    layout = {
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"title": {"text": "x"}, "range": [low, high]},
    }
    return Chart("places", "Where they are at each step", traces, layout)


def _path(optimizer: OptimizerResult, style: Style, x: Floats, y: Floats) -> list[dict[str, Any]]:
    """Return the trace of all lines, and the trace of the marks at starts and ends."""
    line = {
        **_identity(optimizer),
        "x": _joined(x),
        "y": _joined(y),
        "mode": "lines",
        "line": {"color": style.colour, "dash": style.dash, "width": 1.8},
        "hoverinfo": "name",
    }
    ends = {
        **_identity(optimizer),
        "x": json_ready(np.concatenate([x[:, 0], x[:, -1]]), _DIGITS),
        "y": json_ready(np.concatenate([y[:, 0], y[:, -1]]), _DIGITS),
        "mode": "markers",
        "marker": {
            "symbol": ["circle-open"] * len(x) + [style.marker] * len(x),
            "color": style.colour,
            "size": [7] * len(x) + [9] * len(x),
            "line": {"width": 1, "color": "white"},
        },
        "hovertemplate": "(%{x:.4g}, %{y:.4g})",
    }
    return [line, ends]


def _minima(result: SweepResult) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [minimum.point[0] for minimum in result.function.minima],
        "y": [minimum.point[1] for minimum in result.function.minima],
        "text": [f"{minimum.value:.4g}" for minimum in result.function.minima],
        "marker": {
            "symbol": ["star" if each.is_global else "cross" for each in result.function.minima],
            "size": [16 if each.is_global else 9 for each in result.function.minima],
            "color": _MINIMUM,
            "line": {"color": "white", "width": 1},
        },
        "hovertemplate": "minimum %{text} at (%{x:.4g}, %{y:.4g})<extra></extra>",
    }


def _styled(result: SweepResult) -> list[tuple[OptimizerResult, Style]]:
    styles = styles_of(optimizer.name for optimizer in result.optimizers)
    return [(optimizer, styles[optimizer.name]) for optimizer in result.optimizers]


def _identity(optimizer: OptimizerResult) -> dict[str, Any]:
    return {"type": "scatter", "name": optimizer.name, "meta": optimizer.name}


def _thinned(steps: int) -> Any:
    return np.unique(np.linspace(0, steps, min(steps + 1, _STEPS)).round().astype(int))


def _joined(values: Floats) -> list[float | None]:
    """Join the paths of all starts into one line with gaps, as one trace draws faster than many."""
    gaps = np.full((len(values), 1), np.nan)
    joined: Sequence[float | None] = json_ready(np.hstack([values, gaps]).ravel(), _DIGITS)
    return list(joined)


def _near(points: Floats, drawn: SurfaceGrid) -> Floats:
    """Replace points far outside the chart by NaN: they would only slow it down."""
    low, high = np.array([axis[[0, -1]] for axis in drawn.axes]).T
    far = np.abs(points - (low + high) / 2) > 10 * (high - low)
    return np.where(far.any(-1, keepdims=True), np.nan, points)


def _within(points: Floats, drawn: SurfaceGrid) -> Floats:
    """Replace points beside the surface by NaN."""
    low, high = np.array([axis[[0, -1]] for axis in drawn.axes]).T
    inside = ((low <= points) & (points <= high)).all(-1, keepdims=True)
    return np.where(inside, points, np.nan)
