"""DualAdam and InvAdam: multiply by the second moment early, divide by it later."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steppe import rules
from steppe._engines import Group, Method, ParamRow
from steppe.optim import _diagnostics
from steppe.optim._base import RuleOptimizer, arguments

_MOMENTS = ("exp_avg", "exp_avg_sq")
_INVERSE = Method(rules.inv_adam, _MOMENTS, rules.adam_scalars)
_DUAL = Method(rules.dual_adam, _MOMENTS, rules.dual_adam_scalars)
_SCALE_FREE = Method(
    rules.dual_adam_scale_free,
    _MOMENTS,
    rules.dual_adam_scalars,
    mean_square=rules.mean_square,
)


class DualAdam(RuleOptimizer):
    r"""Adam and its inverse in one step: it explores early and converges late.

    With m̂, v̂ Adam's corrected moments, d = √v̂ + ε, and t the parameter's own step count::

        α = max(0, 1 − switch_rate·t)
        p ← p·(1 − lr·weight_decay) − lr·[(1−α)·m̂/d + α·m̂·d]

    After 1/switch_rate steps it is AdamW, exactly.

    The inverse part is to the Adam part as the squared gradient RMS is to 1: 1e-6 at gradient RMS
    1e-3, 1 at 1, 100 at 10. With small gradients the inverse part vanishes, and what is left is
    AdamW under a linear warm-up of 1/switch_rate steps; compare against that too.
    :meth:`diagnostics` tells the inverse part's share. ``scale_free=True`` removes the dependence:
    with r = √(mean of v̂ over the tensor) + ε and q = d/r the update is
    lr·(m̂/r)·[(1−α)/q + α·q], which does not change when the loss is rescaled.

    Parameters
    ----------
    params
        Parameters, named parameters, or groups of them whose options differ.
    lr
        Learning rate, a number or a tensor of one; ≥ 0.
    betas
        Decay rates of the first and second moment; each in [0, 1).
    eps
        Added to √v̂; ≥ 0, and > 0 with ``scale_free``.
    weight_decay
        Decoupled weight decay; ≥ 0.
    switch_rate
        ξ, by how much α falls each step; in [0, 1]. The default is the published experiments':
        12 500 steps, 16 % of their run. 0 is InvAdam for ever.
    scale_free
        Make the update independent of the gradient's scale.
    maximize
        Ascend instead of descend.
    fused
        None takes the fastest engine, True demands a fused one, False is plain torch.
    capturable
        Keep step counts and decisions on the device, for CUDA graphs.
    differentiable
        Let gradients flow through the step.
    state_dtype
        Number format of the state. None is the parameter's, and at least float32.
        ``torch.bfloat16`` takes half the memory, and is ``"bfloat16"`` in groups; ``"int8"`` a
        quarter, in blocks of 256 numbers with a scale each, for tensors of at least 4096 numbers.
        Both are rounded stochastically.
        Complex parameters keep their state in full.

    Raises
    ------
    ValueError
        An option is out of its range.
    RuntimeError
        ``fused=True`` and no fused engine takes the parameters.

    References
    ----------
    Shi, Chen, Jin, Zhou, *Combining Adam and its Inverse Counterpart to Enhance Generalization of
    Deep Learning Optimizers*, arXiv 2603.07122, 2026. ``scale_free`` is ours.

    Examples
    --------
    >>> import torch, steppe
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = steppe.DualAdam(model.parameters(), lr=1e-3, switch_rate=1 / 500)
    >>> model(torch.ones(4, 3)).square().mean().backward()
    >>> optimizer.step()
    >>> round(optimizer.diagnostics()["alpha"], 3)
    0.998
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        switch_rate: float = 8e-5,
        scale_free: bool = False,
        maximize: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state_dtype: torch.dtype | str | None = None,
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: Group) -> Method:
        return _SCALE_FREE if group["scale_free"] else _DUAL

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return _diagnostics.two_way_preconditioner(row)

    def diagnostics(self) -> dict[str, float]:
        """Report what the last step was made of, from the state alone.

        Returns
        -------
        dict
            ``alpha``: α, averaged over parameters. ``inverse_share``: ‖α·m̂·d‖ over the norm of
            the whole update before lr, both over all parameters. NaN before the first step.
        """
        return _diagnostics.inverse_share(self._rows_with_state(), _diagnostics.adam_parts)


class InvAdam(RuleOptimizer):
    r"""Adam's inverse: it multiplies by the root of the second moment instead of dividing.

    ::

        p ← p·(1 − lr·weight_decay) − lr·m̂·d,   d = √v̂ + eps

    Steep directions take the longest steps, so sharp minima are left soonest; it does not
    converge by itself. :class:`DualAdam` hands over to Adam.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, maximize, fused, capturable, differentiable, state_dtype
        As in :class:`DualAdam`.

    Raises
    ------
    ValueError
        An option is out of its range.
    RuntimeError
        ``fused=True`` and no fused engine takes the parameters.

    References
    ----------
    Shi et al., arXiv 2603.07122, 2026.

    Examples
    --------
    The first step from zero moments is lr·g·(|g| + eps):

    >>> import torch, steppe
    >>> p = torch.tensor([1.0], requires_grad=True)
    >>> optimizer = steppe.InvAdam([p], lr=0.1)
    >>> (3.0 * p).sum().backward()
    >>> optimizer.step()
    >>> p
    tensor([0.1000], requires_grad=True)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state_dtype: torch.dtype | str | None = None,
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: Group) -> Method:
        return _INVERSE

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return _diagnostics.adam_denominator(row)

    def diagnostics(self) -> dict[str, float]:
        """Report α, which is 1, and the inverse part's share of the update, which is all."""
        return {"alpha": 1.0, "inverse_share": 1.0}
