"""Descents of several optimizers at several learning rates, which several figures show."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from steppe._shared.progress import progress
from steppe.functions import Function
from steppe.play import GLOBAL, Descent, OptimizerResult, classify_ends, plan_sweep

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

    The learning rate falls to 0 along half a cosine. At a constant one, optimizers that explore
    never settle.

    Returns
    -------
    dict
        ``play``: each optimizer at the learning rate whose median final loss was the lowest, with
        the paths of the first ``shown`` starts, see :meth:`steppe.play.SweepResult.to_dict`.
        ``starts``: how many there are. ``rates``, and at each of them, by optimizer, ``reached``:
        the share of all starts that ended at a global minimum, and its 95 % interval (Wilson's).
    """
    planned = plan_sweep(
        function,
        optimizers=optimizers,
        rates=rates,
        steps=steps,
        starts=starts.tolist(),
        schedule="cosine",
    )
    with progress(function, len(rates) * len(optimizers)) as advance:
        descents = {recipe.name: planned.descents(recipe, advance) for recipe in planned.recipes}
    shown_results = [_first(planned.best(tried), shown) for tried in descents.values()]
    return {
        "play": planned.result(shown_results).to_dict(),
        "starts": len(starts),
        "rates": list(rates),
        "reached": {
            name: [_reached(planned.function, descent) for descent in tried.values()]
            for name, tried in descents.items()
        },
    }


def _first(optimizer: OptimizerResult, count: int) -> OptimizerResult:
    """Return a result with the paths of the first starts only, and the losses of all."""
    few = replace(optimizer.descent, points=optimizer.descent.points[:count])
    return replace(optimizer, descent=few, end_points=optimizer.end_points[:count])


def _reached(function: Function, descent: Descent) -> Mapping[str, float]:
    from scipy.stats import binomtest

    found = [end.kind == GLOBAL for end in classify_ends(function, descent)]
    counted = binomtest(sum(found), len(found))
    interval = counted.proportion_ci(_CONFIDENCE, method="wilson")
    return {"share": counted.statistic, "low": interval.low, "high": interval.high}
