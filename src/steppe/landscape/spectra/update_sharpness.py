"""The curvature along an optimizer's own next update, which no eigenvalue tells."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from steppe._shared.messages import first_line
from steppe.landscape.objective.batches import Batches
from steppe.landscape.objective.differentiate import flat_vector
from steppe.landscape.objective.loss_weight import LossFunction, Weight
from steppe.landscape.objective.objective import Objective
from steppe.landscape.objective.parameter_choice import Params
from steppe.landscape.operators.hessian import Product, hessian
from steppe.landscape.result import Result


@dataclass(frozen=True, eq=False)
class UpdateSharpness(Result):
    """The result of :func:`update_sharpness`.

    Attributes
    ----------
    value, error : float
        uᵀHu/‖u‖² and how far rounding may have moved it, in the loss's unit over the parameters'
        squared.
    slope : float
        gᵀu: by how much the loss changes along u to first order.
    bend : float
        ½uᵀHu: what the second order adds. Where it exceeds −``slope``, the loss rises.
    norm : float
        ‖u‖, in the parameters' unit.
    update : Tensor
        u, of shape (size,); not in :meth:`to_dict`.
    """

    left_out: ClassVar[tuple[str, ...]] = ("update",)

    value: float
    error: float
    slope: float
    bend: float
    norm: float
    update: Tensor = field(repr=False)


def update_sharpness(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    optimizer: Optimizer,
    *,
    params: Params | None = None,
    train: bool = False,
    weight: Weight | None = None,
    product: Product = "double-backward",
) -> UpdateSharpness:
    r"""Measure the curvature along the update that an optimizer would make next.

    .. math:: \frac{u^⊤ H u}{‖u‖^2}, \qquad
        L(w + u) ≈ L(w) + g^⊤u + \tfrac{1}{2} u^⊤ H u

    u is what ``optimizer.step()`` would add to the parameters after a pass over all of ``data``,
    momentum, preconditioner and weight decay included. A copy of model and optimizer takes the
    step; both are left as they are.

    Parameters
    ----------
    model, loss_fn, data, train, weight, product
        As in :func:`~steppe.landscape.hessian`.
    optimizer : Optimizer
        The one that trains the model, of torch, of steppe, or any other whose ``step()`` needs no
        closure. Of SAM pass the ``base_optimizer``: the update is that at the unperturbed gradient.
    params : optional
        The parameters along which u and H are taken, chosen as in
        :func:`~steppe.landscape.hessian`; the step is that of all. Default: those that require a
        gradient.

    Raises
    ------
    TypeError
        ``optimizer`` is no optimizer, or its step needs a closure.
    ValueError
        It steps none of the parameters, the update is zero or not finite; or as in
        :func:`~steppe.landscape.hessian`.

    References
    ----------
    Pan and Li, *Toward understanding why Adam converges faster than SGD for transformers*,
    arXiv 2306.00204, who name it; arXiv 2606.04662.

    Examples
    --------
    Of ½(3x² + y²) at (1, 1), along SGD's step, which is minus the gradient (3, 1):

    >>> import torch
    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.ones_(model.weight)
    >>> loss = lambda outputs, targets: (torch.tensor([3.0, 1.0]) * model.weight**2).sum() / 2
    >>> data = [(torch.zeros(1, 2), torch.zeros(1, 1))]
    >>> found = update_sharpness(model, loss, data, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> round(found.value, 4), round(found.slope, 4), round(found.bend, 4)
    (2.8, -1.0, 0.14)
    """
    if not (hasattr(optimizer, "param_groups") and callable(getattr(optimizer, "step", None))):
        raise TypeError(f"optimizer must be an optimizer, got {type(optimizer).__name__}")
    common: dict[str, Any] = {"train": train, "weight": weight}
    objective = Objective(model, loss_fn, data, params=params, **common)
    objective.check_precision("update_sharpness")
    everything = Objective(model, loss_fn, data, **common)
    with everything.evaluation_mode():
        gradient = everything.gradient().gradient
    moves = _moves(everything.model, optimizer, everything.split(gradient))
    update = flat_vector([moves[id(param)] for param in objective.params])
    norm = float(update.norm())
    if not 0 < norm < math.inf:
        raise ValueError(
            f"the optimizer's next update has the norm {norm}: expected one that moves the "
            "parameters; is its lr 0, or does it step others?"
        )
    H = hessian(model, loss_fn, data, params=objective.params, product=product, **common)
    unit = update / norm
    image = H.matvec(unit).double()
    value = float(unit @ image)
    slopes = dict(zip(map(id, everything.params), everything.split(gradient), strict=True))
    slope = float(update @ flat_vector([slopes[id(param)] for param in objective.params]).double())
    return UpdateSharpness(
        value=value,
        error=H.precision * float(image.norm()),
        slope=slope,
        bend=value * norm**2 / 2,
        norm=norm,
        update=update.to(objective.dtype),
    )


def _moves(model: nn.Module, optimizer: Optimizer, grads: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return in float64 what a step of copies adds to each parameter of the model, by its id.

    ``grads`` are those of the parameters that require one.
    """
    copied_model, copied = copy.deepcopy((model, optimizer))
    for param in copied_model.parameters():
        param.grad = None
    trained = (param for param in copied_model.parameters() if param.requires_grad)
    for param, grad in zip(trained, grads, strict=True):
        param.grad = grad.clone()
    try:
        copied.step()
    except Exception as error:
        raise TypeError(
            f"a copy of this {type(optimizer).__name__} cannot take a step: {first_line(error)}; "
            "expected an optimizer whose step() needs no closure and one gradient; of SAM pass "
            "its base_optimizer"
        ) from error
    pairs = zip(model.parameters(), copied_model.parameters(), strict=True)
    return {id(own): (new.detach().double() - own.detach().double()) for own, new in pairs}
