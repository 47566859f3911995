"""SGDCG, AdamCG and RMSpropCG: torch's optimizers on an aggregate of remembered gradients.

They are baselines of the critical momenta of :mod:`steppe.optim.critical_momenta`.
"""

from functools import cache

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steppe import rules
from steppe._engines import Buffer, Function, Group, Method, ParamRow, widened
from steppe.optim import _preconditioners
from steppe.optim._buffer_optimizer import BufferOptimizer, describe_buffer
from steppe.optim._options import Aggregation, Replacement, Scope, arguments

_AGGREGATE = {
    "sum": rules.aggregate_sum,
    "mean": rules.aggregate_mean,
    "mid": rules.aggregate_mid,
}
_RMSPROP: dict[tuple[bool, bool], Function] = {
    # (centered, momentum)
    (False, False): rules.rmsprop_cg,
    (True, False): rules.rmsprop_cg_centered,
    (False, True): rules.rmsprop_cg_momentum,
    (True, True): rules.rmsprop_cg_centered_momentum,
}


def _buffer(group: Group) -> Buffer:
    return describe_buffer(_AGGREGATE[group["aggregation"]], group["replacement"])


def _own_weight(row: ParamRow) -> float:
    return _preconditioners.own_weight(row, _AGGREGATE[row.group["aggregation"]])


@cache
def _sgd(has_momentum: bool, memory: Buffer) -> Method:
    if has_momentum:
        return Method(rules.sgd_cg_momentum, ("momentum_buffer",), rules.sgd_scalars, memory)
    return Method(rules.sgd_cg, (), rules.plain_sgd_scalars, memory)


@cache
def _adam(amsgrad: bool, memory: Buffer) -> Method:
    state = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    if amsgrad:
        return Method(rules.adam_cg_amsgrad, state, rules.adam_scalars, memory)
    return Method(rules.adam_cg, state[:2], rules.adam_scalars, memory)


@cache
def _rmsprop(centered: bool, has_momentum: bool, memory: Buffer) -> Method:
    state = ("square_avg", *["grad_avg"] * centered, *["momentum_buffer"] * has_momentum)
    scalars = rules.rmsprop_momentum_scalars if has_momentum else rules.rmsprop_scalars
    return Method(_RMSPROP[centered, has_momentum], state, scalars, memory)


class SGDCG(BufferOptimizer):
    r"""SGD with critical gradients.

    Each parameter keeps a buffer of C gradients, those with the largest norms of late. torch's SGD
    steps along an aggregate a of the gradient g and the n remembered gradients::

        aggregation="sum":    a = g + κ·mean(slots)
        aggregation="mean":   a = (g + κ·Σ slots)/(n + 1)
        aggregation="mid":    a = ½·(g + κ·mean(slots))

        m ← momentum·m + (1 − dampening)·(a + weight_decay·p)
        p ← p − lr·m

    While the buffer is empty a = g. Then g is offered to the buffer, with the rule by which
    :class:`AdamCM` stores a momentum.

    Parameters
    ----------
    params, lr
        As in :class:`DualAdam`.
    momentum
        The decay rate of m; in [0, 1]. If it is raised from 0 in mid-run, m starts from zeros.
        Default: 0.0.
    dampening
        By how much the aggregate is damped in m; in [0, 1]. As in torch's SGD it has no effect on
        the first step, nor if ``momentum`` is 0. Default: 0.0.
    weight_decay
        L2 penalty, added to the aggregate; ≥ 0. Default: 0.0.
    aggregation
        How to aggregate, as above: "sum", "mean" or "mid". Default: "sum".
    capacity
        C, the number of slots, each of the parameter's size; an integer ≥ 0. With 0 there is no
        buffer. Default: 10.
    priority_decay, kappa, scope, replacement
        As in :class:`AdamCM`.
    maximize, fused, capturable, differentiable, state_dtype, param_error
        As in :class:`DualAdam`.

    Raises
    ------
    ValueError
        An option is out of its range, or two options contradict each other.
    RuntimeError
        ``fused=True`` and no fused engine takes the parameters; the message says why.

    Notes
    -----
    The state is that of :class:`AdamCM`, without its moments, and with ``momentum_buffer`` (m) if
    ``momentum`` is not 0.

    References
    ----------
    McRae et al., *Memory Augmented Optimizers for Deep Learning*, ICLR 2022, arXiv 2106.10708.

    Examples
    --------
    >>> import torch, steppe
    >>> p = torch.zeros(1, requires_grad=True)
    >>> optimizer = steppe.SGDCG([p], lr=0.1, aggregation="mean")
    >>> for gradient in (1.0, 3.0):
    ...     p.grad = torch.tensor([gradient])
    ...     optimizer.step()
    >>> p  # 0.1·1, then 0.1·(3 + 1)/2
    tensor([-0.3000], requires_grad=True)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        *,
        aggregation: Aggregation = "sum",
        capacity: int = 10,
        priority_decay: float = 0.7,
        kappa: float = 1.0,
        scope: Scope = "global",
        replacement: Replacement = "priority",
        maximize: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state_dtype: torch.dtype | str | None = None,
        param_error: str | None = None,
    ) -> None:
        super().__init__(params, arguments(locals()))

    _optional_state = ("momentum_buffer",)

    def _method(self, group: Group) -> Method:
        return _sgd(group["momentum"] > 0, _buffer(group))

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return torch.ones_like(widened(row.param)) * _own_weight(row)


class AdamCG(BufferOptimizer):
    r"""AdamW with critical gradients: both its moments are made of the aggregate.

    With the aggregate a of :class:`SGDCG`, whose default here is "mean"::

        m ← β1·m + (1−β1)·a,    m̂ = m/(1−β1ᵗ)
        v ← β2·v + (1−β2)·a²,   v̂ = v/(1−β2ᵗ)
        p ← p·(1 − lr·weight_decay) − lr·m̂/(√v̂ + ε)

    Parameters
    ----------
    params, lr, betas, eps, weight_decay
        As in :class:`AdamCM`.
    amsgrad
        As in :class:`AdamCM`.
    aggregation
        As in :class:`SGDCG`. Default: "mean".
    capacity
        As in :class:`SGDCG`.
    priority_decay, kappa, scope, replacement
        As in :class:`AdamCM`.
    maximize, fused, capturable, differentiable, state_dtype, param_error
        As in :class:`DualAdam`.

    Raises
    ------
    ValueError
        An option is out of its range, or two options contradict each other.
    RuntimeError
        ``fused=True`` and no fused engine takes the parameters; the message says why.

    Notes
    -----
    The state is that of :class:`AdamCM`; the slots hold gradients.

    References
    ----------
    McRae et al., ICLR 2022, arXiv 2106.10708.

    Examples
    --------
    >>> import torch, steppe
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = steppe.AdamCG(model.parameters(), capacity=10)
    >>> model(torch.ones(4, 3)).square().mean().backward()
    >>> optimizer.step()
    >>> optimizer.diagnostics()["replacement_rate"]
    1.0
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        amsgrad: bool = False,
        aggregation: Aggregation = "mean",
        capacity: int = 10,
        priority_decay: float = 0.7,
        kappa: float = 1.0,
        scope: Scope = "global",
        replacement: Replacement = "priority",
        maximize: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state_dtype: torch.dtype | str | None = None,
        param_error: str | None = None,
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: Group) -> Method:
        return _adam(group["amsgrad"], _buffer(group))

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return _preconditioners.two_way_preconditioner(row) * _own_weight(row)


class RMSpropCG(BufferOptimizer):
    r"""torch's RMSprop with critical gradients.

    With the aggregate a of :class:`SGDCG`, whose default here is "mean"::

        b = a + weight_decay·p
        v ← alpha·v + (1−alpha)·b²
        d = √v + ε                          centered: d = √(v − μ²) + ε,  μ ← alpha·μ + (1−alpha)·b
        p ← p − lr·b/d                      with momentum: m ← momentum·m + b/d,  p ← p − lr·m

    Parameters
    ----------
    params
        As in :class:`DualAdam`.
    lr
        Learning rate, a number or a tensor of one number; ≥ 0. Default: 1e-2.
    alpha
        The decay rate of v; in [0, 1). Default: 0.99.
    eps
        ε, added to the root; ≥ 0. Default: 1e-8.
    weight_decay
        L2 penalty, added to the aggregate; ≥ 0. Default: 0.0.
    momentum
        The decay rate of m; in [0, 1]. Default: 0.0.
    centered
        Whether to divide by the standard deviation in place of the root mean square.
        Default: False.
    aggregation
        As in :class:`SGDCG`. Default: "mean".
    capacity
        As in :class:`SGDCG`.
    priority_decay, kappa, scope, replacement
        As in :class:`AdamCM`.
    maximize, fused, capturable, differentiable, state_dtype, param_error
        As in :class:`DualAdam`.

    Raises
    ------
    ValueError
        An option is out of its range, or two options contradict each other.
    RuntimeError
        ``fused=True`` and no fused engine takes the parameters; the message says why.

    Notes
    -----
    The state is that of :class:`AdamCM`, with ``square_avg`` (v), if ``centered`` ``grad_avg`` (μ),
    and if ``momentum`` is not 0 ``momentum_buffer`` (m) in the place of its moments.

    References
    ----------
    McRae et al., ICLR 2022, arXiv 2106.10708.

    Examples
    --------
    >>> import torch, steppe
    >>> p = torch.zeros(1, requires_grad=True)
    >>> optimizer = steppe.RMSpropCG([p], lr=0.1, alpha=0.75)
    >>> p.grad = torch.tensor([3.0])
    >>> optimizer.step()
    >>> p  # 0.1·3/√(0.25·9)
    tensor([-0.2000], requires_grad=True)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        aggregation: Aggregation = "mean",
        capacity: int = 10,
        priority_decay: float = 0.7,
        kappa: float = 1.0,
        scope: Scope = "global",
        replacement: Replacement = "priority",
        maximize: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state_dtype: torch.dtype | str | None = None,
        param_error: str | None = None,
    ) -> None:
        super().__init__(params, arguments(locals()))

    _optional_state = ("grad_avg", "momentum_buffer")

    def _method(self, group: Group) -> Method:
        return _rmsprop(group["centered"], group["momentum"] > 0, _buffer(group))

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return _preconditioners.rmsprop_preconditioner(row) * _own_weight(row)
