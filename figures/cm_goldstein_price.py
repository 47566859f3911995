"""Trajectories on Goldstein and Price's function: who reaches the global minimum.

Claim (critical momenta, Malviya et al. 2024, arXiv 2307.09638): where others get stuck in
suboptimal places, Adam+CM explores a lower part of the surface and reaches the global minimum.

Came out: not so. From 50 places in the usual domain, at the lr where each gets there most often,
Adam and Adam+SAM end at the global minimum from 26 %, AdamCM and AdamCM+SAM from 18 %, AdamCG from
16 %, where the intervals reach 10 points to both sides: no difference can be seen in that. Their
median final losses at the best lr are 30 and 84, the latter a local minimum's. Values here reach a
million, and at rates where Adam is at its best the remembered momenta of the first, steep steps
throw critical momenta about.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from figures.descents import sweep
from figures.paths import draw_sweep
from steppe.functions import goldstein_price
from steppe.play import draw_starts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OPTIMIZERS = ("adam", "adamcg", "adam+sam", "adamcm", "adamcm+sam")
_RATES = (1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def measure(
    *, steps: int = 500, starts: int = 50, rates: tuple[float, ...] = _RATES
) -> dict[str, Any]:
    """Descend from the same random starts with every optimizer at every learning rate."""
    return sweep(
        "goldstein-price",
        optimizers=_OPTIMIZERS,
        rates=rates,
        starts=draw_starts(goldstein_price().bounds, starts),
        steps=steps,
        shown=10,
    )


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw each optimizer's paths at its best learning rate, and who arrived at which."""
    return draw_sweep(data)
