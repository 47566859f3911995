"""How curved the loss is where a run ended, and whether its optimizer is stable there."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steppe.compare.tasks import Loss
from steppe.landscape import (
    Operator,
    hessian,
    preconditioned,
    sharpness,
    top_eigenvalues,
    trace,
)
from steppe.landscape.progress import silent

#: Training samples that curvature is measured on, the first ones: dozens of passes over all would
#: take longer than the training.
SAMPLES = 1000

_BATCH = 250
_TOL = 0.01
_TRACE_PRODUCTS = 30
_MOST_PRODUCTS = 220


@dataclass(frozen=True)
class Curvature:
    """What the loss is like about a point; NaN for what is not there.

    Attributes
    ----------
    sharpness : float
        SAM's, over all training samples, at radius 0.05.
    largest : float
        The Hessian's eigenvalue of largest magnitude, to 1 %, over 1 000 training samples, NaN if
        it was not found so exactly; likewise the following.
    trace : float
        Its trace.
    preconditioned : float
        The largest eigenvalue after the optimizer's preconditioner.
    threshold : float
        Where that stops being stable at the last learning rate.
    """

    sharpness: float = math.nan
    largest: float = math.nan
    trace: float = math.nan
    preconditioned: float = math.nan
    threshold: float = math.nan


def measure(
    model: nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, optimizer: Optimizer
) -> Curvature:
    """Measure the curvature of the mean loss over samples, where it is finite."""
    with silent():
        try:
            rise = sharpness(model, loss_fn, in_batches(inputs, targets)).value
            few = in_batches(inputs[:SAMPLES], targets[:SAMPLES])
            H = hessian(model, loss_fn, few)
            largest = _outermost(H, "LM")
            whole = _trace(H)
        except (ValueError, RuntimeError):
            # A finite loss may have derivatives that are not, or none.
            return Curvature()
        after, threshold = _stability(H, optimizer)
    return Curvature(rise, largest, whole, after, threshold)


def in_batches(inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Cut samples into batches that stay in the cache: means are over samples all the same."""
    return list(zip(torch.split(inputs, _BATCH), torch.split(targets, _BATCH), strict=True))


def _outermost(H: Operator, which: Literal["LM", "LA"]) -> float:
    found = top_eigenvalues(H, 1, which=which, tol=_TOL, max_products=_MOST_PRODUCTS)
    if found.converged[0]:
        return float(found.values[0])
    if found.products < _MOST_PRODUCTS:
        # It was Ctrl-C, which is meant for the whole run.
        raise KeyboardInterrupt
    return math.nan


def _trace(H: Operator) -> float:
    # Of a model that is smaller than its third, there is nothing left to estimate.
    found = trace(H, products=max(6, min(_TRACE_PRODUCTS, 3 * H.size)))
    if not found.converged:
        raise KeyboardInterrupt
    return found.value


def _stability(H: Operator, optimizer: Optimizer) -> tuple[float, float]:
    """Return the preconditioned eigenvalue and its threshold; NaN where the method has none."""
    try:
        operator = preconditioned(H, optimizer)
        return _outermost(operator, "LA"), operator.threshold
    except ValueError:
        return math.nan, math.nan
