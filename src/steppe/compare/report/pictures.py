"""A study's results as figures: differences, budgets, learning curves, and flatness.

For ``steppe report --figures``, notebooks and the documentation. What shows test results draws
nothing of an unfinished study.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from steppe._shared.messages import plural
from steppe._shared.palette import line_style
from steppe._shared.pictures import new_figure, style_axes
from steppe._shared.statistics import Interval
from steppe.compare.records.results import Epoch, MetricDescription, Outcome, StudyResults
from steppe.compare.records.summary import (
    common_train_loss,
    curvature_at,
    outcomes,
    repeated_trials,
)
from steppe.compare.records.verdicts import BETTER, WORSE, Readings, Verdict
from steppe.compare.report.formatting import format_p_value
from steppe.compare.report.line_labels import label_line_ends
from steppe.compare.report.near_range import fitted_range, near_range
from steppe.compare.report.units import aim, change_label, reading_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _GREY, _VERMILION = "#0072B2", "#7F7F7F", "#D55E00"

# Ticks of each decade, by how many times its lowest an axis's highest number is at most.
_LOG_TICKS = {8: (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), 1000: (1.0, 2.0, 5.0), math.inf: (1.0,)}

# A number of an epoch, or of a run.
OfEpoch = Callable[[Epoch], float]
OfRun = Callable[[Outcome], float]


def draw_curves(results: StudyResults) -> "Figure | None":
    """Draw train loss, validation loss and validation score by epoch.

    Lines are means over runs at the recommended settings, bands run from the lowest to the highest
    run. Runs that diverged or failed, or have an epoch that is not finite, are left out.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.

    Returns
    -------
    Figure or None
        None if there is nothing to draw.
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
        return None
    repeats = plural(results.plan.repeats, "run")
    title = f"{results.task}: mean and range over {repeats} at the recommended settings"
    figure = new_figure(title, (13, 4.4))
    for axes, (title, measure) in zip(figure.subplots(1, 3), panels, strict=True):
        for index, (name, ended) in runs.items():
            by_seed = [[measure(epoch) for epoch in outcome.curve] for outcome in ended]
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
    label_line_ends(score)
    return figure


def draw_differences(results: StudyResults, readings: Readings | None = None) -> "Figure | None":
    """Draw every contender minus the baseline on the primary reading, with interval and verdict.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.
    readings : Readings, optional
        Those of the study, if they are at hand.

    Returns
    -------
    Figure or None
        None if there is nothing to draw.
    """
    readings, plan = readings or Readings(results), results.plan
    upwards = readings.higher_is_better(plan.primary)
    found = sorted(readings.verdicts, key=lambda each: each.estimate, reverse=upwards)
    if not found or not _any_ended(results):
        return None
    changed = change_label(readings, plan.primary)
    figure = new_figure(
        f"{results.task}: {changed}, minus {results.baseline}'s", (9, 1.6 + 0.36 * len(found))
    )
    axes = figure.subplots()
    axes.axvline(0.0, color="black", lw=0.8, zorder=0)
    intervals = {each.optimizer: Interval(each.estimate, each.low, each.high) for each in found}
    near = near_range(intervals, upwards)
    for row, each in enumerate(found):
        _draw_difference(axes, row, each)
        if near and each.optimizer in near.beyond:
            _draw_arrow(axes, row, each, at_left=each.estimate < near.low)
    style_axes(axes, "", grid="x")
    axes.set_xlabel(
        f"{aim(readings, plan.primary)}; expected of the best of {plan.budget} of {plan.trials} "
        "trials, with 95 % interval; p after Holm"
    )
    axes.set_yticks(range(len(found)), [each.optimizer for each in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    if near:
        axes.set_xlim(min(near.low, 0.0), max(near.high, 0.0))
    return figure


def draw_budgets(results: StudyResults, readings: Readings | None = None) -> "Figure | None":
    """Draw the expected result of the best of k by k, with 95 % intervals, on the primary reading.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.
    readings : Readings, optional
        Those of the study, if they are at hand.

    Returns
    -------
    Figure or None
        None if there is nothing to draw.
    """
    readings, plan = readings or Readings(results), results.plan
    if not results.complete or not _any_ended(results):
        return None
    budgets = list(readings.budgets)
    figure = new_figure(f"{results.task}: the best of k trials by validation", (8, 4.8))
    axes, at_declared = figure.subplots(), {}
    for index, contender in enumerate(results.contenders):
        colour, dash, marker = line_style(index)
        found = [readings.expected(contender.name, plan.primary, k, samples=False) for k in budgets]
        at_declared[contender.name] = declared = found[plan.budget - 1]
        lows, highs = [each.low for each in found], [each.high for each in found]
        axes.fill_between(budgets, lows, highs, color=colour, alpha=0.07, lw=0)
        means = [each.mean for each in found]
        axes.plot(budgets, means, dash, color=colour, label=contender.name, lw=1.7)
        axes.plot([plan.budget], [declared.mean], marker, color=colour, ms=6)
    near = fitted_range(at_declared, readings.higher_is_better(plan.primary))
    style_axes(axes, "")
    axes.set_xlabel(
        f"k, the tuning budget in trials; declared: {plan.budget}; bands: 95 % over the trials"
    )
    axes.set_ylabel(f"{reading_label(readings, plan.primary)} ({aim(readings, plan.primary)})")
    axes.locator_params(axis="x", integer=True)
    axes.set_xlim(min(budgets) - 0.01, max(budgets) + 0.01)
    if near:
        axes.set_ylim(near.low, near.high)
    named = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    figure.legend(handles=named, loc="outside right upper", frameon=False)
    return figure


def draw_flatness(results: StudyResults) -> "Figure | None":
    """Draw test loss by sharpness and by λ_max at a common train loss, a point for each run.

    The runs are those at the recommended settings.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.

    Returns
    -------
    Figure or None
        None if there is nothing to draw.
    """
    if not results.complete:
        return None
    common = common_train_loss(results)
    measures: dict[str, OfRun] = {
        "sharpness (loss rise of a SAM step)": lambda run: curvature_at(
            run.curve, common, "sharpness"
        ),
        "λ_max of the Hessian": lambda run: curvature_at(run.curve, common, "largest"),
    }
    points = {title: _points(results, measure) for title, measure in measures.items()}
    points = {title: found for title, found in points.items() if any(map(len, found.values()))}
    if not points:
        return None
    title = f"{results.task}: flatness at train loss {common:.2g} and test loss, a point a run"
    figure = new_figure(title, (11, 4.4))
    panels = figure.subplots(1, len(points), sharey=True, squeeze=False)[0]
    for axes, (label, found) in zip(panels, points.items(), strict=True):
        for index, (name, each) in enumerate(found.items()):
            if len(each):
                colour, _, marker = line_style(index)
                axes.plot(*each.T, marker, color=colour, label=name, ms=7, mew=0.6, mec="white")
        style_axes(axes, "")
        axes.set_xlabel(label)
        _log_if_wide(axes, "x")
    panels[0].set_ylabel("test loss")
    named = {str(line.get_label()): line for axes in panels for line in axes.lines}
    figure.legend(handles=list(named.values()), loc="outside right upper", frameon=False)
    return figure


def _titled(which: str, metric: MetricDescription) -> str:
    return f"{which} {metric.name}" + (f", {metric.unit}" if metric.unit else "")


def _runs(results: StudyResults) -> dict[str, list[Outcome]]:
    return {each.name: outcomes(repeated_trials(results, each)) for each in results.contenders}


def _any_ended(results: StudyResults) -> bool:
    return any(trial.finite_outcome for trial in results.trials)


def _is_drawable(outcome: Outcome) -> bool:
    return all(
        math.isfinite(value)
        for epoch in outcome.curve
        for value in (epoch.train_loss, epoch.validation_loss, epoch.validation_score)
    )


def _points(results: StudyResults, measure: OfRun) -> dict[str, np.ndarray]:
    """Return (measure, test loss) of every run that has both, by contender."""
    found = {}
    for name, runs in _runs(results).items():
        pairs = [(measure(run), run.final.test_loss) for run in runs]
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


def _draw_difference(axes: "Axes", row: int, found: Verdict) -> None:
    colour = {BETTER: _BLUE, WORSE: _VERMILION}.get(found.verdict, _GREY)
    axes.plot([found.low, found.high], [row, row], color=colour, lw=3, alpha=0.45)
    axes.lines[-1].set_solid_capstyle("butt")
    axes.plot([found.estimate], [row], "o", color=colour, ms=6)
    axes.annotate(
        f"{found.verdict}, p {format_p_value(found.p)}",
        xy=(1.02, row),
        xycoords=("axes fraction", "data"),
        color=colour,
        va="center",
        annotation_clip=False,
    )


def _draw_arrow(axes: "Axes", row: int, found: Verdict, *, at_left: bool) -> None:
    """Point to what lies beyond the axis, with its number."""
    end, inside = (0.0, 0.07) if at_left else (1.0, 0.93)
    axes.annotate(
        f"{found.estimate:+.3g}".replace("-", "−"),
        xy=(end, row),
        xytext=(inside, row),
        xycoords=("axes fraction", "data"),
        textcoords=("axes fraction", "data"),
        va="center",
        ha="left" if at_left else "right",
        arrowprops={"arrowstyle": "->", "color": _GREY},
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


def _zoom_to_late_epochs(axes: "Axes", metric: MetricDescription) -> None:
    """Fit the vertical axis to values after a third of the epochs, of contenders within reach."""
    found = {}
    for line in axes.lines:
        values = np.asarray(line.get_ydata(), dtype=float)
        late = values[len(values) // 3 :]
        found[str(line.get_label())] = Interval(late[-1], late.min(), late.max())
    near = fitted_range(found, metric.higher_is_better)
    if near is None:
        return
    # All values may be equal.
    margin = max(0.0, 0.01 * metric.factor - (near.high - near.low)) / 2
    highest = 100.0 if metric.unit == "%" else math.inf
    axes.set_ylim(near.low - margin, min(highest, near.high + margin))
