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
from steppe.bench.timing import time_in_turn
from steppe.bench.traffic import items_stored, least_bytes
from steppe.bench.workload import parameters, warm_up


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
    bandwidth : float
        Bytes that the machine copies per second, read and written; the median.
    least_bytes : float
        Bytes that a step must move, by :func:`steppe.bench.traffic.least_bytes`.
    state_bytes : int
        Size of the optimizer's whole state, in bytes; per parameter it is `state_per_number`.
    extra_bytes : int or None
        Growth of memory during a step, in bytes; None where it cannot be measured.
    parameter_bytes : int
        Size of all parameters, in bytes.
    """

    model: str
    optimizer: str
    engine: str | None
    numbers: int
    seconds: float
    baseline_seconds: float
    ratio: Ratio
    bandwidth: float
    least_bytes: float
    state_bytes: int
    extra_bytes: int | None
    parameter_bytes: int

    @property
    def excess(self) -> float:
        """Bytes that could have been copied during a step, over the bytes that it must move."""
        return self.seconds * self.bandwidth / self.least_bytes

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
) -> Measurement:
    """Step the baseline and an optimizer in turn, each on its own copy of a model's tensors.

    Memory is copied before each step. The copies give the bandwidth of these very moments, and the
    same cold caches to both.

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
    """
    optimizer = measured.build(parameters(shapes, device))
    warm_up(optimizer)
    baseline = BASELINE.build(parameters(shapes, device))
    warm_up(baseline)
    copy = Copy(device)
    stored = items_stored(optimizer)
    actions = (copy, baseline.step, copy, optimizer.step)
    first_copy, baseline_times, second_copy, times = time_in_turn(actions, steps, device)
    storing = (items_stored(optimizer) - stored) / steps
    tensors = _parameters(optimizer)
    return Measurement(
        model=model,
        optimizer=measured.name,
        engine=getattr(optimizer, "engine", None),
        numbers=sum(tensor.numel() for tensor in tensors),
        seconds=float(np.median(times)),
        baseline_seconds=float(np.median(baseline_times)),
        ratio=ratio_of_medians(times, baseline_times),
        bandwidth=Copy.moved / float(np.median(first_copy + second_copy)),
        least_bytes=least_bytes(optimizer, storing),
        state_bytes=state_bytes(optimizer),
        extra_bytes=peak_extra(optimizer.step, device),
        parameter_bytes=sum(tensor.nbytes for tensor in tensors),
    )


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]
