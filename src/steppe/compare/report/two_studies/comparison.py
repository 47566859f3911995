"""Compare what two studies of one task say of the same optimizers.

``steppe report STUDY OTHER`` prints it by ``output.py``.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from steppe._shared.statistics import LEVEL, Interval, t_quantile
from steppe.compare.records.best_of_k import degrees_of_freedom
from steppe.compare.records.choices import Primary
from steppe.compare.records.results import StudyResults
from steppe.compare.records.verdicts import BETTER, NO_DIFFERENCE, WORSE, Readings


@dataclass(frozen=True)
class SharedContender:
    """An optimizer that both studies have.

    Attributes
    ----------
    name : str
        The optimizer.
    ours, theirs : Interval
        The expected test result of the best of k in each study.
    apart : Interval
        Ours − theirs.
    our_change, their_change : Interval
        The difference from the common baseline in each study; NaN of the baseline itself, and
        where the studies have different baselines.
    changes_apart : Interval
        Our difference − their difference.
    our_verdict, their_verdict : str
        What each study has said; empty where it has said nothing.
    one_question : bool, default True
        Whether both verdicts are on the same baseline, reading and budget: what is better than one
        optimizer and worse than another is no contradiction.
    """

    name: str
    ours: Interval
    theirs: Interval
    apart: Interval
    our_change: Interval
    their_change: Interval
    changes_apart: Interval
    our_verdict: str
    their_verdict: str
    one_question: bool = True

    @property
    def both_decided(self) -> bool:
        """Whether both studies have answered one question, be it that no difference was seen."""
        return self.one_question and {self.our_verdict, self.their_verdict} <= {
            BETTER,
            WORSE,
            NO_DIFFERENCE,
        }

    @property
    def contradict(self) -> bool:
        """Whether one study calls it better, and the other worse."""
        return self.one_question and {self.our_verdict, self.their_verdict} == {BETTER, WORSE}


@dataclass(frozen=True)
class StudyComparison:
    """Two studies beside each other.

    Attributes
    ----------
    ours, theirs : Readings
        Those of the two studies.
    reading : "score" or "loss"
        What is compared: the first study's primary reading.
    budget : int
        k, at which both are compared: the smaller of the declared ones.
    shared : tuple of SharedContender
        The optimizers that both have.
    differences : mapping
        What the studies differ in, from its name to both values as text.
    """

    ours: Readings
    theirs: Readings
    reading: Primary
    budget: int
    shared: tuple[SharedContender, ...]
    differences: Mapping[str, tuple[str, str]]

    @property
    def independent(self) -> bool:
        """Whether the studies have different seeds, so that their trials are different."""
        return self.ours.results.plan.study_seed != self.theirs.results.plan.study_seed


def compare(ours: StudyResults, theirs: StudyResults) -> StudyComparison:
    """Set two studies beside each other.

    The studies' errors are taken as independent: the standard error of a difference between them is
    √(se₁² + se₂²).

    Parameters
    ----------
    ours, theirs : StudyResults
        Two finished studies; differences are ours − theirs.

    Raises
    ------
    ValueError
        If they are of different tasks or metrics, one is unfinished, or they have no optimizer in
        common.
    """
    _check(ours, theirs)
    our_readings, their_readings = Readings(ours), Readings(theirs)
    budget = min(ours.plan.budget, theirs.plan.budget)
    known = {each.name for each in theirs.contenders}
    names = [each.name for each in ours.contenders if each.name in known]
    if not names:
        raise ValueError("the studies have no optimizer in common: there is nothing to compare")
    reading = ours.plan.primary
    shared = tuple(_shared(name, our_readings, their_readings, reading, budget) for name in names)
    differences = dict(_differences(ours, theirs))
    return StudyComparison(our_readings, their_readings, reading, budget, shared, differences)


def _check(ours: StudyResults, theirs: StudyResults) -> None:
    for what, our, their in (
        ("task", ours.task, theirs.task),
        ("metric", ours.metric.name, theirs.metric.name),
        ("unit", ours.metric.unit, theirs.metric.unit),
        ("direction", ours.metric.higher_is_better, theirs.metric.higher_is_better),
    ):
        if our != their:
            raise ValueError(f"studies must have one {what} to be compared, got {our} and {their}")
    if ours.to_dict() == theirs.to_dict():
        raise ValueError(f"studies must be two different ones, got {ours.name} twice")
    for each in (ours, theirs):
        if not each.complete:
            raise ValueError(
                f"studies must be finished to be compared: trials of {each.name} are missing"
            )


def _shared(
    name: str, ours: Readings, theirs: Readings, reading: Primary, budget: int
) -> SharedContender:
    both = (ours, theirs)
    freedoms = [degrees_of_freedom(each.results.plan.trials, budget) for each in both]
    levels = [each.expected(name, reading, budget) for each in both]
    changes = [Interval(math.nan, math.nan, math.nan)] * 2
    baselines = {each.results.baseline for each in both}
    if len(baselines) == 1 and name not in baselines:
        changes = [_change(each, name, reading, budget) for each in both]
    verdicts = [
        {found.optimizer: found.verdict for found in each.verdicts}.get(name, "") for each in both
    ]
    questions = {
        (found.baseline, found.metric, found.k) for each in both for found in each.verdicts
    }
    return SharedContender(
        name=name,
        ours=levels[0],
        theirs=levels[1],
        apart=independent_difference(levels[0], levels[1], *freedoms),
        our_change=changes[0],
        their_change=changes[1],
        changes_apart=independent_difference(changes[0], changes[1], *freedoms),
        our_verdict=verdicts[0],
        their_verdict=verdicts[1],
        one_question=len(questions) == 1,
    )


def _change(readings: Readings, name: str, reading: Primary, budget: int) -> Interval:
    found = readings.difference(name, readings.results.baseline, reading, budget)
    return Interval(found.estimate, found.low, found.high)


def independent_difference(
    ours: Interval, theirs: Interval, our_freedom: float, their_freedom: float
) -> Interval:
    """Return the difference of two independent estimates with its 95 % interval.

    Its standard error is √(se₁² + se₂²), its degrees of freedom are Welch's and Satterthwaite's.

    Parameters
    ----------
    ours, theirs : Interval
        Estimates with 95 % intervals.
    our_freedom, their_freedom : float
        The degrees of freedom of the intervals.

    Examples
    --------
    >>> ours, theirs = Interval(3.0, 1.04, 4.96), Interval(1.0, -0.96, 2.96)
    >>> found = independent_difference(ours, theirs, 1e6, 1e6)
    >>> round(found.mean, 2), round(found.high - found.mean, 2)
    (2.0, 2.77)
    """
    errors = [
        (each.high - each.mean) / t_quantile(1 - LEVEL / 2, freedom)
        for each, freedom in ((ours, our_freedom), (theirs, their_freedom))
    ]
    middle, total = ours.mean - theirs.mean, sum(error**2 for error in errors)
    if not total > 0:
        return Interval(middle, math.nan, math.nan)
    by_freedom = zip(errors, (our_freedom, their_freedom), strict=True)
    freedom = total**2 / sum(error**4 / each for error, each in by_freedom)
    half = t_quantile(1 - LEVEL / 2, freedom) * math.sqrt(total)
    return Interval(middle, middle - half, middle + half)


def _differences(ours: StudyResults, theirs: StudyResults) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield what the plans, setups, versions and contenders of two studies differ in."""
    facts = [_facts(each) for each in (ours, theirs)]
    for name in dict.fromkeys([*facts[0], *facts[1]]):
        values = [each.get(name, "–") for each in facts]
        if values[0] != values[1]:
            yield name, (values[0], values[1])


def _facts(results: StudyResults) -> dict[str, str]:
    facts: dict[str, Any] = {"planned on": results.created, "baseline": results.baseline}
    facts |= {f"plan: {key}": value for key, value in vars(results.plan).items()}
    facts["plan: changed"] = f"{len(results.earlier_plans)} times"
    facts |= {f"setup: {key}": value for key, value in results.setup.items()}
    facts |= {f"version: {key}": value for key, value in results.versions.items()}
    facts["optimizers"] = ", ".join(each.name for each in results.contenders)
    for each in results.contenders:
        facts[f"{each.name}: searched"] = each.space or "nothing"
    return {key.replace("_", " "): _written(value) for key, value in facts.items()}


def _written(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
