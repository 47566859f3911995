"""The gradient noise scale: the batch size beyond which larger batches hardly help."""

import math
from dataclasses import dataclass

import numpy as np
from torch import nn

from steppe._shared.array_types import Floats
from steppe.landscape.objective.batch_gradients import batch_gradients, check_has_noise
from steppe.landscape.objective.batches import Batches
from steppe.landscape.objective.differentiate import flat_vector
from steppe.landscape.objective.loss_weight import LossFunction, Weight
from steppe.landscape.objective.objective import Objective
from steppe.landscape.objective.parameter_choice import Params
from steppe.landscape.result import Result


@dataclass(frozen=True)
class NoiseScale(Result):
    """The result of :func:`noise_scale`.

    Attributes
    ----------
    value : float
        tr(Σ)/‖G‖², in samples; infinite where ‖G‖² cannot be told from 0, as at a minimum.
    stderr : float
        Its standard error, by the jackknife over batches.
    variance, variance_stderr : float
        tr(Σ), the variance of one sample's gradient summed over parameters, and its standard error.
    slope, slope_stderr : float
        ‖G‖², of the gradient that infinitely many samples have, and its standard error. The
        estimate has no bias, and may so be negative.
    batches, samples : int
        What it is estimated from.
    """

    value: float
    stderr: float
    variance: float
    variance_stderr: float
    slope: float
    slope_stderr: float
    batches: int
    samples: int


def noise_scale(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    *,
    params: Params | None = None,
    train: bool = False,
    weight: Weight | None = None,
) -> NoiseScale:
    r"""Estimate the gradient noise scale, with its standard error.

    .. math:: B = \frac{\operatorname{tr} Σ}{‖G‖^2}, \qquad
        \operatorname{tr} Σ ≈ \frac{1}{K - 1} \sum_{k=1}^{K} n_k ‖g_k - \bar g‖^2, \qquad
        ‖G‖^2 ≈ ‖\bar g‖^2 - \operatorname{tr} Σ / N

    with g_k the gradient of batch k of n_k samples, and ḡ that of all N. Batches far smaller than B
    have gradients that are mostly noise, and twice the batch halves the steps; beyond B it saves
    few. It rises as the loss falls. Where batches are weighted by something else than samples, such
    as the targets that are not ignored, n_k is in proportion to it and sums to N.

    Parameters
    ----------
    model, loss_fn, data, params, train, weight
        As in :func:`~steppe.landscape.hessian`; at least three batches, into which samples came at
        random, and no sum over samples. Small batches make a small error, as there are more of
        them. It takes two gradients of all the data.

    Raises
    ------
    ValueError
        There are fewer than three batches; the loss is a sum over samples; ``model`` is distributed
        over processes; or as in :func:`~steppe.landscape.hessian`.

    References
    ----------
    McCandlish, Kaplan, Amodei et al., *An Empirical Model of Large-Batch Training*,
    arXiv 1812.06162, where it is the simple noise scale.

    Examples
    --------
    The gradients of ½(w − y)² at w = 0 are −y, of mean 2 and variance 1:

    >>> import torch
    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> data = [(torch.ones(1, 1), torch.full((1, 1), y)) for y in (1.0, 2.0, 3.0)]
    >>> found = noise_scale(model, half_square, data)
    >>> found.variance, round(found.slope, 4), round(found.value, 4)
    (1.0, 3.6667, 0.2727)
    """
    objective = Objective(model, loss_fn, data, params=params, train=train, weight=weight)
    check_has_noise(objective)
    sizes, own, with_mean, square, counted = _products(objective)
    if len(sizes) < 3:
        raise ValueError(f"data has {len(sizes)} batches: the noise scale needs at least 3")
    samples = sizes.sum()
    variance, slope = _estimates(sizes @ own, square, samples, len(sizes))
    # Without each batch in turn: the others' mean is (Nḡ − n_k·g_k)/(N − n_k).
    rest = samples - sizes
    squares = (samples**2 * square - 2 * samples * sizes * with_mean + sizes**2 * own) / rest**2
    variances, slopes = _estimates(sizes @ own - sizes * own, squares, rest, len(sizes) - 1)
    return NoiseScale(
        value=float(variance / slope) if slope > 0 else math.inf,
        stderr=_jackknife(variances / slopes) if slope > 0 and (slopes > 0).all() else math.inf,
        variance=float(variance),
        variance_stderr=_jackknife(variances),
        slope=float(slope),
        slope_stderr=_jackknife(slopes),
        batches=len(sizes),
        samples=counted,
    )


def _products(objective: Objective) -> tuple[Floats, Floats, Floats, float, int]:
    """Return of each batch n_k, ‖g_k‖² and g_k·ḡ; of all ‖ḡ‖² and the number of samples.

    Batches that weigh nothing are left out.
    """
    rows: list[tuple[float, float, float]] = []
    samples = 0
    with objective.evaluation_mode():
        mean = objective.gradient().gradient
        for each in batch_gradients(objective):
            gradient = flat_vector(each.gradient).double()
            rows.append((each.weight, float(gradient @ gradient), float(gradient @ mean)))
            samples += each.samples
    weights, own, with_mean = np.array(rows).T
    sizes = weights * (samples / weights.sum())
    return sizes, own, with_mean, float(mean @ mean), samples


def _estimates(
    sum_of_squares: Floats, square: float | Floats, samples: Floats, batches: int
) -> tuple[Floats, Floats]:
    """Return tr(Σ) and ‖G‖², given Σ n_k‖g_k‖² and ‖ḡ‖²."""
    variance = (sum_of_squares - samples * square) / (batches - 1)
    return variance, square - variance / samples


def _jackknife(without: Floats) -> float:
    return float(np.sqrt((len(without) - 1) * without.var()))
