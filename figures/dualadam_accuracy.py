"""Accuracy over epochs of DualAdam, its control and the baseline, from a stored study.

Claim (DualAdam, Shi et al. 2026, arXiv 2603.07122): it reaches a higher accuracy than Adam and
AdamW. Ours, of what it must be compared with: while gradients are small it is Adam with a warm-up
of 1/ξ steps, the control adam+warmup.

Came out, on FashionMNIST (5 000 training images, 10 seeds, all tuned alike): DualAdam and its
control coincide within 0.2 points in every epoch. Both are 1.7 points behind AdamW after the
first, while they warm up, and 0.3 to 0.5 ahead of it on validation data in the last three, where
DualAdam's intervals, each for itself, exclude zero and the control's touch it; on the test set,
looked at once, the study's corrected test sees no difference. The scale-free variant, whose
inverse part does lead, stays behind AdamW throughout.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.seeds import draw_intervals, intervals
from steppe._shared.messages import plural
from steppe._shared.palette import line_style
from steppe._shared.pictures import new_figure, style_axes
from steppe.compare import StudyResults, repeated_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDY = "docs/results/digits.json"


def measure(*, study: StudyResults) -> dict[str, Any]:
    """Take validation scores by epoch, and their differences from the baseline, seed by seed.

    Raises
    ------
    ValueError
        The study has no runs of DualAdam and of its baseline that have ended.
    """
    curves = {name: _curves(study, name) for name in relatives(study)}
    curves = {name: by_seed for name, by_seed in curves.items() if by_seed}
    baseline = study.contenders[0].name
    if baseline not in curves or len(curves) == 1:
        raise ValueError(
            f"{study.name} has no finished runs of DualAdam and of its baseline {baseline}"
        )
    return {
        "task": study.task,
        "model": study.setup["model"],
        "seeds": study.plan.repeats,
        "metric": {"name": study.metric.name, "unit": study.metric.unit},
        "baseline": baseline,
        "score": {name: intervals(by_seed) for name, by_seed in curves.items()},
        "difference": {
            name: intervals({seed: by_seed[seed] - base[seed] for seed in by_seed if seed in base})
            for base in [curves[baseline]]
            for name, by_seed in curves.items()
            if name != baseline
        },
    }


def relatives(study: StudyResults) -> list[str]:
    """Name the baseline, the variants of DualAdam and InvAdam, and their controls."""
    ours = {
        each.name
        for each in study.contenders
        if each.name.startswith(("dualadam", "invadam")) and not each.name.startswith("dualadamcm")
    }
    return [
        each.name
        for index, each in enumerate(study.contenders)
        if index == 0 or each.name in ours or ours & set(each.control_for)
    ]


def _curves(study: StudyResults, name: str) -> dict[int, np.ndarray]:
    """Return the scores by epoch of the runs that did not diverge."""
    factor = study.metric.factor
    return {
        seed: factor * np.array([epoch.validation_score for epoch in outcome.curve])
        for seed, outcome in repeated_runs(study, name).items()
    }


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw scores, and differences from the baseline."""
    metric, baseline = data["metric"], data["baseline"]
    unit = f", {metric['unit']}" if metric["unit"] else ""
    points = " points" if metric["unit"] == "%" else ""
    figure = new_figure(
        f"{data['task']}, {data['model']}: {plural(data['seeds'], 'seed')}, mean and 95 % interval",
        (12, 4.8),
    )
    left, right = figure.subplots(1, 2)
    looks = {name: line_style(index) for index, name in enumerate(data["score"])}
    for axes, group in ((left, data["score"]), (right, data["difference"])):
        for name, values in group.items():
            draw_intervals(axes, name, values, looks[name])
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    style_axes(left, f"validation {metric['name']}{unit}")
    style_axes(right, f"minus {baseline}'s, seed by seed{',' + points if points else ''}")
    right.axhline(0, color="black", lw=0.8)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
