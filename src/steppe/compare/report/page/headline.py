"""A study in a few sentences."""

from collections.abc import Sequence

from steppe._shared.statistics import Comparison
from steppe.compare.records.results import StudyResults
from steppe.compare.records.summary import OptimizerSummary, against_controls
from steppe.compare.report.formatting import unit_of_change, verdict, with_interval
from steppe.compare.report.page.units import score_decimals


def headline(results: StudyResults, rows: Sequence[OptimizerSummary], baseline: str) -> list[str]:
    """Say who beats the baseline on the test score, who is beaten, and whether that is all."""
    rest = [] if results.complete else ["Not finished: this is how it stands."]
    obstacle = _obstacle(rows, baseline)
    return [*([obstacle] if obstacle else _findings(results, rows, baseline)), *rest]


def _obstacle(rows: Sequence[OptimizerSummary], baseline: str) -> str:
    """Say why nothing can be compared; empty if it can."""
    if not any(row.runs for row in rows):
        return "No test run has ended yet."
    whole = {row.name for row in rows if row.runs > row.diverged + row.failed}
    if not whole:
        return "All test runs diverged or failed: there is nothing to compare."
    if len(rows) == 1:
        return f"{baseline} is alone: there is nothing to compare it with."
    if baseline not in whole:
        return f"No test run of {baseline} came to an end: there is nothing to compare with."
    return ""


def _findings(results: StudyResults, rows: Sequence[OptimizerSummary], baseline: str) -> list[str]:
    metric, digits = results.metric, score_decimals(rows)
    changes = {row.name: row.score_change for row in rows if row.score_change}
    said = {name: verdict(each, metric.higher_is_better) for name, each in changes.items()}
    score = f"test {metric.name}"
    if set(said.values()) == {"too few seeds"}:
        return [f"Too few seeds to tell anyone from {baseline} on {score}."]

    def written(name: str, found: Comparison) -> str:
        return f"{name} by {with_interval(found.difference, digits, sign=True)}"

    better, worse = (
        [written(name, changes[name]) for name in changes if said[name] == word]
        for word in ("better", "worse")
    )
    beside = [
        f"{each.name} beside its control {each.control}: "
        f"{verdict(each.score, metric.higher_is_better)}, "
        f"{with_interval(each.score.difference, digits, sign=True)}."
        for each in against_controls(results)
        if said.get(each.name) == "better"
    ]
    change = f"({score}{unit_of_change(metric)})"
    if not better:
        first = f"Nobody beats {baseline} on {score} beyond the noise between seeds."
    else:
        first = f"Better than {baseline} {change}: {'; '.join(better)}."
    return [first, *beside, *([f"Worse than {baseline}: {'; '.join(worse)}."] if worse else [])]
