"""What the finished runs of a study come to, optimizer by optimizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from statistics import fmean, median

from steppe.compare.curvature import Curvature
from steppe.compare.run import Outcome
from steppe.compare.statistics import Interval, interval, paired

_CURVATURE = [field.name for field in fields(Curvature)]

# Outcomes by optimizer, then by seed.
Finished = Mapping[str, Mapping[int, Outcome]]


@dataclass(frozen=True)
class Row:
    """One optimizer over the seeds that did not diverge.

    Attributes
    ----------
    name : str
        The optimizer.
    runs, diverged : int
        How many runs there are, and how many of them diverged and are in no mean.
    accuracy : Interval
        Test accuracy in per cent.
    test_loss, train_loss, gap : Interval
        After the last epoch; the gap is test loss − train loss.
    sharpness, largest, trace, preconditioned, threshold : Interval
        Of the training loss there, see :class:`~steppe.compare.curvature.Curvature`.
    step_ms : float
        Median over runs of a run's median step.
    state_bytes : float
        Per trainable parameter.
    """

    name: str
    runs: int
    diverged: int
    accuracy: Interval
    test_loss: Interval
    train_loss: Interval
    gap: Interval
    sharpness: Interval
    largest: Interval
    trace: Interval
    preconditioned: Interval
    threshold: Interval
    step_ms: float
    state_bytes: float


@dataclass(frozen=True)
class Difference:
    """Two optimizers, seed by seed: the first minus the second.

    Attributes
    ----------
    accuracy : Interval
        Test accuracy in percentage points.
    test_loss : Interval
        Test loss.
    """

    accuracy: Interval
    test_loss: Interval


def summarise(finished: Finished) -> list[Row]:
    """One row for each optimizer that has finished a run, in their order."""
    return [_row(name, outcomes) for name, outcomes in finished.items() if outcomes]


def difference(finished: Finished, name: str, baseline: str) -> Difference:
    """``name`` minus ``baseline`` over the seeds that neither diverged on."""
    ours, theirs = finished.get(name, {}), finished.get(baseline, {})
    return Difference(
        paired(_values(ours, _accuracy), _values(theirs, _accuracy)),
        paired(_values(ours, _test_loss), _values(theirs, _test_loss)),
    )


def _row(name: str, outcomes: Mapping[int, Outcome]) -> Row:
    def over_seeds(measure: Callable[[Outcome], float]) -> Interval:
        return interval(list(_values(outcomes, measure).values()))

    return Row(
        name=name,
        runs=len(outcomes),
        diverged=sum(outcome.diverged for outcome in outcomes.values()),
        accuracy=over_seeds(_accuracy),
        test_loss=over_seeds(_test_loss),
        train_loss=over_seeds(lambda outcome: outcome.final.train_loss),
        gap=over_seeds(lambda outcome: outcome.final.test_loss - outcome.final.train_loss),
        **{name: over_seeds(_of_curvature(name)) for name in _CURVATURE},
        step_ms=median(outcome.step_ms for outcome in outcomes.values()),
        state_bytes=fmean(outcome.state_bytes for outcome in outcomes.values()),
    )


def _of_curvature(name: str) -> Callable[[Outcome], float]:
    return lambda outcome: float(getattr(outcome.curvature, name))


def _values(
    outcomes: Mapping[int, Outcome], measure: Callable[[Outcome], float]
) -> dict[int, float]:
    return {seed: measure(o) for seed, o in outcomes.items() if not o.diverged}


def _accuracy(outcome: Outcome) -> float:
    return 100 * outcome.final.test_accuracy


def _test_loss(outcome: Outcome) -> float:
    return outcome.final.test_loss
