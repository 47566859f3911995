"""The headline of the page: a study's result in a few sentences."""

from collections.abc import Sequence

from steppe._shared.statistics import Comparison
from steppe.compare.records.results import StudyResults
from steppe.compare.records.summary import OptimizerSummary, against_controls
from steppe.compare.report.formatting import format_interval, unit_of_change
from steppe.compare.report.page.units import score_decimals
from steppe.compare.report.verdicts import BETTER, TOO_FEW_SEEDS, WORSE, verdict


def headline(results: StudyResults, rows: Sequence[OptimizerSummary], baseline: str) -> list[str]:
    """Name who is better and who is worse than the baseline on the test score.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.
    rows : sequence of OptimizerSummary
        Its summary against the baseline.
    baseline : str
        The contender that the others are compared with.
    """
    rest = [] if results.complete else ["Not finished: this is how it stands."]
    reason = _why_nothing_can_be_compared(rows, baseline)
    return [*([reason] if reason else _findings(results, rows, baseline)), *rest]


def _why_nothing_can_be_compared(rows: Sequence[OptimizerSummary], baseline: str) -> str:
    """Return why nothing can be compared; empty if something can."""
    if not any(row.runs for row in rows):
        return "No test run has ended yet."
    successful = {row.name for row in rows if row.runs > row.diverged + row.failed}
    if not successful:
        return "All test runs diverged or failed: there is nothing to compare."
    if len(rows) == 1:
        return f"{baseline} is alone: there is nothing to compare it with."
    if baseline not in successful:
        return f"No test run of {baseline} came to an end: there is nothing to compare with."
    return ""


def _findings(results: StudyResults, rows: Sequence[OptimizerSummary], baseline: str) -> list[str]:
    metric, digits = results.metric, score_decimals(rows)
    changes = {row.name: row.score_change for row in rows if row.score_change}
    verdicts = {name: verdict(each, metric.higher_is_better) for name, each in changes.items()}
    score = f"test {metric.name}"
    if set(verdicts.values()) == {TOO_FEW_SEEDS}:
        return [f"Too few seeds to tell anyone from {baseline} on {score}."]

    def written(name: str, found: Comparison) -> str:
        return f"{name} by {format_interval(found.difference, digits, sign=True)}"

    better, worse = (
        [written(name, changes[name]) for name in changes if verdicts[name] == wanted]
        for wanted in (BETTER, WORSE)
    )
    beside = [
        f"{each.name} beside its control {each.control}: "
        f"{verdict(each.score, metric.higher_is_better)}, "
        f"{format_interval(each.score.difference, digits, sign=True)}."
        for each in against_controls(results)
        if verdicts.get(each.name) == BETTER
    ]
    change = f"({score}{unit_of_change(metric)})"
    if not better:
        first = f"Nobody beats {baseline} on {score} beyond the noise between seeds."
    else:
        first = f"Better than {baseline} {change}: {'; '.join(better)}."
    return [first, *beside, *([f"Worse than {baseline}: {'; '.join(worse)}."] if worse else [])]
