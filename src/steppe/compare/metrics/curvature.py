"""How curved the loss is where a run ended, and whether its optimizer is stable there."""

import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from steppe._shared.progress import silent
from steppe.compare.metrics.scores import Loss
from steppe.compare.records.results import Curvature
from steppe.landscape import (
    Operator,
    density,
    hessian,
    preconditioned,
    sharpness,
    top_eigenvalues,
    trace,
)

_TRACE_PRODUCTS = 18
_DENSITY_STEPS = 15
_DENSITY_POINTS = 100

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Probe:
    """What curvature is measured on, and how closely: as much as takes less than the training.

    Attributes
    ----------
    samples : int, default 250
        Training samples, the first ones.
    tol : float, default 0.01
        Relative error of eigenvalues.
    products : int, default 220
        Hessian-vector products that an eigenvalue may take: it is left out where they do not do.
    parameters : int, default 50 million
        Of models that train more, sharpness is all: a search for eigenvalues keeps a dozen vectors
        of that length.
    tuning : bool, default True
        Whether tuning trials are measured too.
    whole : bool, default True
        Whether test runs get, besides sharpness and the largest eigenvalue, the trace, the density
        and the preconditioned eigenvalue.
    """

    samples: int = 250
    tol: float = 0.01
    products: int = 220
    parameters: int = 50_000_000
    tuning: bool = True
    whole: bool = True


#: Of networks whose Hessian-vector products take milliseconds.
USUAL = Probe()


def batch_size_for(model: nn.Module) -> int:
    """Choose a batch: samples together keep one graph, unless the model is large."""
    return 250 if sum(p.numel() for p in model.parameters()) <= 1_000_000 else 100


def measure_quickly(
    model: nn.Module, loss_fn: Loss, batches: Batches, probe: Probe = USUAL
) -> Curvature:
    """Measure sharpness and the largest eigenvalue alone, as tuning trials are."""
    with _measuring():
        try:
            rise = sharpness(model, loss_fn, batches).value
            H = hessian(model, loss_fn, batches)
            if H.size > probe.parameters:
                return Curvature(rise)
            return Curvature(rise, _outermost(H, "LM", probe))
        except (ValueError, RuntimeError):
            # A finite loss may have derivatives that are not, or none.
            return Curvature()


def measure(
    model: nn.Module,
    loss_fn: Loss,
    batches: Batches,
    optimizer: Optimizer,
    probe: Probe = USUAL,
) -> Curvature:
    """Measure the curvature of the mean loss over samples, where it is finite."""
    quick = measure_quickly(model, loss_fn, batches, probe)
    if math.isnan(quick.sharpness) or not probe.whole:
        return quick
    with _measuring():
        H = hessian(model, loss_fn, batches)
        if H.size > probe.parameters:
            return quick
        whole = _trace(H)
        after, threshold = _stability(H, optimizer, probe)
        return Curvature(quick.sharpness, quick.largest, whole, after, threshold, _density(H))


def _outermost(H: Operator, which: Literal["LM", "LA"], probe: Probe) -> float:
    found = top_eigenvalues(H, 1, which=which, tol=probe.tol, max_products=probe.products)
    return float(found.values[0]) if found.converged[0] else math.nan


def _trace(H: Operator) -> float:
    # Of a model that is smaller than its third, there is nothing left to estimate.
    return trace(H, products=max(6, min(_TRACE_PRODUCTS, 3 * H.size))).value


def _stability(H: Operator, optimizer: Optimizer, probe: Probe) -> tuple[float, float]:
    """Return the preconditioned eigenvalue and its threshold; NaN where the method has none."""
    try:
        operator = preconditioned(H, optimizer)
        return _outermost(operator, "LA", probe), operator.threshold
    except ValueError:
        return math.nan, math.nan


def _density(H: Operator) -> tuple[tuple[float, float], ...]:
    found = density(H, probes=1, steps=min(_DENSITY_STEPS, max(2, H.size)))
    stride = max(1, len(found.grid) // _DENSITY_POINTS)
    points = zip(found.grid[::stride], found.density[::stride], strict=True)
    return tuple((float(f"{x:.4g}"), float(f"{y:.4g}")) for x, y in points)


class _Interrupt(BaseException):
    """Ctrl-C, by a name that instruments do not know."""


@contextmanager
def _measuring() -> Iterator[None]:
    """Measure without a word, and let Ctrl-C end the run.

    Instruments end at Ctrl-C with what they have; a run must not be kept with that.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        with silent():
            yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise _Interrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        with silent():
            yield
    except _Interrupt:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)
