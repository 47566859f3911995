"""Directions in parameter space: random ones that are filter-normalised, and checked ones.

Lines and planes run along them.
"""

import torch
from torch import Tensor

from steppe.landscape.objective.differentiate import flat_vector
from steppe.landscape.objective.objective import Objective


def filter_normalised(objective: Objective, generator: torch.Generator) -> Tensor:
    r"""Draw a Gaussian direction whose filters are as long as the parameters' filters.

    .. math:: d_{ij} ← \frac{d_{ij}}{‖d_{ij}‖} ‖w_{ij}‖

    for filter j of parameter i. A filter is one index of the first dimension: what produces one
    output channel of a convolution, or a row of a linear layer's matrix. A step of a given length
    then has the same effect on networks that differ in the scale of their weights only, as networks
    with BatchNorm may. Parameters with fewer than two dimensions (biases, and the scales of
    normalisations) get 0.

    Parameters
    ----------
    objective : Objective
        The objective whose parameters are w.
    generator : torch.Generator
        A generator on the CPU, so that a seed gives the same direction on every device.

    Returns
    -------
    Tensor
        Shape (objective.size,), in the objective's format and on its device.

    Raises
    ------
    ValueError
        No parameter has a filter that is not zero.

    References
    ----------
    Li et al., *Visualizing the Loss Landscape of Neural Nets*, NeurIPS 2018, arXiv 1712.09913,
    section 4.

    Examples
    --------
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    >>> objective = Objective(model, None, [])
    >>> direction = filter_normalised(objective, torch.Generator().manual_seed(0))
    >>> weight, bias = objective.split(direction)
    >>> weight.norm(dim=1).round(decimals=4), bias
    (tensor([5., 1.]), tensor([0., 0.]))
    """
    parts = [_random_filters_like(param.detach(), generator) for param in objective.params]
    direction = flat_vector(parts).to(objective.device, objective.dtype)
    if not direction.any():
        raise ValueError(
            "no parameter has a filter to draw a random direction for: all have fewer than two "
            "dimensions, or are zero; pass a direction"
        )
    return direction


def checked_direction(objective: Objective, name: str, direction: Tensor) -> Tensor:
    """Return a given direction in the objective's format and on its device.

    Raises
    ------
    TypeError
        The direction is no tensor of real numbers.
    ValueError
        Its shape is not (objective.size,), it is not finite, or it is zero. The message calls it by
        ``name``.
    """
    if not isinstance(direction, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(direction).__name__}")
    if direction.is_complex():
        raise TypeError(f"{name} must be a tensor of real numbers, got {direction.dtype}")
    if direction.shape != (objective.size,):
        raise ValueError(
            f"{name} has shape {tuple(direction.shape)}, expected ({objective.size},): one number "
            "for each element of params, in their order"
        )
    if not direction.isfinite().all():
        raise ValueError(f"{name} is not finite")
    if not direction.any():
        raise ValueError(f"{name} is zero: it leads nowhere")
    return direction.detach().to(objective.device, objective.dtype)


def _random_filters_like(param: Tensor, generator: torch.Generator) -> Tensor:
    if param.ndim < 2:
        return torch.zeros(param.shape, dtype=torch.float64, device="cpu")
    drawn = torch.randn(param.shape, dtype=torch.float64, generator=generator, device="cpu")
    return drawn * (_filter_norms(param.cpu().double()) / _filter_norms(drawn))


def _filter_norms(tensor: Tensor) -> Tensor:
    filters = tuple(range(1, tensor.ndim))
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=filters, keepdim=True)
    return norms
