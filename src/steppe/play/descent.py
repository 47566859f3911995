"""Run one optimizer on a test function from several starts.

A sweep runs it for each optimizer and learning rate; figures call it directly.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

import steppe
from steppe._shared.array_types import Floats
from steppe._shared.names import look_up
from steppe._shared.optimizer_modes import has_modes
from steppe._shared.recipes import Recipe
from steppe.functions import Function

# Packages whose optimizers treat each parameter by itself. Those that need a closure do not, and
# are refused.
_ONE_BY_ONE = ("torch", "steppe")

#: Schedules by name: the factor on lr after a share of the run, from 0 to 1.
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


@dataclass(frozen=True, eq=False)
class Descent:
    """The points and losses of one optimizer from several starts.

    Attributes
    ----------
    optimizer : str
        The recipe's name.
    settings : dict
        Its hyperparameters.
    points : ndarray
        Shape (starts, steps + 1, dimension); index 0 along the steps is the start, and points are
        NaN from the step at which a run overflowed.
    losses : ndarray
        The function's values at the points, without noise, shape (starts, steps + 1).
    """

    optimizer: str
    settings: dict[str, Any]
    points: Floats
    losses: Floats


def descend(
    function: Function,
    recipe: Recipe,
    settings: Mapping[str, Any],
    starts: Tensor,
    steps: int,
    *,
    schedule: str = "constant",
    noise: float = 0.0,
    seed: int = 0,
) -> Descent:
    """Run an optimizer from each of several starts.

    Each start is a run of its own: critical buffers and SAM's norm are of that start alone. The
    gradients are computed by autograd.

    Parameters
    ----------
    function : Function
        The function that is minimised.
    recipe : Recipe
        The optimizer.
    settings : mapping
        Its hyperparameters: "lr", and "rho" or "switch" where it takes them.
    starts : Tensor
        Starting points, shape (starts, dimension), in the dtype to compute in.
    steps : int
        Number of steps, at least 1.
    schedule : str, default "constant"
        Schedule of lr over the run: "constant", or "cosine" down to 0.
    noise : float, default 0.0
        Standard deviation of Gaussian noise that is added to every component of the gradient. SAM's
        two gradients of a step get the same noise, as two gradients of one batch would.
    seed : int, default 0
        Seed of the noise. All optimizers get the same noise from the same seed.

    Returns
    -------
    Descent
        The runs. One that overflows is NaN from there on, and does not change the others.

    Raises
    ------
    ValueError
        ``starts``, ``steps``, ``schedule`` or ``noise`` is out of range, or the optimizer needs a
        closure.

    Examples
    --------
    >>> from steppe.functions import quadratic
    >>> from steppe.play import find_recipe
    >>> starts = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    >>> descend(quadratic(2.0), find_recipe("sgd"), {"lr": 0.5}, starts, 2).points[0]
    array([[1.  , 1.  ],
           [0.5 , 0.  ],
           [0.25, 0.  ]])
    """
    _check(function, recipe, starts, steps, noise)
    look_up("schedule", schedule, SCHEDULES)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(
        (steps, *starts.shape), dtype=torch.float64, generator=generator, device="cpu"
    )
    parameters = [start.clone().requires_grad_(True) for start in starts]
    # A buffer of each parameter's own is a buffer of each start's own.
    optimizers = _build(recipe, {**settings, "scope": "tensor"}, parameters, steps)
    path = [starts]
    for step, draw in enumerate((noise * draws).to(starts.dtype)):
        _set_lr(optimizers, settings["lr"] * _lr_factor(recipe, settings, schedule, step, steps))
        _fill_gradients(function, parameters, draw)
        with ExitStack() as perturbed:
            for optimizer in optimizers:
                if isinstance(optimizer, steppe.SAM):
                    perturbed.enter_context(optimizer.perturbed())
            if recipe.sam:
                _fill_gradients(function, parameters, draw)
        for optimizer in optimizers:
            optimizer.step()
        path.append(torch.stack(parameters).detach())
    points = torch.stack(path, 1)
    losses = function(points)
    sound = (points.isfinite().all(-1) & losses.isfinite()).cumprod(1).bool()
    return Descent(
        recipe.name,
        dict(settings),
        torch.where(sound[..., None], points, torch.nan).numpy().astype(np.float64),
        torch.where(sound, losses, torch.nan).numpy().astype(np.float64),
    )


def _check(function: Function, recipe: Recipe, starts: Tensor, steps: int, noise: float) -> None:
    if starts.dim() != 2 or starts.shape[1] != function.dimension or not len(starts):
        raise ValueError(
            f"starts must be of shape (starts, {function.dimension}) for {function.name}, "
            f"got {tuple(starts.shape)}"
        )
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise must be a finite number ≥ 0, got {noise}")
    check_recipe(recipe)


def check_recipe(recipe: Recipe) -> None:
    """Check that an optimizer takes one gradient a step, at a given learning rate.

    Raises
    ------
    ValueError
        The optimizer takes no lr, needs a closure, or has a modifier or modes that mean something
        in studies only.
    """
    if recipe.space is not None:
        raise ValueError(f"{recipe.name} is a Contender: expected the class of an optimizer")
    if recipe.beta1 or recipe.epochs > 1 or recipe.ema or recipe.sam not in ("", "sam"):
        raise ValueError(
            f"{recipe.name}: modifiers other than +warmup and +sam are for steppe compare; on a "
            "test function expected one of these, or none"
        )
    if has_modes(recipe.cls):
        raise ValueError(
            f"{recipe.name} evaluates other points than those that it steps from: expected an "
            "optimizer without train() and eval()"
        )
    if not recipe.takes("lr"):
        raise ValueError(f"{recipe.name} takes no lr: expected an optimizer that does")
    closure = inspect.signature(recipe.cls.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"{recipe.name} evaluates the function as often as it likes in a step (it needs a "
            "closure): expected an optimizer that takes one gradient a step"
        )


def _build(
    recipe: Recipe, settings: Mapping[str, Any], parameters: Sequence[Tensor], steps: int
) -> list[Optimizer]:
    """Make one optimizer over all starts if it treats each by itself, else one for each start."""
    if not recipe.sam and recipe.cls.__module__.partition(".")[0] in _ONE_BY_ONE:
        return [recipe.build(parameters, settings, steps)]
    return [recipe.build([parameter], settings, steps) for parameter in parameters]


def _lr_factor(
    recipe: Recipe, settings: Mapping[str, Any], schedule: str, step: int, steps: int
) -> float:
    """Return the factor on lr at a step, counted from 0: warm-up times schedule."""
    warmup = min(1.0, (step + 1) / (settings["switch"] * steps)) if recipe.warmup else 1.0
    return warmup * SCHEDULES[schedule](step / steps)


def _set_lr(optimizers: Sequence[Optimizer], lr: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def _fill_gradients(function: Function, parameters: Sequence[Tensor], draw: Tensor) -> None:
    """Set the gradients of all points by one backward pass, as the points are independent."""
    points = torch.stack(list(parameters)).detach().requires_grad_(True)
    (gradients,) = torch.autograd.grad(function(points).sum(), points)
    for parameter, gradient in zip(parameters, gradients + draw, strict=True):
        parameter.grad = gradient
