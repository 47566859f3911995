"""Run optimizers on one function, each at the same learning rates from the same starts.

``plan_sweep`` checks everything before anything is run; ``steppe play`` and figures use it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steppe._shared.hyperparameters import PUBLISHED_RHO, PUBLISHED_SWITCH
from steppe._shared.messages import first_line, plural
from steppe._shared.names import look_up
from steppe._shared.recipes import Recipe, find_recipe
from steppe.functions import Function, find_function
from steppe.play.descent import SCHEDULES, Descent, check_recipe, descend
from steppe.play.end_points import classify_ends
from steppe.play.options import check_numbers
from steppe.play.results import OptimizerResult, SweepResult

# Pictures, and float64's squares and products, end far above.
_FARTHEST = 1e15
# Each start is stepped by an optimizer of its own.
_MOST_VARIABLES = 10_000


@dataclass(frozen=True)
class Sweep:
    """A function, optimizers, learning rates and starts to run; everything has been checked.

    Attributes
    ----------
    function : Function
        The function that is minimised.
    parameters : mapping
        The function's parameters, such as its dimension.
    recipes : sequence of Recipe
        The optimizers.
    rates : sequence of float
        The learning rates that every optimizer is tried at.
    starts : Tensor
        The points where all runs begin, shape (starts, dimension), float64.
    steps : int
        Number of steps of every run.
    switch : float
        1/ξ of DualAdam as a share of the steps, for optimizers that take it.
    rho : float
        SAM's radius, for optimizers that take it.
    schedule : str
        Schedule of lr: "constant" or "cosine".
    noise : float
        Standard deviation of the noise in each component of the gradient.
    seed : int
        Seed of the noise.
    """

    function: Function
    parameters: Mapping[str, float]
    recipes: Sequence[Recipe]
    rates: Sequence[float]
    starts: Tensor
    steps: int
    switch: float
    rho: float
    schedule: str
    noise: float
    seed: int

    def run(self, advance: Callable[[int], None] = lambda descents: None) -> SweepResult:
        """Run all optimizers; keep each one's learning rate with the lowest median final loss.

        Parameters
        ----------
        advance : callable
            Called with 1 after each of the ``len(recipes)·len(rates)`` descents.
        """
        return self.result([self.best(self.descents(recipe, advance)) for recipe in self.recipes])

    def descents(
        self, recipe: Recipe, advance: Callable[[int], None] = lambda descents: None
    ) -> dict[float, Descent]:
        """Run one optimizer at every learning rate; return a descent for each rate."""
        tried = {}
        for lr in self.rates:
            tried[lr] = self._descent(recipe, lr)
            advance(1)
        return tried

    def best(self, tried: Mapping[float, Descent]) -> OptimizerResult:
        """Return one optimizer's descent with the lowest median final loss, and how it ended."""
        losses = {lr: median_final_loss(descent) for lr, descent in tried.items()}
        best = tried[min(losses, key=lambda lr: losses[lr])]
        return OptimizerResult(best, classify_ends(self.function, best), losses)

    def result(self, optimizers: Sequence[OptimizerResult]) -> SweepResult:
        """Return the optimizers' results together with the sweep's conditions."""
        return SweepResult(
            self.function,
            self.parameters,
            optimizers,
            self.steps,
            self.schedule,
            self.noise,
            self.seed,
        )

    def _descent(self, recipe: Recipe, lr: float) -> Descent:
        known: dict[str, Any] = {"lr": lr, "switch": self.switch, "rho": self.rho}
        settings = {name: value for name, value in known.items() if recipe.takes(name)}
        try:
            return descend(
                self.function,
                recipe,
                settings,
                self.starts,
                self.steps,
                schedule=self.schedule,
                noise=self.noise,
                seed=self.seed,
            )
        except ValueError:
            raise
        except Exception as error:  # an optimizer of the user's own may raise anything
            raise ValueError(f"{recipe.name} cannot be run: {first_line(error)}") from error


def plan_sweep(
    function: str,
    *,
    optimizers: Sequence[str],
    rates: Sequence[float],
    steps: int,
    starts: Sequence[Sequence[float]] = (),
    drawn: int = 10,
    parameters: Mapping[str, float] | None = None,
    switch: float = PUBLISHED_SWITCH,
    rho: float = PUBLISHED_RHO,
    schedule: str = "constant",
    noise: float = 0.0,
    seed: int = 0,
) -> Sweep:
    """Find function and optimizers by name, and check everything before it is run.

    Parameters
    ----------
    function, parameters
        See :func:`steppe.functions.find_function`.
    optimizers : sequence of str
        See :func:`steppe._shared.recipes.find_recipe`.
    starts : sequence of points
        Without any, ``drawn`` starts are drawn evenly from the function's bounds.
    drawn : int, default 10
        Number of starts to draw.
    rates, steps, switch, rho, schedule, noise, seed
        See :class:`Sweep`; switch and rho are the published ones by default.

    Raises
    ------
    ValueError
        A name is unknown, or an argument is out of range.

    Examples
    --------
    >>> sweep = plan_sweep("quadratic", optimizers=["sgd"], rates=[0.01], steps=3, drawn=2)
    >>> sweep.run().optimizers[0].descent.points.shape
    (2, 4, 2)
    """
    parameters = dict(parameters or {})
    for name, value in parameters.items():
        most = _MOST_VARIABLES if name == "dimension" else _FARTHEST
        if not abs(value) <= most:
            raise ValueError(f"{name} must be at most {most:g}, got {value:g}")
    try:
        found = find_function(function, **parameters)
    except TypeError as error:  # such as a dimension of 2.5, which was typed in
        raise ValueError(str(error)) from error
    recipes = _recipes(optimizers)
    check_numbers(rates, steps=steps, switch=switch, rho=rho, noise=noise, seed=seed)
    look_up("schedule", schedule, SCHEDULES)
    points = _checked_starts(found, starts) if starts else draw_starts(found.bounds, drawn, seed)
    # A learning rate that was named twice is tried once.
    distinct = list(dict.fromkeys(rates))
    return Sweep(
        found, parameters, recipes, distinct, points, steps, switch, rho, schedule, noise, seed
    )


def _recipes(names: Sequence[str]) -> list[Recipe]:
    recipes = {recipe.name: recipe for recipe in map(find_recipe, names)}
    for recipe in recipes.values():
        check_recipe(recipe)
    return list(recipes.values())


def _checked_starts(function: Function, starts: Sequence[Sequence[float]]) -> Tensor:
    for start in starts:
        written = ",".join(f"{value:g}" for value in start)
        if len(start) != function.dimension:
            raise ValueError(
                f"a start on {function.name} has {plural(function.dimension, 'coordinate')}, "
                f"got {written}"
            )
        if not all(abs(value) <= _FARTHEST for value in start):
            raise ValueError(f"a start must have coordinates up to {_FARTHEST:g}, got {written}")
    return torch.tensor(starts, dtype=torch.float64, device="cpu")


def draw_starts(bounds: Sequence[tuple[float, float]], count: int, seed: int = 0) -> Tensor:
    """Draw starting points from the uniform distribution within bounds.

    Parameters
    ----------
    bounds : sequence of (float, float)
        Lower and upper bound of each coordinate.
    count : int
        Number of points, at least 1.
    seed : int, default 0
        Seed of the draws.

    Returns
    -------
    Tensor
        Shape (count, coordinates), float64.

    Raises
    ------
    ValueError
        ``count`` is below 1.

    Examples
    --------
    >>> draw_starts([(0.0, 1.0), (5.0, 6.0)], 3).shape
    torch.Size([3, 2])
    """
    if count < 1:
        raise ValueError(f"starts must be at least 1, got {count}")
    low, high = np.array(bounds).T
    return torch.from_numpy(np.random.default_rng(seed).uniform(low, high, (count, len(low))))


def median_final_loss(descent: Descent) -> float:
    """Return the median final loss over the starts; runs that diverged count as infinite."""
    return float(np.median(np.nan_to_num(descent.losses[:, -1], nan=math.inf)))
