"""SGDCG, AdamCG and RMSpropCG: torch's optimizers on an aggregate of remembered gradients."""

from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steppe import rules
from steppe._engines import Buffer, Function, Group, Method, ParamRow, widened
from steppe.optim import _diagnostics
from steppe.optim._base import arguments
from steppe.optim._buffer import BufferOptimizer, Replacement, Scope, buffer

Aggregation = Literal["sum", "mean", "mid"]

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
    return buffer(_AGGREGATE[group["aggregation"]], group["replacement"])


def _own_weight(row: ParamRow) -> float:
    return _diagnostics.own_weight(row, _AGGREGATE[row.group["aggregation"]])


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

    torch's SGD on the aggregate a of the gradient and the n remembered ones::

        "sum":   a = g + κ·mean(slots)
        "mean":  a = (g + κ·Σ slots)/(n + 1)
        "mid":   a = ½·(g + κ·mean(slots))

    and a = g while the buffer is empty. The buffer remembers g.

    Parameters
    ----------
    params
        Parameters, named parameters, or groups of them whose options differ.
    lr
        Learning rate, a number or a tensor of one; ≥ 0.
    momentum
        In [0, 1). Switched on in mid-run, it starts from a buffer of zeros.
    dampening
        In [0, 1]; without effect on the first step and where momentum is 0, as in torch's SGD.
    weight_decay
        L2 penalty, added to the aggregate; ≥ 0.
    aggregation
        "sum", "mean" or "mid".
    capacity
        C, the number of slots, each the size of the parameter; ≥ 0. 0 is no buffer.
    priority_decay
        λ, by which keys are multiplied each step; in (0, 1].
    kappa
        κ, the weight of what is remembered; ≥ 0.
    scope
        "global": the priority is the L2 norm over all parameters of all groups, and all shards.
        "tensor": each tensor's own.
    replacement
        "priority" replaces the smallest key, "fifo" the oldest slot at every step.
    maximize, fused, capturable, differentiable, state_dtype
        As in :class:`DualAdam`.

    Raises
    ------
    ValueError
        An option is out of its range.
    RuntimeError
        ``fused=True`` and no fused engine takes the parameters.

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
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: Group) -> Method:
        return _sgd(group["momentum"] > 0, _buffer(group))

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return torch.ones_like(widened(row.param)) * _own_weight(row)


class AdamCG(BufferOptimizer):
    r"""AdamW with critical gradients: both its moments are the aggregate's.

    The aggregate is :class:`SGDCG`'s, by default its "mean".

    Parameters
    ----------
    params, lr
        As in :class:`SGDCG`.
    betas
        Decay rates of the first and second moment; each in [0, 1).
    eps
        Added to √v̂; ≥ 0.
    weight_decay
        Decoupled weight decay; ≥ 0.
    amsgrad
        Divide by the running maximum of v.
    aggregation, capacity, priority_decay, kappa, scope, replacement
        The buffer, as in :class:`SGDCG`.
    maximize, fused, capturable, differentiable, state_dtype
        As in :class:`DualAdam`.

    Raises
    ------
    ValueError
        An option is out of its range.
    RuntimeError
        ``fused=True`` and no fused engine takes the parameters.

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
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: Group) -> Method:
        return _adam(group["amsgrad"], _buffer(group))

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return _diagnostics.two_way_preconditioner(row) * _own_weight(row)


class RMSpropCG(BufferOptimizer):
    r"""torch's RMSprop with critical gradients.

    The aggregate is :class:`SGDCG`'s, by default its "mean".

    Parameters
    ----------
    params, lr
        As in :class:`SGDCG`.
    alpha
        Decay rate of the squared aggregate; in [0, 1).
    eps
        Added to the root; ≥ 0.
    weight_decay
        L2 penalty, added to the aggregate; ≥ 0.
    momentum
        In [0, 1).
    centered
        Divide by the standard deviation instead of the root mean square.
    aggregation, capacity, priority_decay, kappa, scope, replacement
        The buffer, as in :class:`SGDCG`.
    maximize, fused, capturable, differentiable, state_dtype
        As in :class:`DualAdam`.

    Raises
    ------
    ValueError
        An option is out of its range.
    RuntimeError
        ``fused=True`` and no fused engine takes the parameters.

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
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: Group) -> Method:
        return _rmsprop(group["centered"], group["momentum"] > 0, _buffer(group))

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return _diagnostics.rmsprop_preconditioner(row) * _own_weight(row)
