"""Fine-tuning a language model, from a stored study: training loss, validation perplexity, gap.

Claim (DualAdam, Shi et al. 2026, arXiv 2603.07122): fine-tuning a language model of 1 B parameters,
it reaches a lower validation perplexity and a smaller generalisation gap than AdamW.

Here: SmolLM2-135M, all weights, on 2 048 tokens of Shakespeare, 16 steps. Each takes the one of
three learning rates that is best on validation data, which is 2.3e-4 for all.

Came out, of 3 seeds: it points that way. DualAdam's test perplexity is 58.95 and AdamW's 59.75, a
difference of 0.80 (0.31 to 1.59), its gap on test data 1.39 nats against 1.47. Its control
adam+warmup does the same, 58.97 and 1.39: it is the warm-up's doing. Three seeds do not tell either
from AdamW (p = 0.37, corrected).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.dualadam_accuracy import relatives
from figures.seeds import draw_intervals, draw_seeds, intervals
from steppe._shared.messages import plural
from steppe._shared.palette import LineStyle, line_style
from steppe._shared.pictures import new_figure, style_axes
from steppe._shared.statistics import corrected, paired
from steppe.compare import TUNE, Epoch, Outcome, StudyResults, finished, perplexity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STUDY = "docs/results/finetune-full.json"

_FEW = 6  # learning rates that can be written under the axis


def measure(*, study: StudyResults) -> dict[str, Any]:
    """Take the curves of DualAdam's relatives, their tuning trials and their test perplexities.

    A perplexity is exp(loss), whatever the loss is of.

    Raises
    ------
    ValueError
        The study has no runs of DualAdam and of its baseline that have ended.
    """
    runs = {name: whole for name in relatives(study) if (whole := finished(study, name))}
    baseline = study.contenders[0].name
    if baseline not in runs or len(runs) == 1:
        raise ValueError(
            f"{study.name} has no finished runs of DualAdam and of its baseline {baseline}"
        )
    tests = {
        name: {seed: perplexity(run.final.test_loss) for seed, run in whole.items()}
        for name, whole in runs.items()
    }
    return {
        "task": study.task,
        "model": study.setup["model"],
        "seeds": max(map(len, tests.values())),
        "optimizers": {
            name: {
                "lr": study.chosen(name)["lr"],
                "test": list(tests[name].values()),
                **_curves(whole),
            }
            for name, whole in runs.items()
        },
        "differences": _differences(study, tests),
        "by_lr": {name: _by_lr(study, name) for name in runs},
    }


def _differences(
    study: StudyResults, tests: Mapping[str, Mapping[int, float]]
) -> list[dict[str, Any]]:
    """Compare with the baseline and with the controls; the p-values are corrected as one family."""
    baseline, *others = tests
    controlled = [(name, each.name) for each in study.contenders for name in each.control_for]
    pairs = [(name, baseline) for name in others]
    pairs += [pair for pair in controlled if set(pair) <= set(tests) and pair not in pairs]
    compared = corrected([paired(tests[name], tests[other]) for name, other in pairs])
    return [
        {"of": name, "from": other, "p": each.p, **asdict(each.difference)}
        for (name, other), each in zip(pairs, compared, strict=True)
    ]


def _by_lr(study: StudyResults, name: str) -> list[dict[str, Any]]:
    ends: dict[float, list[float]] = {}
    for trial in study.trials_of(name, TUNE):
        if trial.outcome is not None and not trial.outcome.diverged:
            end = perplexity(trial.outcome.final.validation_loss)
            ends.setdefault(trial.settings["lr"], []).append(end)
    return [{"lr": lr, "ends": found} for lr, found in sorted(ends.items())]


def _curves(runs: Mapping[int, Outcome]) -> dict[str, Any]:
    curves = {seed: run.curve for seed, run in runs.items()}

    def over_seeds(measured: Callable[[Epoch], float]) -> Any:
        return intervals({seed: list(map(measured, curve)) for seed, curve in curves.items()})

    return {
        "train": over_seeds(lambda epoch: epoch.train_loss),
        "perplexity": over_seeds(lambda epoch: perplexity(epoch.validation_loss)),
        "gap": over_seeds(lambda epoch: epoch.validation_loss - epoch.train_loss),
    }


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw the curves over epochs, validation perplexity by lr, and the test perplexities."""
    figure = new_figure(
        f"{data['task']}, {data['model']}: {plural(data['seeds'], 'seed')}, mean and 95 % interval",
        (13, 8),
    )
    above, below = figure.subfigures(2, 1, squeeze=False).flat
    curves = dict(zip(("train", "perplexity", "gap"), above.subplots(1, 3), strict=True))
    by_lr, test = below.subplots(1, 2, width_ratios=(1, 1.2))
    for index, (name, found) in enumerate(data["optimizers"].items()):
        style = line_style(index)
        for key, axes in curves.items():
            draw_intervals(axes, f"{name}, lr {found['lr']:.3g}", found[key], style)
        _draw_ends(by_lr, data["by_lr"][name], found["lr"], style)
        draw_seeds(test, index, np.array(found["test"], dtype=float).tolist(), style)
        _write_differences(test, index, [e for e in data["differences"] if e["of"] == name])
    _dress(data, curves, by_lr, test)
    figure.legend(*curves["train"].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _draw_ends(
    axes: "Axes", by_lr: Sequence[Mapping[str, Any]], chosen: float, style: LineStyle
) -> None:
    """Draw means and ranges over seeds; a study's trials have one seed, and no line joins them."""
    colour, dash, marker = style
    lrs = [each["lr"] for each in by_lr]
    ends = [np.array(each["ends"], dtype=float) for each in by_lr]
    several = any(len(each) > 1 for each in ends)
    means = [each.mean() for each in ends]
    axes.plot(lrs, means, marker=marker, ls=dash if several else "", color=colour, lw=1.4)
    axes.vlines(lrs, [e.min() for e in ends], [e.max() for e in ends], color=colour, lw=1.4)
    if chosen in lrs:
        axes.plot(chosen, means[lrs.index(chosen)], "o", ms=13, mfc="none", mec=colour)


def _write_differences(axes: "Axes", row: int, differences: Sequence[Mapping[str, Any]]) -> None:
    lines = []
    for each in differences:
        if each["mean"] is None:
            continue
        line = f"minus {each['from']}'s: {each['mean']:+.2g}"
        if each["low"] is not None:
            line += f" ({each['low']:+.2g} to {each['high']:+.2g}), p = {each['p']:.2g}"
        lines.append(line)
    where, side = (1.02, row), axes.get_yaxis_transform()
    axes.annotate("\n".join(lines), where, xycoords=side, va="center", fontsize=9)


def _dress(
    data: Mapping[str, Any], curves: Mapping[str, "Axes"], by_lr: "Axes", test: "Axes"
) -> None:
    names = list(data["optimizers"])
    style_axes(curves["train"], "training loss, mean over the epoch")
    style_axes(curves["perplexity"], "validation perplexity")
    style_axes(curves["gap"], "gap: validation loss − training loss")
    for key, axes in curves.items():
        axes.set(xlabel="epoch", ylabel="exp(loss)" if key == "perplexity" else "nats")
        axes.locator_params(axis="x", integer=True)
    style_axes(by_lr, "validation perplexity at the end (ring: chosen)")
    by_lr.set(xscale="log", xlabel="peak learning rate", ylabel="exp(loss)")
    lrs = sorted({each["lr"] for found in data["by_lr"].values() for each in found})
    if len(lrs) <= _FEW:
        by_lr.set_xticks(lrs, [f"{lr:g}" for lr in lrs])
        by_lr.set_xticks([], minor=True)
    style_axes(test, "test perplexity at the chosen lr: mean, interval, each seed", "x")
    test.set_yticks(range(len(names)), names)
    test.set(xlabel="exp(loss)", ylim=(len(names) - 0.5, -0.5))
