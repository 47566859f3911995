"""Descents of several optimizers at several learning rates, which several figures show."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from steppe.functions import find_function
from steppe.landscape.lanczos import Floats
from steppe.landscape.progress import progress
from steppe.play.ends import GLOBAL
from steppe.play.match import plan
from steppe.play.results import Player

SWITCH = 0.16  # DualAdam's 1/ξ as a share of the run, as published
RHO = 0.05  # SAM's radius, as published


def draw_starts(function: str, count: int, reach: float | None = None) -> Floats:
    """Draw starting points evenly from the function's bounds, or from within ``reach`` of 0."""
    bounds = find_function(function).bounds
    low, high = np.array(bounds if reach is None else [(-reach, reach)] * len(bounds)).T
    return np.random.default_rng(0).uniform(low, high, (count, len(low)))


def sweep(
    function: str,
    *,
    optimizers: Sequence[str],
    rates: Sequence[float],
    starts: Floats,
    steps: int,
    parameters: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Run every optimizer at every learning rate, and keep each one's best.

    The learning rate falls to 0 along half a cosine: what explores at a constant one never settles.

    Returns
    -------
    dict
        ``play``: each optimizer at the learning rate whose median final loss was the lowest, see
        :meth:`steppe.play.results.Play.to_dict`. ``rates``, and at each of them, by optimizer,
        ``reached``: the share of the starts that ended at a global minimum.
    """
    plays = []
    with progress(function, len(rates) * len(optimizers)) as advance:
        for lr in rates:
            match = plan(
                function,
                optimizers=optimizers,
                rates=[lr],
                steps=steps,
                starts=starts.tolist(),
                parameters=parameters,
                switch=SWITCH,
                rho=RHO,
                schedule="cosine",
            )
            plays.append(match.play(advance))
    ways = list(zip(*(play.players for play in plays), strict=True))
    best = [_best(players) for players in ways]
    first = plays[0]
    kept = replace(first, players=best)
    return {
        "play": kept.to_dict(),
        "rates": list(rates),
        "reached": {
            players[0].name: [player.count(GLOBAL) / len(player.ends) for player in players]
            for players in ways
        },
    }


def _best(players: Sequence[Player]) -> Player:
    """Take the lowest median final loss of one optimizer's; keep those of all rates."""
    found = min(players, key=lambda player: player.loss)
    return Player(found.descent, found.ends, {player.lr: player.loss for player in players})
