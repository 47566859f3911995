"""How heavy the tails of a model's weights are: outliers cost a rounded channel its levels."""

from typing import NamedTuple

from torch import Tensor, nn

from steppe.landscape.perturbations.weights import weights_of

# Beyond three standard deviations lie 0.27 % of Gaussian weights.
_OUTLIER = 3.0


class WeightTails(NamedTuple):
    """Tails of weights of two or more dimensions: means over tensors, by their elements.

    Attributes
    ----------
    kurtosis : float
        ``mean((w − μ)⁴) / σ⁴`` of each tensor: 3 of Gaussian weights, 1.8 of even ones.
    outliers : float
        The share of weights beyond 3σ of their tensor's mean: 0.0027 of Gaussian ones.
    """

    kurtosis: float
    outliers: float


def weight_tails(model: nn.Module) -> WeightTails:
    """Return the tails of a model's weights; NaN where none of them differ.

    Parameters
    ----------
    model : nn.Module
        The model.

    Examples
    --------
    >>> import torch
    >>> layer = nn.Linear(4, 1)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    >>> weight_tails(layer)
    WeightTails(kurtosis=1.0, outliers=0.0)
    """
    found = [(_tails(weight.detach()), weight.numel()) for _, weight in weights_of(model)]
    known = [(tails, count) for tails, count in found if tails.kurtosis == tails.kurtosis]
    total = sum(count for _, count in known)
    if not total:
        return WeightTails(float("nan"), float("nan"))
    return WeightTails(*(sum(t[i] * n for t, n in known) / total for i in range(2)))


def _tails(weight: Tensor) -> WeightTails:
    centred = weight.double() - weight.double().mean()
    squares = centred.square()
    variance = squares.mean()
    return WeightTails(
        float(squares.square().mean() / variance**2),
        float((squares > _OUTLIER**2 * variance).double().mean()),
    )
