"""Descents of several optimizers at several learning rates, which several figures show."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from steppe._shared.hyperparameters import PUBLISHED_RHO, PUBLISHED_SWITCH
from steppe._shared.progress import progress
from steppe.functions import Function
from steppe.play.descent import Descent
from steppe.play.end_points import GLOBAL, ends
from steppe.play.results import Player
from steppe.play.sweep import plan

_CONFIDENCE = 0.95


def sweep(
    function: str,
    *,
    optimizers: Sequence[str],
    rates: Sequence[float],
    starts: Tensor,
    steps: int,
    shown: int,
) -> dict[str, Any]:
    """Run every optimizer at every learning rate, and keep each one's best.

    The learning rate falls to 0 along half a cosine: what explores at a constant one never settles.

    Returns
    -------
    dict
        ``play``: each optimizer at the learning rate whose median final loss was the lowest, with
        the paths of the first ``shown`` starts, see :meth:`steppe.play.results.Play.to_dict`.
        ``starts``: how many there are. ``rates``, and at each of them, by optimizer, ``reached``:
        the share of all starts that ended at a global minimum, and its 95 % interval (Wilson's).
    """
    match = plan(
        function,
        optimizers=optimizers,
        rates=rates,
        steps=steps,
        starts=starts.tolist(),
        switch=PUBLISHED_SWITCH,
        rho=PUBLISHED_RHO,
        schedule="cosine",
    )
    with progress(function, len(rates) * len(optimizers)) as advance:
        tries = {recipe.name: match.tries(recipe, advance) for recipe in match.recipes}
    players = [_first(match.best(tried), shown) for tried in tries.values()]
    return {
        "play": match.shown(players).to_dict(),
        "starts": len(starts),
        "rates": list(rates),
        "reached": {
            name: [_reached(match.function, descent) for descent in tried.values()]
            for name, tried in tries.items()
        },
    }


def _first(player: Player, count: int) -> Player:
    """Keep the paths of the first starts, and the losses of all."""
    few = replace(player.descent, points=player.descent.points[:count])
    return replace(player, descent=few, ends=player.ends[:count])


def _reached(function: Function, descent: Descent) -> Mapping[str, float]:
    from scipy.stats import binomtest

    found = [end.kind == GLOBAL for end in ends(function, descent)]
    counted = binomtest(sum(found), len(found))
    interval = counted.proportion_ci(_CONFIDENCE, method="wilson")
    return {"share": counted.statistic, "low": interval.low, "high": interval.high}
