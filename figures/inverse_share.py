"""How large the inverse part of DualAdam's update is, by the size of the gradients.

Claim (ours): the inverse part is to the Adam part as α·v̂ is to 1 − α, so at gradients of 1e-3, as
networks have them, a share of about 1e-6 of DualAdam's update is its own, and the rest is Adam
under a warm-up of 1/ξ steps. Rescaling the loss changes this; DualAdam(scale_free=True) does not
depend on it.

Came out: the share that diagnostics() reports lies on αv̂/((1 − α) + αv̂) over ten powers of ten of
the scale, and scale-free stays at α. On digits the gradients of a small network have a root mean
square of 4e-3 to 1e-2; the inverse part begins at 6e-3 of the update, where α is nearly 1, and is
below 1e-3 after six steps, below 1e-4 from half of the switch on.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

import steppe
from steppe._shared.palette import COLOURS
from steppe._shared.pictures import new_figure, style_axes
from steppe.compare import find_task, head

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ALPHA = 0.5
_STEPS = 50
_BATCH = 64


def measure(*, points: int = 25, parameters: int = 256, epochs: int = 8) -> dict[str, Any]:
    """Step on gradients of known size, and on those of a network on real digits."""
    scales = np.logspace(-6, 4, points)
    return {
        "alpha": _ALPHA,
        "scales": scales,
        "share": [_share(scale, parameters, scale_free=False) for scale in scales],
        "scale_free": [_share(scale, parameters, scale_free=True) for scale in scales],
        "digits": _on_digits(epochs),
    }


def _share(scale: float, parameters: int, *, scale_free: bool) -> float:
    """Return the inverse part's share once v̂ has settled at scale²."""
    generator = torch.Generator().manual_seed(0)
    p = torch.zeros(parameters, dtype=torch.float64, requires_grad=True)
    switch_rate = (1 - _ALPHA) / _STEPS
    optimizer = steppe.DualAdam([p], switch_rate=switch_rate, scale_free=scale_free)
    for _ in range(_STEPS):
        sign = torch.randint(2, p.shape, generator=generator, dtype=p.dtype) * 2 - 1
        p.grad = scale * sign
        optimizer.step()
    return optimizer.diagnostics()["inverse_share"]


def _on_digits(epochs: int) -> dict[str, Any]:
    """Train on digits; note the gradients' root mean square and the share at every step."""
    task, data = find_task("digits").task().load()
    torch.manual_seed(0)
    model = task.model()
    batches = [part.batch for part in head(data.train, len(data.train), _BATCH)]  # type: ignore[arg-type]
    steps = epochs * len(batches)
    optimizer = steppe.DualAdam(model.parameters(), lr=1e-3, switch_rate=1 / steps)
    found: dict[str, Any] = {"rms": [], "share": [], "alpha": []}
    for _ in range(epochs):
        for inputs, targets in batches:
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(model(inputs), targets))
            gradient = torch.cat(
                [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            )
            optimizer.step()
            told = optimizer.diagnostics()
            found["rms"].append(gradient.square().mean().sqrt().item())
            found["share"].append(told["inverse_share"])
            found["alpha"].append(told["alpha"])
    return found


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw the share by scale beside the formula, and over a real run."""
    figure = new_figure("The inverse part's share of DualAdam's update", (12, 4.8))
    left, right = figure.subplots(1, 2)
    scales = np.array(data["scales"], dtype=float)
    alpha = data["alpha"]
    share = alpha * scales**2 / (1 - alpha + alpha * scales**2)
    left.plot(scales, share, color="black", lw=1, label="αv̂ / ((1 − α) + αv̂)")
    left.plot(scales, data["share"], "o", color=COLOURS[0], ms=5, label="DualAdam")
    left.plot(scales, data["scale_free"], "s", color=COLOURS[3], ms=5, label="DualAdam, scale-free")
    style_axes(left, f"gradients of one size, α = {alpha:g}", grid="both")
    left.set(
        xscale="log",
        yscale="log",
        xlabel="root mean square of the gradient",
        ylabel="inverse part / whole update",
        ylim=(1e-13, 10),
    )
    digits = {name: np.array(values, dtype=float) for name, values in data["digits"].items()}
    rms = digits["rms"]
    left.axvspan(rms.min(), rms.max(), color=COLOURS[2], alpha=0.15, lw=0)
    left.annotate(
        "a network on digits",
        xy=((rms.min() * rms.max()) ** 0.5, 1e-12),
        ha="center",
        fontsize=9,
        color=COLOURS[2],
    )
    left.legend(loc="lower right", frameon=False)
    steps = np.arange(1, len(rms) + 1)
    right.plot(steps, digits["alpha"], "--", color="black", lw=1.2, label="α")
    right.plot(steps, rms, color=COLOURS[2], lw=1.2, label="root mean square of the gradient")
    right.plot(steps, digits["share"], color=COLOURS[0], lw=1.6, label="inverse part's share")
    style_axes(right, "digits, a small network, lr 1e-3", grid="both")
    right.set(yscale="log", xlabel="step")
    right.legend(frameon=False)
    return figure
