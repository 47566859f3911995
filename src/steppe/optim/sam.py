"""SAM and ASAM around any optimizer: descend along the gradient of the worst nearby point."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from steppe import rules
from steppe.engines.eager import norm, widened
from steppe.engines.kernel import Function
from steppe.engines.plan import real
from steppe.optim.options import check


class SAM(Optimizer):
    r"""Sharpness-aware minimisation, and its adaptive form, around a base optimizer.

    The base optimizer steps from p along the gradient taken at p + e, where over all parameters::

        e = ρ·g/(‖g‖₂ + 1e-12)                adaptive:  e = ρ·p²g/(‖|p|·g‖₂ + 1e-12)

    Each step costs two forward and backward passes. The parameters keep their storage and are
    restored bit for bit. ``param_groups``, ``state`` and ``defaults`` are the base optimizer's
    own, ρ included, so schedulers act on both and ``state_dict`` is complete. Running statistics
    of normalisation layers are updated by the first pass only.

    Three ways to use it:

    * ``step(closure)``, where the closure clears gradients, runs forward and backward, and returns
      the loss. The loss of the first pass is returned.
    * ``perturb()`` between the backward passes and ``step()`` after the second. ``perturb`` clears
      the gradients, and each pass may accumulate over several batches.
    * ``with sam.perturbed():`` around the second pass, then ``step()``. It restores the parameters
      even if the step is skipped or the pass raises: use it with ``GradScaler``.

    Where the gradient's norm is zero or not finite, as a ``GradScaler`` may have it, e is zero.

    Parameters
    ----------
    base_optimizer
        Any optimizer of this library, of torch, or with their interface.
    rho
        ρ, the radius; ≥ 0. None is 0.05, with ``adaptive`` 0.5. A group may have its own.
    adaptive
        Scale the neighbourhood by the parameters (ASAM).

    Raises
    ------
    TypeError
        ``base_optimizer`` is not an optimizer.
    ValueError
        ``rho`` is out of its range.

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
                f"base_optimizer={base_optimizer!r} is not an optimizer: expected an instance, "
                "e.g. SAM(torch.optim.AdamW(model.parameters()))"
            )
        options = {"rho": (0.5 if adaptive else 0.05) if rho is None else rho, "adaptive": adaptive}
        check(options)
        for group in base_optimizer.param_groups:
            check({**options, **group})
        base_optimizer.defaults.update(options)
        for group in base_optimizer.param_groups:
            for name, value in options.items():
                group.setdefault(name, value)
        self.__setstate__({"base_optimizer": base_optimizer})

    def __getstate__(self) -> dict[str, Any]:
        return {"base_optimizer": self.base_optimizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Optimizer.__init__ would make groups and state of its own beside the base's; its
        # __setstate__ makes only the hooks.
        self.base_optimizer: Optimizer = state["base_optimizer"]
        self._originals: list[tuple[Tensor, Tensor]] = []
        self._paused: list[_NormBase] = []
        self._pause: RemovableHandle | None = None
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

    @property
    def engine(self) -> str:
        """Name of the engine that runs the base optimizer's step."""
        return getattr(self.base_optimizer, "engine", "torch.optim")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the base optimizer."""
        check({**self.defaults, **param_group})
        self.base_optimizer.add_param_group(param_group)

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
        for number, group in enumerate(state_dict["param_groups"]):
            for name in ("rho", "adaptive"):
                if name not in group:
                    raise ValueError(
                        f"checkpoint does not fit SAM: option {name!r} of group {number} is missing"
                    )
        self.base_optimizer.load_state_dict(state_dict)

    def diagnostics(self) -> dict[str, float]:
        """Return the base optimizer's diagnostics; empty if it has none."""
        diagnose = getattr(self.base_optimizer, "diagnostics", dict)
        return dict(diagnose())

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step from the original parameters along the gradient at the perturbed ones.

        Parameters
        ----------
        closure
            Runs both passes. None after :meth:`perturb` and a second backward pass.

        Returns
        -------
        The loss at the original parameters, or None without a closure.

        Raises
        ------
        RuntimeError
            A gradient is sparse. Nothing has changed then.
        """
        self.restore()
        if closure is None:
            self.base_optimizer.step()
            return None
        with torch.enable_grad():
            loss = closure()
        with self.perturbed(), torch.enable_grad():
            closure()
        self.base_optimizer.step()
        return loss

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
            A gradient is sparse. Nothing has changed then.
        """
        self.restore()
        active = [
            (param, group)
            for group in self.param_groups
            for param in group["params"]
            if param.grad is not None
        ]
        for param, _ in active:
            if param.grad.layout != torch.strided:
                raise RuntimeError(
                    f"SAM does not take {param.grad.layout} gradients: parameter of shape "
                    f"{tuple(param.shape)}; use dense ones, e.g. Embedding(sparse=False)"
                )
        if active:
            self._ascend(active)
        self._pause = register_module_forward_pre_hook(self._pause_running_statistics)
        self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Put the parameters back, bit for bit; nothing happens if they are not perturbed."""
        for param, original in self._originals:
            param.copy_(original)
        self._originals = []
        for module in self._paused:
            module.track_running_stats = True
        self._paused = []
        if self._pause is not None:
            self._pause.remove()
            self._pause = None

    def _ascend(self, active: list[tuple[Tensor, dict[str, Any]]]) -> None:
        pairs = [(widened(real(p)), widened(real(_gradient(p)))) for p, _ in active]
        lengths = [
            rules.asam_length(p, g) if group["adaptive"] else g
            for (p, g), (_, group) in zip(pairs, active, strict=True)
        ]
        length = norm(lengths) + 1e-12
        for (p, g), (param, group) in zip(pairs, active, strict=True):
            rule: Function = rules.asam_ascent if group["adaptive"] else rules.sam_ascent
            scale = (group["rho"] / length).to(p.device)
            moved = torch.where(torch.isfinite(length).to(p.device), rule(p, g, scale), p)
            self._originals.append((param, param.clone()))
            real(param).copy_(moved)

    def _pause_running_statistics(self, module: torch.nn.Module, _: Any) -> None:
        """Let a normalisation layer use its batch's statistics without recording them."""
        if isinstance(module, _NormBase) and module.training and module.track_running_stats:
            module.track_running_stats = False
            self._paused.append(module)


def _gradient(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad
