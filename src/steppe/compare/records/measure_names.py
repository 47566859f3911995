"""The names of what is measured with changed weights and inputs, and what they say."""

from typing import NamedTuple

#: The results without any perturbation, on the same samples.
CLEAN = "clean"
#: The mean over all corruptions of inputs.
CORRUPTED = "corrupted inputs"

#: What has the task's metric, besides perturbations.
OF_SCORES = (CLEAN, CORRUPTED)
#: Numbers of a model of which less is better, whatever the metric is.
NOT_SCORES = ("kurtosis", "outliers", "calibration error", "Brier score")

#: Groups of measures whose weights are changed.
ROUNDING = "bits"
WEIGHTS = (ROUNDING, "weight noise")


class MeasureName(NamedTuple):
    """A measure's name in parts, as "3 bits absmax" is ("bits absmax", 3).

    ``amount`` is None where the name has none.
    """

    group: str
    amount: float | None


def split_name(measure: str) -> MeasureName:
    """Return what is measured, and how much of it.

    Examples
    --------
    >>> split_name("3 bits absmax"), split_name("blur 5").group, split_name("kurtosis").amount
    (MeasureName(group='bits absmax', amount=3.0), 'blur', None)
    """
    words = measure.split()
    for place in (0, -1):
        try:
            amount = float(words[place])
        except ValueError:
            continue
        return MeasureName(" ".join(words[1:] if place == 0 else words[:-1]), amount)
    return MeasureName(measure, None)


def is_rounding(group: str) -> bool:
    """Whether a kind of perturbation is rounding, of which fewer bits are stronger.

    Examples
    --------
    >>> is_rounding("bits absmax"), is_rounding("weight noise")
    (True, False)
    """
    return group.startswith(ROUNDING)
