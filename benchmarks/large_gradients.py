"""Measure whether DualAdam's inverse part is alive, and of use, where gradients are large.

python benchmarks/large_gradients.py [--pilot] [--workers 2] [--figure PICTURE.png]

Trains small networks on three problems with large gradients, each optimizer at 33 learning rates
over 8 decades about its own best. A *window* is how many decades of lr end with a held-out loss of
at most 1.1 or 2 times the best: that of anybody with the same seed, or the optimizer's own. Windows
are differences of logarithms, read on straight lines between the learning rates.

Intervals are Student's over seeds, which is the jackknife of a mean. The primary reading is the
window at twice anybody's best, each optimizer minus AdamW, paired by seed: an exact test by all
flips of signs, Holm over all optimizers and problems. All else is shown without a verdict.

Writes docs/results/large-gradients.json after each cell; the same command goes on after a kill.
Ends with status 1 if a window reaches an end of its learning rates, and is therefore cut off.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch
from cells import measured, save
from large_gradient_runs import BASELINE, BATCH, CONTENDERS, CONTROL, PROBLEMS, STEPS, runs
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from steppe._shared.console import make_console, refusals
from steppe._shared.json_values import json_ready
from steppe._shared.palette import line_style
from steppe._shared.pictures import new_figure, style_axes, write_png
from steppe._shared.statistics import LEVEL, Interval, holm, interval

Array = NDArray[np.float64]

OUT = Path(__file__).parents[1] / "docs" / "results" / "large-gradients.json"
PILOT_OUT = Path("results", "large-gradients-pilot.json")
SEEDS = 12
#: Seeds of pilots begin here, so that no pilot looks at the study's.
PILOT_SEED = 1000
DECADES, PER_DECADE = 8, 4
FACTORS = (1.1, 2.0)
PRIMARY_FACTOR = 2.0

#: log10 of the middle learning rate of each optimizer, in the order of ``CONTENDERS``: by a pilot
#: the middle of those with at most twice its own best loss.
CENTRES = {
    "raw targets": (-2.0, -2.0, -1.5, -3.5, -1.75, -4.0, -3.5, -2.0),
    "summed loss": (-2.5, -2.5, -2.5, -2.5, -2.75, -2.5, -3.5, -2.0),
    "deep network": (-2.5, -2.25, -2.25, -2.75, -2.5, -3.5, -2.5, -1.5),
}

# Losses beyond count as so many times a threshold, for straight lines between finite points.
_FARTHEST = 1e3
# All flips of signs are tried.
_MOST_SEEDS = 16


@dataclass(frozen=True)
class Reading:
    """What one optimizer does on one problem.

    Attributes
    ----------
    problem, contender : str
        Who, and where.
    loss, lr : float
        The least median loss over seeds, and the learning rate that has it.
    second_moments_above_1, inverse_share : float
        At that lr, over the first tenth of the run: medians over the seeds that did not diverge;
        NaN of optimizers without.
    windows, own_windows : list of Interval
        Decades of lr, for each of ``FACTORS``: by anybody's best loss, and by its own.
    minus_adamw, minus_warmup : Interval or None
        Differences of the primary window.
    p, p_holm : float
        Of ``minus_adamw``; NaN for AdamW itself.
    cut_off : list of str
        Windows that reach an end of the learning rates.
    """

    problem: str
    contender: str
    loss: float
    lr: float
    second_moments_above_1: float
    inverse_share: float
    windows: list[Interval]
    own_windows: list[Interval]
    minus_adamw: Interval | None
    minus_warmup: Interval | None
    p: float
    p_holm: float
    cut_off: list[str]


def main(
    *,
    seeds: int = SEEDS,
    workers: int = 2,
    out: Path | None = None,
    pilot: bool = False,
    figure: Path | None = None,
) -> None:
    """Train, read, print and judge.

    Parameters
    ----------
    seeds
        Seeds of each optimizer and lr.
    workers
        Processes that train side by side.
    out
        The JSON file. Default: docs/results/large-gradients.json; of a pilot a file in results/.
    pilot
        Take other seeds than the study's.
    figure
        Draw the losses over lr, and write the picture here.
    """
    torch.set_num_threads(1)
    with refusals():
        if not 2 <= seeds <= _MOST_SEEDS:
            raise ValueError(f"seeds must be from 2 to {_MOST_SEEDS}, got {seeds}")
        out = out or (PILOT_OUT if pilot else OUT)
        first = PILOT_SEED if pilot else 0
        chosen = list(range(first, first + seeds))
        settings = {"steps": STEPS, "batch": BATCH, "seeds": chosen}
        found = measured(out, settings, cells(chosen), runs, workers)
    losses = {problem: gathered(found["cells"], problem, "loss") for problem in PROBLEMS}
    readings = judged([one for problem in PROBLEMS for one in read(found["cells"], problem)])
    save(out, found | {"readings": json_ready([asdict(one) for one in readings])})
    console = make_console()
    for problem in PROBLEMS:
        console.print(table(problem, [one for one in readings if one.problem == problem]))
    console.print(differences_table(readings))
    if figure is not None:
        draw(losses, figure)
    cut = [f"{one.problem}, {one.contender}: {what}" for one in readings for what in one.cut_off]
    if cut:
        console.print("Windows that the learning rates CUT OFF:", *cut, sep="\n  ")
        raise SystemExit(1)


def learning_rates(problem: str, contender: str) -> list[float]:
    """Return the learning rates of a contender, ascending, in equal ratios."""
    centre = dict(zip(CONTENDERS, CENTRES[problem], strict=True))[contender]
    count = DECADES * PER_DECADE
    return [10.0 ** (centre + (i - count / 2) / PER_DECADE) for i in range(count + 1)]


def cells(seeds: list[int]) -> dict[str, tuple[Any, ...]]:
    """Name the cells: all learning rates of a contender on a problem from one seed."""
    return {
        f"{problem}/{contender}/{seed}": (
            problem,
            contender,
            learning_rates(problem, contender),
            seed,
        )
        for seed, problem, contender in product(seeds, PROBLEMS, CONTENDERS)
    }


def gathered(found: dict[str, Any], problem: str, reading: str) -> dict[str, Array]:
    """Return a reading of each contender, (seeds, learning rates); inf where a run diverged."""
    missing = math.inf if reading == "loss" else math.nan
    rows: dict[str, list[list[float]]] = {contender: [] for contender in CONTENDERS}
    for name in sorted(found, key=lambda name: int(name.rpartition("/")[2])):
        of, contender, _ = name.split("/")
        if of == problem:
            values = found[name][reading]
            rows[contender].append([missing if value is None else value for value in values])
    return {contender: np.array(values) for contender, values in rows.items()}


def window(losses: Array, thresholds: Array) -> Array:
    """Return for each seed how many decades of lr have at most its threshold's loss.

    Between two learning rates the logarithm of the loss is a straight line.

    Parameters
    ----------
    losses : ndarray
        (seeds, learning rates), ascending in steps of 1/PER_DECADE.
    thresholds : ndarray
        (seeds,)
    """
    ratios = np.clip(losses / thresholds[:, None], 1.0 / _FARTHEST, _FARTHEST)
    above = np.log(ratios)
    left, right = above[:, :-1], above[:, 1:]
    below = np.maximum(-left, 0.0) + np.maximum(-right, 0.0)
    span = np.abs(left) + np.abs(right)
    inside = (left <= 0.0) & (right <= 0.0)
    shares = np.where(inside, 1.0, np.divide(below, span, out=np.zeros_like(span), where=span > 0))
    return np.asarray(shares.sum(axis=1) / PER_DECADE)


def read(found: dict[str, Any], problem: str) -> Iterator[Reading]:
    """Read all contenders on a problem; p-values are not corrected yet."""
    losses = gathered(found, problem, "loss")
    shares = {
        name: gathered(found, problem, name) for name in ("second_moments_above_1", "inverse_share")
    }
    best = np.min([one.min(axis=1) for one in losses.values()], axis=0)
    primary = {name: window(one, PRIMARY_FACTOR * best) for name, one in losses.items()}
    for name, one in losses.items():
        middle = np.median(one, axis=0)
        at = int(middle.argmin())
        own = one.min(axis=1)
        difference = primary[name] - primary[BASELINE]
        yield Reading(
            problem=problem,
            contender=name,
            loss=float(middle[at]),
            lr=learning_rates(problem, name)[at],
            **{key: _median(values[name][:, at]) for key, values in shares.items()},
            windows=[interval(window(one, factor * best).tolist()) for factor in FACTORS],
            own_windows=[interval(window(one, factor * own).tolist()) for factor in FACTORS],
            minus_adamw=None if name == BASELINE else interval(difference.tolist()),
            minus_warmup=None
            if name == CONTROL
            else interval((primary[name] - primary[CONTROL]).tolist()),
            p=math.nan if name == BASELINE else sign_flip_p(difference),
            p_holm=math.nan,
            cut_off=list(cut_off(one, {"anybody's best": best, "its own": own})),
        )


def _median(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


def cut_off(losses: Array, bests: dict[str, Array]) -> Iterator[str]:
    """Name the ends of the learning rates that lie in a window of any seed."""
    for (whose, best), (end, at) in product(bests.items(), {"lowest": 0, "highest": -1}.items()):
        if count := int((losses[:, at] <= max(FACTORS) * best).sum()):
            yield f"at the {end} lr, by {whose}, {count} of {len(losses)} seeds"


def sign_flip_p(differences: Array) -> float:
    """Return the two-sided p of a mean of 0, from all flips of the differences' signs."""
    n = len(differences)
    signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    means = np.abs(signs @ differences)
    return float((means >= means[0] * (1 - 1e-9)).mean())


def judged(readings: list[Reading]) -> list[Reading]:
    """Correct the p-values for all comparisons with AdamW, on all problems."""
    corrected = holm([one.p for one in readings])
    return [
        Reading(**{**vars(one), "p_holm": p}) for one, p in zip(readings, corrected, strict=True)
    ]


def table(problem: str, readings: list[Reading]) -> Table:
    """Show a problem's losses and windows; a plus marks one that is cut off."""
    headings = ["", "loss", "at lr", "v̂ ≥ 1", "inverse"]
    headings += [f"≤ {factor:g}×" for factor in FACTORS]
    shown = _table(problem, *headings, f"own, {FACTORS[-1]:g}×")
    for one in readings:
        shown.add_row(
            one.contender,
            f"{one.loss:.3g}",
            f"{one.lr:.0e}",
            _percent(one.second_moments_above_1),
            _percent(one.inverse_share),
            *(_written(each) for each in one.windows),
            _written(one.own_windows[-1]) + ("+" if one.cut_off else ""),
        )
    return shown


def differences_table(readings: list[Reading]) -> Table:
    """Show differences of the primary window; a star marks what passes Holm."""
    title = f"decades with at most {PRIMARY_FACTOR:g}× anybody's best loss"
    shown = _table(title, "", "", "minus AdamW", "p, Holm", "minus warm-up")
    for one in readings:
        shown.add_row(
            one.problem,
            one.contender,
            _written(one.minus_adamw) + ("*" if one.p_holm < LEVEL else ""),
            "" if math.isnan(one.p_holm) else f"{one.p_holm:.3f}",
            _written(one.minus_warmup),
        )
    return shown


def _table(title: str, *headings: str) -> Table:
    return Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.0%}"


def _written(found: Interval | None) -> str:
    if found is None:
        return ""
    spread = "" if math.isnan(found.low) else f"±{found.high - found.mean:.2f}"
    return f"{found.mean:.2f}{spread}"


def draw(losses: dict[str, dict[str, Array]], path: Path) -> None:
    """Draw median losses over lr, with bands from quartile to quartile of the seeds."""
    figure = new_figure("Held-out loss at the end, by learning rate", (8, 10))
    rows = figure.subplots(len(losses), 1, squeeze=False)[:, 0]
    for axes, (problem, of_contenders) in zip(rows, losses.items(), strict=True):
        best = min(float(np.median(one, axis=0).min()) for one in of_contenders.values())
        style_axes(axes, problem, grid="both")
        for index, (name, one) in enumerate(of_contenders.items()):
            style, lrs = line_style(index), learning_rates(problem, name)
            low, middle, high = np.quantile(one, (0.25, 0.5, 0.75), axis=0, method="nearest")
            axes.fill_between(lrs, low, high, color=style.colour, alpha=0.15, lw=0)
            axes.plot(lrs, middle, style.dash, color=style.colour, label=name, lw=1.5)
        axes.axhline(PRIMARY_FACTOR * best, color="black", lw=0.6)
        axes.set(xscale="log", yscale="log", ylabel="loss", ylim=(0.8 * best, 100 * best))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
    rows[-1].set_xlabel(f"lr; the thin line is {PRIMARY_FACTOR:g} times the best")
    figure.legend(*rows[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    write_png(figure, path)


if __name__ == "__main__":
    cyclopts.run(main)
