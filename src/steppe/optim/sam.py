"""SAM and ASAM around any optimizer: descend along the gradient of the worst nearby point."""

import reprlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from steppe.optim._checkpoint import check_kinds
from steppe.optim._optimizer_wrapper import check_step, share_hooks, step_within
from steppe.optim._options import check_options
from steppe.optim._sam_ascent import rho_name
from steppe.optim._sam_passes import AccumulationGuard, check_second_pass, gradients
from steppe.optim._sam_perturbing import PerturbingWrapper, check_sam_options


class SAM(PerturbingWrapper):
    r"""Sharpness-aware minimisation (SAM), and adaptive SAM, around a base optimizer.

    A step takes two forward and backward passes. The first gives g at the parameters p; over all
    parameters the perturbation is::

        SAM:               e = ρ·g/(‖g‖₂ + 1e-12)
        adaptive (ASAM):   e = ρ·p²g/(‖|p|·g‖₂ + 1e-12)

    The second pass gives the gradient at p + e. Then p is restored bit for bit, and the base
    optimizer steps along the second gradient. Groups that ``maximize`` have −g in place of g. If
    the norm is zero or not finite, as under a ``GradScaler``, e is zero.

    There are three ways to use it:

    * ``step(closure)``: the closure clears gradients, runs forward and backward, and returns the
      loss. It is called twice; the loss of the first pass is returned.
    * ``perturb()`` between the two backward passes and ``step()`` after the second. ``perturb``
      clears the gradients, and each pass may accumulate over several batches.
    * ``with sam.perturbed():`` around the second pass, then ``step()``. It restores the parameters
      even if the pass raises or the step is skipped: use it with ``GradScaler``.

    A step whose gradients come from no second pass is refused, so that a training loop or framework
    that takes one pass does not train without SAM unnoticed.

    Parameters
    ----------
    base_optimizer
        Any optimizer of this library, of torch, or with their interface, whose step needs no
        closure; so not ``torch.optim.LBFGS``.
    rho
        ρ, the L2 norm of e over all parameters (of e/|p| if ``adaptive``); ≥ 0. Default: None,
        which is 0.05, or 0.5 if ``adaptive``. A group may have its own ``rho``; around
        ``torch.optim.Adadelta``, which has a rho too, its name is ``sam_rho``.
    adaptive
        Whether to scale e by the size of each parameter (ASAM). A group may have its own.
        Default: False.
    module
        The model. Its buffers are put back after the second pass. Default: None, which finds all
        modules that hold one of the parameters.
    required
        Whether a step whose gradients come from no second pass raises. Default: True. False allows
        phases without SAM, in which ``step()`` is the base optimizer's. The attribute of this name
        may be assigned.

    Raises
    ------
    TypeError
        ``base_optimizer`` is not an optimizer, or its step needs a closure; ``module`` is none.
    ValueError
        ``rho`` or a flag is out of its range, ``module`` holds none of the parameters, or
        ``base_optimizer`` is in a SAM already.

    Notes
    -----
    ``param_groups``, ``state`` and ``defaults`` are the base optimizer's own, with ``rho`` and
    ``adaptive`` among the options: schedulers act on both, and ``state_dict`` is complete. SAM has
    no state of its own but the number of ascents; between the passes it holds a copy of the
    parameters and module buffers.

    Module buffers, such as running statistics, stay as the first pass left them: all dense ones of
    modules in training, compiled modules included. A buffer
    that the second pass replaces by one of another shape, such as a growing cache, stays replaced.
    Random layers such as dropout draw anew in the second pass.

    Half-precision parameters hold p + e only to their precision: of a million bfloat16 weights of
    size 0.02, ρ = 0.05 moves one half. Keep float32 parameters and use autocast.

    References
    ----------
    Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*,
    ICLR 2021, arXiv 2010.01412; Kwon et al., *ASAM*, ICML 2021, arXiv 2102.11600.

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
    """

    def __init__(
        self,
        base_optimizer: Optimizer,
        rho: float | None = None,
        *,
        adaptive: bool = False,
        module: Module | None = None,
        required: bool = True,
    ) -> None:
        _check_base(base_optimizer)
        _check_module(module, base_optimizer)
        check_options({"required": required})
        defaults = base_optimizer.defaults
        rho = (0.5 if adaptive else 0.05) if rho is None else rho
        options = {"sam_rho" if "rho" in defaults else "rho": rho, "adaptive": adaptive}
        for group in base_optimizer.param_groups:
            check_sam_options({**options, **group})
        check_sam_options(options)
        defaults.update(options)
        for group in base_optimizer.param_groups:
            for name, value in options.items():
                group.setdefault(name, value)
        self.__setstate__(
            {"base_optimizer": base_optimizer, "module": module, "required": required}
        )

    def __getstate__(self) -> dict[str, Any]:
        if self._restore_point.is_set:
            raise RuntimeError(
                "SAM cannot be copied or pickled while its parameters are perturbed, as the copy "
                "could not restore them: call restore() first"
            )
        names = ("base_optimizer", "module", "required")
        return {name: getattr(self, name) for name in names} | {"ascents": self._passes.ascents}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "base_optimizer" not in state:
            # Frameworks give optimizers new state and groups so.
            self.base_optimizer.__setstate__(state)
            self.param_groups = self.base_optimizer.param_groups
            return
        self.base_optimizer = state["base_optimizer"]
        self.module, self.required = state["module"], state["required"]
        names = (rho_name(self.base_optimizer.defaults), "adaptive")
        self.own_options = {name: self.base_optimizer.defaults[name] for name in names}
        self._begin_perturbing(state.get("ascents", 0))
        share_hooks(self, self.base_optimizer)
        # Not Optimizer.__init__, which would make groups and state beside the base's: __setstate__
        # makes only the hooks that are missing.
        super().__setstate__({})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the base optimizer; the group may name its own ``rho``, ``adaptive``.

        Raises
        ------
        ValueError
            An option is out of its range. Nothing has changed then.
        """
        check_sam_options({**self.defaults, **param_group})
        self.base_optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's checkpoint, SAM's options and ``ascents`` in its groups."""
        saved = super().state_dict()
        ascents = {"ascents": self._passes.ascents}
        return {**saved, "param_groups": [group | ascents for group in saved["param_groups"]]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint into the base optimizer.

        Raises
        ------
        ValueError
            The checkpoint does not fit, or was not saved from a SAM. Nothing has changed.
        """
        _check_checkpoint(state_dict, (rho_name(self.defaults), "adaptive"))
        groups = [dict(group) for group in state_dict["param_groups"]]
        ascents = [group.pop("ascents", 0) for group in groups]
        self.base_optimizer.load_state_dict({**state_dict, "param_groups": groups})
        self._passes.ascents = max(ascents, default=0)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step from p along the gradient at p + e.

        Parameters
        ----------
        closure
            Runs one forward and backward pass; it is called twice. Default: None, for use after
            :meth:`perturb` and a second backward pass. After :meth:`perturb` a closure is called
            once, and should leave the gradients as they are: some frameworks pass such a closure.

        Returns
        -------
        The loss at the unperturbed parameters, or None without a closure.

        Raises
        ------
        RuntimeError
            The gradients come from no second pass, and SAM is ``required``; a gradient is sparse;
            FSDP1 has flattened a parameter; or the closure computes no gradients, or adds to those
            of other batches. No parameter has changed then.
        """
        try:
            return self._step(closure)
        except BaseException:
            self._give_up()
            raise

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        self.restore()
        loss = None
        if closure is not None:
            guard = AccumulationGuard(self.param_groups, self._passes)
            with torch.enable_grad():
                loss = closure()
            if not self._passes.is_second:
                guard.check()
                self._run_second_pass(closure, returned_loss=loss is not None)
        elif self.required and not self._passes.is_second:
            check_second_pass(self.param_groups)
        self._passes.is_second = False
        step_within(self.base_optimizer)
        return loss

    def _run_second_pass(self, closure: Callable[[], Any], *, returned_loss: bool) -> None:
        """Call the closure at p + e; refuse one that returns no loss and computes no gradients.

        A closure that returned a loss may skip the second pass, as Lightning's does if
        ``training_step`` returns None.
        """
        before = gradients(self.param_groups)
        with self.perturbed(), torch.enable_grad():
            closure()
        if not returned_loss and before and not gradients(self.param_groups):
            raise RuntimeError(
                "the closure computed no gradients: expected one that runs forward and backward. "
                "Where a framework passes an empty one, as Lightning does in manual optimization, "
                "run the second pass under perturbed() before step()"
            )


def _check_base(base_optimizer: Any) -> None:
    if not isinstance(base_optimizer, Optimizer):
        raise TypeError(
            f"base_optimizer={reprlib.repr(base_optimizer)} is not an optimizer: expected an "
            "instance, e.g. SAM(torch.optim.AdamW(model.parameters()))"
        )
    check_step(base_optimizer, "SAM")
    if "adaptive" in base_optimizer.defaults:
        raise ValueError(
            f"base_optimizer={type(base_optimizer).__name__} has an option 'adaptive': it is "
            "a SAM or in one already; expected an optimizer that is not"
        )


def _check_module(module: Any, base_optimizer: Optimizer) -> None:
    if module is None:
        return
    if not isinstance(module, Module):
        raise TypeError(
            f"module={reprlib.repr(module)} is not valid: expected the torch.nn.Module that is "
            "trained, or None"
        )
    params = {id(param) for group in base_optimizer.param_groups for param in group["params"]}
    if not any(id(param) in params for param in module.parameters()):
        raise ValueError(
            f"module={type(module).__name__} holds none of the optimizer's parameters: expected "
            "the model that is trained"
        )


def _check_checkpoint(state_dict: dict[str, Any], option_names: tuple[str, str]) -> None:
    refuse = "checkpoint does not fit SAM: "
    check_kinds(state_dict, refuse)
    for index, group in enumerate(state_dict["param_groups"]):
        for name in option_names:
            if name not in group:
                raise ValueError(f"{refuse}option {name!r} of group {index} is missing")
        check_sam_options(group)
