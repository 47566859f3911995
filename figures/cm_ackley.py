"""Loss and trajectories on Ackley's function, a cone with many dents.

Claim (critical momenta, Malviya et al. 2024, arXiv 2307.09638): Adam, Adam+CG and Adam+SAM end in
dents far from the middle; Adam+CM, alone and with SAM, overshoots them and gets lower.

Came out, with lr falling to 0 along a cosine, from 50 starts: as claimed, and not only of Adam+CM.
At lr 0.1 AdamCM, alone and with SAM, ends in the middle from all of them, Adam and Adam+SAM from
none; at the best of the lr tried for each, 0.3 and 1, these do from 10 % and 30 %. AdamCG gets
there from 94 %, less close. Hardly anybody does at 0.03 or at 3. At a constant lr those with a
buffer keep swinging about the middle and do not settle. The grid holds the control, Adam at twice
AdamCM's lr, and beyond.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from figures.descents import sweep
from figures.paths import draw_sweep
from steppe.functions import ackley
from steppe.play import draw_starts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OPTIMIZERS = ("adam", "adamcg", "adam+sam", "adamcm", "adamcm+sam")
_RATES = (3e-2, 1e-1, 3e-1, 1.0, 3.0)


def measure(
    *, steps: int = 500, seeds: int = 50, rates: tuple[float, ...] = _RATES
) -> dict[str, Any]:
    """Descend from random starts with every optimizer at every learning rate."""
    return sweep(
        "ackley",
        optimizers=_OPTIMIZERS,
        rates=rates,
        starts=draw_starts(ackley().bounds, seeds),
        steps=steps,
        shown=10,
    )


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw each optimizer's paths at its best learning rate, losses, and who arrived at which."""
    return draw_sweep(data)
