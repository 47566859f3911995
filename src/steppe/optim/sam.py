"""SAM and its family around any optimizer: descend along the gradient of a point nearby."""

from collections.abc import Callable
from typing import Any

from torch.nn import Module
from torch.optim import AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from steppe.optim._optimizer_wrapper import step_within
from steppe.optim._options import Direction, Metric, check_options
from steppe.optim._sam_base import make_base
from steppe.optim._sam_checkpoints import CheckpointedSAM
from steppe.optim._sam_options import (
    check_base,
    check_fits,
    check_module,
    check_no_other,
    check_sam_options,
    checked_groups,
    first_step_of,
    metric_of,
    with_metric,
    with_rho,
)
from steppe.optim._sam_perturbations import DEFAULT_RHO


class SAM(CheckpointedSAM):
    r"""Sharpness-aware minimisation (SAM) and its family, around a base optimizer.

    A step goes along the gradient at p + e, a point near the parameters p. What e is tells the
    methods apart. Along a direction d, in a metric s, over all parameters::

        e = ρ·s²d/(‖s·d‖₂ + 1e-12)

        direction="gradient"       d = g, the gradient at p: two forward and backward passes (SAM)
        direction="momentum"       d = −m, the base's momentum: one pass (MSAM)
        metric="euclidean"         s = 1
        metric="adaptive"          s = |p| (ASAM)
        metric="preconditioned"    s = P^½, where the base steps along P·m; Adam's P is 1/(√v̂ + ε)

    and at random, in one pass, with ξ normal::

        direction="random"         e = ρ·std(p)·ξ for each tensor;  adaptive: e = ρ·p·ξ

    Then p is restored bit for bit, and the base optimizer steps along the gradient at p + e. Groups
    that ``maximize`` have −g in place of g. If the norm is zero or not finite, as under a
    ``GradScaler`` or before the base has a momentum, e is zero.

    There are three ways to use it:

    * ``step(closure)``: the closure clears gradients, runs forward and backward, and returns the
      loss. Of two passes it is called twice, and the loss of the first is returned; of one, the
      loss at p + e.
    * ``with sam.perturbed():`` around the pass, of two around the second, then ``step()``. It
      restores the parameters even if the pass raises or the step is skipped: use it with
      ``GradScaler``. Each pass may accumulate over several batches.
    * ``perturb()`` before the pass and ``step()`` after it, which restores.

    A step whose gradients come from no perturbed pass is refused, so that a training loop or
    framework that takes one pass does not train without SAM unnoticed.

    Parameters
    ----------
    params_or_optimizer
        An optimizer of this library, of torch, or with their interface, whose step needs no
        closure; so not ``torch.optim.LBFGS``. Or parameters, of which ``base`` makes one.
    base
        The class of the base optimizer, if parameters are given; or what makes one of parameters
        and options, or its path, such as ``"torch.optim.SGD"``. Default: AdamW, torch's.
    rho
        ρ, the length of e: the L2 norm of e/s over all parameters; at random, that of an element of
        e over std(p) or p. ≥ 0; along the momentum it may be negative, and e then points against
        the coming step. A group may have its own ``rho``; around ``torch.optim.Adadelta``, which
        has a rho too, its name is ``sam_rho``. Default: None, which is 0.05, adaptive 0.5 and
        preconditioned 0.005; along the momentum 0.2, 1.0 and 0.02; at random 0.1.
    direction
        ``"gradient"``, ``"momentum"`` or ``"random"``. A base has a momentum if it has ``betas`` or
        ``momentum`` > 0; that of critical momenta is their aggregate. Default: "gradient".
    metric
        ``"euclidean"``, ``"adaptive"`` or ``"preconditioned"``, the last not at random, and around
        optimizers that divide by a second moment. It is Euclidean until the base has taken a step.
        A group may have its own, with the default ρ of that. Default: "euclidean".
    adaptive
        Another way to say ``metric="adaptive"``. Default: False.
    start
        The share of ``total_steps`` after which SAM begins, in [0, 1); before, each step is the
        base's, takes one pass, and :attr:`is_active` is False. Default: 0.0.
    total_steps
        The steps of the run, ≥ 1; given to the base too, if it takes it. Default: None.
    module
        The model. Its buffers are put back after the second of two passes. Default: None, which
        finds all modules that hold one of the parameters.
    required
        Whether a step whose gradients come from no perturbed pass raises. Default: True. False
        allows phases without SAM, in which ``step()`` is the base optimizer's. The attribute of
        this name may be assigned.
    **base_options
        Options of the base, if parameters are given.

    Raises
    ------
    TypeError
        What is given is no optimizer, or its step needs a closure; ``module`` is none.
    ValueError
        An option is out of its range, the base has no momentum or preconditioner, ``module`` holds
        none of the parameters, or the base is in a SAM already.

    Notes
    -----
    ``param_groups``, ``state`` and ``defaults`` are the base optimizer's own, with ``rho`` and
    ``metric`` among the options: schedulers act on both, and ``state_dict`` is complete. SAM has
    no state of its own but the number of steps and of ascents, and at random a seed, which is that
    of torch's generator when it is first needed. Around a pass it holds a copy of the parameters,
    and around the second of two one of module buffers. On CPUs the memory of the first is kept for
    the next step.

    Module buffers, such as running statistics, stay as the first of two passes left them: all dense
    ones of modules in training, compiled modules included. A buffer
    that the second pass replaces by one of another shape, such as a growing cache, stays replaced.
    Random layers such as dropout draw anew in the second pass.

    Half-precision parameters hold p + e only to their precision: of a million bfloat16 weights of
    size 0.02, ρ = 0.05 moves one half. Keep float32 parameters and use autocast.

    Functional SAM (arXiv 2502.02407), which leaves the logits' scale alone, is not here: it needs
    the network cut at its outputs, where an optimizer sees parameters only.

    References
    ----------
    Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*,
    ICLR 2021, arXiv 2010.01412; Kwon et al., *ASAM*, ICML 2021, arXiv 2102.11600; Becker, Altrock,
    Risse, *Momentum-SAM*, arXiv 2401.12033; Singh et al., *Avoiding spurious sharpness minimization
    broadens applicability of SAM*, ICML 2025, arXiv 2502.02407 (preconditioned); Zhou et al.,
    *Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in Training*, ICLR 2025,
    arXiv 2410.10373 (``start``); Trinh et al., *DAMP*, arXiv 2406.16540 (random, adaptive).

    Examples
    --------
    >>> import torch, steppe
    >>> model = torch.nn.Linear(3, 1)
    >>> inputs = torch.ones(4, 3)
    >>> sam = steppe.SAM(steppe.DualAdam(model.parameters()), rho=0.05)
    >>> def closure():
    ...     sam.zero_grad()
    ...     loss = model(inputs).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> loss = sam.step(closure)

    Two backward passes, with mixed precision:

    >>> scaler = torch.amp.GradScaler("cpu")
    >>> sam.zero_grad()
    >>> scaler.scale(model(inputs).square().mean()).backward()
    >>> with sam.perturbed():
    ...     scaler.scale(model(inputs).square().mean()).backward()
    >>> _ = scaler.step(sam)
    >>> scaler.update()

    One pass, along the momentum of an optimizer that SAM makes:

    >>> sam = steppe.SAM(model.parameters(), lr=1e-3, direction="momentum")
    >>> with sam.perturbed():
    ...     model(inputs).square().mean().backward()
    >>> sam.step()
    """

    def __init__(
        self,
        params_or_optimizer: ParamsT | Optimizer,
        base: type[Optimizer] | Callable[..., Optimizer] | str = AdamW,
        *,
        rho: float | None = None,
        direction: Direction = "gradient",
        metric: Metric = "euclidean",
        adaptive: bool = False,
        start: float = 0.0,
        total_steps: int | None = None,
        module: Module | None = None,
        required: bool = True,
        **base_options: Any,
    ) -> None:
        check_options({"required": required, "adaptive": adaptive, "direction": direction})
        metric = metric_of(metric, adaptive=adaptive)
        first_step = first_step_of(start, total_steps)
        if isinstance(params_or_optimizer, Optimizer):
            check_no_other(base, base_options)
            base_optimizer = params_or_optimizer
        else:
            base_optimizer = make_base(params_or_optimizer, base, base_options, total_steps)
        check_base(base_optimizer)
        check_module(module, base_optimizer)
        name = "sam_rho" if "rho" in base_optimizer.defaults else "rho"
        own = {name: DEFAULT_RHO.get((direction, metric)) if rho is None else rho, "metric": metric}
        groups = checked_groups(base_optimizer, own, direction, is_default=rho is None)
        base_optimizer.defaults.update(own)
        for group, options in zip(base_optimizer.param_groups, groups, strict=True):
            group.pop("adaptive", None)
            group.update(options)
        self.__setstate__(
            {
                "base_optimizer": base_optimizer,
                "direction": direction,
                "first_step": first_step,
                "module": module,
                "required": required,
                "has_default_rho": rho is None,
            }
        )

    @staticmethod
    def default_rho(direction: Direction = "gradient", metric: Metric = "euclidean") -> float:
        """Return the ρ of who gives none.

        Raises
        ------
        ValueError
            A name is not one of these, or the two do not go together.
        """
        check_sam_options({"rho": 0.0, "metric": metric}, direction)
        check_options({"direction": direction})
        return DEFAULT_RHO[direction, metric]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the base optimizer; the group may name its own ``rho``, ``metric``.

        Raises
        ------
        ValueError
            An option is out of its range. Nothing has changed then.
        """
        group, is_default = with_metric(param_group), self.has_default_rho
        param_group = with_rho(group, self.own_options, self.direction, is_default=is_default)
        options = {**self.defaults, **param_group}
        check_sam_options(options, self.direction)
        check_fits(self.direction, options["metric"], self.base_optimizer)
        self.base_optimizer.add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step from p along the gradient at p + e.

        Parameters
        ----------
        closure
            Runs one forward and backward pass; of two passes it is called twice. Default: None, for
            use after :meth:`perturb` and the pass at p + e. After :meth:`perturb` a closure is
            called once, and should leave the gradients as they are: some frameworks pass such a
            closure.

        Returns
        -------
        The loss of the first pass, at the unperturbed parameters; of an only pass that at p + e; or
        None without a closure.

        Raises
        ------
        RuntimeError
            The gradients come from no perturbed pass, and SAM is ``required``; a gradient is
            sparse; FSDP1 has flattened a parameter; or the closure computes no gradients, or adds
            to those of other batches. No parameter has changed then.
        """
        try:
            return self._step(closure)
        except BaseException:
            self._give_up()
            raise

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        self.restore()
        loss = self._run(closure)
        self._passes.is_perturbed = self._passes.are_kept = False
        step_within(self.base_optimizer)
        self._passes.steps += 1
        return loss
