"""Rounding of linear layers that compensates each weight's error in the weights not rounded yet.

It is the method of GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323), written from the paper. It
keeps the change of a layer's outputs small, ``‖(W − Ŵ)X‖²``, on inputs X that are given to it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from steppe.landscape.perturbations.rounding import levels_of, round_to_bits, scale_of
from steppe.landscape.perturbations.weights import memory_of

# Of the mean of the diagonal of XXᵀ, added to it, as the paper does: inputs that are always zero
# would leave it singular.
_DAMPING = 0.01


def round_with_compensation(
    weight: Tensor, moments: Tensor, bits: int, group: int | None = None
) -> Tensor:
    r"""Return a linear layer's weight, rounded column by column.

    With H = XXᵀ + λI and U the upper Cholesky factor of H⁻¹, after column j has been rounded by the
    error e, later columns i are changed by ``−e·U_ji/U_jj``, which minimises the change of outputs.
    Scales are those of least squared error; of a group of columns, once those before it are
    rounded.

    Parameters
    ----------
    weight : Tensor
        (outputs, inputs).
    moments : Tensor
        XXᵀ over the samples, (inputs, inputs).
    bits : int
        At least 2.
    group : int, optional
        Columns that have scales of their own. Default: all of them.

    Examples
    --------
    Without correlations it rounds to the nearest level:

    >>> weight = torch.tensor([[0.9, 0.2, -1.1, 1.0]])
    >>> rounded = round_with_compensation(weight, torch.eye(4), 2)
    >>> torch.allclose(rounded, round_to_bits(weight, 2, "least error"))
    True
    """
    left = weight.double().clone()
    group = group or left.shape[1]
    moments = moments.double()
    damping = _DAMPING * moments.diagonal().mean().clamp(min=1e-12)
    damped = moments + damping * torch.eye(len(moments), dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    rounded = torch.empty_like(left)
    for column in range(left.shape[1]):
        if column % group == 0:
            scale = scale_of(left[:, column : column + group], bits, "least error")
        own = left[:, column : column + 1]
        rounded[:, column : column + 1] = levels_of(own, scale, bits) * scale
        error = (own - rounded[:, column : column + 1]) / upper[column, column]
        left[:, column + 1 :] -= error * upper[column : column + 1, column + 1 :]
    return rounded.to(weight.dtype)


def compensated(layer: nn.Linear, bits: int, group: int | None, run: Callable[[], None]) -> Tensor:
    """Return the rounded weight of a layer, on the inputs that it has when ``run()`` is called.

    Inputs or weights that are not finite tell nothing of errors: then each weight is rounded to the
    nearest level.
    """
    weight, moments = layer.weight.detach().cpu(), _moments(layer, run)
    if not (moments.isfinite().all() and weight.isfinite().all()):
        return round_to_bits(weight, bits, "least error", group)
    return round_with_compensation(weight, moments, bits, group)


def layers_in_order(model: nn.Module, run: Callable[[], None]) -> list[nn.Linear]:
    """Return the linear layers that a model calls, in order; of tied weights the first.

    A layer whose weight is computed from other parameters, as ``weight_norm`` does, is none of
    them: what would be written into it is computed anew in the next pass.

    Parameters
    ----------
    model : nn.Module
        The model.
    run : callable
        Runs it on some samples.
    """
    called: dict[object, nn.Linear] = {}

    def note(layer: nn.Linear, rows: Tensor) -> None:
        called.setdefault(memory_of(layer.weight), layer)

    linear = [each for each in model.modules() if isinstance(each, nn.Linear)]
    _run_with([each for each in linear if "weight" in each._parameters], note, run)
    return list(called.values())


def _moments(layer: nn.Linear, run: Callable[[], None]) -> Tensor:
    """Return the sum of xxᵀ over all inputs x of a layer, on the CPU in float64."""
    size = layer.in_features
    total = torch.zeros(size, size, dtype=torch.float64)

    def add(_: nn.Linear, inputs: Tensor) -> None:
        rows = inputs.detach().reshape(-1, size).cpu().double()
        total.addmm_(rows.T, rows)

    _run_with([layer], add, run)
    return total


def _run_with(
    layers: list[nn.Linear], note: Callable[[nn.Linear, Tensor], None], run: Callable[[], None]
) -> None:
    """Run the model, and note the inputs of these layers."""

    def hook(layer: Any, given: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
        note(layer, given[0] if given else keywords["input"])

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
