"""The Hessian as an optimizer's preconditioner scales it, and the sharpness that is still stable.

It reads an optimizer's state by the names in its groups; it imports no optimizer of this library.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from steppe._shared.torch_preconditioners import KNOWN_CLASSES, preconditioner_reader
from steppe.landscape.objective.differentiate import flat_vector
from steppe.landscape.operators.operator import Operator, check_operator

# A parameter group, or a parameter's state.
_GroupOrState = dict[str, Any]


class Preconditioned(Operator):
    """The operator P^½ H P^½, with the threshold that its largest eigenvalue must stay below.

    Its eigenvalues are those of PH. Its eigenvector y corresponds to P^½y in the parameters' space.

    Attributes
    ----------
    diagonal : Tensor
        P, of shape (size,).
    threshold : float
        The eigenvalue above which the method is unstable on a quadratic loss.
    learning_rate : float
        Learning rate of the first parameter's group.
    momentum : float
        β, by which the method's momentum decays each step.
    """

    def __init__(
        self,
        H: Operator,
        diagonal: Tensor,
        *,
        threshold: float,
        learning_rate: float,
        momentum: float,
    ) -> None:
        root = diagonal.sqrt().to(H.device, H.dtype)
        super().__init__(
            H.size,
            lambda rows: root * H.rows(root * rows),
            dtype=H.dtype,
            device=H.device,
            params=H.params,
            held=H.held,
            rounding=lambda: H.rounding,
            precision=lambda: H.precision,
        )
        self.diagonal, self.threshold = diagonal, threshold
        self.learning_rate, self.momentum = learning_rate, momentum


def preconditioned(H: Operator, optimizer: Optimizer) -> Preconditioned:
    r"""Return P^½ H P^½, with the diagonal P that an optimizer scales its momentum by.

    On a quadratic loss, with P as it is now, the method

    .. math:: m ← β m + c g, \qquad w ← w - η P m

    is stable while the largest eigenvalue is below ``threshold``:

    .. math:: λ_{\max}(P^{1/2} H P^{1/2}) < \frac{2(1 + β)}{η c}

    which is 2/η for gradient descent, 38/η for Adam at β1 = 0.9 (c = 1 − β1), and 2(1 + β)/(1 + 2β)
    over ηc for Nesterov's momentum. In full-batch training the eigenvalue rises to the threshold
    and stays there: the (adaptive) edge of stability.

    Parameters
    ----------
    H : Operator
        From :func:`~steppe.landscape.hessian` or :func:`~steppe.landscape.ggn`, of the loss that
        the optimizer minimises.
    optimizer : Optimizer
        One of this library; ``torch.optim``'s SGD, Adam, AdamW, NAdam, RMSprop or Adagrad, or a
        subclass; or one of these inside of a wrapper, such as :class:`steppe.SAM`,
        :class:`steppe.optim.Offload` and those of Accelerate and Lightning. It must have taken a
        step.

    Returns
    -------
    Preconditioned
        An operator of H's size. It uses the optimizer's present state: call again after steps.

    Raises
    ------
    TypeError
        ``H`` is no operator, or ``optimizer`` no optimizer.
    ValueError
        The optimizer is of an unknown class, has no state yet, maximises, or does not have all of
        H's parameters; these differ in momentum; the learning rate is 0; P is not finite; or H does
        not come from a model.

    Notes
    -----
    * P is 1/d for Adam, d for InvAdam, (1−α)/d + α·d for DualAdam, and so on, with d = √v̂ + ε;
      1 for SGD. The papers on the edge of stability call the divisor P, here P multiplies.
    * Where parameters differ in ηc, its ratio to the first parameter's is part of P, so that one
      threshold serves all.
    * The slots of critical momenta and gradients are taken as constants, which they are between
      replacements. So the threshold of AdamCM is Adam's, and an upper bound: where a slot is
      replaced at nearly every step it is far lower, 0.39/η for five slots at β1 = 0.9
      (:func:`steppe.theory.rate`). With critical gradients P holds the weight of the gradient
      itself, which is 1/(n + 1) for "mean" with n slots filled, and the threshold is as without.
    * Until its switch MIAdam's P is lrⁿ⁻¹/(1+κ)ⁿ/d: an integral damps by 1 + κ what changes sign in
      every step. Slower oscillations it amplifies, so the threshold is then an upper bound.
    * Bias corrections of the momentum fade within 1/(1 − β) steps and are left out. NAdam's β
      follows a schedule, and is taken as it is now.
    * Weight decay is no part of H: add an L2 penalty to the loss that H is of.
    * Around SAM, P and the threshold are the base optimizer's. SAM itself gets unstable at lower
      curvature, which depends on the gradient's norm.

    References
    ----------
    Cohen et al., *Adaptive Gradient Methods at the Edge of Stability*, arXiv 2207.14484.

    Examples
    --------
    With P = 1/|g| after one step, L = ½·3w² at w = 2 has 3/6:

    >>> from steppe.landscape import hessian
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 2.0)
    >>> loss = lambda outputs, targets: 1.5 * outputs.square().mean()
    >>> batch = (torch.ones(1, 1), torch.zeros(1, 1))
    >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    >>> loss(model(batch[0]), None).backward()
    >>> optimizer.step()
    >>> operator = preconditioned(hessian(model, loss, [batch]), optimizer)
    >>> operator.matvec(torch.ones(1)), round(operator.threshold)
    (tensor([0.5000]), 3800)
    """
    check_operator(H)
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(f"optimizer must be an optimizer, got {type(optimizer).__name__}")
    if H.params is None:
        raise ValueError(
            "H does not say which parameters it is over: expected an operator from hessian() or "
            "ggn()"
        )
    params: list[Tensor] = list(H.params)
    groups = [_group_of(optimizer, index, param) for index, param in enumerate(params)]
    while (inner := wrapped_optimizer(optimizer)) is not None:
        params = _params_inside(optimizer, inner, params)
        inside = [_group_of(inner, index, param) for index, param in enumerate(params)]
        # A wrapper's group has what a scheduler has set since the last step.
        groups = [own | group for own, group in zip(inside, groups, strict=True)]
        optimizer = inner
    diagonals = [part.to(H.device) for part in _diagonals(optimizer, params, groups)]
    motions = [
        _motion(optimizer.state.get(param, {}), group)
        for param, group in zip(params, groups, strict=True)
    ]
    rate, momentum = motions[0]
    if rate == 0.0:
        raise ValueError("the learning rate of H's first parameter is 0: there is no threshold")
    for index, (_, other) in enumerate(motions):
        if other != momentum:
            raise ValueError(
                f"parameters 0 and {index} of H differ in momentum ({momentum} and {other}), and "
                "one threshold cannot serve both: take H over params of one kind"
            )
    diagonal = [part * (own / rate) for part, (own, _) in zip(diagonals, motions, strict=True)]
    return Preconditioned(
        H,
        flat_vector(diagonal),
        threshold=momentum.threshold(rate),
        learning_rate=float(groups[0]["lr"]),
        momentum=momentum.decay,
    )


def wrapped_optimizer(optimizer: Any) -> Any:
    """Return the optimizer inside of a wrapper, as SAM, Offload, or Accelerate's; or None."""
    for name in ("base_optimizer", "optimizer", "_optimizer"):
        inner = getattr(optimizer, name, None)
        if isinstance(inner, Optimizer):
            return inner
    return None


def _params_inside(outer: Any, inner: Any, params: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors that a wrapped optimizer steps in the place of parameters, as copies."""
    pairs = {
        id(param): own
        for group, copies in zip(outer.param_groups, inner.param_groups, strict=True)
        for param, own in zip(group["params"], copies["params"], strict=True)
    }
    return [pairs[id(param)] for param in params]


class _Momentum(NamedTuple):
    """How a method moves: m ← decay·m + g, p ← p − rate·P·(direct·g + through·m)."""

    decay: float
    direct: float = 0.0
    through: float = 1.0

    def threshold(self, rate: float) -> float:
        """Return the curvature h at which the recursion of (m, p) with g = h·p gets unstable.

        Its characteristic polynomial z² − (1 + β − rh(direct + through))z + β(1 − rh·direct) has a
        root at −1 there; the others stay within the unit circle up to it.
        """
        return 2 * (1 + self.decay) / (rate * (self.direct * (1 + self.decay) + self.through))


def _motion(state: _GroupOrState, group: _GroupOrState) -> tuple[float, _Momentum]:
    """Return the rate ηc, and the momentum; the names of a group's options tell the method."""
    lr = float(group["lr"])
    if "lr_decay" in group:
        return lr / (1 + (float(state["step"]) - 1) * group["lr_decay"]), _Momentum(0.0)
    if "betas" in group:
        decay = float(group["betas"][0])
        momentum = _Momentum(decay)
        if "momentum_decay" in group:
            momentum = _nadam(decay, float(state["step"]), group["momentum_decay"])
        return lr * (1 - decay), momentum
    decay = float(group["momentum"])
    if group.get("nesterov"):
        return lr, _Momentum(decay, direct=1.0, through=decay)
    # Without momentum there is no dampening, in torch as here.
    return lr * (1 - group.get("dampening", 0.0) * (decay > 0)), _Momentum(decay)


def _nadam(decay: float, step: float, momentum_decay: float) -> _Momentum:
    """Return NAdam's present momentum: it moves along (1 − μₜ)·g + μₜ₊₁·m, m being (1 − β)·Σ βᵏg.

    μ follows Dozat's schedule, as in :class:`torch.optim.NAdam`.
    """
    now, later = (decay * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in (step, step + 1))
    return _Momentum(decay, direct=(1 - now) / (1 - decay), through=later)


def _group_of(optimizer: Optimizer, index: int, param: Tensor) -> _GroupOrState:
    for group in optimizer.param_groups:
        if any(param is own for own in group["params"]):
            if group.get("maximize"):
                raise ValueError(
                    "the optimizer maximises, and the threshold holds for minimising: minimise "
                    "the negative objective, and take H of that"
                )
            return group
    raise ValueError(
        f"parameter {index} of H, of shape {tuple(param.shape)}, is not among the optimizer's: "
        "take H over params that it steps"
    )


@torch.no_grad()
def _diagonals(
    optimizer: Any, params: Sequence[Tensor], groups: Sequence[_GroupOrState]
) -> list[Tensor]:
    """Return each parameter's P."""
    if hasattr(optimizer, "preconditioner"):
        known = optimizer.preconditioner()
    elif isinstance(optimizer, SGD):
        known = {param: torch.ones_like(param) for param in params}
    else:
        read = preconditioner_reader(optimizer)
        if read is None:
            raise ValueError(
                f"{type(optimizer).__name__} has no diagonal preconditioner that is known here: "
                "expected an optimizer of this library, or torch.optim's SGD, " + KNOWN_CLASSES
            )
        known = {
            param: read(optimizer.state[param], group)
            for param, group in zip(params, groups, strict=True)
            if optimizer.state.get(param)
        }
    for index, param in enumerate(params):
        if param not in known:
            raise ValueError(_without_state(index, any(other in known for other in params)))
        if not known[param].isfinite().all():
            raise ValueError(
                f"the preconditioner of parameter {index} is not finite: its second moment is 0 "
                "somewhere and eps too, or it is not finite itself"
            )
    return [known[param] for param in params]


def _without_state(index: int, others_have: bool) -> str:
    if not others_have:
        return f"the optimizer has no state for parameter {index}: take a step first"
    return (
        f"the optimizer has no state for parameter {index}, as it has had no gradient, and has for "
        "others: leave it out, by params=[p for p in model.parameters() if p in optimizer.state]"
    )
