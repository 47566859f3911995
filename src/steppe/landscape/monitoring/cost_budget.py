"""When a measurement is due, so that all of them take no more than a share of the training time."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Measurements that would come more rarely are taken on fewer samples.
MOST_STEPS_BETWEEN = 1000

#: The fewest samples that are taken for that reason.
LEAST_SAMPLES = 64

#: Steps after which the time of one is known well enough: the first may compile something.
CALIBRATING_STEPS = 20

#: What a checkpoint holds of a budget.
COUNTS = ("steps", "training_seconds", "seconds", "expected", "measured_at")


class CostBudget:
    """Counts the seconds of training and of measuring, and tells when there is time to measure.

    Without a fixed interval, a measurement is due as soon as it, and all before it, take at most
    ``share`` of the time that has been trained, but not in the first 20 steps.

    Parameters
    ----------
    clock : callable
        Returns the time in seconds.
    share : float
        The most that measuring may take, of the time of training without it.
    every : int or None
        Number of steps between measurements; None has it follow from ``share``.

    Examples
    --------
    >>> times = iter([0.0, 1.0, 1.0, 1.5])
    >>> budget = CostBudget(lambda: next(times), share=0.1, every=None)
    >>> budget.trained()  # when it began is not known
    >>> budget.trained()
    >>> with budget.measuring():
    ...     pass
    >>> budget.training_seconds, budget.seconds
    (1.0, 0.5)
    """

    def __init__(self, clock: Callable[[], float], share: float, every: int | None) -> None:
        self._clock, self.share, self.every = clock, share, every
        self.steps = 0
        #: Seconds of training, and of measuring.
        self.training_seconds = self.seconds = 0.0
        #: Seconds that the next measurement is expected to take, as the last one has.
        self.expected = math.inf
        #: The step of the last measurement. Time that was left over is not spent in a row.
        self.measured_at = 0
        self._last: float | None = None

    def trained(self) -> None:
        """Count a step of training, and its time."""
        self.steps += 1
        self._mark()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count the time of the block as time of measuring."""
        began = self._mark()
        try:
            yield
        finally:
            self._last = self._clock()
            self.seconds += self._last - began

    def _mark(self) -> float:
        """Count the time until now as time of training, if it is known since when."""
        now = self._clock()
        if self._last is not None:
            self.training_seconds += now - self._last
        self._last = now
        return now

    def pause(self) -> None:
        """Count no time until the next step has ended, as a run that is resumed waited."""
        self._last = None

    def is_due(self, step: int) -> bool:
        """Whether the measurement after a step, the next one or the present one, is to be taken."""
        if self.every is not None:
            return step % self.every == 0
        if step <= CALIBRATING_STEPS or step - self.measured_at < self.interval:
            return False
        return self.seconds + self.expected <= self.share * self.training_seconds

    @property
    def cost_share(self) -> float:
        """Seconds of measuring over those of training; NaN before there are any."""
        return self.seconds / self.training_seconds if self.training_seconds else math.nan

    @property
    def interval(self) -> float:
        """Steps between measurements in the long run; NaN before it is known."""
        if self.every is not None:
            return float(self.every)
        if not self.training_seconds:
            return math.nan
        return max(1.0, self.expected / self.share * self.steps / self.training_seconds)

    def affordable(self, samples: int) -> int:
        """Return on how many samples to go on: fewer where measurements would be too rare.

        Parameters
        ----------
        samples : int
            On how many it was measured; the time is taken to be in proportion.
        """
        if self.every is not None or not self.interval > MOST_STEPS_BETWEEN:
            return samples
        fewer = int(samples * MOST_STEPS_BETWEEN / self.interval)
        return max(min(LEAST_SAMPLES, samples), fewer)

    def measured(self, seconds: float, *, is_whole: bool) -> None:
        """Expect the next measurement to take as long as one that was whole.

        Parameters
        ----------
        seconds : float
            How long it took.
        is_whole : bool
            Whether all was measured: what fails may end early, and the next one may not.
        """
        self.measured_at = self.steps
        self.expected = seconds if is_whole else max(seconds, self.expected)

    def state_dict(self) -> dict[str, float]:
        """Return the counts, as numbers."""
        return {name: getattr(self, name) for name in COUNTS}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a :meth:`state_dict`."""
        for name in COUNTS:
            setattr(self, name, state[name])
        self.pause()
