"""A study in one or two sentences."""

from collections.abc import Sequence

from steppe.compare.page.units import points, score_decimals
from steppe.compare.results import StudyResults
from steppe.compare.summary import Row
from steppe.compare.wording import verdict, with_interval


def headline(results: StudyResults, rows: Sequence[Row], baseline: str) -> list[str]:
    """Say who beats the baseline on the test score, who is beaten, and whether that is all."""
    rest = [] if results.complete else ["Not finished: this is how it stands."]
    return [*_findings(results, rows, baseline), *rest]


def _findings(results: StudyResults, rows: Sequence[Row], baseline: str) -> list[str]:
    if not any(row.runs for row in rows):
        return ["No test run has ended yet."]
    whole = {row.name for row in rows if row.runs > row.diverged + row.failed}
    if not whole:
        return ["All test runs diverged or failed: there is nothing to compare."]
    if len(rows) == 1:
        return [f"{baseline} is alone: there is nothing to compare it with."]
    if baseline not in whole:
        return [f"No test run of {baseline} came to an end: there is nothing to compare with."]
    return _sentences(results, _differences(results, rows), baseline)


def _differences(results: StudyResults, rows: Sequence[Row]) -> dict[str, list[str]]:
    """Gather the optimizers and their differences by verdict."""
    metric, digits = results.metric, score_decimals(rows)
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.score_change:
            size = with_interval(row.score_change.difference, digits, sign=True)
            said = verdict(row.score_change, metric.higher_is_better)
            found.setdefault(said, []).append(f"{row.name} by {size}")
    return found


def _sentences(results: StudyResults, found: dict[str, list[str]], baseline: str) -> list[str]:
    score = f"test {results.metric.name}"
    if set(found) == {"too few seeds"}:
        return [f"Too few seeds to tell anyone from {baseline} on {score}."]
    better, worse = found.get("better"), found.get("worse")
    unit = f" ({points(results.metric)})" if results.metric.unit else ""
    first = f"Nobody beats {baseline} on {score} beyond the noise between seeds."
    if better:
        first = f"Better than {baseline} on {score}{unit}: {'; '.join(better)}."
    return [first, f"Worse than {baseline}{unit}: {'; '.join(worse)}."] if worse else [first]
