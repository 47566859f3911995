"""The charts of a study's trials: results by learning rate, and parallel coordinates."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from steppe._shared.page.parts import Chart
from steppe._shared.page.styles import Style
from steppe._shared.statistics import Interval, mean, standard_error
from steppe.compare.records.results import POOL, ContenderRecord, Outcome, StudyResults, Trial
from steppe.compare.report.formatting import format_short
from steppe.compare.report.near_range import better_half
from steppe.compare.report.page.styles import styles
from steppe.compare.report.page.traces import (
    error_bars,
    near_and_all,
    optimizer_of_trace,
    plotly_text,
)
from steppe.compare.report.units import score_label

# Trials that one mean is taken over, and how many means there are at most.
_TRIALS_PER_BIN = 5
_MOST_BINS = 10

# Where trials that diverged stand.
_DIVERGED_AXIS = {
    "domain": [0, 0.1],
    "type": "category",
    "categoryorder": "array",
    "categoryarray": ["diverged"],
    "range": [-0.6, 0.6],
}

# Of trials by their validation score, the lowest fifth first; readable on light and dark pages.
_FIFTHS = ("#9AA3AB", "#56B4E9", "#0072B2", "#E69F00", "#D55E00")
# Where a line of parallel coordinates runs that has no score.
_BELOW = -0.14
# Scores below this share of them are drawn at the lowest end.
_LOWEST = 0.25


def by_lr(results: StudyResults) -> list[Chart]:
    """Draw the primary test result by lr: means over trials of similar lr, all else averaged.

    Trials that diverged stand in a strip of their own below.
    """
    traces, strips, values = [], [], []
    for name, style in styles(results).items():
        trials = [t for t in results.trials_of(name, POOL) if t.settings.get("lr", 0.0) > 0]
        ended = sorted((t for t in trials if t.finite_outcome), key=lambda t: t.settings["lr"])
        if len(ended) >= 2:
            traces.append(_means_by_lr(results, name, style, ended))
            values += traces[-1]["y"]
        lost = [trial.settings["lr"] for trial in trials if not trial.finite_outcome]
        if lost:
            strips.append(_strip(name, style, lost))
    if not traces:
        return []
    layout: dict[str, Any] = {
        "xaxis": {
            "title": {"text": "learning rate"},
            "type": "log",
            "exponentformat": "power",
            "dtick": 1,
        },
        "yaxis": {"title": {"text": plotly_text(_label(results))}},
    }
    if strips:
        layout["xaxis"]["anchor"] = "y2"
        layout["yaxis"]["domain"] = [0.17, 1]
        layout["yaxis2"] = _DIVERGED_AXIS
    wanted_high = results.plan.primary == "score" and results.metric.higher_is_better
    variants = near_and_all(better_half(values, wanted_high), "yaxis")
    label = "Test result by learning rate"
    return [Chart("by-lr", label, [*traces, *strips], layout, variants)]


def _label(results: StudyResults) -> str:
    if results.plan.primary == "loss":
        return "test loss"
    return score_label(results.metric, "test")


def _test_result(results: StudyResults, outcome: Outcome) -> float:
    if results.plan.primary == "loss":
        return outcome.final.test_loss
    return results.metric.factor * outcome.final.test_score


def _means_by_lr(
    results: StudyResults, name: str, style: Style, ended: Sequence[Trial]
) -> dict[str, Any]:
    """Return the means over trials of similar lr, with the standard errors of the means."""
    count = min(_MOST_BINS, max(2, len(ended) // _TRIALS_PER_BIN))
    edges = np.linspace(0, len(ended), count + 1).round().astype(int)
    x, found = [], []
    for first, last in pairwise(edges.tolist()):
        members = ended[first:last]
        x.append(math.exp(mean(math.log(trial.settings["lr"]) for trial in members)))
        scores = [_test_result(results, o) for t in members if (o := t.finite_outcome)]
        middle, error = mean(scores), standard_error(scores)
        found.append(Interval(middle, middle - error, middle + error))
    return {
        **optimizer_of_trace(name),
        "x": x,
        "y": [each.mean for each in found],
        "mode": "lines+markers",
        "line": {"color": style.colour, "dash": style.dash, "width": 1.7},
        "marker": {"symbol": style.marker, "size": 7},
        "error_y": {**error_bars(found, style.colour), "thickness": 1, "width": 3},
        "hovertemplate": "%{y:.4g} at lr %{x:.2g}",
    }


def _strip(name: str, style: Style, lost: Sequence[float]) -> dict[str, Any]:
    return {
        **optimizer_of_trace(name),
        "x": lost,
        "y": ["diverged"] * len(lost),
        "yaxis": "y2",
        "mode": "markers",
        "marker": {"symbol": style.marker, "size": 8, "color": style.colour, "opacity": 0.7},
        "hovertemplate": "diverged at lr %{x:.2g}",
    }


def parallel_coordinates(results: StudyResults) -> list[Chart]:
    """Draw the trials of one contender at a time as lines through their settings and scores."""
    variants = {
        contender_value(place): _parallel_variant(results, each)
        for place, each in enumerate(results.contenders)
        if each.space and any(t.finite_outcome for t in results.trials_of(each.name, POOL))
    }
    if not variants:
        return []
    most = max(len(variant["traces"]) for variant in variants.values())
    # Every contender has as many lines; one with fewer trials so far has empty ones.
    for variant in variants.values():
        variant["traces"] += [{"x": [], "y": []}] * (most - len(variant["traces"]))
    layout = {
        "xaxis": {"showgrid": True, "gridwidth": 2, "zeroline": False},
        "yaxis": {"visible": False, "range": [-0.3, 1.15]},
    }
    traces = [{"mode": "lines"}] * most
    return [Chart("parallel", "Trials as parallel coordinates", traces, layout, variants)]


def contender_value(place: int) -> str:
    """Return the value of the page's selection of a contender."""
    return f"contender-{place}"


def _parallel_variant(results: StudyResults, contender: ContenderRecord) -> dict[str, Any]:
    trials = list(results.trials_of(contender.name, POOL))
    axes = {name: _setting_axis(trials, name, space) for name, space in contender.space.items()}
    parts = ("validation", "test") if results.complete else ("validation",)
    for part in parts:
        axes[f"{part} {results.metric.name}"] = _score_axis(results, trials, part)
    classes = _fifths(results, trials)
    lines = [
        {
            "x": list(range(len(axes))),
            "y": [positions[place] for positions, _ in axes.values()],
            "line": {
                "color": _FIFTHS[fifth],
                "width": 2.2 if fifth == len(_FIFTHS) - 1 else 1.1,
                "dash": "dot" if trials[place].finite_outcome is None else "solid",
            },
            "hovertemplate": _hover(results, trials[place], parts),
        }
        for place, fifth in sorted(classes.items(), key=lambda each: each[1])
    ]
    names = [plotly_text(name).replace(" ", "<br>", 1) for name in axes]
    last = len(axes) - 1
    return {
        "traces": lines,
        "xaxis": {
            "tickvals": list(range(len(axes))),
            "ticktext": names,
            "range": [-0.35, last + 0.35],
        },
        "annotations": [
            {
                "text": text,
                "x": place,
                "y": height,
                "yanchor": "bottom" if height > 0.5 else "top",
                "showarrow": False,
                "font": {"size": 10},
                "bgcolor": "var(--paper)",
            }
            for place, (_, ticks) in enumerate(axes.values())
            for height, text in ticks.items()
        ],
    }


def _setting_axis(
    trials: Sequence[Trial], name: str, space: Mapping[str, Any]
) -> tuple[list[float], dict[float, str]]:
    """Return where trials cross the axis of a setting, and what its ends are called."""
    values = [trial.settings[name] for trial in trials]
    choices = space.get("choices")
    low, high = (min(choices), max(choices)) if choices else (space["low"], space["high"])
    scale = math.log if space.get("log") else float
    width = scale(high) - scale(low) or 1.0
    positions = [round((scale(value) - scale(low)) / width, 4) for value in values]
    return positions, {1.02: format_short(high), -0.02: format_short(low)}


def _score_axis(
    results: StudyResults, trials: Sequence[Trial], part: str
) -> tuple[list[float], dict[float, str]]:
    """Return where trials cross the axis of a score, and what its ends are called.

    What is aimed at is up; the quarter that is furthest from it is drawn at the lower end.
    """
    factor, up = results.metric.factor, results.metric.higher_is_better
    scores = [
        factor * getattr(o.final, f"{part}_score") if (o := trial.finite_outcome) else math.nan
        for trial in trials
    ]
    known = sorted((x for x in scores if math.isfinite(x)), reverse=not up)
    # All scores may be infinite, though no loss is.
    known = known or [0.0]
    low, high = known[int(_LOWEST * len(known))], known[-1]
    width = high - low or 1.0
    positions = [
        round(max(0.0, (score - low) / width), 4) if math.isfinite(score) else _BELOW
        for score in scores
    ]
    ticks = {1.02: f"{high:.4g}", -0.02: f"{'≤' if up else '≥'} {low:.4g}"}
    if not all(map(math.isfinite, scores)):
        ticks[_BELOW - 0.03] = "diverged"
    return positions, ticks


def _fifths(results: StudyResults, trials: Sequence[Trial]) -> dict[int, int]:
    """Return for each trial's place the fifth of its validation score, the best being the last."""
    sign = 1 if results.metric.higher_is_better else -1

    def key(place: int) -> float:
        outcome = trials[place].finite_outcome
        score = outcome.final.validation_score if outcome else math.nan
        return sign * score if math.isfinite(score) else -math.inf

    order = sorted(range(len(trials)), key=key)
    return {place: len(_FIFTHS) * rank // len(order) for rank, place in enumerate(order)}


def _hover(results: StudyResults, trial: Trial, parts: Sequence[str]) -> str:
    settings = "<br>".join(
        f"{plotly_text(name)} {value:.3g}" for name, value in trial.settings.items()
    )
    scores = "diverged"
    if outcome := trial.finite_outcome:
        scores = "<br>".join(
            f"{part} {results.metric.factor * getattr(outcome.final, f'{part}_score'):.4g}"
            for part in parts
        )
    # Plotly fills in what stands in braces.
    text = f"trial {trial.number}<br>{settings}<br>{scores}".replace("%{", "% {")
    return f"{text}<extra></extra>"
