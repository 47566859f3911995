"""The charts of the page: for each its traces and layout, as plotly.js takes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from steppe._shared.array_types import Floats
from steppe._shared.json_values import plain
from steppe._shared.page.parts import Chart
from steppe._shared.page.styles import INK, Style, styles_of
from steppe.play.pictures import extent, quartiles
from steppe.play.results import Play, Player
from steppe.play.surface_grid import SurfaceGrid, surface_grid

# The style sheet's greys, on which all colours of the paths show.
_SCALE = [[0.0, "var(--low)"], [0.5, "var(--middle)"], [1.0, "var(--high)"]]
_POINTS = {1: 801, 2: 101}
# Steps of a path that are drawn, at most.
_STEPS = 300
_DIGITS = 5
_MINIMUM = "#D55E00"
_FEW_DECADES = 2
# How far a path lies above the surface, as a part of its height, lest it be half hidden.
_LIFT = 0.015


def landscape(play: Play) -> list[Chart]:
    """Draw the function and the paths: of one variable or two, else nothing."""
    if play.function.dimension > 2:
        return []
    drawn = surface_grid(play, _POINTS[play.function.dimension])
    if play.function.dimension == 1:
        return [_curve(play, drawn), _places(play)]
    return [_contour(play, drawn), _surface(play, drawn)]


def losses(play: Play) -> list[Chart]:
    """Draw the medians over the starts of the loss above the minimum, and their middle half."""
    traces: list[dict[str, Any]] = []
    steps = _thinned(play.steps)
    found = [quartiles(play, player.descent.losses) for player in play.players]
    for (player, style), each in zip(_styled(play), found, strict=True):
        low, middle, high = each[:, steps]
        sound = np.isfinite(high)
        traces.append(
            {
                **_identity(player),
                "x": [*steps[sound].tolist(), *steps[sound][::-1].tolist()],
                "y": plain(np.concatenate([high[sound], low[sound][::-1]]), _DIGITS),
                "mode": "lines",
                "line": {"width": 0},
                "fill": "toself",
                "fillcolor": style.colour,
                "opacity": 0.15,
                "hoverinfo": "skip",
            }
        )
        traces.append(
            {
                **_identity(player),
                "x": steps.tolist(),
                "y": plain(middle, _DIGITS),
                "mode": "lines",
                "line": {"color": style.colour, "dash": style.dash, "width": 2},
                "hovertemplate": "%{y:.3g} at step %{x}",
            }
        )
    lowest, highest = np.log10(extent(found)) + np.array([-0.1, 0.1])
    layout = {
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {
            "title": {"text": "f − its global minimum"},
            "type": "log",
            "exponentformat": "power",
            "range": [float(lowest), float(highest)],
            # Where a decade is high, Plotly would write all nine of its digits.
            **({"dtick": "D2"} if highest - lowest < _FEW_DECADES else {}),
        },
    }
    return [Chart("losses", "Losses by step", traces, layout)]


def _contour(play: Play, drawn: SurfaceGrid) -> Chart:
    x, y = drawn.axes
    places, labels = drawn.ticks()
    background = {
        "type": "contour",
        "x": plain(x, _DIGITS),
        "y": plain(y, _DIGITS),
        "z": plain(drawn.tone(drawn.values), _DIGITS),
        "customdata": plain(drawn.values, _DIGITS),
        "colorscale": _SCALE,
        "ncontours": 25,
        "line": {"width": 0.5, "color": "var(--contour)"},
        "colorbar": {
            "tickvals": plain(places, _DIGITS),
            "ticktext": labels,
            "thickness": 10,
            "len": 0.9,
            "title": {"text": "f", "side": "top"},
        },
        "hovertemplate": "f(%{x:.3g}, %{y:.3g}) = %{customdata:.4g}<extra></extra>",
    }
    traces: list[dict[str, Any]] = [background, _minima(play)]
    for player, style in _styled(play):
        path = _near(player.descent.points[:, _thinned(play.steps)], drawn)
        traces += _path(player, style, path[..., 0], path[..., 1])
    layout = {
        "xaxis": {"title": {"text": "x"}, "range": plain(x[[0, -1]], _DIGITS)},
        "yaxis": {"title": {"text": "y"}, "range": plain(y[[0, -1]], _DIGITS)},
    }
    return Chart("contour", "The paths from above", traces, layout)


def _surface(play: Play, drawn: SurfaceGrid) -> Chart:
    x, y = drawn.axes
    tones = drawn.tone(drawn.values)
    lift = _LIFT * np.ptp(tones)
    places, labels = drawn.ticks()
    background = {
        "type": "surface",
        "x": plain(x, _DIGITS),
        "y": plain(y, _DIGITS),
        "z": plain(tones, _DIGITS),
        "customdata": plain(drawn.values, _DIGITS),
        "colorscale": _SCALE,
        "showscale": False,
        "lighting": {"ambient": 0.75, "diffuse": 0.5, "specular": 0.05},
        "hovertemplate": "f(%{x:.3g}, %{y:.3g}) = %{customdata:.4g}<extra></extra>",
    }
    traces: list[dict[str, Any]] = [background]
    steps = _thinned(play.steps)
    for player, style in _styled(play):
        path = _within(player.descent.points[:, steps], drawn)
        height = drawn.tone(player.descent.losses[:, steps]) + lift
        traces.append(
            {
                **_identity(player),
                "type": "scatter3d",
                "mode": "lines",
                "x": _joined(path[..., 0]),
                "y": _joined(path[..., 1]),
                "z": _joined(np.where(np.isfinite(path[..., 0]), height, np.nan)),
                "line": {"color": style.colour, "width": 5},
                "hoverinfo": "name",
            }
        )
    for minimum in play.function.minima:
        traces.append(
            {
                "type": "scatter3d",
                "mode": "markers",
                "x": [minimum.point[0]],
                "y": [minimum.point[1]],
                "z": [float(drawn.tone(np.array(minimum.value))) + lift],
                "marker": {
                    "symbol": "diamond" if minimum.is_global else "cross",
                    "size": 6 if minimum.is_global else 4,
                    "color": _MINIMUM,
                    "line": {"color": "white", "width": 1},
                },
                "hovertemplate": f"minimum {minimum.value:.4g}<extra></extra>",
            }
        )
    scene = {
        "xaxis": {"title": {"text": "x"}, "range": plain(x[[0, -1]], _DIGITS)},
        "yaxis": {"title": {"text": "y"}, "range": plain(y[[0, -1]], _DIGITS)},
        "zaxis": {
            "title": {"text": "f"},
            "tickvals": plain(places, _DIGITS),
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


def _curve(play: Play, drawn: SurfaceGrid) -> Chart:
    x = drawn.axes[0]
    background = {
        "type": "scatter",
        "x": plain(x, _DIGITS),
        "y": plain(drawn.values, _DIGITS),
        "mode": "lines",
        "line": {"color": INK, "width": 1.5},
        "hovertemplate": "f(%{x:.3g}) = %{y:.4g}<extra></extra>",
    }
    ends = [
        {
            **_identity(player),
            "x": plain(player.descent.points[:, -1, 0], _DIGITS),
            "y": plain(player.descent.losses[:, -1], _DIGITS),
            "mode": "markers",
            "marker": {"symbol": style.marker, "color": style.colour, "size": 10, "opacity": 0.75},
            "hovertemplate": "ended at %{x:.4g}, f = %{y:.3g}",
        }
        for player, style in _styled(play)
    ]
    layout = {
        "xaxis": {"title": {"text": "x"}, "range": plain(x[[0, -1]], _DIGITS)},
        "yaxis": {"title": {"text": "f(x)"}, "range": [-0.05, 1.05 * float(drawn.values.max())]},
    }
    return Chart("curve", "The function, and where they ended", [background, *ends], layout)


def _places(play: Play) -> Chart:
    steps = _thinned(play.steps)
    traces = []
    for player, style in _styled(play):
        x = player.descent.points[:, steps, 0]
        traces += _path(player, style, np.broadcast_to(steps.astype(float), x.shape), x)
    ((low, high),) = play.function.bounds
    layout = {
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"title": {"text": "x"}, "range": [low, high]},
    }
    return Chart("places", "Where they are at each step", traces, layout)


def _path(player: Player, style: Style, x: Floats, y: Floats) -> list[dict[str, Any]]:
    """Return all starts' lines, and the marks of where they begin and end."""
    line = {
        **_identity(player),
        "x": _joined(x),
        "y": _joined(y),
        "mode": "lines",
        "line": {"color": style.colour, "dash": style.dash, "width": 1.8},
        "hoverinfo": "name",
    }
    ends = {
        **_identity(player),
        "x": plain(np.concatenate([x[:, 0], x[:, -1]]), _DIGITS),
        "y": plain(np.concatenate([y[:, 0], y[:, -1]]), _DIGITS),
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


def _minima(play: Play) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [minimum.point[0] for minimum in play.function.minima],
        "y": [minimum.point[1] for minimum in play.function.minima],
        "text": [f"{minimum.value:.4g}" for minimum in play.function.minima],
        "marker": {
            "symbol": ["star" if each.is_global else "cross" for each in play.function.minima],
            "size": [16 if each.is_global else 9 for each in play.function.minima],
            "color": _MINIMUM,
            "line": {"color": "white", "width": 1},
        },
        "hovertemplate": "minimum %{text} at (%{x:.4g}, %{y:.4g})<extra></extra>",
    }


def _styled(play: Play) -> list[tuple[Player, Style]]:
    looks = styles_of(player.name for player in play.players)
    return [(player, looks[player.name]) for player in play.players]


def _identity(player: Player) -> dict[str, Any]:
    return {"type": "scatter", "name": player.name, "meta": player.name}


def _thinned(steps: int) -> Any:
    return np.unique(np.linspace(0, steps, min(steps + 1, _STEPS)).round().astype(int))


def _joined(values: Floats) -> list[float | None]:
    """Put all starts into one line with gaps."""
    gaps = np.full((len(values), 1), np.nan)
    joined: Sequence[float | None] = plain(np.hstack([values, gaps]).ravel(), _DIGITS)
    return list(joined)


def _near(points: Floats, drawn: SurfaceGrid) -> Floats:
    """Leave out what lies so far outside that it would only slow the chart down."""
    low, high = np.array([axis[[0, -1]] for axis in drawn.axes]).T
    far = np.abs(points - (low + high) / 2) > 10 * (high - low)
    return np.where(far.any(-1, keepdims=True), np.nan, points)


def _within(points: Floats, drawn: SurfaceGrid) -> Floats:
    """Leave out what lies beside the surface."""
    low, high = np.array([axis[[0, -1]] for axis in drawn.axes]).T
    inside = ((low <= points) & (points <= high)).all(-1, keepdims=True)
    return np.where(inside, points, np.nan)
