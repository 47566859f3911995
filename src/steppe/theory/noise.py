"""How noisy a model's gradients are along a direction, beside the curvature there."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from steppe.landscape.directions import checked_direction
from steppe.landscape.hessian import hessian
from steppe.landscape.objective import Batches, LossFunction, Objective, derivatives
from steppe.landscape.result import Result


@dataclass(frozen=True)
class GradientNoise(Result):
    """What :func:`gradient_noise` found, of one sample's gradient along a unit vector.

    Attributes
    ----------
    variance : float
        σ²; that of a batch's mean gradient is σ²/B.
    standard_error : float
        Of the variance, by the jackknife over batches.
    slope : float
        The mean gradient along the vector; 0 at a minimum.
    curvature : float
        h, that of the mean loss.
    batches, samples : int
        How many it is taken from.
    """

    variance: float
    standard_error: float
    slope: float
    curvature: float
    batches: int
    samples: int

    @property
    def ratio(self) -> float:
        """σ²/|h|, which the theory of escape takes to be 1; infinite where h is 0."""
        return self.variance / abs(self.curvature) if self.curvature else math.inf

    @property
    def ratio_standard_error(self) -> float:
        """Standard error of the ratio, the curvature being exact."""
        return self.standard_error / abs(self.curvature) if self.curvature else math.nan


def gradient_noise(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    direction: Tensor,
    *,
    train: bool = False,
) -> GradientNoise:
    r"""Estimate the variance of single samples' gradients along a direction.

    .. math:: σ^2 = \frac{1}{K - 1} \sum_{k=1}^{K} n_k \, (g_k - \bar g)^2, \qquad
        g_k = d^⊤ ∇L_k / ‖d‖

    with L_k the mean loss over batch k of n_k samples, and ḡ the mean over all samples. It is
    unbiased where samples fall into batches at random, whatever the sizes: shuffle. The smaller the
    batches, the more there are, and the smaller the standard error is; batches of one sample give
    the variance of the samples themselves. The model is left as found.

    Parameters
    ----------
    model, loss_fn, data, train
        As in :func:`steppe.landscape.hessian`; at least three batches.
    direction : Tensor
        d, of shape (size,), in the order of the parameters that require a gradient; of any length.

    Returns
    -------
    GradientNoise
        Its ``ratio`` σ²/\|h\| is what :func:`escape_time` takes as ``noise``.

    Raises
    ------
    ValueError
        There are fewer than three batches, ``model`` is distributed over processes, ``direction``
        is of another shape, zero or not finite, or as :func:`steppe.landscape.hessian` says.

    Examples
    --------
    The gradients of ½(w − y)² at w = 0 are −y, and its curvature is 1:

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> data = [(torch.ones(1, 1), torch.full((1, 1), y)) for y in (-1.0, 0.0, 1.0)]
    >>> found = gradient_noise(model, half_square, data, torch.ones(1))
    >>> found.variance, found.curvature, found.ratio
    (1.0, 1.0, 1.0)
    """
    objective = Objective(model, loss_fn, data, train=train)
    if objective.is_distributed:
        raise ValueError("model is distributed: pass model.module, and the data of one process")
    unit = checked_direction(objective, "direction", direction)
    unit = unit / unit.norm()
    slopes, sizes = _slopes(objective, unit)
    if len(sizes) < 3:
        raise ValueError(f"data has {len(sizes)} batches: the variance needs at least 3")
    samples = sizes.sum()
    slope = (sizes * slopes).sum() / samples
    deviations = sizes * (slopes - slope) ** 2
    K, total = len(sizes), deviations.sum()
    # What is left of the sum, about its own mean, without each batch in turn.
    left = (total - deviations * samples / (samples - sizes)) / (K - 2)
    H = hessian(model, loss_fn, data, train=train)
    return GradientNoise(
        variance=float(total / (K - 1)),
        standard_error=float(np.sqrt((K - 1) * left.var())),
        slope=float(slope),
        curvature=float(unit.double() @ H.matvec(unit).double()),
        batches=K,
        samples=int(samples),
    )


def _slopes(objective: Objective, unit: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return each batch's mean gradient along a vector, and the batches' sizes."""
    parts = objective.split(unit)
    slopes, sizes = [], []
    with objective.at_work():
        for batch in objective.batches():
            with torch.enable_grad():
                loss = objective.loss_of(batch, objective.outputs(batch))
                gradient = derivatives(loss, objective.params)
            products = zip(gradient, parts, strict=True)
            slopes.append(sum((g.double() * d.double()).sum().item() for g, d in products))
            sizes.append(batch.size)
    return np.array(slopes, dtype=np.float64), np.array(sizes, dtype=np.float64)
