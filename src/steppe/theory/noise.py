"""The variance of a model's gradients along directions, and its ratio to the curvature there.

Escape times are predicted from them; the escape formula takes the ratio for one by default.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from steppe._shared.array_types import Floats
from steppe.landscape import (
    Batches,
    LossFunction,
    Objective,
    Result,
    Weight,
    batch_gradients,
    check_has_noise,
    checked_direction,
    hessian,
)


@dataclass(frozen=True, eq=False)
class GradientNoise(Result):
    """The result of :func:`gradient_noise`: the noise of single samples' gradients.

    Attributes
    ----------
    variance : float or ndarray
        σ², the variance of one sample's gradient along the unit vector; the mean gradient of a
        batch of B samples has σ²/B. For k directions their covariance matrix C, shape (k, k).
    standard_error : float or ndarray
        Standard error of the variance, or of each covariance, by the jackknife over batches.
    slope : float or ndarray
        The mean gradient along the unit vector, 0 at a minimum. For k directions of shape (k,).
    curvature : float or ndarray
        h, the curvature of the mean loss along it. For k directions dᵢᵀHdⱼ, shape (k, k).
    batches, samples : int
        Number of batches and of samples that it is estimated from.
    """

    variance: float | Floats
    standard_error: float | Floats
    slope: float | Floats
    curvature: float | Floats
    batches: int
    samples: int

    @property
    def ratio(self) -> float | Floats:
        """σ²/|h|, which the theory of escape assumes to be 1; infinite where h is 0.

        For k directions the ratio along each, shape (k,).
        """
        return _diagonal_ratio(self.variance, self.curvature, np.inf)

    @property
    def ratio_standard_error(self) -> float | Floats:
        """Standard error of the ratio; the curvature has none."""
        return _diagonal_ratio(self.standard_error, self.curvature, np.nan)


def gradient_noise(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    direction: Tensor,
    *,
    train: bool = False,
    weight: Weight | None = None,
) -> GradientNoise:
    r"""Estimate the variance of single samples' gradients along a direction, or several.

    .. math:: C_{ij} = \frac{1}{K - 1} \sum_{k=1}^{K} n_k \,
        (g_{ki} - \bar g_i)(g_{kj} - \bar g_j), \qquad g_{ki} = d_i^⊤ ∇L_k / ‖d_i‖

    with L_k the mean loss over batch k of n_k samples, and ḡ the mean over all samples; for one
    direction σ² = C. Where batches are weighted by something else, such as the targets that are not
    ignored, n_k is in proportion to it and sums to the number of samples; batches that weigh
    nothing are left out. The estimate is unbiased if samples are assigned to batches at random, so
    shuffle the data; batches may differ in size. Smaller batches give a smaller standard error, as
    there are more of them; batches of one sample give the samples' own covariance. The model is
    restored afterwards.

    Parameters
    ----------
    model, loss_fn, data, train, weight
        As in :func:`steppe.landscape.hessian`; at least three batches, and no sum over samples.
    direction : Tensor
        d, of shape (size,) and any length, in the order of the parameters that require a gradient;
        or k directions, of shape (k, size), which need not be orthogonal.

    Returns
    -------
    GradientNoise
        Its ``ratio``, σ²/\|h\|, can be passed to :func:`escape_time` as ``noise``.

    Raises
    ------
    TypeError
        ``direction`` is no tensor.
    ValueError
        There are fewer than three batches; the loss is a sum over samples; ``model`` is distributed
        over processes; ``direction`` has another shape, is zero or not finite; or model or data is
        not as :func:`steppe.landscape.hessian` asks.

    References
    ----------
    Efron and Stein, *The jackknife estimate of variance*, Annals of Statistics 9 (1981).

    Examples
    --------
    The gradient of ½(w − y)² at w = 0 is −y, and its curvature is 1:

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> data = [(torch.ones(1, 1), torch.full((1, 1), y)) for y in (-1.0, 0.0, 1.0)]
    >>> found = gradient_noise(model, half_square, data, torch.ones(1))
    >>> found.variance, found.curvature, found.ratio
    (1.0, 1.0, 1.0)
    """
    objective = Objective(model, loss_fn, data, train=train, weight=weight)
    check_has_noise(objective)
    units = _units(objective, direction)
    slopes, weights, counted = _slopes(objective, units)
    if len(weights) < 3:
        raise ValueError(f"data has {len(weights)} batches: the variance needs at least 3")
    sizes = weights * (counted / weights.sum())
    K, samples = len(sizes), sizes.sum()
    slope = sizes @ slopes / samples
    centred = slopes - slope
    deviations = sizes[:, None, None] * centred[:, :, None] * centred[:, None, :]
    total = deviations.sum(axis=0)
    # The jackknife: the estimate without each batch in turn, about the mean without that batch.
    factors = samples / (samples - sizes)
    estimates = (total - deviations * factors[:, None, None]) / (K - 2)
    is_one = direction.ndim == 1
    return GradientNoise(
        variance=_scalar_if_one(total / (K - 1), is_one),
        standard_error=_scalar_if_one(np.sqrt((K - 1) * estimates.var(axis=0)), is_one),
        slope=_scalar_if_one(slope, is_one),
        curvature=_scalar_if_one(
            curvature_along(model, loss_fn, data, units, train=train, weight=weight), is_one
        ),
        batches=K,
        samples=counted,
    )


def curvature_along(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    units: Tensor,
    *,
    train: bool = False,
    weight: Weight | None = None,
) -> Floats:
    """Return dᵢᵀHdⱼ of the rows of ``units``, shape (k, k)."""
    H = hessian(model, loss_fn, data, train=train, weight=weight)
    rows = units.to(H.device, H.dtype)
    return (rows.double() @ H.matmat(rows.T).double()).cpu().numpy()


def _units(objective: Objective, direction: Tensor) -> Tensor:
    """Return the directions as rows of length 1, shape (k, size)."""
    several = isinstance(direction, Tensor) and direction.ndim == 2 and len(direction) > 0
    rows = [
        checked_direction(objective, "direction", row)
        for row in (direction if several else [direction])
    ]
    return torch.stack([row / row.norm() for row in rows])


def _slopes(objective: Objective, units: Tensor) -> tuple[Floats, Floats, int]:
    """Return batches' mean gradients along the units, (batches, k), their weights, and the samples.

    Batches that weigh nothing are left out.
    """
    along = [objective.split(unit) for unit in units]
    slopes, weights, samples = [], [], 0
    with objective.evaluation_mode():
        for each in batch_gradients(objective):
            slopes.append([_product(each.gradient, parts) for parts in along])
            weights.append(each.weight)
            samples += each.samples
    return np.array(slopes, dtype=np.float64), np.array(weights, dtype=np.float64), samples


def _product(gradient: Sequence[Tensor], parts: Sequence[Tensor]) -> float:
    pairs = zip(gradient, parts, strict=True)
    return sum((g.double() * d.double()).sum().item() for g, d in pairs)


def _scalar_if_one(values: Floats, is_one: bool) -> float | Floats:
    return float(values.item()) if is_one else values


def _diagonal_ratio(
    spread: float | Floats, curvature: float | Floats, otherwise: float
) -> float | Floats:
    """Return spread/|curvature| of each direction, and ``otherwise`` where the curvature is 0."""
    own, h = (np.diagonal(np.atleast_2d(x)) for x in (spread, curvature))
    ratios = np.full(len(h), otherwise)
    np.divide(own, np.abs(h), out=ratios, where=h != 0)
    return float(ratios[0]) if np.ndim(spread) == 0 else ratios
