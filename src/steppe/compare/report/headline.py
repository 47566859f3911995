"""A study's result in a few sentences, the same in the terminal and at the top of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from steppe._shared.messages import plural
from steppe._shared.statistics import Interval
from steppe.compare.records.results import PHASES, POOL, StudyPlan, StudyResults
from steppe.compare.records.summary import OptimizerSummary
from steppe.compare.records.trials_needed import fewest_trials, smallest_p
from steppe.compare.records.verdicts import (
    BETTER,
    EXPLORATORY,
    NO_DIFFERENCE,
    WORSE,
    Readings,
    Verdict,
)
from steppe.compare.report.formatting import (
    decimals,
    format_interval,
    format_number,
    format_p_value,
    join_with_and,
    unit_of_change,
)
from steppe.compare.report.units import reading_decimals

_UNFINISHED = (
    "Not finished: {ended} of {planned} trials have ended. Until all have, no test result is shown "
    "and nothing is concluded."
)
_CHANGED = (
    "The plan was changed {times} after test results may have been seen: verdicts are withheld, "
    "and everything here is exploratory. For verdicts, plan a new study, with another --study-seed "
    "or --out-dir."
)
_PLAN_CHANGED = (
    "The study in this directory has ended and its results could be seen: another plan gets no "
    "verdicts. For verdicts, take another study seed or directory."
)
_PARTS = {
    "trials": "random settings and seeds",
    "test": "the test samples",
    "validation": "the validation samples",
}


@dataclass(frozen=True)
class Headline:
    """What is to be read first.

    Attributes
    ----------
    findings : list of str
        A sentence for each contender; why there are none, where there are none.
    plan : list of str
        What was declared beforehand, and what it can find out.
    """

    findings: list[str]
    plan: list[str]


def headline(readings: Readings, rows: Sequence[OptimizerSummary]) -> Headline:
    """Say what a study has found about its primary reading, and what its plan was.

    Parameters
    ----------
    readings : Readings
        Those of a study, finished or not.
    rows : sequence of OptimizerSummary
        Its summary.
    """
    results = readings.results
    if not results.complete:
        planned = sum(
            results.plan.planned(each, phase) for each in results.contenders for phase in PHASES
        )
        unfinished = _UNFINISHED.format(ended=len(results.trials), planned=planned)
        return Headline([unfinished], [_plan(readings), *_changed(results)])
    plan = [*_without_result(readings), _plan(readings), *_changed(results)]
    if reason := _why_nothing_can_be_compared(readings, rows):
        return Headline([reason], plan)
    digits = reading_decimals(rows, results.plan.primary)
    family = [each for each in readings.verdicts if each.verdict != EXPLORATORY]
    findings = [_finding(readings, each, digits) for each in family]
    added = [each.optimizer for each in readings.verdicts if each.verdict == EXPLORATORY]
    if added:
        findings.append(
            f"{join_with_and(added)}: added by the study to be read beside others, without a "
            "verdict."
        )
    power = _power(readings, [each.optimizer for each in family]) if family else []
    return Headline(findings, [*plan, *power, _promises(readings, rows)])


def _why_nothing_can_be_compared(readings: Readings, rows: Sequence[OptimizerSummary]) -> str:
    """Return why nothing can be compared; empty if something can."""
    baseline = readings.results.baseline
    successful = {row.name for row in rows if row.trials > row.diverged}
    if not successful:
        return (
            "All trials diverged, failed, or ended without a result: there is nothing to compare."
        )
    if len(rows) == 1:
        return f"{baseline} is alone: there is nothing to compare it with."
    return ""


def _finding(readings: Readings, found: Verdict, digits: int) -> str:
    name, baseline = found.optimizer, found.baseline
    said = {
        BETTER: f"{name} is better than {baseline}",
        WORSE: f"{name} is worse than {baseline}",
        NO_DIFFERENCE: f"{name}: no difference from {baseline} seen",
    }.get(found.verdict, f"{name}: {found.verdict}")
    change = Interval(found.estimate, found.low, found.high)
    sentence = (
        f"{said}: test {found.metric} {format_interval(change, digits, sign=True)}"
        f"{_unit(readings)}, p {format_p_value(found.p)}."
    )
    if found.verdict in (BETTER, WORSE) and found.low <= 0 <= found.high:
        sentence += (
            " The interval, which has the test samples' share in it, contains 0: another test set "
            "may say otherwise."
        )
    return sentence


def _unit(readings: Readings) -> str:
    if readings.results.plan.primary == "loss":
        return ""
    return unit_of_change(readings.results.metric).replace(",", "")


def _plan(readings: Readings) -> str:
    results = readings.results
    plan, size = results.plan, len(results.plan.family)
    when = f"Planned on {results.created}" if results.created else "Planned beforehand"
    return (
        f"{when}: the expected test {readings.label(plan.primary)} of the best of k = "
        f"{plan.budget} of N = {plan.trials} trials by validation, one family of "
        f"{plural(size, 'comparison')} with {results.baseline} corrected after Holm, study seed "
        f"{plan.study_seed}."
    )


def _changed(results: StudyResults) -> list[str]:
    times = len(results.earlier_plans)
    return [_CHANGED.format(times="once" if times == 1 else f"{times} times")] if times else []


# Errors below it are those of adding up numbers that are all alike.
_ROUNDING = 1e-9


def _power(readings: Readings, family: Sequence[str]) -> list[str]:
    """Say the smallest difference the plan would find, and where the error comes from."""
    plan, baseline = readings.results.plan, readings.results.baseline
    if not readings.can_decide:
        return [_too_few_trials(plan)]
    # Where all trials are alike there is no error, and no difference to be found.
    sizes = {name: size for name in family if (size := readings.detectable(name)) > _ROUNDING}
    if not sizes:
        return ["All trials came to the same as the baseline's, so there was nothing to find."]
    smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    shown = {name: format_number(size, decimals([size], 2)) for name, size in sizes.items()}
    found = f"{shown[smallest]} ({smallest})"
    if smallest != largest:
        found += f" to {shown[largest]} ({largest})"
    shares = [
        readings.difference(name, baseline, plan.primary, plan.budget).shares for name in family
    ]
    has_test, has_validation = readings.has_samples
    known = {"trials": True, "test": has_test, "validation": has_validation}
    errors = {
        part: math.sqrt(sum(getattr(each, part) ** 2 for each in shares) / len(shares))
        for part in _PARTS
        if known[part]
    }
    ordered = sorted(errors, key=lambda part: -errors[part])
    error_digits = decimals([max(errors.values())], 2)
    parts = [f"{_PARTS[part]} {format_number(errors[part], error_digits)}" for part in ordered]
    return [
        f"The smallest difference this plan would find in 80 % of studies, after Holm: {found} "
        f"in test {readings.label(plan.primary)}{_unit(readings)}.",
        f"The largest part of the error comes from {_PARTS[ordered[0]]}. Standard errors, on "
        f"average: {join_with_and(parts)}.",
    ]


def forewarnings(plan: StudyPlan, *, changed: bool) -> list[str]:
    """Say before training why there can be no verdicts; empty if there can.

    Parameters
    ----------
    plan : StudyPlan
        The plan.
    changed : bool
        Whether results could be seen under an earlier plan.
    """
    return [each for each in (_too_few_trials(plan), _PLAN_CHANGED if changed else "") if each]


def _too_few_trials(plan: StudyPlan) -> str:
    size = len(plan.family)
    if not size or plan.trials >= (needed := fewest_trials(size)):
        return ""
    return (
        f"With {plan.trials} trials p is never below {smallest_p(plan.trials):.2g}, whatever the "
        f"difference: for a verdict in a family of {plural(size, 'comparison')} take at least "
        f"{needed} trials, and for usual differences {max(24, needed)} or more."
    )


def _without_result(readings: Readings) -> list[str]:
    """Say which trials ended with a finite loss, and with a result that is no number."""
    results, label = readings.results, readings.label(readings.results.plan.primary)
    found = {}
    for each in results.contenders:
        outcomes = [t.finite_outcome for t in results.trials_of(each.name, POOL)]
        found[each.name] = sum(o is not None and not readings.has_result(o) for o in outcomes)
    counts = [f"{count} of {name}" for name, count in found.items() if count]
    if not counts:
        return []
    return [
        f"No {label} (NaN), though a finite loss, have {join_with_and(counts)}, of "
        f"{plural(results.plan.trials, 'trial')} each: they count as the worst."
    ]


def _promises(readings: Readings, rows: Sequence[OptimizerSummary]) -> str:
    broken = {row.name: row.broken_promises for row in rows if row.broken_promises}
    total = sum(row.trials for row in rows)
    outside = "Rare failures that validation does not show are outside of what a verdict promises."
    if not broken:
        return f"None of {total} trials fell far short of its validation result. {outside}"
    shares = [f"{name} {count}" for name, count in broken.items()]
    count = sum(broken.values())
    return (
        f"{count} of {total} trials ({100 * count / total:.1f} %) fell far short of their "
        f"validation result on the test set: {join_with_and(shares)}. {outside}"
    )
