"""The pictures of docs/flatness.md."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from flatness_verdicts import mean_of_studies

from steppe._shared.palette import COLOURS, GREY
from steppe._shared.pictures import new_figure, style_axes
from steppe._shared.statistics import Interval
from steppe.compare import Pool, RobustReadings, expected_best

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = dict(
    zip(
        ("adamw", "adamcm", "adamw+sam", "adamw+msam", "adamcm+sam", "adamcm+msam"),
        COLOURS,
        strict=True,
    )
) | {"adamw+2epochs": GREY, "adam+warmup": "#000000"}
# What is changed, and how much, from nothing on.
_STRENGTHS = {
    "noise on weights, standard deviations": {
        "clean": "none",
        "weight noise 0.1": "0.1",
        "weight noise 0.3": "0.3",
        "weight noise 0.5": "0.5",
    },
    "rounded with least error": {
        "clean": "no",
        "4 bits least error": "4 bits",
        "3 bits least error": "3 bits",
        "2 bits least error": "2 bits",
    },
}
# From clean validation accuracy alone to the robust one alone.
_SHARES = np.linspace(0, 1, 11)


def draw_differences(tests: Mapping[str, Mapping[str, Sequence[Any]]]) -> "Figure":
    """Draw each comparison of the plan, a panel for each task and a colour for each study.

    Parameters
    ----------
    tests
        From a task's title and a study's to its comparisons.
    """
    first = next(iter(next(iter(tests.values())).values()))
    # Kurtosis has another unit.
    kept = [place for place, each in enumerate(first) if each.reading != "kurtosis"]
    figure = new_figure(
        "Minus AdamW, points of test accuracy, best of 4 by clean validation",
        (3.6 + 3.8 * len(tests), 0.42 * len(kept) + 1.6),
    )
    panels = figure.subplots(1, len(tests), sharey=True, squeeze=False)[0]
    for axes, (task, studies) in zip(panels, tests.items(), strict=True):
        style_axes(axes, task)
        for number, (title, comparisons) in enumerate(studies.items()):
            below = 0.36 * (number - (len(studies) - 1) / 2) / max(1, len(studies) - 1)
            _draw_comparisons(axes, [comparisons[i] for i in kept], below, number, title)
        axes.axvline(0, color="0.5", lw=0.8)
        axes.set_xlabel("filled: p < 0.05 after Holm; lines: 95 % intervals")
    panels[0].set_yticks(
        range(len(kept)), [f"{first[i].contender}: {first[i].reading}" for i in kept]
    )
    panels[0].invert_yaxis()
    # The task with most studies names them all.
    most = max(tests.values(), key=len)
    panels[list(tests.values()).index(most)].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _draw_comparisons(
    axes: "Axes", comparisons: Sequence[Any], below: float, number: int, title: str
) -> None:
    colour = COLOURS[number]
    for row, each in enumerate(comparisons):
        value = each.difference
        axes.plot([value.low, value.high], [row + below] * 2, color=colour, lw=1.4)
        axes.plot(
            value.mean,
            row + below,
            "o" if each.sign else "D",
            color=colour,
            mfc=colour if each.sign else "white",
            ms=5,
            label=None if row else title,
        )


def draw_strengths(studies: Mapping[str, Sequence[RobustReadings]]) -> "Figure":
    """Draw each contender minus AdamW by how much is changed, as a mean over a task's studies.

    Parameters
    ----------
    studies
        From a task's title to its studies, which know nothing of each other.
    """
    figure = new_figure(
        "Minus AdamW, points of test accuracy, best of 4 by clean validation",
        (4.6 * len(_STRENGTHS), 3.6 * len(studies) + 0.6),
    )
    grid = figure.subplots(len(studies), len(_STRENGTHS), squeeze=False)
    for row, (task, found) in zip(grid, studies.items(), strict=True):
        for axes, (change, readings) in zip(row, _STRENGTHS.items(), strict=True):
            style_axes(axes, f"{task}: {change}")
            values = {
                name: [
                    mean_of_studies([each.change(name, "adamw", reading) for each in found])
                    for reading in readings
                ]
                for name in SHOWN
                if name != "adamw"
            }
            draw_minus_adamw(axes, range(len(readings)), values, SHOWN, gap=0.06)
            axes.set_xticks(range(len(readings)), readings.values())
    grid[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def draw_minus_adamw(
    axes: "Axes",
    places: Iterable[float],
    values: Mapping[str, Sequence[Interval]],
    colours: Mapping[str, str],
    gap: float,
) -> None:
    """Draw a line for each contender, its intervals a gap beside the next one's, and AdamW's 0."""
    axes.axhline(0, color=colours["adamw"], lw=2, label="adamw")
    for number, (name, own) in enumerate(values.items()):
        shown = [x + gap * (number - (len(values) - 1) / 2) for x in places]
        colour = colours[name]
        axes.plot(shown, [each.mean for each in own], "o-", color=colour, lw=1.6, ms=4, label=name)
        for x, each in zip(shown, own, strict=True):
            axes.plot([x, x], [each.low, each.high], color=colour, lw=0.8)


def draw_fronts(studies: Mapping[str, RobustReadings], measures: Sequence[str]) -> "Figure":
    """Draw clean against robust test accuracy: a point a trial, and what tuning can reach.

    A front is the expected best of k by a weighted mean of clean and robust validation accuracy,
    from clean alone to robust alone.
    """
    figure = new_figure(None, (4.6 * len(studies), 4.0 * len(measures)))
    grid = figure.subplots(len(measures), len(studies), squeeze=False)
    for column, (title, readings) in enumerate(studies.items()):
        for row, measure in enumerate(measures):
            _draw_front(grid[row][column], title, readings, measure)
    grid[0][0].legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def _draw_front(axes: "Axes", title: str, readings: RobustReadings, measure: str) -> None:
    style_axes(axes, f"{title}: {measure}")
    reached = []
    for name, colour in SHOWN.items():
        pools = [readings.pool(name, each, tuned=True) for each in ("clean", measure)]
        axes.plot(pools[0].test, pools[1].test, ".", color=colour, alpha=0.25, ms=5)
        front = [_best(pools, share, readings.budget) for share in _SHARES]
        axes.plot(*zip(*front, strict=True), "-", color=colour, lw=2, label=name)
        axes.plot(*front[0], "o", color=colour, ms=6)
        axes.plot(*front[-1], "s", color=colour, ms=6)
        reached += front
    clean, robust = (np.array(each) for each in zip(*reached, strict=True))
    margin = 0.35 * (robust.max() - robust.min()) + 1
    axes.set_xlim(clean.min() - 2.5, clean.max() + 1)
    axes.set_ylim(robust.min() - 2 * margin, robust.max() + margin)
    axes.set_xlabel("clean test accuracy, %")
    axes.set_ylabel("after the change, %")


def _best(pools: Sequence[Pool], share: float, k: int) -> tuple[float, float]:
    """Return clean and robust test accuracy of the best of k by a mean of both on validation."""
    clean, robust = pools
    lost = ~np.isfinite(clean.score + robust.score)
    chosen = np.where(lost, -np.inf, 0.0)
    chosen[~lost] = ((1 - share) * clean.score + share * robust.score)[~lost]
    return tuple(  # type: ignore[return-value]
        expected_best(Pool(chosen, clean.loss, each.test), k) for each in pools
    )
