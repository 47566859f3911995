"""How the page labels and rounds scores."""

from collections.abc import Iterable

from steppe.compare.records.results import Metric
from steppe.compare.records.summary import OptimizerSummary
from steppe.compare.report.formatting import decimals

# Of 97.53 % the last is the second decimal.
_DIGITS = 4


def score_label(metric: Metric, which: str) -> str:
    """Return a score's name with its unit.

    Examples
    --------
    >>> score_label(Metric(), "test"), score_label(Metric("perplexity", "", 1.0, False), "test")
    ('test accuracy, %', 'test perplexity')
    """
    return ", ".join(filter(None, (f"{which} {metric.name}", metric.unit)))


def score_decimals(rows: Iterable[OptimizerSummary]) -> int:
    """Count the decimals that scores and their differences are written with."""
    return decimals([row.score.mean for row in rows], _DIGITS)
