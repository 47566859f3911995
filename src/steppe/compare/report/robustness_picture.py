"""What the best of k keeps of its score with changed weights, as a figure."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from steppe._shared.names import unknown_name_message
from steppe._shared.palette import LineStyle, line_style
from steppe._shared.pictures import new_figure, style_axes
from steppe._shared.statistics import Interval
from steppe.compare.records.measure_names import CLEAN
from steppe.compare.records.results import StudyResults
from steppe.compare.records.robustness import RobustReadings
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.robust_scales import amounts, axis_label, level_scale
from steppe.compare.report.units import aim, change_label, reading_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More contenders do not stand side by side.
_MOST = 6
# They do over this share of the way from one amount to the next.
_SPREAD = 0.4

OfMeasure = Callable[[str, str], Interval]


def draw_robustness(
    results: StudyResults, readings: Readings | None = None, optimizers: Sequence[str] = ()
) -> "Figure | None":
    """Draw scores of the best of k by rounding and noise of weights, and differences below.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.
    readings : Readings, optional
        Those of the study, if they are at hand.
    optimizers : sequence of str, optional
        Those that are drawn beside the baseline. Default: the first five.

    Returns
    -------
    Figure or None
        None if there is nothing to draw.

    Raises
    ------
    ValueError
        The study has no such optimizer.
    """
    readings = readings or Readings(results)
    robust = RobustReadings(readings)
    panels = robust.scales_of_weights
    if CLEAN not in robust.measures or not panels:
        return None
    names = _chosen(results, optimizers)
    baseline, others = results.baseline, names[1:]
    title = f"{results.task}: the best of {results.plan.budget} trials once its weights are changed"
    rows = 2 if others else 1
    figure = new_figure(title, (1.6 + 3.0 * len(panels), 0.6 + 3.1 * rows))
    axes = figure.subplots(rows, len(panels), sharey="row", squeeze=False)

    def change(name: str, measure: str) -> Interval:
        return robust.change(name, baseline, measure)

    looks = {each.name: line_style(index) for index, each in enumerate(results.contenders)}
    for column, (group, measures) in enumerate(panels.items()):
        _draw(axes[0, column], {each: looks[each] for each in names}, measures, robust.expected)
        if others:
            axes[1, column].axhline(0.0, color="black", lw=0.8, zorder=0)
            _draw(axes[1, column], {each: looks[each] for each in others}, measures, change)
        axes[-1, column].set_xlabel(axis_label(group).replace(", ", ",\n"))
    values = [
        robust.expected(name, x).mean for name in names for x in sum(panels.values(), [CLEAN])
    ]
    axes[0, 0].set_yscale(level_scale(values))
    axes[0, 0].set_ylabel(f"{reading_label(readings, 'score')} ({aim(readings, 'score')})")
    if others:
        changed = change_label(readings, "score")
        axes[1, 0].set_ylabel(f"{changed}, minus {baseline}'s")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def _chosen(results: StudyResults, optimizers: Sequence[str]) -> list[str]:
    """Return who is drawn, the baseline first."""
    names = [each.name for each in results.contenders]
    for each in optimizers:
        if each not in names:
            raise ValueError(unknown_name_message("optimizer", each, names))
    return list(dict.fromkeys([results.baseline, *(optimizers or names[:_MOST])]))


def _draw(
    axes: "Axes", looks: Mapping[str, LineStyle], measures: Sequence[str], value: OfMeasure
) -> None:
    """Draw a value of each contender by the amount of a perturbation, with its 95 % interval."""
    ticks = [CLEAN, *amounts(measures)]
    for place, (name, look) in enumerate(looks.items()):
        found = [value(name, measure) for measure in (CLEAN, *measures)]
        aside = _SPREAD * ((place + 0.5) / len(looks) - 0.5)
        axes.errorbar(
            [x + aside for x in range(len(ticks))],
            [each.mean for each in found],
            [
                [each.mean - each.low for each in found],
                [each.high - each.mean for each in found],
            ],
            color=look.colour,
            linestyle=look.dash,
            marker=look.marker,
            label=name,
            lw=1.4,
            ms=5,
            elinewidth=1.0,
        )
    style_axes(axes, "")
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.4, len(ticks) - 0.6)
