"""DualAdam and InvAdam: multiply by the second moment early, divide by it later."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steppe import rules
from steppe._engines import Group, Method, ParamRow
from steppe.optim import _diagnostics, _preconditioners
from steppe.optim._base import RuleOptimizer
from steppe.optim._options import arguments
from steppe.optim._switching import SwitchingOptimizer

_MOMENTS = ("exp_avg", "exp_avg_sq")
_INVERSE = Method(rules.inv_adam, _MOMENTS, rules.adam_scalars)
_DUAL = Method(rules.dual_adam, _MOMENTS, rules.dual_adam_scalars)
_SCALE_FREE = Method(
    rules.dual_adam_scale_free,
    _MOMENTS,
    rules.dual_adam_scalars,
    mean_square=rules.mean_square,
)


class DualAdam(SwitchingOptimizer):
    r"""Adam and its inverse in one step: the inverse explores early, Adam converges late.

    With g the gradient and t the parameter's own step count, from 1::

        m ← β1·m + (1−β1)·g,    m̂ = m/(1−β1ᵗ)
        v ← β2·v + (1−β2)·g²,   v̂ = v/(1−β2ᵗ),   d = √v̂ + ε
        α = max(0, 1 − switch_rate·t)
        p ← p·(1 − lr·weight_decay) − lr·[(1−α)·m̂/d + α·m̂·d]

    From step 1/switch_rate on it is AdamW, exactly.

    The ratio of the inverse part to the Adam part is about the squared RMS of the gradient: 1e-6
    at gradient RMS 1e-3, 1 at 1, 100 at 10. With small gradients the inverse part vanishes, and
    DualAdam is AdamW under a linear learning-rate warm-up of 1/switch_rate steps: compare with that
    too. :meth:`diagnostics` reports the inverse part's share of the update.

    Parameters
    ----------
    params
        Parameters, named parameters, or groups of them whose options differ.
    lr
        Learning rate, a number or a tensor of one number; ≥ 0. Default: 1e-3.
    betas
        β1 and β2, the decay rates of m and v; each in [0, 1). Default: (0.9, 0.999).
    eps
        ε, added to √v̂; ≥ 0, and > 0 with ``scale_free``. Default: 1e-8.
    weight_decay
        Decoupled weight decay; ≥ 0. Default: 0.0.
    switch_rate
        ξ, by which α falls in each step; in [0, 1]. The published experiments have 8e-5: 12 500
        steps, 16 % of their runs. 0 is InvAdam for ever. Default: None, which is 1/100, or follows
        from ``total_steps``.
    total_steps
        The steps of your run, ≥ 1, in the place of ``switch_rate``: ξ = 1/(switch·total_steps), or
        1 if that is more. Default: None.
    switch
        The share of ``total_steps`` after which the optimizer is AdamW; in (0, 1]. Default: 0.16,
        the published share.
    scale_free
        Whether to make the update independent of the gradient's scale. With
        r = √(mean of v̂ over the tensor) + ε and q = d/r the update is
        lr·(m̂/r)·[(1−α)/q + α·q], which does not change when the loss is rescaled. Experimental.
        Default: False.
    maximize
        Whether to ascend instead of descend: g is negated. Default: False.
    fused
        Which engine steps: None takes the fastest that supports the tensors, True demands a fused
        kernel, False takes plain torch operations. Default: None.
    capturable
        Whether CUDA graphs may capture the step: step counts and decisions then stay on the device.
        Default: False.
    differentiable
        Whether gradients flow through the step. It needs ``state_dtype=None``,
        ``param_error=None`` and parameters that are not sharded. Default: False.
    state_dtype
        Number format of the state that has the parameter's shape. None is the parameter's format,
        and at least float32. ``torch.bfloat16``, stored in groups as ``"bfloat16"``, takes half of
        float32's memory. ``"int8"`` takes a quarter: 8 bits a number and a float32 scale for each
        block of 256. Both are rounded stochastically. Complex parameters, and with ``"int8"`` those
        of fewer than 4096 numbers, keep their state as with None. Default: None.
    param_error
        In which format the state keeps what parameters in bfloat16 lack of their numbers, or None
        for not at all. With ``"int8"`` a parameter and its error together are a weight of 24 bits,
        the upper three bytes of a float32, which :meth:`master_params` returns; it is rounded
        stochastically. Parameters in float32, float64 and complex ones need no error and have none;
        float16 is refused. Default: None.

    Raises
    ------
    ValueError
        An option is out of its range, or two options contradict each other, as ``switch_rate`` and
        ``total_steps`` do.
    RuntimeError
        ``fused=True`` and no fused engine takes the parameters; the message says why.

    Notes
    -----
    ``total_steps`` and ``switch`` are kept as ``switch_rate`` alone. A checkpoint brings its own: a
    run that goes on ends its switch where it was to end it.

    The state of each parameter: ``step``, a float64 number (float32 on MPS); ``exp_avg`` (m) and
    ``exp_avg_sq`` (v), of the parameter's shape in ``state_dtype``; with ``scale_free``
    ``exp_avg_sq_mean``, the mean of v, in the format of ``step``. With ``"int8"``, ``exp_avg`` has
    its float32 scales in ``exp_avg_scale``, and so on. With ``param_error``, ``param_error`` in
    int8: by how many 256ths of a bfloat16's last place the weight is larger in size.

    NaN and infinite gradients reach parameters and state, as in ``torch.optim``: clip, or skip such
    steps with a ``GradScaler``.

    References
    ----------
    Shi, Chen, Jin, Zhou, *Combining Adam and its Inverse Counterpart to Enhance Generalization of
    Deep Learning Optimizers*, arXiv 2603.07122, 2026. ``scale_free`` is this library's own.

    Examples
    --------
    >>> import torch, steppe
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = steppe.DualAdam(model.parameters(), lr=1e-3, total_steps=3125)
    >>> model(torch.ones(4, 3)).square().mean().backward()
    >>> optimizer.step()
    >>> found = optimizer.diagnostics()
    >>> round(found["alpha"], 3), found["steps_to_switch"]
    (0.998, 499.0)
    """

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
        scale_free: bool = False,
        maximize: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state_dtype: torch.dtype | str | None = None,
        param_error: str | None = None,
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: Group) -> Method:
        return _SCALE_FREE if group["scale_free"] else _DUAL

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return _preconditioners.two_way_preconditioner(row)

    def diagnostics(self) -> dict[str, float]:
        """Report how far the switch is, and the inverse part's share, from the state alone.

        Returns
        -------
        dict
            ``alpha``: α, averaged over the parameters. ``inverse_share``: ‖α·m̂·d‖₂ over the L2 norm
            of the whole update, both over all parameters and before lr. ``steps_to_switch``: the
            steps until α is 0 for all parameters, infinite with ``switch_rate=0``. All are NaN
            before the first step.
        """
        rows = self._rows_with_state()
        share = _diagnostics.inverse_share(rows, _diagnostics.dual_adam_update)
        return share | _diagnostics.steps_to_switch(rows)


class InvAdam(RuleOptimizer):
    r"""Adam's inverse: multiply the momentum by the root of the second moment, not divide by it.

    With m̂ and v̂ Adam's bias-corrected moments::

        p ← p·(1 − lr·weight_decay) − lr·m̂·d,   d = √v̂ + ε

    Its steps are longest along steep directions, so it leaves sharp minima soonest. They shrink
    with the square of the gradient, so it does not converge by itself: :class:`DualAdam` hands over
    to Adam. At Adam's learning rate a network stands still: give it Adam's divided by the squared
    RMS of the gradient, 1e-3/0.01² = 10 for an RMS of 0.01 (docs/training.md shows both).

    Parameters
    ----------
    params, lr, betas, weight_decay
        As in :class:`DualAdam`.
    eps
        ε, added to √v̂; ≥ 0. Default: 1e-8.
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
    The state is that of :class:`DualAdam` without ``scale_free``.

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
        param_error: str | None = None,
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: Group) -> Method:
        return _INVERSE

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return _preconditioners.adam_denominator(row)

    def diagnostics(self) -> dict[str, float]:
        """Report α and the inverse part's share of the update: both are 1."""
        return {"alpha": 1.0, "inverse_share": 1.0}
