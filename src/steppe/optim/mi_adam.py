"""MIAdam: integrate the momentum early, which smooths the path, and take Adam's steps later."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steppe import rules
from steppe._engines import Function, Group, Method, ParamRow
from steppe.optim import _diagnostics, _preconditioners
from steppe.optim._options import arguments
from steppe.optim._switching import SwitchingOptimizer

_INTEGRALS = ("integral_1", "integral_2", "integral_3")
#: By n, the number of integrals.
_RULES: dict[int, Function] = {1: rules.mi_adam_1, 2: rules.mi_adam_2, 3: rules.mi_adam_3}
_METHODS = {
    n: Method(rule, ("exp_avg", "exp_avg_sq", *_INTEGRALS[:n]), rules.mi_adam_scalars)
    for n, rule in _RULES.items()
}


class MIAdam(SwitchingOptimizer):
    r"""Multiple-integral Adam: steps along the momentum integrated n times early, then Adam's.

    With g the gradient, t the parameter's own step count, from 1, and κ = ``integration_rate``::

        m ← β1·m + (1−β1)·g
        v ← β2·v + (1−β2)·g²,   v̂ = v/(1−β2ᵗ),   d = √v̂ + ε
        m̄⁽⁰⁾ = m,   m̄⁽ʲ⁾ ← κ·m̄⁽ʲ⁾ + m̄⁽ʲ⁻¹⁾        for j = 1 … n
        p ← p·(1 − lr·weight_decay) − lrⁿ·m̄⁽ⁿ⁾/(1−β1ᵗ)/d      while t < 1/switch_rate
        p ← p·(1 − lr·weight_decay) − lr·m/(1−β1ᵗ)/d           afterwards

    From step 1/switch_rate on it is AdamW, exactly. The integrals are meant to filter out sharp
    minima, which a path crosses at high frequency.

    Under a steady gradient the early step grows, over some n/(1−κ) steps, to lrⁿ⁻¹/(1−κ)ⁿ times
    Adam's: with the defaults to a tenth of it. Where that is below 1, MIAdam is Adam under a
    learning-rate warm-up in one leap: compare with a warm-up too. Where it is above 1, as for n = 1
    it always is, it is Adam at a larger lr. :meth:`diagnostics` reports the ratio.

    Parameters
    ----------
    params
        Parameters, named parameters, or groups of them whose options differ.
    lr
        Learning rate, a number or a tensor of one number; ≥ 0. Early steps go by its n-th power.
        Default: 1e-3.
    betas
        β1 and β2, the decay rates of m and v; each in [0, 1). Default: (0.9, 0.999).
    eps
        ε, added to √v̂; ≥ 0. Default: 1e-8.
    weight_decay
        Decoupled weight decay, by lr before and after the switch; ≥ 0. Default: 0.0.
    switch_rate
        1/ζ, where ζ is the step that is the first of Adam's; in [0, 1]. It is DualAdam's ξ in its
        effect: after 1/switch_rate steps either is AdamW. 0 never switches. Default: None, which is
        1/100, or follows from ``total_steps``.
    total_steps, switch
        As in :class:`DualAdam`.
    integration_order
        n, the number of integrals: 1, 2 or 3. Default: 2.
    integration_rate
        κ, what an integral keeps of itself in each step; in [0, 1). With 0 the integrals are m.
        Default: 0.9.
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
    The state is that of :class:`DualAdam` without ``scale_free``, and ``integral_1`` …
    ``integral_n`` (m̄⁽¹⁾ … m̄⁽ⁿ⁾), each of the parameter's shape in ``state_dtype``. With n = 2 in
    float32 that is 16 bytes per parameter, and it stays so after the switch.

    The paper's are the integrals, the power of lr, the bias corrections (those of m and v; the
    integrals have none of their own), and the switch at a step ζ. They were taken from a public
    summary of the paper and not checked against its text. This library's own choices, where the
    summary is silent, are the defaults of the three options that Adam does not have, and decoupled
    weight decay, by lr and not lrⁿ, as in :class:`DualAdam`.

    References
    ----------
    Jin, Nong, Chen, Su, *A Method for Enhancing Generalization of Adam by Multiple Integrations*,
    AAAI 2025, arXiv 2412.12473.

    Examples
    --------
    >>> import torch, steppe
    >>> p = torch.zeros(1, requires_grad=True)
    >>> optimizer = steppe.MIAdam([p], lr=0.1, integration_order=2, switch_rate=1 / 3)
    >>> for _ in range(3):
    ...     before = p.detach().clone()
    ...     p.grad = torch.ones(1)
    ...     optimizer.step()
    ...     print(f"{(p - before).item():.4f}")  # 0.1²·1, 0.1²·(1 + 2·0.9·0.1/0.19), Adam's 0.1
    -0.0100
    -0.0195
    -0.1000
    """

    # An integral that a checkpoint or a state lacks begins empty, as after a raise of n.
    _optional_state = _INTEGRALS

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        switch_rate: float | None = None,
        total_steps: int | None = None,
        switch: float = 0.16,
        integration_order: int = 2,
        integration_rate: float = 0.9,
        maximize: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state_dtype: torch.dtype | str | None = None,
        param_error: str | None = None,
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: Group) -> Method:
        return _METHODS[group["integration_order"]]

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return _preconditioners.integral_preconditioner(row)

    def diagnostics(self) -> dict[str, float]:
        """Report whether the last steps went along the integral, and how long they were.

        Returns
        -------
        dict
            ``early``: the share of the parameters that have not switched yet. ``step_ratio``: the
            L2 norm of the whole update over that of Adam's from the same moments, both over all
            parameters and before lr; 1 after the switch. ``steps_to_switch``: the steps until all
            parameters have switched, infinite with ``switch_rate=0``. All are NaN before the first
            step.
        """
        rows = self._rows_with_state()
        return _diagnostics.integral_steps(rows) | _diagnostics.steps_to_switch(rows)
