"""A study's results as PNG files: learning curves, differences, and flatness by test loss.

For ``steppe report --figures`` and the documentation.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from steppe._shared.messages import plural
from steppe._shared.palette import line_style
from steppe._shared.pictures import new_figure, style_axes, write_png
from steppe._shared.statistics import Comparison
from steppe.compare.records.results import Epoch, Metric, Outcome, StudyResults
from steppe.compare.records.summary import baseline_of, finished, summarise
from steppe.compare.report.formatting import format_p_value, unit_of_change
from steppe.compare.report.verdicts import BETTER, WORSE, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_BLUE, _GREY, _VERMILION = "#0072B2", "#7F7F7F", "#D55E00"

_LABEL_HEIGHT = 0.07

# Ticks of each decade, by how many times its lowest an axis's highest number is at most.
_LOG_TICKS = {8: (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), 1000: (1.0, 2.0, 5.0), math.inf: (1.0,)}

# A number of an epoch, or of a run.
OfEpoch = Callable[[Epoch], float]
OfRun = Callable[[Outcome], float]


def plot_curves(results: StudyResults, path: Path) -> bool:
    """Draw train loss, validation loss and validation score by epoch.

    Lines are means over test seeds, bands run from the lowest to the highest seed. Runs that
    diverged or failed, or have an epoch that is not finite, are left out.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.
    path : Path
        The PNG file, written atomically.

    Returns
    -------
    bool
        Whether there was anything to draw; if not, nothing is written.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    metric = results.metric
    panels: tuple[tuple[str, OfEpoch], ...] = (
        ("Train loss", lambda epoch: epoch.train_loss),
        ("Validation loss", lambda epoch: epoch.validation_loss),
        (_titled("Validation", metric), lambda epoch: metric.factor * epoch.validation_score),
    )
    runs = {
        index: (name, drawable)
        for index, (name, outcomes) in enumerate(_runs(results).items())
        if (drawable := [each for each in outcomes if _is_drawable(each)])
    }
    if not runs:
        return False
    seeds = plural(results.seeds, "test seed")
    figure = new_figure(f"{results.task}: mean and range over {seeds}", (13, 4.4))
    for axes, (title, measure) in zip(figure.subplots(1, 3), panels, strict=True):
        for index, (name, outcomes) in runs.items():
            by_seed = [[measure(epoch) for epoch in outcome.curve] for outcome in outcomes]
            _draw_curve(axes, name, np.array(by_seed), index)
        style_axes(axes, title)
        axes.set_xlabel("epoch")
        axes.set_xlim(0, axes.dataLim.xmax)
        axes.xaxis.get_major_locator().set_params(integer=True)
    train, validation, score = figure.axes
    for axes in (train, validation):
        _log_if_wide(axes, "y")
    # Of a stream, the first epochs are a task of their own.
    if not results.setup.get("stream"):
        _zoom_to_late_epochs(score, metric)
    _label_line_ends(score)
    write_png(figure, path)
    return True


def plot_differences(results: StudyResults, path: Path, baseline: str | None = None) -> bool:
    """Draw every contender's test score minus the baseline's, with its interval and verdict.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.
    path : Path
        The PNG file, written atomically.
    baseline : str or None, default None
        None takes the first contender.

    Returns
    -------
    bool
        Whether there was anything to draw; if not, nothing is written.

    Raises
    ------
    ValueError
        No contender is called ``baseline``.
    OSError
        The file cannot be written.
    """
    baseline, metric = baseline_of(results, baseline), results.metric
    changes = [
        (row.name, row.score_change)
        for row in summarise(results, baseline)
        if row.score_change and math.isfinite(row.score_change.difference.mean)
    ]
    if not changes:
        return False
    changes.sort(key=lambda each: each[1].difference.mean, reverse=metric.higher_is_better)
    figure = new_figure(
        f"{results.task}: test {metric.name} minus {baseline}'s{unit_of_change(metric)}",
        (9, 1.5 + 0.36 * len(changes)),
    )
    axes = figure.subplots()
    axes.axvline(0.0, color="black", lw=0.8, zorder=0)
    for row, (_, change) in enumerate(changes):
        _draw_difference(axes, row, change, verdict(change, metric.higher_is_better))
    style_axes(axes, "", grid="x")
    axes.set_xlabel(
        f"{'higher' if metric.higher_is_better else 'lower'} is better; 95 % bootstrap interval "
        "over seeds, p of the paired t-test after Holm"
    )
    axes.set_yticks(range(len(changes)), [name for name, _ in changes])
    axes.set_ylim(len(changes) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    write_png(figure, path)
    return True


def plot_flatness(results: StudyResults, path: Path) -> bool:
    """Draw sharpness and λ_max against test loss, a point for each test run.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.
    path : Path
        The PNG file, written atomically.

    Returns
    -------
    bool
        Whether there was anything to draw; if not, nothing is written.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    measures: dict[str, OfRun] = {
        "sharpness (loss rise of a SAM step)": lambda outcome: outcome.curvature.sharpness,
        "λ_max of the Hessian": lambda outcome: outcome.curvature.largest,
    }
    points = {title: _points(results, measure) for title, measure in measures.items()}
    points = {title: found for title, found in points.items() if any(map(len, found.values()))}
    if not points:
        return False
    figure = new_figure(f"{results.task}: flatness and test loss, a point a run", (11, 4.4))
    panels = figure.subplots(1, len(points), sharey=True, squeeze=False)[0]
    for axes, (title, found) in zip(panels, points.items(), strict=True):
        for index, (name, each) in enumerate(found.items()):
            if len(each):
                colour, _, marker = line_style(index)
                axes.plot(*each.T, marker, color=colour, label=name, ms=7, mew=0.6, mec="white")
        style_axes(axes, "")
        axes.set_xlabel(title)
        _log_if_wide(axes, "x")
    panels[0].set_ylabel("test loss")
    named = {str(line.get_label()): line for axes in panels for line in axes.lines}
    figure.legend(handles=list(named.values()), loc="outside right upper", frameon=False)
    write_png(figure, path)
    return True


def _titled(which: str, metric: Metric) -> str:
    return f"{which} {metric.name}" + (f", {metric.unit}" if metric.unit else "")


def _runs(results: StudyResults) -> dict[str, list[Outcome]]:
    return {each.name: list(finished(results, each.name).values()) for each in results.contenders}


def _is_drawable(outcome: Outcome) -> bool:
    return all(
        math.isfinite(value)
        for epoch in outcome.curve
        for value in (epoch.train_loss, epoch.validation_loss, epoch.validation_score)
    )


def _points(results: StudyResults, measure: OfRun) -> dict[str, np.ndarray]:
    """Return (measure, test loss) of every run that has both, by contender."""
    found = {}
    for name, outcomes in _runs(results).items():
        pairs = [(measure(outcome), outcome.final.test_loss) for outcome in outcomes]
        points = np.array(pairs, dtype=float).reshape(-1, 2)
        found[name] = points[np.isfinite(points).all(axis=1)]
    return found


def _draw_curve(axes: "Axes", name: str, by_seed: np.ndarray, index: int) -> None:
    colour, dash, _ = line_style(index)
    epochs = np.arange(1, by_seed.shape[1] + 1)
    axes.fill_between(epochs, by_seed.min(0), by_seed.max(0), color=colour, alpha=0.13, lw=0)
    (line,) = axes.plot(epochs, by_seed.mean(0), dash, color=colour, label=name, lw=1.7)
    if len(epochs) == 1:
        # A line alone would not show, and the axis ends here.
        line.set(marker="o", clip_on=False)


def _draw_difference(axes: "Axes", row: int, change: Comparison, conclusion: str) -> None:
    colour = {BETTER: _BLUE, WORSE: _VERMILION}.get(conclusion, _GREY)
    difference = change.difference
    mean, low, high = difference.mean, difference.low, difference.high
    axes.plot([low, high], [row, row], color=colour, lw=3, alpha=0.45, solid_capstyle="butt")
    axes.plot([mean], [row], "o", color=colour, ms=6)
    tested = "" if math.isnan(change.p) else f", p {format_p_value(change.p)}"
    axes.annotate(
        conclusion + tested,
        xy=(1.02, row),
        xycoords=("axes fraction", "data"),
        color=colour,
        va="center",
        annotation_clip=False,
    )


def _log_if_wide(axes: "Axes", which: Literal["x", "y"]) -> None:
    """Scale an axis by logarithms if all on it is positive, and wide enough for two round ticks.

    The more decades there are, the fewer ticks each has.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = getattr(axes.dataLim, f"interval{which}")
    if low <= 0 or high < 2.5 * low:
        return
    axes.set(**{f"{which}scale": "log"})
    ticks = next(ticks for width, ticks in _LOG_TICKS.items() if high < width * low)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _zoom_to_late_epochs(axes: "Axes", metric: Metric) -> None:
    """Fit the vertical axis to the values after a third of the epochs, where the lines differ."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    late = np.concatenate([line[len(line) // 3 :] for line in lines])
    margin = 0.1 * max(late.max() - late.min(), 0.01 * metric.factor)
    highest = 100.0 if metric.unit == "%" else math.inf
    axes.set_ylim(late.min() - margin, min(highest, late.max() + margin))


def _label_line_ends(axes: "Axes") -> None:
    """Write every line's name beside its end, moved up or down so that none covers another."""
    bottom, top = axes.get_ylim()

    def end(line: "Line2D") -> tuple[float, float]:
        x, y = (np.asarray(values)[-1] for values in line.get_data())
        return float(x), float(y)

    lines = sorted(axes.lines, key=lambda line: end(line)[1])
    heights = [(end(line)[1] - bottom) / (top - bottom) for line in lines]
    for line, height in zip(lines, _move_apart(heights, _LABEL_HEIGHT), strict=True):
        axes.annotate(
            str(line.get_label()),
            xy=end(line),
            xytext=(1.09, height),
            textcoords="axes fraction",
            color=line.get_color(),
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "lw": 0.8,
                "alpha": 0.6,
                "relpos": (0.0, 0.5),
                "shrinkA": 1.0,
            },
        )


def _move_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights at least ``gap`` apart, near where they were, within (0, 1).

    If there are more than fit, they are centred on the middle.
    """
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    # Centre the stack on the line ends that it labels, instead of only pushing upwards.
    shift = float(np.mean(moved)) - float(np.mean(heights))
    low, high = moved[0] - shift, moved[-1] - shift
    if high - low > 1.0:
        shift += (low + high) / 2 - 0.5
    else:
        shift += max(high - 1.0, 0.0) + min(low, 0.0)
    return [height - shift for height in moved]
