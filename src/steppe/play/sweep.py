"""Let optimizers descend on one function, each tried at the same learning rates."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steppe._shared.names import named
from steppe._shared.plurals import many
from steppe._shared.recipes import Recipe, find_recipe
from steppe.functions import Function, find_function
from steppe.play.descent import SCHEDULES, Descent, check_recipe, descend
from steppe.play.end_points import ends
from steppe.play.results import Play, Player


@dataclass(frozen=True)
class Sweep:
    """What is to be played; everything has been checked.

    Attributes
    ----------
    function : Function
        What is minimised.
    parameters : mapping
        What it was made with.
    recipes : sequence of Recipe
        The optimizers.
    rates : sequence of float
        The learning rates, which every optimizer is tried at.
    starts : Tensor
        Shape (starts, dimension), float64.
    steps : int
        Of every run.
    switch : float
        1/ξ as a share of the steps, for what takes it.
    rho : float
        SAM's radius, for what takes it.
    schedule : str
        Of lr: "constant" or "cosine".
    noise : float
        Standard deviation of the noise of the gradient's components.
    seed : int
        Of the noise.
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

    def play(self, advance: Callable[[int], None] = lambda descents: None) -> Play:
        """Run all, and keep of each optimizer what had the lowest median final loss.

        Parameters
        ----------
        advance : callable
            Called with 1 after each of the ``len(recipes)·len(rates)`` descents.
        """
        return self.shown([self.best(self.tries(recipe, advance)) for recipe in self.recipes])

    def tries(
        self, recipe: Recipe, advance: Callable[[int], None] = lambda descents: None
    ) -> dict[float, Descent]:
        """Run one optimizer at every learning rate."""
        tried = {}
        for lr in self.rates:
            tried[lr] = self._descent(recipe, lr)
            advance(1)
        return tried

    def best(self, tried: Mapping[float, Descent]) -> Player:
        """Take the descent with the lowest median final loss."""
        losses = {lr: median_final_loss(descent) for lr, descent in tried.items()}
        best = tried[min(losses, key=lambda lr: losses[lr])]
        return Player(best, ends(self.function, best), losses)

    def shown(self, players: Sequence[Player]) -> Play:
        """Put together what is shown."""
        return Play(
            self.function,
            self.parameters,
            players,
            self.steps,
            self.schedule,
            self.noise,
            self.seed,
        )

    def _descent(self, recipe: Recipe, lr: float) -> Descent:
        known: dict[str, Any] = {"lr": lr, "switch": self.switch, "rho": self.rho}
        settings = {name: value for name, value in known.items() if recipe.takes(name)}
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


def plan(
    function: str,
    *,
    optimizers: Sequence[str],
    rates: Sequence[float],
    steps: int,
    starts: Sequence[Sequence[float]] = (),
    drawn: int = 10,
    parameters: Mapping[str, float] | None = None,
    switch: float,
    rho: float,
    schedule: str = "constant",
    noise: float = 0.0,
    seed: int = 0,
) -> Sweep:
    """Find everything by name, and check it.

    Parameters
    ----------
    function, parameters
        See :func:`steppe.functions.find_function`.
    optimizers : sequence of str
        See :func:`steppe._shared.recipes.find_recipe`.
    starts : sequence of points
        None: ``drawn`` of them, evenly from the function's bounds.
    rates, steps, switch, rho, schedule, noise, seed
        See :class:`Sweep`.

    Raises
    ------
    ValueError
        Something is unknown or out of range.
    """
    parameters = dict(parameters or {})
    try:
        made = find_function(function, **parameters)
    except TypeError as error:  # such as a dimension of 2.5, which was typed in
        raise ValueError(str(error)) from error
    recipes = _recipes(optimizers)
    for lr in rates:
        if not 0 < lr < math.inf:
            raise ValueError(f"lr must be a finite number > 0, got {lr}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < switch <= 1:
        raise ValueError(f"switch must be in (0, 1], got {switch}")
    for name, value in (("rho", rho), ("noise", noise)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number ≥ 0, got {value}")
    named("schedule", schedule, SCHEDULES)
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    points = _given(made, starts) if starts else draw_starts(made.bounds, drawn, seed)
    # Each once, however often it was named.
    distinct = list(dict.fromkeys(rates))
    return Sweep(
        made, parameters, recipes, distinct, points, steps, switch, rho, schedule, noise, seed
    )


def _recipes(names: Sequence[str]) -> list[Recipe]:
    recipes = {recipe.name: recipe for recipe in map(find_recipe, names)}
    for recipe in recipes.values():
        check_recipe(recipe)
        if recipe.doubled:
            raise ValueError(
                f"{recipe.name} is tried at the same learning rates as all: name {recipe.name!r} "
                "without +2lr"
            )
    return list(recipes.values())


def _given(function: Function, starts: Sequence[Sequence[float]]) -> Tensor:
    for start in starts:
        written = ",".join(f"{value:g}" for value in start)
        if len(start) != function.dimension:
            raise ValueError(
                f"a start on {function.name} has {many(function.dimension, 'coordinate')}, "
                f"got {written}"
            )
        if not all(map(math.isfinite, start)):
            raise ValueError(f"a start must be finite, got {written}")
    return torch.tensor(starts, dtype=torch.float64)


def draw_starts(bounds: Sequence[tuple[float, float]], count: int, seed: int = 0) -> Tensor:
    """Draw starting points evenly from within bounds, one pair for each coordinate.

    Raises
    ------
    ValueError
        ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"starts must be at least 1, got {count}")
    low, high = np.array(bounds).T
    return torch.from_numpy(np.random.default_rng(seed).uniform(low, high, (count, len(low))))


def median_final_loss(descent: Descent) -> float:
    """Return the median over the starts; those that diverged count as infinite."""
    return float(np.median(np.nan_to_num(descent.losses[:, -1], nan=math.inf)))
