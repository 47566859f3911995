"""SAM and ASAM around any optimizer: descend along the gradient of the worst nearby point."""

import math
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from steppe import rules
from steppe._engines import (
    Function,
    ShardGroup,
    cache_chunks,
    joint_norm,
    local_param_and_grad,
    local_part,
    shard_group_of,
    widened,
)
from steppe.optim._flattened import refuse_flattened
from steppe.optim._options import check
from steppe.optim._training_buffers import TrainingBuffers
from steppe.optim._wrapper import Wrapper, check_step, share_hooks


class SAM(Wrapper):
    r"""Sharpness-aware minimisation, and its adaptive form, around a base optimizer.

    The base optimizer steps from p along the gradient taken at p + e, where over all parameters::

        e = ρ·g/(‖g‖₂ + 1e-12)                adaptive:  e = ρ·p²g/(‖|p|·g‖₂ + 1e-12)

    g being the gradient of the loss, or in groups that ``maximize`` of minus the objective. Each
    step costs two forward and backward passes. The parameters keep their storage and are
    restored bit for bit. ``param_groups``, ``state`` and ``defaults`` are the base optimizer's
    own, ρ included, so schedulers act on both and ``state_dict`` is complete. Buffers keep what the
    first pass made of them, such as running statistics or the vectors of spectral norm: all dense
    ones of every layer in training, in all modules that hold one of the parameters, compiled ones
    too.

    Three ways to use it:

    * ``step(closure)``, where the closure clears gradients, runs forward and backward, and returns
      the loss. The loss of the first pass is returned.
    * ``perturb()`` between the backward passes and ``step()`` after the second. ``perturb`` clears
      the gradients, and each pass may accumulate over several batches.
    * ``with sam.perturbed():`` around the second pass, then ``step()``. It restores the parameters
      even if the step is skipped or the pass raises: use it with ``GradScaler``.

    ``step()`` with neither a closure nor a perturbation before it is the plain step of the base.

    Where the gradient's norm is zero or not finite, as a ``GradScaler`` may have it, e is zero.

    Parameters
    ----------
    base_optimizer
        Any optimizer of this library, of torch, or with their interface, whose step needs no
        closure: not ``torch.optim.LBFGS``.
    rho
        ρ, the radius; ≥ 0. None is 0.05, with ``adaptive`` 0.5. A group may have its own, under
        the same name; around ``Adadelta``, which has a rho too, its name is ``sam_rho``.
    adaptive
        Scale the neighbourhood by the parameters (ASAM). A group may have its own.

    Raises
    ------
    TypeError
        ``base_optimizer`` is not an optimizer, or its step cannot do without a closure.
    ValueError
        ``rho`` is out of its range, or ``base_optimizer`` is in a SAM already.

    Notes
    -----
    Parameters in half precision hold only what of e their spacing shows: of a million bfloat16
    weights of size 0.02, ρ = 0.05 moves one half. Keep float32 parameters and use autocast.
    Random layers draw anew in the second pass. Besides the parameters, a copy of the buffers is
    held between the passes; a buffer that the second pass replaces by one of another shape, as a
    cache that grows, stays replaced.

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
        self, base_optimizer: Optimizer, rho: float | None = None, *, adaptive: bool = False
    ) -> None:
        if not isinstance(base_optimizer, Optimizer):
            raise TypeError(
                f"base_optimizer={reprlib.repr(base_optimizer)} is not an optimizer: expected an "
                "instance, e.g. SAM(torch.optim.AdamW(model.parameters()))"
            )
        check_step(base_optimizer, "SAM")
        defaults = base_optimizer.defaults
        if "adaptive" in defaults:
            raise ValueError(
                f"base_optimizer={type(base_optimizer).__name__} has an option 'adaptive': it is "
                "a SAM or in one already; expected an optimizer that is not"
            )
        rho = (0.5 if adaptive else 0.05) if rho is None else rho
        options = {"sam_rho" if "rho" in defaults else "rho": rho, "adaptive": adaptive}
        for group in base_optimizer.param_groups:
            _check({**options, **group})
        _check(options)
        defaults.update(options)
        for group in base_optimizer.param_groups:
            for name, value in options.items():
                group.setdefault(name, value)
        self.__setstate__({"base_optimizer": base_optimizer})

    def __getstate__(self) -> dict[str, Any]:
        if self._undo:
            raise RuntimeError(
                "SAM cannot be copied or pickled while its parameters are perturbed, as the copy "
                "could not restore them: call restore() first"
            )
        return {"base_optimizer": self.base_optimizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.base_optimizer = state["base_optimizer"]
        #: What puts back each tensor that the perturbation or the second pass changes.
        self._undo: list[Callable[[], Any]] = []
        #: Not empty while the gradients are a second pass's. A list, as wrappers that inherit from
        #: what they wrap, Lightning's for one, call methods with themselves in SAM's place.
        self._second: list[bool] = []
        self._buffers = TrainingBuffers()
        share_hooks(self, self.base_optimizer)
        # Optimizer.__init__ would make groups and state of its own beside the base's; its
        # __setstate__ makes only the hooks that are missing.
        super().__setstate__({})

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base optimizer's groups."""
        return self.base_optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base optimizer's state."""
        return self.base_optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base optimizer's defaults, and ``rho`` and ``adaptive``."""
        return self.base_optimizer.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the base optimizer."""
        _check({**self.defaults, **param_group})
        self.base_optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients as the base optimizer does."""
        self.base_optimizer.zero_grad(set_to_none=set_to_none)
        if not self._undo:
            self._second.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state, ρ included."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint into the base optimizer.

        Raises
        ------
        ValueError
            The checkpoint does not fit, or was not saved from a SAM. Nothing has changed.
        """
        refuse = "checkpoint does not fit SAM: "
        if "param_groups" not in state_dict:
            raise ValueError(f"{refuse}'param_groups' is missing")
        for number, group in enumerate(state_dict["param_groups"]):
            for name in (_rho(self.defaults), "adaptive"):
                if name not in group:
                    raise ValueError(f"{refuse}option {name!r} of group {number} is missing")
            _check(group)
        self.base_optimizer.load_state_dict(state_dict)

    def preconditioner(self) -> dict[Tensor, Tensor]:
        """Return the base optimizer's diagonal preconditioner, if it is one of this library.

        Raises
        ------
        AttributeError
            The base optimizer has no such method.
        """
        base: Any = self.base_optimizer
        return dict(base.preconditioner())

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step from the original parameters along the gradient at the perturbed ones.

        Parameters
        ----------
        closure
            Runs one pass, and is called twice. None after :meth:`perturb` and a second backward
            pass; without those, this is the base optimizer's plain step. After those, a closure
            that leaves the gradients as they are is called once: some frameworks pass one.

        Returns
        -------
        The loss at the original parameters, or None without a closure.

        Raises
        ------
        RuntimeError
            A gradient is sparse, FSDP1 has flattened a parameter, or the closure runs no pass. No
            parameter has changed then.
        """
        self.restore()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if not self._second:
                self._pass_again(closure, silent=loss is None)
        self._second.clear()
        self.base_optimizer.step()
        return loss

    def _pass_again(self, closure: Callable[[], Any], *, silent: bool) -> None:
        """Run the second pass; refuse a closure that does not compute gradients.

        One that returns a loss may skip a pass, as Lightning's does if ``training_step`` returns
        None.
        """
        before = self._has_gradients()
        with self.perturbed(), torch.enable_grad():
            closure()
        if silent and before and not self._has_gradients():
            self._second.clear()
            raise RuntimeError(
                "the closure computed no gradients: expected one that runs forward and backward. "
                "Where a framework passes an empty one, as Lightning does in manual optimization, "
                "run the second pass under perturbed() before step()"
            )

    def _has_gradients(self) -> bool:
        return any(p.grad is not None for group in self.param_groups for p in group["params"])

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Perturb the parameters for the second pass, and restore them whatever happens."""
        self.perturb()
        try:
            yield
        finally:
            self.restore()

    @torch.no_grad()
    def perturb(self) -> None:
        """Move the parameters to p + e and clear the gradients.

        Raises
        ------
        RuntimeError
            A gradient is sparse, or FSDP1 has flattened a parameter. Nothing has changed then.
        """
        self.restore()
        params = [param for group in self.param_groups for param in group["params"]]
        for param in params:
            refuse_flattened(param, "SAM")
        active = [
            (param, param.grad, group)
            for group in self.param_groups
            for param in group["params"]
            if param.grad is not None
        ]
        for param, grad, _ in active:
            if grad.layout != torch.strided:
                raise RuntimeError(
                    f"SAM does not take {grad.layout} gradients: parameter of shape "
                    f"{tuple(param.shape)}; use dense ones, e.g. Embedding(sparse=False)"
                )
        try:
            self._undo.extend(self._buffers.save(params))
            self._ascend(active)
            # Within one autocast region a weight is cast once, and would be seen as it was.
            torch.clear_autocast_cache()
            self.zero_grad()
            self._second[:] = [True]
        except BaseException:
            self.restore()
            raise

    @torch.no_grad()
    def restore(self) -> None:
        """Put the parameters back, bit for bit; nothing happens if they are not perturbed."""
        if not self._undo:
            return
        # Last in, first out: a parameter that is in a group twice was moved twice.
        while self._undo:
            self._undo[-1]()
            self._undo.pop()
        torch.clear_autocast_cache()

    def _ascend(self, active: list[tuple[Tensor, Tensor, dict[str, Any]]]) -> None:
        ascents = [
            _Ascent(*local_param_and_grad(param, grad), shard_group_of(param), group)
            for param, grad, group in active
        ]
        length = joint_norm((each.length, each.team) for each in ascents) + 1e-12
        if isinstance(length, float) and not math.isfinite(length):
            return
        for (param, _, _), each in zip(active, ascents, strict=True):
            self._undo.append(partial(_write, param, local_part(param).clone()))
            each.ascend(length)


class _Ascent(NamedTuple):
    """A parameter on its way up: what this process holds of it, and who holds the rest."""

    param: Tensor
    grad: Tensor
    team: ShardGroup | None
    group: dict[str, Any]

    @property
    def length(self) -> Tensor:
        """What the norm is taken of."""
        if not self.group["adaptive"]:
            return self.grad
        length: Tensor = rules.asam_length(widened(self.param), widened(self.grad))
        return length

    def ascend(self, length: Tensor | float) -> None:
        """Move the parameter, given the norm of all lengths."""
        rule: Function = rules.asam_ascent if self.group["adaptive"] else rules.sam_ascent
        # What is maximised is minus the loss.
        scale = self.group[_rho(self.group)] / length * (-1 if self.group.get("maximize") else 1)
        for p, g in cache_chunks(self.param, self.grad):
            p.copy_(_where_finite(scale, rule, widened(p), widened(g)))


def _where_finite(scale: Tensor | float, rule: Function, p: Tensor, g: Tensor) -> Tensor:
    if isinstance(scale, float):
        moved: Tensor = rule(p, g, scale)
        return moved
    # On an accelerator nobody waits to see whether the norm is finite.
    scale = scale.to(p.device)
    return torch.where(scale.isfinite() & (scale != 0), rule(p, g, scale.to(p.dtype)), p)


def _write(param: Tensor, here: Tensor) -> None:
    """Put back what this process holds of a parameter."""
    local_part(param).copy_(here)


def _rho(options: dict[str, Any]) -> str:
    """Name of ρ among the options: Adadelta has a rho of its own."""
    return "sam_rho" if "sam_rho" in options else "rho"


def _check(options: dict[str, Any]) -> None:
    """Check SAM's options. The others are the base optimizer's, which may not be ours."""
    check({"rho": options[_rho(options)], "adaptive": options["adaptive"]})
