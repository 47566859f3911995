"""How much the loss rises one SAM step away."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steppe.landscape.as_found import as_found

LossFunction = Callable[[Tensor, Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Sharpness:
    """What :func:`sharpness` measured.

    Attributes
    ----------
    value : float
        The rise, ``perturbed_loss - loss``, in the loss's own unit.
    loss : float
        Mean loss over the samples at the parameters as they are.
    perturbed_loss : float
        The same a distance ``rho`` up the gradient; infinite if the loss overflows there.
    rho : float
        The radius, in the parameters' unit.
    samples : int
        How many samples the means are over.
    """

    value: float
    loss: float
    perturbed_loss: float
    rho: float
    samples: int


def sharpness(
    model: nn.Module, loss_fn: LossFunction, data: Batches, *, rho: float = 0.05
) -> Sharpness:
    r"""SAM's worst-case sharpness, by one ascent step over all the data.

    .. math:: L(w + ρ \, ∇L(w) / ‖∇L(w)‖_2) - L(w)

    where L and ∇L are means over samples: batches count by their size, so a ragged last batch is
    right. Losses, the gradient and its norm are summed in float64. The model is evaluated in
    ``eval()`` mode and left as found: parameters, buffers, gradients, modes and random state.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``; its parameters that require a gradient are perturbed.
    loss_fn : callable
        ``loss_fn(outputs, targets)``, a scalar that is the mean over the batch's samples.
    data : iterable of (inputs, targets)
        Batches on the model's device. It is gone through twice: a list or a ``DataLoader``.
    rho : float, default 0.05
        Radius of the step, in the parameters' unit. The default is SAM's.

    Returns
    -------
    Sharpness
        At a zero gradient there is no direction to go: ``value`` is 0.

    Raises
    ------
    ValueError
        If ``rho`` is not positive and finite, no parameter requires a gradient, ``data`` is empty
        or cannot be gone through twice, or the loss or its gradient is not finite.

    References
    ----------
    Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*,
    arXiv 2010.01412, equation 2.

    Examples
    --------
    For L = w²/2 the rise is ρ·|w| + ρ²/2:

    >>> model = nn.Linear(1, 1, bias=False).double()
    >>> _ = nn.init.constant_(model.weight, 2.0)
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> batch = (torch.ones(4, 1).double(), torch.zeros(4, 1).double())
    >>> result = sharpness(model, half_square, [batch], rho=0.1)
    >>> round(result.value, 6), result.samples
    (0.205, 4)
    """
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"rho must be a finite number above 0, got {rho}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("no parameter of the model requires a gradient: nothing to perturb")

    with as_found(model, parameters):
        model.eval()
        loss, gradient, samples = _mean_loss_and_gradient(model, loss_fn, data, parameters)
        norm = math.sqrt(sum(g.square().sum().item() for g in gradient))
        if not math.isfinite(norm):
            raise ValueError(f"the gradient of the loss is not finite (norm {norm})")
        if norm == 0.0:
            return Sharpness(0.0, loss, loss, rho, samples)
        with torch.no_grad():
            for parameter, g in zip(parameters, gradient, strict=True):
                parameter.copy_(parameter + g * (rho / norm))
            perturbed, again = _mean_loss(model, loss_fn, data)
    if again != samples:
        raise ValueError(
            f"data gave {samples} samples the first time and {again} the second: "
            "pass a list or a DataLoader, not a generator"
        )
    return Sharpness(perturbed - loss, loss, perturbed, rho, samples)


def _mean_loss_and_gradient(
    model: nn.Module, loss_fn: LossFunction, data: Batches, parameters: Sequence[Tensor]
) -> tuple[float, list[Tensor], int]:
    gradient = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    total, samples = 0.0, 0
    for inputs, targets in data:
        with torch.enable_grad():
            loss = loss_fn(model(inputs), targets)
            parts = torch.autograd.grad(loss, parameters, allow_unused=True)
        size = len(targets)
        for g, part in zip(gradient, parts, strict=True):
            if part is not None:
                g.add_(part, alpha=size)
        total += loss.item() * size
        samples += size
    if samples == 0:
        raise ValueError("data is empty: there is no loss to take the mean of")
    if not math.isfinite(total):
        raise ValueError(f"the loss is not finite ({total / samples}): there is no sharpness")
    return total / samples, [g.div_(samples) for g in gradient], samples


def _mean_loss(model: nn.Module, loss_fn: LossFunction, data: Batches) -> tuple[float, int]:
    total, samples = 0.0, 0
    for inputs, targets in data:
        total += loss_fn(model(inputs), targets).item() * len(targets)
        samples += len(targets)
    return total / max(samples, 1), samples
