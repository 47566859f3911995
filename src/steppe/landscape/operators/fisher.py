"""The Fisher matrix of a model's own predictions, and the empirical one of the data's labels."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.landscape.objective.batches import Batch, Batches
from steppe.landscape.objective.loss_weight import LossFunction, Weight
from steppe.landscape.objective.objective import Objective
from steppe.landscape.objective.parameter_choice import Params
from steppe.landscape.objective.sample_groups import part_of
from steppe.landscape.operators._hessian_products import (
    DoubleBackward,
    Jacobian,
    RowProduct,
    tensor_of,
)
from steppe.landscape.operators.hessian import ggn, operator_of
from steppe.landscape.operators.operator import Operator

# Minus a logarithm of likelihood whose second derivative by the outputs does not depend on labels.
_NATURAL: tuple[Any, ...] = (
    F.cross_entropy, F.mse_loss, F.binary_cross_entropy_with_logits, F.poisson_nll_loss,
    nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss, nn.PoissonNLLLoss,
)  # fmt: skip


def fisher(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batches,
    *,
    params: Params | None = None,
    train: bool = False,
    weight: Weight | None = None,
) -> Operator:
    r"""Return the Fisher matrix of a model's predictions, as an operator.

    .. math:: F = \frac{1}{N} \sum_i E_{y ∼ p_i} \left[∇ℓ_i(w; y) \, ∇ℓ_i(w; y)^⊤\right]

    with ℓ_i(w; y) = −log p_i(y) for the model's prediction p_i. Labels are drawn from what it
    predicts; those of the data do not matter. A sample of several labels, as a sequence of tokens
    or a vector of numbers, has as many predictions, of which N is the number in all. For torch's
    cross-entropy and binary cross-entropy of logits, squared error (p_i is Gaussian, of variance ½)
    and Poisson loss of logarithms it is the Gauss–Newton matrix, and computed as that, see
    :func:`~steppe.landscape.ggn`.

    Parameters
    ----------
    model, loss_fn, data, params, train, weight
        As in :func:`~steppe.landscape.ggn`; ``loss_fn`` is one of the losses named above.

    Returns
    -------
    Operator
        Of shape (size, size), without negative eigenvalues.

    Raises
    ------
    ValueError
        As in :func:`~steppe.landscape.ggn`; or ``loss_fn`` is another loss, or weighs classes: what
        labels it would be minus the logarithm of is not known.

    References
    ----------
    Martens, *New insights and perspectives on the natural gradient method*, arXiv 1412.1193,
    section 9.

    Examples
    --------
    >>> model = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> data = [(torch.ones(4, 1), torch.zeros(4, dtype=torch.long))]
    >>> fisher(model, F.cross_entropy, data).matmat(torch.eye(2))
    tensor([[ 0.2500, -0.2500],
            [-0.2500,  0.2500]])
    """
    _check_natural(loss_fn)
    return ggn(model, loss_fn, data, params=params, train=train, weight=weight)


def empirical_fisher(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batches,
    *,
    params: Params | None = None,
    train: bool = False,
    weight: Weight | None = None,
) -> Operator:
    r"""Return the mean of the outer products of all samples' gradients, as an operator.

    .. math:: \frac{1}{N} \sum_i ∇ℓ(w; x_i, y_i) \, ∇ℓ(w; x_i, y_i)^⊤

    It is the uncentred covariance of gradients, of which Adam's second moments keep the diagonal;
    its labels are the data's, which makes it another matrix than :func:`fisher`, at minima too
    (Kunstner, Balles and Hennig, arXiv 1905.12558). A sample is a row of inputs and targets; of one
    whose loss is a mean over tokens it is that mean's gradient.

    Parameters
    ----------
    model, loss_fn, data, params, train, weight
        As in :func:`~steppe.landscape.ggn`. Of a loss that is a sum (``reduction="sum"``) the outer
        products are added up.

    Returns
    -------
    Operator
        Of shape (size, size), without negative eigenvalues. A product costs about 3 gradients, and
        the loss of each sample's outputs.

    Raises
    ------
    ValueError
        As in :func:`~steppe.landscape.ggn`; or outputs have not one row for each sample.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> data = [(torch.eye(2), torch.tensor([[3.0], [1.0]]))]
    >>> empirical_fisher(model, half_square, data).matmat(torch.eye(2))
    tensor([[4.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    if loss_fn is None:
        raise ValueError(
            "loss_fn=None: empirical_fisher needs the loss as a function of the model's outputs"
        )
    objective = Objective(model, loss_fn, data, params=params, train=train, weight=weight)
    double_backward = DoubleBackward(objective, _of_gradients)
    return operator_of(objective, double_backward.products, double_backward.held)


def _of_gradients(objective: Objective, batch: Batch) -> tuple[RowProduct, float]:
    """Multiply by JᵀJ over the number of samples, J their gradients as rows."""
    found, targets = objective.outputs(batch)
    outputs = tensor_of(found, "empirical_fisher")
    if not outputs.ndim or len(outputs) != batch.size:
        raise ValueError(
            f"batch {batch.position} has {batch.size} samples, and outputs of shape "
            f"{tuple(outputs.shape)}: expected a row for each sample"
        )
    # Verifies, once, that the batch's loss is a mean over samples, or a sum.
    objective.weighted_loss(batch, outputs, targets)
    parts = [part_of(batch, i, i + 1) for i in range(batch.size)]
    losses = torch.stack(
        [
            objective.batch_loss(part, outputs[i : i + 1], part.targets)
            for i, part in enumerate(parts)
        ]
    )
    jacobian = Jacobian(losses, objective.params)
    count = 1 if objective.is_sum else batch.size

    def product(row: Tensor, is_needed_again: bool) -> Tensor:
        pushed = jacobian.push(objective.split(row), is_needed_again)
        return jacobian.pull(pushed / count, is_needed_again)

    return product, float(count)


def _check_natural(loss_fn: Any) -> None:
    """Refuse losses that are not known as minus the logarithm of a likelihood."""
    options: dict[str, Any] = {}
    base: Any = loss_fn
    while isinstance(base, partial) and not base.args:
        base, options = base.func, {**base.keywords, **options}
    if isinstance(base, nn.Module):
        options = {**vars(base), **base._buffers, **options}
    is_natural = base in _NATURAL or type(base) in _NATURAL
    is_weighted = any(options.get(name) is not None for name in ("weight", "pos_weight"))
    if is_natural and not is_weighted and options.get("log_input", True):
        return
    shown = f"{getattr(base, '__name__', type(base).__name__)}{' with weights' * is_weighted}"
    raise ValueError(
        f"loss_fn={shown} is not known as minus the logarithm of what the model predicts: expected "
        "torch's cross_entropy, binary_cross_entropy_with_logits, mse_loss or poisson_nll_loss of "
        "logarithms, without weights; ggn and empirical_fisher take any loss"
    )
