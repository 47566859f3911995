"""InvAdam alone does not settle where DualAdam settles.

Claim (DualAdam, Shi et al. 2026, arXiv 2603.07122): multiplying by the second moment explores but
does not converge; switching to Adam does both.

Came out, on a quadratic of condition number 10: as claimed, with two reservations. InvAdam's steps
shrink with the square of the gradient, so its distance falls like a power of the step while that
of DualAdam and Adam falls exponentially once the switch is over. DualAdam is the fastest of all to
begin with, and ends between Adam and its control. But both lose all where lr·g² is too large: at
lr 0.1 they diverge, where Adam does not. And with noise on the gradients nobody settles at a
constant learning rate; there InvAdam, whose steps are shortest near the minimum, ends lowest of
all at lr ≥ 0.01.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from steppe._shared.hyperparameters import PUBLISHED_SWITCH
from steppe._shared.palette import line_style
from steppe._shared.pictures import new_figure, style_axes
from steppe._shared.progress import progress
from steppe.play import Descent, median_final_loss, plan_sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OPTIMIZERS = ("adam", "adam+warmup", "invadam", "dualadam")
_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
_CONDITION = 10.0
_FLOOR = 1e-18  # losses below are drawn there


def measure(
    *,
    steps: int = 1500,
    starts: int = 4,
    rates: tuple[float, ...] = _RATES,
    shown: float = 3e-3,
    noises: tuple[float, ...] = (0.0, 0.1),
) -> dict[str, Any]:
    """Descend on a quadratic from the unit circle, with and without noise on the gradients."""
    angles = (np.arange(starts) + 0.5) * (2 * np.pi / starts)
    curves: dict[str, Any] = {}
    final: dict[str, Any] = {}
    with progress("descents", len(noises) * len(_OPTIMIZERS) * len(rates)) as advance:
        for noise in noises:
            planned = plan_sweep(
                "quadratic",
                parameters={"condition_number": _CONDITION},
                optimizers=_OPTIMIZERS,
                rates=rates,
                starts=np.stack([np.cos(angles), np.sin(angles)], 1).tolist(),
                steps=steps,
                noise=noise,
            )
            descents = {
                recipe.name: planned.descents(recipe, advance) for recipe in planned.recipes
            }
            final[f"{noise:g}"] = {
                name: [median_final_loss(descent) for descent in tried.values()]
                for name, tried in descents.items()
            }
            if noise == noises[0]:
                curves = {name: _curves(tried[shown]) for name, tried in descents.items()}
    return {
        "condition_number": _CONDITION,
        "starts": starts,
        "steps": steps,
        "switch": PUBLISHED_SWITCH * steps,
        "shown": shown,
        "rates": rates,
        "curves": curves,
        "final": final,
    }


def _curves(found: Descent) -> dict[str, Any]:
    """Thin the medians over starts out to what a picture shows."""
    every = max(1, found.losses.shape[1] // 300)
    distance = np.linalg.norm(found.points, axis=2)
    return {
        "step": np.arange(found.losses.shape[1])[::every],
        "loss": np.median(found.losses, 0)[::every],
        "distance": np.median(distance, 0)[::every],
    }


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw loss and distance over steps, and the final loss by learning rate."""
    figure = new_figure(
        f"Quadratic of condition number {data['condition_number']:g}, from {data['starts']} places "
        f"on the unit circle: medians, {data['steps']} steps",
        (14, 7.5),
    )
    (loss, distance), finals = figure.subplots(2, 2)
    for measured, axes in (("loss", loss), ("distance", distance)):
        for name, curve in data["curves"].items():
            _draw(axes, name, curve["step"], curve[measured])
        axes.axvline(data["switch"], color="black", lw=0.8, ls=":")
        axes.set(xlabel="step", yscale="log", ylabel=measured)
        style_axes(
            axes, f"lr {data['shown']:g}, no noise; dotted: DualAdam's switch ends", grid="both"
        )
    distance.set_ylabel("distance to the minimum")
    for axes, (noise, final) in zip(finals, data["final"].items(), strict=True):
        for name, losses in final.items():
            _draw(axes, name, data["rates"], losses, marked=True)
        axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="final loss")
        title = f"noise {noise} on the gradients" if float(noise) else "no noise"
        style_axes(axes, f"{title}; a cross: diverged", grid="both")
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _draw(axes: "Axes", name: str, x: Any, y: Any, *, marked: bool = False) -> None:
    index = _OPTIMIZERS.index(name)
    across, values = np.array(x, dtype=float), np.array(y, dtype=float)
    colour, dash, marker = line_style(index)
    (line,) = axes.plot(across, np.maximum(values, _FLOOR), dash, color=colour, label=name)
    line.set(lw=1.8, marker=marker if marked else "", ms=5)
    lost = across[~np.isfinite(values)]
    height = np.full(len(lost), 0.97 - 0.05 * index)
    axes.plot(lost, height, "X", ms=8, color=colour, transform=axes.get_xaxis_transform())
