"""How kinds of perturbations, and axes of what is left, look on the page and in pictures."""

import math
from collections.abc import Iterable
from typing import Literal

from steppe.compare.records.measure_names import is_rounding, split_name

# An axis is logarithmic where its highest value is so many times the lowest.
_WIDE = 20.0


def scale_label(group: str) -> str:
    """Return what a kind of perturbations is called in a list of them.

    Examples
    --------
    >>> scale_label("bits least error"), scale_label("blur")
    ('rounding, least error', 'blur')
    """
    return f"rounding, {group.removeprefix('bits ')}" if is_rounding(group) else group


def axis_label(group: str) -> str:
    """Return the title of an axis of amounts.

    Examples
    --------
    >>> axis_label("bits absmax")
    'bits of each weight, absmax scales'
    >>> axis_label("weight noise"), axis_label("blur")
    ('noise on weights, in standard deviations', 'severity of blur')
    """
    if is_rounding(group):
        return f"bits of each weight, {group.removeprefix('bits ')} scales"
    if group == "weight noise":
        return "noise on weights, in standard deviations"
    return f"severity of {group}"


def amounts(measures: Iterable[str]) -> list[str]:
    """Return the amounts of perturbations of one kind as the ticks of an axis.

    Examples
    --------
    >>> amounts(["4 bits absmax", "3 bits absmax"]), amounts(["weight noise 0.5"])
    (['4', '3'], ['0.5'])
    """
    return [f"{split_name(each).amount:g}" for each in measures]


def level_scale(values: Iterable[float]) -> Literal["linear", "log"]:
    """Return how an axis of scores is scaled: accuracies fall, but perplexities multiply.

    Examples
    --------
    >>> level_scale([97.0, 12.0]), level_scale([80.0, 4000.0]), level_scale([0.0, 90.0])
    ('linear', 'log', 'linear')
    """
    known = [value for value in values if math.isfinite(value)]
    lowest, highest = min(known, default=0.0), max(known, default=0.0)
    return "log" if 0 < _WIDE * lowest < highest else "linear"
