"""AdamCM, DualAdamCM and SGDCM: a buffer of critical momenta that overshoots narrow basins."""

from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steppe import rules
from steppe._engines import Function, Group, Method, ParamRow, widened
from steppe.optim import _diagnostics
from steppe.optim._base import arguments
from steppe.optim._buffer import BufferOptimizer, Replacement, Scope, buffer

Variant = Literal["consistent", "authors"]

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
        buffer(rules.critical_mean, replacement),
        norm_by_blocks=variant == "consistent",
    )


@cache
def _sgd_cm(has_momentum: bool, replacement: Replacement) -> Method:
    return Method(
        rules.sgd_cm,
        ("momentum_buffer",),
        rules.sgd_scalars if has_momentum else rules.undamped_sgd_scalars,
        buffer(rules.critical_mean, replacement),
        norm_by_blocks=True,
    )


class AdamCM(BufferOptimizer):
    r"""Adam with critical momenta (Adam+CM).

    Each parameter remembers C momenta, those with the largest gradient norms of late, and steps
    along the current one plus κ times their mean::

        m̂ = m/(1 − β1ᵗ),   a = m̂ + κ·mean(slots)
        v ← β2·v + (1 − β2)·a²
        p ← p·(1 − lr·weight_decay) − lr·a/(√v̂ + ε)

    The current momentum is stored after the step; see Notes. The second moment is the aggregate's,
    not the gradient's: ``kappa=0`` is Adam with v of m̂², not Adam.

    Parameters
    ----------
    params
        Parameters, named parameters, or groups of them whose options differ.
    lr
        Learning rate, a number or a tensor of one; ≥ 0. Adam's, or a tenth of it.
    betas
        Decay rates of momentum and of the aggregate's second moment; each in [0, 1).
    eps
        Added to √v̂; ≥ 0.
    weight_decay
        Decoupled weight decay; ≥ 0.
    amsgrad
        Divide by the running maximum of v.
    capacity
        C, the number of slots, each the size of the parameter; ≥ 0, sensibly 5, 10 or 20. 0 is no
        buffer.
    priority_decay
        λ, by which keys are multiplied each step; in (0, 1], sensibly 0.7 or 0.99.
    kappa
        κ, the weight of the mean of the slots; ≥ 0.
    scope
        "global": the priority is the L2 norm over all parameters of all groups, and all shards.
        "tensor": each tensor's own.
    replacement
        "priority" replaces the smallest key, "fifo" the oldest slot at every step.
    variant
        "consistent" is the above. "authors" is the arithmetic of the paper's released code: its
        first step only remembers the raw gradient, later ones remember the uncorrected m and
        scale the aggregate by m's correction. Its second step is about 7 lr long.
    maximize, fused, capturable, differentiable, state_dtype
        As in :class:`DualAdam`.

    Raises
    ------
    ValueError
        An option is out of its range.
    RuntimeError
        ``fused=True`` and no fused engine takes the parameters.

    Notes
    -----
    A step's priority is ‖g‖₂. If a slot is free m̂ goes there; else it replaces the slot with the
    smallest key if its priority is strictly greater. Then all keys are multiplied by λ. A priority
    that is not finite stores nothing.

    References
    ----------
    Malviya et al., *Promoting Exploration in Memory-Augmented Adam using Critical Momenta*,
    TMLR 2024, arXiv 2307.09638.

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
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: Group) -> Method:
        return _adam_cm(False, group["variant"], group["amsgrad"], group["replacement"])

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return _diagnostics.two_way_preconditioner(row)


class DualAdamCM(BufferOptimizer):
    r"""Both papers at once: AdamCM with DualAdam's two-way update of the aggregate.

    With a, v as in :class:`AdamCM`, d = √v̂ + ε, and α = max(0, 1 − switch_rate·t)::

        p ← p·(1 − lr·weight_decay) − lr·[(1−α)·a/d + α·a·d]

    Parameters
    ----------
    params, lr, betas, eps, weight_decay
        As in :class:`AdamCM`.
    amsgrad, capacity, priority_decay, kappa, scope, replacement, variant
        As in :class:`AdamCM`.
    switch_rate
        ξ, by how much α falls each step; in [0, 1].
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
    Shi et al., arXiv 2603.07122; Malviya et al., arXiv 2307.09638. The combination is ours.

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
        switch_rate: float = 8e-5,
        maximize: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state_dtype: torch.dtype | str | None = None,
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: Group) -> Method:
        return _adam_cm(True, group["variant"], group["amsgrad"], group["replacement"])

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return _diagnostics.two_way_preconditioner(row)

    def diagnostics(self) -> dict[str, float]:
        """Report α, the inverse part's share of the update, and the state of the buffers.

        Returns
        -------
        dict
            What :meth:`DualAdam.diagnostics` and :meth:`AdamCM.diagnostics` return. The share is
            that of an update along the current momentum and the buffer as it is now.
        """
        share = _diagnostics.inverse_share(self._rows_with_state(), _diagnostics.critical_parts)
        return share | super().diagnostics()


class SGDCM(BufferOptimizer):
    r"""SGD with critical momenta.

    ::

        m ← momentum·m + (1 − dampening)·(g + weight_decay·p)      (first step: m = g + …)
        a = m + κ·mean(slots)
        p ← p − lr·a

    The buffer remembers m. A steady gradient makes the step 1 + κ times SGD's: take lr/(1 + κ) to
    compare at equal step length.

    Parameters
    ----------
    params
        Parameters, named parameters, or groups of them whose options differ.
    lr
        Learning rate, a number or a tensor of one; ≥ 0.
    momentum
        In [0, 1).
    dampening
        In [0, 1]; without effect on the first step and where momentum is 0, as in torch's SGD.
        The convention m ← βm + (1−β)g is dampening = momentum.
    weight_decay
        L2 penalty, added to the gradient; ≥ 0.
    capacity, priority_decay, kappa, scope, replacement
        The buffer, as in :class:`AdamCM`.
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
    Malviya et al., arXiv 2307.09638.

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
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: Group) -> Method:
        return _sgd_cm(group["momentum"] > 0, group["replacement"])

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return torch.ones_like(widened(row.param))
