"""Measure one optimizer on one model's tensors, side by side with the baseline."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.optim import Optimizer

from steppe._shared.optimizer_state import state_bytes
from steppe._shared.statistics import Ratio, ratio_of_medians
from steppe.bench.bandwidth import Copy
from steppe.bench.memory import peak_extra
from steppe.bench.optimizers import BASELINE, MeasuredOptimizer
from steppe.bench.shapes import Shape
from steppe.bench.timing import Action, host_seconds, seconds, time_in_turn
from steppe.bench.traffic import items_stored, least_bytes
from steppe.bench.workload import warm_up

#: The host time is tens of microseconds, whose median needs more steps than the other times.
HOST_ROUNDS = 20
# GPT-2 in a loop over its tensors takes one or two. HeavyBall without torch.compile takes 28 over
# 10 000 tensors, which would be most of the time of a whole benchmark.
_LONGEST_STEP_S = 5.0


@dataclass(frozen=True)
class Measurement:
    """Time, traffic and memory of a step of one optimizer on one model.

    Attributes
    ----------
    model, optimizer : str
        Names.
    engine : str or None
        The engine that runs the step, for steppe's optimizers.
    numbers : int
        Number of the model's parameters, that is of single numbers in its tensors.
    seconds, baseline_seconds : float
        Median times of a step.
    ratio : Ratio
        Ratio of the medians, with its 95 % interval.
    bandwidth : float or None
        Bytes that the machine copies per second, read and written; the median. None where the host
        time was measured: nothing was copied.
    least_bytes : float
        Bytes that a step must move, by :func:`steppe.bench.traffic.least_bytes`.
    state_bytes : int
        Size of the optimizer's whole state, in bytes; per parameter it is `state_per_number`.
    extra_bytes : int or None
        Growth of memory during a step, in bytes; None where it cannot be measured, and beside the
        host time: memory grows by pages, which are larger than those tensors.
    parameter_bytes : int
        Size of all parameters, in bytes.
    dtype : str
        Number format of the parameters, such as float32.
    """

    model: str
    optimizer: str
    engine: str | None
    numbers: int
    seconds: float
    baseline_seconds: float
    ratio: Ratio
    bandwidth: float | None
    least_bytes: float
    state_bytes: int
    extra_bytes: int | None
    parameter_bytes: int
    dtype: str

    @property
    def excess(self) -> float | None:
        """Bytes that could have been copied during a step, over the bytes that it must move."""
        return self.bandwidth and self.seconds * self.bandwidth / self.least_bytes

    @property
    def copy_ratio(self) -> float | None:
        """The time of copying the bytes that a step must move, over the time of the baseline."""
        return self.bandwidth and self.least_bytes / self.bandwidth / self.baseline_seconds

    @property
    def state_per_number(self) -> float:
        """Bytes of state per parameter."""
        return self.state_bytes / self.numbers

    @property
    def extra(self) -> float | None:
        """The memory that a step takes while it runs, as a share of the parameters'."""
        return None if self.extra_bytes is None else self.extra_bytes / self.parameter_bytes


def measure(
    model: str,
    shapes: Sequence[Shape],
    measured: MeasuredOptimizer,
    steps: int,
    device: torch.device,
    *,
    host: bool = False,
) -> Measurement:
    """Step the baseline and an optimizer in turn, each on its own copy of a model's tensors.

    Memory is copied before each step. The copies give the bandwidth of these very moments, and the
    same cold caches to both. For the host time nothing is copied, and steps are timed until they
    return, :data:`HOST_ROUNDS` times as many of them.

    Parameters
    ----------
    model : str
        The model's name.
    shapes : sequence of tuples
        Shapes of the model's tensors.
    measured : MeasuredOptimizer
        The optimizer.
    steps : int
        Number of steps of each that are timed.
    device : torch.device
        The device that holds the tensors.
    host : bool, default False
        Whether the host time is measured: the time of a step until it returns, with warm caches.

    Raises
    ------
    ValueError
        A step takes too long, or drops the gradients.
    """
    optimizer = measured.build(shapes, device)
    warm_up(optimizer)
    _check_short(seconds(optimizer.step, device))
    baseline = BASELINE.build(shapes, device)
    warm_up(baseline)
    rounds = HOST_ROUNDS * steps if host else steps
    stored = items_stored(optimizer)
    times, baseline_times, copies = _time(optimizer.step, baseline.step, rounds, device, host)
    storing = (items_stored(optimizer) - stored) / rounds
    tensors = _parameters(optimizer)
    return Measurement(
        model=model,
        optimizer=measured.name,
        engine=getattr(optimizer, "engine", None),
        numbers=sum(tensor.numel() for tensor in tensors),
        seconds=float(np.median(times)),
        baseline_seconds=float(np.median(baseline_times)),
        ratio=ratio_of_medians(times, baseline_times),
        bandwidth=Copy.moved / float(np.median(copies)) if copies else None,
        least_bytes=least_bytes(optimizer, storing),
        state_bytes=state_bytes(optimizer),
        extra_bytes=None if host else peak_extra(optimizer.step, device),
        parameter_bytes=sum(tensor.nbytes for tensor in tensors),
        dtype=str(measured.dtype).removeprefix("torch."),
    )


def _check_short(step_seconds: float) -> None:
    if step_seconds > _LONGEST_STEP_S:
        raise ValueError(
            f"a step takes {step_seconds:.1f} s, and those of at most {_LONGEST_STEP_S:.0f} s are "
            "measured"
        )


def _time(
    step: Action, baseline_step: Action, rounds: int, device: torch.device, host: bool
) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds of both, and those of copies before each."""
    if host:
        steps = (baseline_step, step)
        baseline_times, times = time_in_turn(steps, rounds, device, timer=host_seconds)
        return times, baseline_times, []
    copy = Copy(device)
    actions = (copy, baseline_step, copy, step)
    first_copies, baseline_times, copies, times = time_in_turn(actions, rounds, device)
    return times, baseline_times, first_copies + copies


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]
