"""How readings are labelled and rounded: the task's score, or the loss."""

from collections.abc import Iterable

from steppe.compare.records.choices import Primary
from steppe.compare.records.results import MetricDescription
from steppe.compare.records.summary import OptimizerSummary
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.formatting import decimals, unit_of_change

# Of 97.53 % the last is the second decimal.
_DIGITS = 4
_LOSS_DIGITS = 4


def score_label(metric: MetricDescription, which: str) -> str:
    """Return a score's name with its unit.

    Examples
    --------
    >>> score_label(MetricDescription(), "test")
    'test accuracy, %'
    >>> score_label(MetricDescription("perplexity", "", 1.0, False), "test")
    'test perplexity'
    """
    return ", ".join(filter(None, (f"{which} {metric.name}", metric.unit)))


def reading_label(readings: Readings, reading: Primary) -> str:
    """Return a reading's name on the test set, with its unit."""
    return "test loss" if reading == "loss" else score_label(readings.results.metric, "test")


def change_label(readings: Readings, reading: Primary) -> str:
    """Return the name of a difference on the test set, with its unit."""
    unit = "" if reading == "loss" else unit_of_change(readings.results.metric)
    return f"test {readings.label(reading)}{unit}"


def aim(readings: Readings, reading: Primary) -> str:
    """Return which way a reading is to go."""
    return "aim: higher" if readings.higher_is_better(reading) else "aim: lower"


def other_reading(readings: Readings) -> Primary:
    """Return the reading that the plan has not declared as primary."""
    return "loss" if readings.results.plan.primary == "score" else "score"


def reading_decimals(rows: Iterable[OptimizerSummary], reading: Primary) -> int:
    """Count the decimals that a reading and its differences are written with."""
    if reading == "loss":
        return decimals([row.loss.mean for row in rows], _LOSS_DIGITS)
    return decimals([row.score.mean for row in rows], _DIGITS)
