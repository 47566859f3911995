"""The Hessian and the Gauss–Newton matrix of a mean loss, by their products with vectors.

Both are :class:`Operator` objects, on which :mod:`steppe.landscape.spectra` works.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from steppe.landscape.objective.batches import Batches
from steppe.landscape.objective.loss_weight import LossFunction, Weight
from steppe.landscape.objective.objective import Objective
from steppe.landscape.objective.parameter_choice import Params, checked_params
from steppe.landscape.operators._hessian_products import (
    DoubleBackward,
    finite_differences,
    forward_over_reverse,
    of_gauss_newton,
    of_hessian,
)
from steppe.landscape.operators.operator import MOST_ASYMMETRY, Operator, asymmetry_of

Product = Literal["double-backward", "forward-over-reverse", "finite-differences"]

# Measured on networks with offset inputs and confident ones, float32's eigenvalues are off by up to
# 3.5 of its precisions.
_ROUNDINGS = 4

_PRODUCTS = ("double-backward", "forward-over-reverse", "finite-differences")


def hessian(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    *,
    params: Params | None = None,
    train: bool = False,
    weight: Weight | None = None,
    product: Product = "double-backward",
) -> Operator:
    r"""Return the Hessian of the mean loss over all samples, as an operator.

    .. math:: H = \frac{1}{N} \sum_i ∇^2 ℓ(w; x_i, y_i)

    Batches are weighted by what their loss is a mean over, so a smaller last batch is treated
    correctly, and how samples are batched does not matter. Batches are summed in float64. The model
    is restored afterwards: mode, parameters, gradients, buffers and random state. Every pass
    computes the same function of the same samples, whatever data and model draw at random, and by
    operations that can be differentiated twice (docs/landscape.md says how). Under
    ``DistributedDataParallel`` each process has its own samples, and the mean is over the samples
    of all; every process must ask for the same products.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, or ``model(**batch)`` where batches are mappings.
    loss_fn : callable or None
        ``loss_fn(outputs, targets)``, for mappings ``loss_fn(outputs, batch)``: a scalar, in
        general the mean over the batch's samples. None takes the loss that the model computes
        (``outputs.loss``).
    data : iterable
        ``(inputs, targets)`` pairs or mappings; gone through once for each product, or block of
        products. Tensors are moved to the model's device.
    params : optional
        The parameters w that the loss is a function of, in the order of the vectors' elements.
        Parameters themselves, or what chooses them, or a list of either: the name of a parameter or
        a module (``"layers.3"``); any other text, or a compiled pattern, is a regular expression
        that is searched in full names (``r"attn.*weight"``); a module, or a type of modules
        (``nn.Conv2d``), chooses all that is inside; and of a function ``f(name, param)`` those of
        which it is true. What a name, a type or a function chooses has the model's order, and
        parameters that require no gradient are left out. Default: all that require one.
    train : bool, default False
        Evaluate in ``train()`` mode (batch statistics, dropout with the same masks each time; the
        running statistics are restored). Default: ``eval()`` mode.
    weight : str or callable, optional
        What a batch's loss has been divided by, and batches are therefore weighted by. "samples":
        the number of samples, the first dimension of its targets. "sum": nothing, the loss is a
        sum, and batches are added up. A function: what ``weight(outputs, targets)`` returns, for
        example the number of tokens. Default: torch's losses tell it (``reduction``, ``weight``,
        ``ignore_index``), and of Hugging Face's models the labels do; for any other loss, the
        number of samples, where data has several batches after a check that a batch's loss is the
        mean of those of its halves.
    product : str, default "double-backward"
        How products are computed. "double-backward" differentiates the gradient and costs about 3
        gradients. "forward-over-reverse" costs a little more and needs far less memory on
        transformers. "finite-differences" takes two gradients, for models that cannot be
        differentiated twice; where the loss is smooth its relative error is about 1e-3 in float32,
        1e-7 in float64. In float32 it sees kinks of ReLU, too, which second derivatives do not.

    Returns
    -------
    Operator
        Of shape (size, size), with ``matvec``, ``matmat`` (which shares one forward pass and one
        gradient among the block's vectors) and ``products``, the number of products so far. Its
        unit is the loss's over the parameters' unit squared.

    Raises
    ------
    ValueError
        ``product`` is unknown; ``product="finite-differences"`` meets a parameter narrower than
        float32; ``params`` chooses none; or a parameter requires no gradient. When a product is
        computed: the data is empty; the loss is not a scalar, not finite, does not depend on the
        parameters, or, for "forward-over-reverse", reads them itself and not by the model's outputs
        alone; or a parameter does not belong to the model any more.
    RuntimeError
        When a product is computed: an operation of the model cannot be differentiated twice. The
        message names the remedy.

    References
    ----------
    Pearlmutter, *Fast exact multiplication by the Hessian*, Neural Computation 6 (1994).

    Examples
    --------
    The Hessian of ½(w·x − y)², averaged, is the mean of x xᵀ:

    >>> import torch
    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> H = hessian(model, half_square, [(x, torch.zeros(2, 1))])
    >>> H.matmat(torch.eye(2))
    tensor([[1., 1.],
            [1., 2.]])

    Of a deeper network, the block of the weights of its last layer:

    >>> deep = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> hessian(deep, half_square, [(x, torch.zeros(2, 1))], params="2.weight").shape
    (3, 3)
    """
    if product not in _PRODUCTS:
        raise ValueError(f"product={product!r} is not one of {', '.join(_PRODUCTS)}")
    objective = Objective(model, loss_fn, data, params=params, train=train, weight=weight)
    if product == "finite-differences":
        objective.check_precision("product='finite-differences'")
        return operator_of(
            objective,
            lambda rows: finite_differences(objective, rows),
            asymmetry=_of_differences,
            error=_error_of_differences,
        )
    if product == "double-backward":
        double_backward = DoubleBackward(objective, of_hessian)
        return operator_of(objective, double_backward.products, double_backward.held)
    return operator_of(objective, lambda rows: forward_over_reverse(objective, rows))


def ggn(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batches,
    *,
    params: Params | None = None,
    train: bool = False,
    weight: Weight | None = None,
) -> Operator:
    r"""Return the generalised Gauss–Newton matrix of the mean loss, as an operator.

    .. math:: G = \frac{1}{N} \sum_i J_i^⊤ \, ∇^2_{f} ℓ(f(x_i), y_i) \, J_i

    with J the Jacobian of the model's outputs f: the Hessian less the term with the model's own
    second derivatives. It has no negative eigenvalues where the loss is convex in the outputs. Of
    cross-entropy and squared error it is the Fisher matrix: :func:`fisher`.

    Parameters
    ----------
    model, loss_fn, data, params, train, weight
        As in :func:`hessian`, but ``loss_fn`` cannot be None. The model must return one tensor, or
        an object with ``logits``, which ``loss_fn`` is then called with.

    Returns
    -------
    Operator
        Of shape (size, size). A product costs about 3 gradients, and the vectors of a block share
        one graph.

    Raises
    ------
    ValueError
        As in :func:`hessian`; or ``loss_fn`` is None or reads parameters itself, or the model's
        outputs are not a tensor.

    References
    ----------
    Schraudolph, *Fast curvature matrix-vector products*, Neural Computation 14 (2002).

    Examples
    --------
    >>> import torch
    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> ggn(model, half_square, [(x, torch.zeros(2, 1))]).matvec(torch.tensor([1.0, 0.0]))
    tensor([1., 1.])
    """
    if loss_fn is None:
        raise ValueError("loss_fn=None: ggn needs the loss as a function of the model's outputs")
    objective = Objective(model, loss_fn, data, params=params, train=train, weight=weight)
    double_backward = DoubleBackward(objective, of_gauss_newton)
    return operator_of(objective, double_backward.products, double_backward.held)


def operator_of(
    objective: Objective,
    product: Callable[[Tensor], Tensor],
    held: Callable[[], AbstractContextManager[None]] = nullcontext,
    asymmetry: Callable[[float], float] = asymmetry_of,
    error: Callable[[float], float] = lambda precision: _ROUNDINGS * precision,
) -> Operator:
    """Return the operator of an objective's products, given how they are computed and rounded."""

    def checked(rows: Tensor) -> Tensor:
        # By parameters that have been exchanged since, all derivatives would be zero.
        checked_params(objective.model, objective.params)
        return product(rows)

    return Operator(
        objective.size,
        checked,
        dtype=objective.dtype,
        device=objective.device,
        params=objective.params,
        held=held,
        rounding=lambda: asymmetry(_precision(objective)),
        precision=lambda: error(_precision(objective)),
    )


def _precision(objective: Objective) -> float:
    """Return ε of the number format of fewest bits that is computed in, known after a gradient."""
    precision = torch.finfo(objective.narrowest or objective.dtype).eps
    has_tf32 = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    if objective.device.type == "cuda" and precision > 1e-8 and has_tf32:
        return max(precision, 2.0**-10)
    return precision


def _of_differences(precision: float) -> float:
    # Measured: at most 1e-3 in float32 and 1e-7 in float64, with a step that grows as ε^⅓.
    return min(MOST_ASYMMETRY, 6 * float(precision ** (1 / 3)))


def _error_of_differences(precision: float) -> float:
    # As measured: 1e-3 in float32, 1e-7 in float64.
    return 1e-3 if precision > 1e-10 else 1e-7
