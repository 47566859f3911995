"""Fine-tuning a small language model: training loss, validation perplexity, generalisation gap.

Claim (DualAdam, Shi et al. 2026, arXiv 2603.07122): fine-tuning a language model of 1 B parameters,
it reaches a lower validation perplexity and a smaller generalisation gap than AdamW.

This is a small stand-in: TODO
"""

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from operator import sub
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from steppe.commands.palette import Look, look
from steppe.commands.pictures import dress, new_figure
from steppe.commands.wording import many
from steppe.compare.results import TUNE, StudyResults
from steppe.compare.statistics import corrected, paired
from steppe.compare.summary import finished
from steppe.figures.dualadam_accuracy import relatives
from steppe.figures.seeds import draw_intervals, draw_seeds, intervals
from steppe.figures.small_language import (
    LanguageModel,
    Losses,
    code,
    evaluated,
    prose,
    run_of,
    split,
    train,
)
from steppe.landscape.progress import progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OPTIMIZERS = ("adamw", "adam+warmup", "dualadam", "dualadam-scale-free")
_CONTROLLED = (("dualadam", "adam+warmup"), ("dualadam-scale-free", "adam+warmup"))

# Of everybody. 1/ξ is 16 % of the run, as published.
_SETTINGS = {"weight_decay": 0.01, "switch": 0.16}
_PRETRAINING = {"lr": 2e-3, "weight_decay": 0.01}
_CONTEXT = 64

_FEW = 6  # learning rates that can be written under the axis


def measure(
    *,
    study: StudyResults | None = None,
    lrs: Sequence[float] = (5e-4, 1e-3, 2e-3, 4e-3),
    seeds: int = 3,
    epochs: int = 5,
    characters: int = 40_000,
    width: int = 64,
    pretraining_epochs: int = 3,
    pretraining_characters: int | None = None,
) -> dict[str, Any]:
    """Fine-tune with every optimizer, learning rate and seed; or take what a stored study holds.

    The lr shown of each optimizer is the one whose validation perplexity after the last epoch, mean
    over seeds, is lowest. The test part is reported for that one alone. A perplexity is that of a
    character, exp(loss); of a study, exp(loss) whatever its loss is of.

    Raises
    ------
    ValueError
        The study has no runs of DualAdam and of its baseline that have ended.
    """
    if study is not None:
        return _of_study(study)
    before = split([prose()[:pretraining_characters]], _CONTEXT, (0.9, 0.05))
    parts = split(code(characters), _CONTEXT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LanguageModel(_CONTEXT, width)
    found: dict[str, dict[float, dict[int, Losses]]]
    found = {name: {lr: {} for lr in lrs} for name in _OPTIMIZERS}
    with progress("pre-training, then fine-tuning", len(lrs) * seeds * len(found)) as advance:
        train(model, run_of("adamw", _PRETRAINING, 0, before, pretraining_epochs), before)
        start = evaluated(model, parts.validation)
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        for name, lr, seed in product(found, lrs, range(seeds)):
            model.load_state_dict(weights)
            run = run_of(name, {"lr": lr, **_SETTINGS}, seed, parts, epochs)
            found[name][lr][seed] = train(model, run, parts)
            advance(1)
    return {
        "task": "Python's documentation, then source code",
        "model": f"transformer of {sum(p.numel() for p in model.parameters()):,} parameters",
        "text": {
            "python": platform.python_version(),
            "prose": before.fingerprint,
            "code": parts.fingerprint,
        },
        "before": _perplexity(start),
        **_summed_up({name: _best(by_lr) for name, by_lr in found.items()}, _CONTROLLED),
        "by_lr": {
            name: [{"lr": lr, "ends": _ends(runs.values())} for lr, runs in by_lr.items()]
            for name, by_lr in found.items()
        },
    }


def _best(by_lr: Mapping[float, Mapping[int, Losses]]) -> tuple[float, Mapping[int, Losses]]:
    return min(by_lr.items(), key=lambda item: fmean(_ends(item[1].values())))


def _of_study(study: StudyResults) -> dict[str, Any]:
    names = [name for name in relatives(study) if finished(study, name)]
    baseline = study.contenders[0].name
    if baseline not in names or len(names) == 1:
        raise ValueError(
            f"{study.name} has no finished runs of DualAdam and of its baseline {baseline}"
        )
    runs = {
        name: {
            seed: Losses(
                [epoch.train_loss for epoch in outcome.curve],
                [epoch.validation_loss for epoch in outcome.curve],
                outcome.final.test_loss,
            )
            for seed, outcome in finished(study, name).items()
        }
        for name in names
    }
    pairs = [(name, each.name) for each in study.contenders for name in each.control_for]
    by_lr: dict[str, dict[float, list[float]]] = {name: {} for name in names}
    for name in names:
        for trial in study.of(name, TUNE):
            if trial.outcome is not None and not trial.outcome.diverged:
                end = _perplexity(trial.outcome.final.validation_loss)
                by_lr[name].setdefault(trial.settings["lr"], []).append(end)
    return {
        "task": study.task,
        "model": study.setup["model"],
        "before": None,
        **_summed_up(
            {name: (study.chosen(name)["lr"], runs[name]) for name in names},
            [pair for pair in pairs if set(pair) <= set(names)],
        ),
        "by_lr": {
            name: [{"lr": lr, "ends": ends} for lr, ends in sorted(found.items())]
            for name, found in by_lr.items()
        },
    }


def _summed_up(
    chosen: Mapping[str, tuple[float, Mapping[int, Losses]]],
    controlled: Iterable[tuple[str, str]],
) -> dict[str, Any]:
    """Sum up the runs at each optimizer's lr; its p-values are corrected as one family."""
    tests = {
        name: {seed: _perplexity(run.test) for seed, run in runs.items()}
        for name, (_, runs) in chosen.items()
    }
    baseline, *others = chosen
    pairs = [(name, baseline) for name in others]
    pairs += [pair for pair in controlled if pair not in pairs]
    compared = corrected([paired(tests[name], tests[other]) for name, other in pairs])
    return {
        "seeds": max(map(len, tests.values())),
        "optimizers": {
            name: {"lr": lr, "test": list(tests[name].values()), **_curves(runs)}
            for name, (lr, runs) in chosen.items()
        },
        "differences": [
            {"of": name, "from": other, "p": each.p, **asdict(each.difference)}
            for (name, other), each in zip(pairs, compared, strict=True)
        ],
    }


def _curves(runs: Mapping[int, Losses]) -> dict[str, Any]:
    return {
        "train": intervals({seed: run.train for seed, run in runs.items()}),
        "perplexity": intervals(
            {seed: list(map(_perplexity, run.validation)) for seed, run in runs.items()}
        ),
        "gap": intervals(
            {seed: list(map(sub, run.validation, run.train)) for seed, run in runs.items()}
        ),
    }


def _ends(runs: Iterable[Losses]) -> list[float]:
    return [_perplexity(run.validation[-1]) for run in runs]


def _perplexity(loss: float) -> float:
    """Return exp(loss); NaN and what would overflow count as infinite."""
    return math.exp(loss) if loss < 700 else math.inf


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw the curves over epochs, validation perplexity by lr, and the test perplexities."""
    figure = new_figure(
        f"{data['task']}, {data['model']}: {many(data['seeds'], 'seed')}, mean and 95 % interval",
        (13, 8),
    )
    above, below = figure.subfigures(2, 1, squeeze=False).flat
    curves = dict(zip(("train", "perplexity", "gap"), above.subplots(1, 3), strict=True))
    by_lr, test = below.subplots(1, 2, width_ratios=(1, 1.2))
    for place, (name, found) in enumerate(data["optimizers"].items()):
        style = look(place)
        for key, axes in curves.items():
            draw_intervals(axes, f"{name}, lr {found['lr']:.3g}", found[key], style)
        _draw_ends(by_lr, data["by_lr"][name], found["lr"], style)
        draw_seeds(test, place, np.array(found["test"], dtype=float).tolist(), style)
        _write_differences(test, place, [e for e in data["differences"] if e["of"] == name])
    _dress(data, curves, by_lr, test)
    figure.legend(*curves["train"].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _draw_ends(
    axes: "Axes", by_lr: Sequence[Mapping[str, Any]], chosen: float, style: Look
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


def _write_differences(axes: "Axes", place: int, differences: Sequence[Mapping[str, Any]]) -> None:
    lines = []
    for each in differences:
        if each["mean"] is None:
            continue
        line = f"minus {each['from']}'s: {each['mean']:+.2g}"
        if each["low"] is not None:
            line += f" ({each['low']:+.2g} to {each['high']:+.2g}), p = {each['p']:.2g}"
        lines.append(line)
    where, side = (1.02, place), axes.get_yaxis_transform()
    axes.annotate("\n".join(lines), where, xycoords=side, va="center", fontsize=9)


def _dress(
    data: Mapping[str, Any], curves: Mapping[str, "Axes"], by_lr: "Axes", test: "Axes"
) -> None:
    names = list(data["optimizers"])
    before = "" if data["before"] is None else f" ({data['before']:.2f} before)"
    dress(curves["train"], "training loss, mean over the epoch")
    dress(curves["perplexity"], f"validation perplexity{before}")
    dress(curves["gap"], "gap: validation loss − training loss")
    for key, axes in curves.items():
        axes.set(xlabel="epoch", ylabel="exp(loss)" if key == "perplexity" else "nats")
        axes.locator_params(axis="x", integer=True)
    dress(by_lr, "validation perplexity at the end (ring: chosen)")
    by_lr.set(xscale="log", xlabel="peak learning rate", ylabel="exp(loss)")
    lrs = sorted({each["lr"] for found in data["by_lr"].values() for each in found})
    if len(lrs) <= _FEW:
        by_lr.set_xticks(lrs, [f"{lr:g}" for lr in lrs])
        by_lr.set_xticks([], minor=True)
    dress(test, "test perplexity at the chosen lr: mean, interval, each seed", "x")
    test.set_yticks(range(len(names)), names)
    test.set(xlabel="exp(loss)", ylim=(len(names) - 0.5, -0.5))
