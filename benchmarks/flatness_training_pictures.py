"""The pictures of docs/flatness.md on what differs while networks train, or train on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flatness_pictures import SHOWN, draw_minus_adamw
from flatness_verdicts import primary_change

from steppe._shared.palette import line_style
from steppe._shared.pictures import new_figure, style_axes
from steppe.compare import Readings, expected_best, forgetting_pools

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = ("adamw", "adamcm", "adamw+sam", "adamw+msam", "adamw+2epochs", "adam+warmup")
_NOISY = {name: SHOWN[name] for name in _NAMED} | {"adamw+ema": SHOWN["adamcm+sam"]}
_FORGETFUL = ("adamw", "adamw+2epochs", "adamw+sam", "adamcm", "dualadam", "adam+warmup")
# Of the second task: from little learnt to the common loss.
_SECOND_LOSSES = (3.0, 2.6, 2.3, 2.0, 1.8, 1.6, 1.4)


def draw_forgetting(studies: Mapping[str, Readings]) -> "Figure":
    """Draw the test loss on the first task by the validation loss on the second, best of k."""
    figure = new_figure(None, (4.6 * len(studies), 4.0))
    grid = figure.subplots(1, len(studies), squeeze=False, sharey=True)[0]
    for axes, (title, readings) in zip(grid, studies.items(), strict=True):
        style_axes(axes, title)
        k = readings.results.plan.budget
        pools = [forgetting_pools(readings, loss) for loss in _SECOND_LOSSES]
        for number, name in enumerate(_FORGETFUL):
            look = line_style(number)
            lost = [expected_best(each[name], k) for each in pools]
            axes.plot(_SECOND_LOSSES, lost, look.dash, color=look.colour, lw=1.8, label=name)
        axes.set_xscale("log")
        axes.set_xticks(_SECOND_LOSSES[::3], [f"{loss:g}" for loss in _SECOND_LOSSES[::3]])
        axes.minorticks_off()
        axes.invert_xaxis()
        axes.set_xlabel("validation loss on FashionMNIST")
    grid[0].set_ylabel("test loss on MNIST")
    grid[0].legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def draw_label_noise(tasks: Mapping[str, Mapping[int, Readings]]) -> "Figure":
    """Draw contenders minus AdamW by how many labels are noise.

    Parameters
    ----------
    tasks
        From a task's title to its studies, by the share of noise in percent.
    """
    figure = new_figure(None, (4.6 * len(tasks), 4.4))
    grid = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, (task, studies) in zip(grid, tasks.items(), strict=True):
        style_axes(axes, task)
        values = {
            name: [primary_change(study, name) for study in studies.values()]
            for name in _NOISY
            if name != "adamw"
        }
        draw_minus_adamw(axes, studies, values, _NOISY, gap=1.2)
        axes.set_xticks([*studies], [f"{share} %" for share in studies])
        axes.set_xlabel("labels that are noise")
    grid[0].set_ylabel("test accuracy minus AdamW's, points")
    grid[0].legend(frameon=False, fontsize=8, loc="best")
    return figure
