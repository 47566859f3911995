"""SAM's own edge of stability: the curvature from which its steps are unstable."""

import math
from typing import Any

from torch import Tensor

from steppe.landscape.operators.preconditioned import Preconditioned, wrapped_optimizer

# Optimizers and their wrappers, told by their attributes: no optimizer is imported here.
_Optimizer = Any


def sam_threshold(threshold: float, gradient_norm: float, rho: float) -> float:
    r"""Return the eigenvalue of the Hessian from which SAM around gradient descent is unstable.

    At w, SAM takes the gradient at w + ρg/‖g‖. Where the loss is quadratic with curvature λ along
    g = λw, that gradient is λ(1 + ρλ/‖g‖)·w. So SAM moves as its base does at the curvature
    λ + ρλ²/‖g‖, and is stable while that is below the base's threshold τ, which is

    .. math:: λ < \frac{‖g‖}{2ρ} \left( \sqrt{1 + 4ρτ/‖g‖} - 1 \right)

    With gradient descent's τ = 2/η it is Long and Bartlett's formula.

    Parameters
    ----------
    threshold : float
        τ, of the base optimizer: 2/η for gradient descent, 2(1 + β)/η with momentum β.
    gradient_norm : float
        ‖g‖₂ at w; where it is 0 the threshold is 0, as any ρ moves w by more than its size.
    rho : float
        ρ, in the parameters' unit. 0 gives τ.

    References
    ----------
    Long and Bartlett, *Sharpness-Aware Minimization and the Edge of Stability*, arXiv 2309.12488.

    Examples
    --------
    At η = 0.1 gradient descent is stable below 20, and SAM below 4 where ‖g‖ = ρ = 1:

    >>> sam_threshold(20.0, gradient_norm=1.0, rho=0.0), sam_threshold(20.0, 1.0, 1.0)
    (20.0, 4.0)
    """
    if rho == 0:
        return threshold
    if gradient_norm == 0:
        return 0.0
    # (√(1 + x) − 1)/ρ without the cancellation at small x.
    x = 4 * rho * threshold / gradient_norm
    return 2 * threshold / (math.sqrt(1 + x) + 1)


def sam_radius(optimizer: _Optimizer) -> float | None:
    """Return ρ where an optimizer is SAM along the gradient with one Euclidean radius, else None.

    It is 0 while SAM is not active yet. Of ASAM, of SAM along the momentum and of groups that
    differ in ρ no threshold is known.
    """
    while optimizer is not None and getattr(optimizer, "direction", None) != "gradient":
        optimizer = wrapped_optimizer(optimizer)
    if optimizer is None or wrapped_optimizer(optimizer) is None:
        return None
    if not getattr(optimizer, "is_active", True):
        return 0.0
    found = {
        (float(group.get("sam_rho", group.get("rho", math.nan))), group.get("metric", "euclidean"))
        for group in optimizer.param_groups
    }
    (rho, metric), *others = found
    return None if others or metric != "euclidean" or math.isnan(rho) else rho


def is_constant(diagonal: Tensor) -> bool:
    """Whether a preconditioner scales all directions alike, as gradient descent's does."""
    return bool((diagonal == diagonal[0]).all())


def threshold_of_sam(
    optimizer: _Optimizer, PH: Preconditioned, gradient_norm: float
) -> float | None:
    """Return the eigenvalue of H from which a SAM optimizer is unstable; None if unknown.

    It is known around gradient descent, with momentum or without: where P is one number.
    """
    rho = sam_radius(optimizer)
    if rho is None or not is_constant(PH.diagonal):
        return None
    return sam_threshold(PH.threshold / float(PH.diagonal[0]), gradient_norm, rho)
