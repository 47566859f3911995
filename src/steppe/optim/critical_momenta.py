"""AdamCM, DualAdamCM and SGDCM: steps along remembered momenta overshoot narrow basins."""

from functools import cache

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steppe import rules
from steppe._engines import Function, Group, Method, ParamRow, widened
from steppe.optim import _diagnostics, _preconditioners
from steppe.optim._buffer_optimizer import BufferOptimizer, describe_buffer
from steppe.optim._momenta import critical_aggregate
from steppe.optim._options import Replacement, Scope, Variant, arguments
from steppe.optim._switching import SwitchingOptimizer

_SCALARS: dict[tuple[bool, Variant], Function] = {
    # (two-way, variant)
    (False, "consistent"): rules.adam_cm_scalars,
    (False, "authors"): rules.authors_scalars,
    (True, "consistent"): rules.dual_adam_scalars,
    (True, "authors"): rules.dual_authors_scalars,
}
_RULES: dict[tuple[Variant, bool], Function] = {
    # (variant, amsgrad)
    ("consistent", False): rules.adam_cm,
    ("consistent", True): rules.adam_cm_amsgrad,
    ("authors", False): rules.adam_cm_authors,
    ("authors", True): rules.adam_cm_authors_amsgrad,
}


@cache
def _adam_cm(two_way: bool, variant: Variant, amsgrad: bool, replacement: Replacement) -> Method:
    state = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    return Method(
        _RULES[variant, amsgrad],
        state if amsgrad else state[:2],
        _SCALARS[two_way, variant],
        describe_buffer(rules.critical_mean, replacement),
        norm_by_blocks=variant == "consistent",
    )


@cache
def _sgd_cm(has_momentum: bool, replacement: Replacement) -> Method:
    return Method(
        rules.sgd_cm,
        ("momentum_buffer",),
        rules.sgd_scalars if has_momentum else rules.undamped_sgd_scalars,
        describe_buffer(rules.critical_mean, replacement),
        norm_by_blocks=True,
    )


class AdamCM(BufferOptimizer):
    r"""Adam with critical momenta (Adam+CM).

    Each parameter keeps a buffer of C momenta, those of the recent steps with the largest gradient
    norms, and steps along the current momentum plus κ times their mean::

        m ← β1·m + (1−β1)·g,    m̂ = m/(1−β1ᵗ)
        a = m̂ + κ·mean(filled slots)                (a = m̂ while the buffer is empty)
        v ← β2·v + (1−β2)·a²,   v̂ = v/(1−β2ᵗ)
        p ← p·(1 − lr·weight_decay) − lr·a/(√v̂ + ε)

    Then m̂ is offered to the buffer with the priority ‖g‖₂. It goes into a free slot; if there is
    none, it replaces the slot with the smallest key, provided its priority is strictly greater. Its
    key is the priority. Then all keys are multiplied by λ; the momenta stay as they are. A priority
    that is not finite stores nothing.

    v is made of the aggregate a, not of the gradient: ``kappa=0`` is Adam with v of m̂², not Adam.

    Parameters
    ----------
    params
        Parameters, named parameters, or groups of them whose options differ.
    lr
        Learning rate, a number or a tensor of one number; ≥ 0. Try Adam's and a tenth of it.
        Default: 1e-3.
    betas
        β1 and β2, the decay rates of m and v; each in [0, 1). Default: (0.9, 0.999).
    eps
        ε, added to √v̂; ≥ 0. Default: 1e-8.
    weight_decay
        Decoupled weight decay; ≥ 0. Default: 0.0.
    amsgrad
        Whether to divide by the running maximum of v in place of v. Default: False.
    capacity
        C, the number of slots, each of the parameter's size; an integer ≥ 0. Try 5, 10 and 20;
        with 0 there is no buffer. Default: 5.
    priority_decay
        λ, by which keys are multiplied in each step; in (0, 1]. Try 0.7 and 0.99. Default: 0.7.
    kappa
        κ, the weight of the mean of the slots; ≥ 0. Default: 1.0.
    scope
        Over what ‖g‖₂ is taken. "global": all parameters of all groups and all their shards, so
        that all parameters decide alike. "tensor": each tensor by itself. Default: "global".
    replacement
        Which slot a full buffer replaces. "priority": that of the smallest key, as above. "fifo":
        the oldest, in every step. Default: "priority".
    variant
        "consistent" is the above. "authors" is the arithmetic of the paper's released code, to
        reproduce its results: the first step only stores the raw gradient, later steps aggregate
        and store the uncorrected m, and 1/(1−β1ᵗ) multiplies the whole step, so that the second
        step is about 7 lr long. Default: "consistent".
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
    The state of each parameter: ``step``, a float64 number (float32 on MPS); ``exp_avg`` (m),
    ``exp_avg_sq`` (v), with ``amsgrad`` ``max_exp_avg_sq``, and ``slot_0`` … ``slot_{C−1}``, of the
    parameter's shape in ``state_dtype``; ``slot_sum``, of the same shape, unless ``state_dtype`` is
    smaller than float32; ``slot_keys`` and ``slot_births`` (the step that stored the slot), C
    numbers each in the format of ``step``, −∞ while free; ``replacements``, how many items were
    stored, an int64. With C = 5 in float32 that is 32 bytes per parameter.

    ``scope="global"`` needs one all-reduce of 8 bytes per step where parameters are sharded.

    References
    ----------
    Malviya, Mordido, Baratin, Babanezhad, Huang, Lacoste-Julien, Pascanu, Chandar, *Promoting
    Exploration in Memory-Augmented Adam using Critical Momenta*, TMLR 2024, arXiv 2307.09638.

    Examples
    --------
    >>> import torch, steppe
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = steppe.AdamCM(model.parameters(), lr=1e-3, capacity=5)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     model(torch.ones(4, 3)).square().mean().backward()
    ...     optimizer.step()
    >>> optimizer.diagnostics()["buffer_fill"]
    3.0
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
        capacity: int = 5,
        priority_decay: float = 0.7,
        kappa: float = 1.0,
        scope: Scope = "global",
        replacement: Replacement = "priority",
        variant: Variant = "consistent",
        maximize: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state_dtype: torch.dtype | str | None = None,
        param_error: str | None = None,
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: Group) -> Method:
        return _adam_cm(False, group["variant"], group["amsgrad"], group["replacement"])

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return _preconditioners.two_way_preconditioner(row)

    def _momentum(self, row: ParamRow) -> Tensor:
        return critical_aggregate(row)


class DualAdamCM(SwitchingOptimizer, BufferOptimizer):
    r"""AdamCM with DualAdam's two-way update of the aggregate. Experimental.

    With the aggregate a and its second moment v as in :class:`AdamCM`, and d = √v̂ + ε::

        α = max(0, 1 − switch_rate·t)
        p ← p·(1 − lr·weight_decay) − lr·[(1−α)·a/d + α·a·d]

    From step 1/switch_rate on it is AdamCM, exactly.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay
        As in :class:`AdamCM`.
    amsgrad, capacity, priority_decay, kappa, scope, replacement, variant
        As in :class:`AdamCM`.
    switch_rate, total_steps, switch
        As in :class:`DualAdam`.
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
    The state is that of :class:`AdamCM`.

    References
    ----------
    Shi et al., arXiv 2603.07122, 2026; Malviya et al., TMLR 2024, arXiv 2307.09638. The combination
    is this library's own, and has no published results.

    Examples
    --------
    >>> import torch, steppe
    >>> p = torch.ones(2, requires_grad=True)
    >>> optimizer = steppe.DualAdamCM([p], lr=0.1, switch_rate=1 / 100)
    >>> p.square().sum().backward()
    >>> optimizer.step()
    >>> sorted(optimizer.diagnostics())[:3]
    ['alpha', 'buffer_fill', 'inverse_share']
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
        capacity: int = 5,
        priority_decay: float = 0.7,
        kappa: float = 1.0,
        scope: Scope = "global",
        replacement: Replacement = "priority",
        variant: Variant = "consistent",
        switch_rate: float | None = None,
        total_steps: int | None = None,
        switch: float = 0.16,
        maximize: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state_dtype: torch.dtype | str | None = None,
        param_error: str | None = None,
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: Group) -> Method:
        return _adam_cm(True, group["variant"], group["amsgrad"], group["replacement"])

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return _preconditioners.two_way_preconditioner(row)

    def _momentum(self, row: ParamRow) -> Tensor:
        return critical_aggregate(row)

    def diagnostics(self) -> dict[str, float]:
        """Report α, the inverse part's share of the update, and the state of the buffers.

        Returns
        -------
        dict
            The entries of :meth:`DualAdam.diagnostics` and :meth:`AdamCM.diagnostics`.
            ``inverse_share`` is that of an update along the current momentum and the current
            buffer.
        """
        rows = self._rows_with_state()
        share = _diagnostics.inverse_share(rows, _diagnostics.dual_adam_cm_update)
        return share | _diagnostics.steps_to_switch(rows) | super().diagnostics()


class SGDCM(BufferOptimizer):
    r"""SGD with critical momenta.

    With m torch's momentum buffer, which in the first step is g + weight_decay·p::

        m ← momentum·m + (1 − dampening)·(g + weight_decay·p)
        a = m + κ·mean(filled slots)                (a = m while the buffer is empty)
        p ← p − lr·a

    Then m is offered to the buffer, as in :class:`AdamCM`. Under a steady gradient the step is
    1 + κ times SGD's: give SGDCM lr/(1 + κ) to compare at equal step length.

    Parameters
    ----------
    params, lr
        As in :class:`DualAdam`.
    momentum
        The decay rate of m; in [0, 1]. Default: 0.9.
    dampening
        By how much the gradient is damped in m; in [0, 1]. As in torch's SGD it has no effect on
        the first step, nor if ``momentum`` is 0. The convention m ← β·m + (1−β)·g is
        ``dampening=momentum``. Default: 0.0.
    weight_decay
        L2 penalty, added to the gradient; ≥ 0. Default: 0.0.
    capacity, priority_decay, kappa, scope, replacement
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
    The state is that of :class:`AdamCM`, with ``momentum_buffer`` (m) in the place of its moments.

    References
    ----------
    Malviya et al., TMLR 2024, arXiv 2307.09638.

    Examples
    --------
    >>> import torch, steppe
    >>> p = torch.zeros(1, requires_grad=True)
    >>> optimizer = steppe.SGDCM([p], lr=0.1, momentum=0.0)
    >>> for _ in range(2):
    ...     p.grad = torch.ones(1)
    ...     optimizer.step()
    >>> p  # 0.1 along g, then 0.1 along g and the remembered one
    tensor([-0.3000], requires_grad=True)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        *,
        capacity: int = 5,
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
        return _sgd_cm(group["momentum"] > 0, group["replacement"])

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return torch.ones_like(widened(row.param))

    def _momentum(self, row: ParamRow) -> Tensor:
        return critical_aggregate(row)
