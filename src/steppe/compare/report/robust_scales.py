"""How kinds of perturbations are called on the page and in pictures."""

from collections.abc import Iterable

from steppe.compare.records.robustness import is_rounding, split_name


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
