"""Eigenvalues, traces and spectral densities of the minima that each optimizer found.

Claim (DualAdam, Shi et al. 2026, arXiv 2603.07122): its minima are flatter than Adam's: smaller
largest eigenvalues and traces of the Hessian.

Came out, on digits with the settings that a study with equal budgets chose for each: not so.
DualAdam and its control adam+warmup end at the same eigenvalues to 1 % or so, and 1.7 times as
sharp as AdamW: λ₁ 7.6 against 4.5, trace 40 against 22. AdamCM and AdamW+SAM are flatter than
AdamW (λ₁ 1.2 and 0.8), and the study found both to generalise better; AdamCG and the scale-free
variant are flatter by far (0.1) and do not. Of the latter the training loss is nearly 0, and the
Hessian of cross-entropy vanishes with it: flatness alone decides nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from figures.seeds import draw_seeds
from steppe._shared.messages import plural
from steppe._shared.palette import line_style
from steppe._shared.pictures import new_figure, style_axes
from steppe._shared.progress import progress
from steppe._shared.recipes import find_recipe
from steppe.compare import (
    LoadedTask,
    Run,
    RunContext,
    StudyResults,
    Training,
    differentiable,
    find_task,
    make_accelerator,
    recommended_settings,
    reproducible,
    run_settings_from_dict,
)
from steppe.landscape import density, hessian, top_eigenvalues, trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STUDY = "docs/results/digits.json"

_DECADES = 7
_LINEAR = 0.1  # eigenvalues below are drawn on a linear scale


def measure(
    *,
    study: StudyResults,
    seeds: int = 3,
    eigenvalues: int = 10,
    samples: int = 1000,
    epochs: int | None = None,
) -> dict[str, Any]:
    """Train each optimizer again as the study recommends, and measure where it ends.

    Raises
    ------
    ValueError
        The task's data are not those of the study, or none of its pools is complete.
    """
    setup = run_settings_from_dict(study.setup)
    if epochs is not None:
        setup = replace(setup, epochs=epochs)
    loaded = find_task(setup.task).task(setup.options or {"model": setup.model}).load()
    if loaded.data.fingerprint != setup.fingerprint:
        raise ValueError(f"{study.name} was made with other data of {study.task} than are here")
    settings = {each.name: recommended_settings(study, each.name) for each in study.contenders}
    names = [name for name, found in settings.items() if found]
    if not names:
        raise ValueError(f"{study.name} has no pool of trials that have ended")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with progress("training and measuring", len(names) * seeds) as advance:
        for name in names:
            for seed in range(seeds):
                run = Run(setup, find_recipe(name), settings[name], seed)
                found[name].append(_spectrum(run, loaded, eigenvalues, samples))
                advance(1)
    return {
        "task": study.task,
        "model": setup.model,
        "parameters": study.setup["parameters"],
        "seeds": seeds,
        "samples": min(samples, study.setup["train_samples"]),
        "optimizers": found,
    }


def _spectrum(run: Run, loaded: LoadedTask, eigenvalues: int, samples: int) -> dict[str, Any]:
    with TemporaryDirectory() as directory, reproducible(context := RunContext(Path(directory))):
        training = Training(run, loaded, context, make_accelerator(run, context))
        training.resume(lambda number, epoch: None)
        device = torch.device(context.device)
        model, loss, batches, weight = differentiable(loaded, training.model, device, samples)
        H = hessian(model, loss, batches, weight=weight)
        top = top_eigenvalues(H, eigenvalues, tol=0.01, seed=0)
        spread = density(H, probes=2, steps=40, seed=0)
        return {
            "top": sorted(top.values.tolist(), reverse=True),
            "residuals": top.residuals,
            "trace": trace(H, products=60, seed=0).value,
            "grid": spread.grid,
            "density": spread.density,
        }


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw the largest eigenvalues, the traces, and the densities."""
    runs = data["optimizers"]
    figure = new_figure(
        f"{data['task']}, {data['model']} ({data['parameters']} parameters): Hessian of the mean "
        f"loss over {plural(data['samples'], 'training sample')}, {plural(data['seeds'], 'seed')}",
        (14, 5.2),
    )
    top, whole, spread = figure.subplots(1, 3, width_ratios=(1.1, 0.8, 1.3))
    for index, (name, found) in enumerate(runs.items()):
        colour, dash, marker = style = line_style(index)
        values = np.array([each["top"] for each in found])
        ranks = np.arange(1, values.shape[1] + 1)
        top.plot(ranks, values.mean(0), dash, marker=marker, ms=4, lw=1.4, color=colour, label=name)
        draw_seeds(whole, index, [each["trace"] for each in found], style)
        _draw_density(spread, index, found[0], colour)
    style_axes(top, "largest eigenvalues, mean over seeds")
    top.set(xlabel="rank", ylabel="eigenvalue", yscale="log")
    top.set_xticks(ranks)
    style_axes(whole, "trace: mean, range and each seed", grid="x")
    whole.set_yticks(range(len(runs)), list(runs))
    whole.set(xlabel="trace", ylim=(len(runs) - 0.4, -0.9))
    style_axes(spread, f"spectral density, seed 0: {_DECADES} powers of ten high", grid="x")
    spread.set_xscale("symlog", linthresh=_LINEAR, linscale=0.4)
    spread.set(xlabel="eigenvalue", ylim=whole.get_ylim(), yticks=[])
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _draw_density(axes: "Axes", row: int, found: Mapping[str, Any], colour: str) -> None:
    """Fill from a floor that is so many decades below the highest density."""
    grid, values = (np.array(found[key], dtype=float) for key in ("grid", "density"))
    height = 1 + np.log10(np.maximum(values / values.max(), 10.0**-_DECADES)) / _DECADES
    axes.fill_between(grid, row, row - 0.85 * height, color=colour, alpha=0.6, lw=0.8)
    axes.axhline(row, color="black", lw=0.4)
