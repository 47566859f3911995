"""Curvature of a trained model's loss, and whether its optimizer is stable there.

Training measures it after a run's last epoch, with the instruments of :mod:`steppe.landscape`.
"""

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from steppe._shared.progress import silent
from steppe.compare.metrics.scores import Loss
from steppe.compare.records.results import Curvature
from steppe.landscape import (
    Batches,
    Operator,
    Weight,
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


@dataclass(frozen=True)
class CurvatureSettings:
    """What curvature is measured on, and how exactly, so that it takes less time than training.

    Attributes
    ----------
    samples : int, default 250
        Training samples, the first ones.
    tol : float, default 0.01
        Relative error of eigenvalues.
    max_products : int, default 220
        Maximum Hessian-vector products per eigenvalue; NaN is reported if it has not converged by
        then.
    max_parameters : int, default 50 million
        Of models with more trainable parameters only sharpness is measured: the search for an
        eigenvalue keeps a dozen vectors of that length.
    often : bool, default True
        Whether it is measured of some trials of the pool too, and along the way.
    full : bool, default True
        Whether runs at the recommended settings get, besides sharpness and the largest eigenvalue,
        the trace, the density and the preconditioned eigenvalue.
    """

    samples: int = 250
    tol: float = 0.01
    max_products: int = 220
    max_parameters: int = 50_000_000
    often: bool = True
    full: bool = True


#: For networks whose Hessian-vector products take milliseconds.
DEFAULT_CURVATURE = CurvatureSettings()


def batch_size_for(model: nn.Module) -> int:
    """Return a batch size for Hessian-vector products: 250, or 100 above a million parameters.

    The graph of a batch is kept between products, and larger batches need fewer passes. That of a
    large model takes much memory.
    """
    return 250 if sum(p.numel() for p in model.parameters()) <= 1_000_000 else 100


def measure_quickly(
    model: nn.Module,
    loss_fn: Loss | None,
    batches: Batches,
    settings: CurvatureSettings = DEFAULT_CURVATURE,
    weight: Weight = "samples",
) -> Curvature:
    """Measure sharpness and the largest eigenvalue only.

    Parameters
    ----------
    model, loss_fn, batches, settings, weight
        As in :func:`measure`.
    """
    with _silent_and_interruptible():
        try:
            rise = sharpness(model, loss_fn, batches, weight=weight).value
            H = hessian(model, loss_fn, batches, weight=weight)
            if H.size > settings.max_parameters:
                return Curvature(rise)
            return Curvature(rise, _extreme_eigenvalue(H, "LM", settings))
        except (ValueError, RuntimeError):
            # A finite loss may have derivatives that are not, or none.
            return Curvature()


def measure(
    model: nn.Module,
    loss_fn: Loss | None,
    batches: Batches,
    optimizer: Optimizer,
    settings: CurvatureSettings = DEFAULT_CURVATURE,
    weight: Weight = "samples",
) -> Curvature:
    """Measure the curvature of the mean loss over samples.

    Parameters
    ----------
    model : nn.Module
        The trained model.
    loss_fn, batches
        As in :func:`steppe.landscape.hessian`.
    optimizer : Optimizer
        The model's, with its state; its learning rates decide the threshold of stability.
    settings : CurvatureSettings, default ``DEFAULT_CURVATURE``
        How much is measured, and how exactly.
    weight : "samples" or callable, default "samples"
        As in :func:`steppe.landscape.hessian`; as a study weights batches when it evaluates.

    Returns
    -------
    Curvature
        NaN where a derivative is not finite, an eigenvalue has not converged, or the method has no
        preconditioner.
    """
    quick = measure_quickly(model, loss_fn, batches, settings, weight)
    if math.isnan(quick.sharpness) or not settings.full:
        return quick
    with _silent_and_interruptible():
        H = hessian(model, loss_fn, batches, weight=weight)
        if H.size > settings.max_parameters:
            return quick
        total = _trace(H)
        eigenvalue, threshold = _stability(H, optimizer, settings)
        return Curvature(quick.sharpness, quick.largest, total, eigenvalue, threshold, _density(H))


def _extreme_eigenvalue(
    H: Operator, which: Literal["LM", "LA"], settings: CurvatureSettings
) -> float:
    """Return the eigenvalue of largest magnitude ("LM") or the largest one ("LA"); else NaN."""
    found = top_eigenvalues(H, 1, which=which, tol=settings.tol, max_products=settings.max_products)
    return float(found.values[0]) if found.converged[0] else math.nan


def _trace(H: Operator) -> float:
    """Return the trace; NaN where products are not those of a symmetric matrix."""
    # Hutch++ needs at least 6 products, and 3 for each dimension give the exact trace.
    found = trace(H, products=max(6, min(_TRACE_PRODUCTS, 3 * H.size)))
    return found.value if found.converged else math.nan


def _stability(
    H: Operator, optimizer: Optimizer, settings: CurvatureSettings
) -> tuple[float, float]:
    """Return the preconditioned eigenvalue and its threshold; NaN where the method has none."""
    try:
        operator = preconditioned(H, optimizer)
        return _extreme_eigenvalue(operator, "LA", settings), operator.threshold
    except ValueError:
        return math.nan, math.nan


def _density(H: Operator) -> tuple[tuple[float, float], ...]:
    found = density(H, probes=1, steps=min(_DENSITY_STEPS, max(2, H.size)))
    if not found.converged:
        return ()
    stride = max(1, len(found.grid) // _DENSITY_POINTS)
    points = zip(found.grid[::stride], found.density[::stride], strict=True)
    return tuple((float(f"{x:.4g}"), float(f"{y:.4g}")) for x, y in points)


class _CtrlC(BaseException):
    """Ctrl-C, as an exception that the instruments do not catch."""


@contextmanager
def _silent_and_interruptible() -> Iterator[None]:
    """Measure without output, and let Ctrl-C end the run.

    The instruments of ``steppe.landscape`` catch KeyboardInterrupt and return what they have so
    far. A run must not be stored with that, as its trial goes on later.
    """
    handler = signal.getsignal(signal.SIGINT)
    # A worker has a handler of its own, whose exception the instruments let through.
    raises = handler is signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or not raises:
        with silent():
            yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise _CtrlC

    signal.signal(signal.SIGINT, interrupt)
    try:
        with silent():
            yield
    except _CtrlC:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)
