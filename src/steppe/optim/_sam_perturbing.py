"""What SAM does to parameters between its two passes, and how it is undone.

:class:`~steppe.optim.SAM` derives from :class:`PerturbingWrapper`, whose ``perturb`` ascends by
``_sam_ascent.py`` and whose ``restore`` goes back by ``_sam_restore.py``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Module

from steppe._engines import check_memory, memory_objection
from steppe.optim._fsdp1 import refuse_fsdp1
from steppe.optim._grad_mode import without_gradients
from steppe.optim._optimizer_wrapper import TransparentWrapper
from steppe.optim._options import check_options, to_plain
from steppe.optim._sam_ascent import Member, ascend, rho_name
from steppe.optim._sam_passes import Passes, gradients
from steppe.optim._sam_restore import RestorePoint


class PerturbingWrapper(TransparentWrapper):
    """A wrapper that moves the parameters to p + e for a second pass, and back.

    Attributes
    ----------
    module
        The model whose buffers are put back; None if it is to be found.
    """

    module: Module | None
    _restore_point: RestorePoint
    _passes: Passes

    def _begin_perturbing(self, ascents: int) -> None:
        self._restore_point = RestorePoint(self.module)
        self._passes = Passes(ascents)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients as the base optimizer does."""
        self.base_optimizer.zero_grad(set_to_none=set_to_none)
        self._passes.has_cleared = True
        if not self._restore_point.is_set:
            self._passes.is_second = False

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Perturb the parameters for the second pass, and restore them whatever happens."""
        try:
            self.perturb()
            yield
            self.restore()
        except BaseException:
            self._give_up()
            raise

    @without_gradients
    def perturb(self) -> None:
        """Move the parameters to p + e and clear the gradients.

        Raises
        ------
        RuntimeError
            A gradient is sparse or has another shape than its parameter, either has no memory, or
            FSDP1 has flattened a parameter. Nothing has changed then.
        ValueError
            ``rho`` or ``adaptive`` of a group was set to a value out of its range.
        """
        self.restore()
        for number, group in enumerate(self.param_groups):
            self._complete(group)
            check_sam_options(group, f" in group {number}")
            group.update({name: to_plain(group[name]) for name in self.own_options})
        params = [param for group in self.param_groups for param in group["params"]]
        for param in params:
            refuse_fsdp1(param, "SAM")
        active = [
            (param, param.grad, group)
            for group in self.param_groups
            for param in group["params"]
            if param.grad is not None
        ]
        _check_members(active)
        try:
            self._restore_point.save_buffers(params)
            moves = ascend(active, self._restore_point.save_param)
            # Within one autocast region a weight is cast once: the second pass would use the
            # cached cast of p instead of p + e.
            torch.clear_autocast_cache()
            self.zero_grad()
            self._passes.begin_second(moves)
        except BaseException:
            self.restore()
            raise

    @without_gradients
    def restore(self) -> None:
        """Put the parameters back, bit for bit; nothing happens if they are not perturbed."""
        if not gradients(self.param_groups):
            # No pass has run at p + e: what comes now is not the second.
            self._passes.is_second = False
        try:
            self._restore_point.restore()
        except BaseException:
            # What Ctrl-C has stopped goes on: who then saves the model would save p + e.
            self._restore_point.restore()
            raise

    def _give_up(self) -> None:
        """Restore after a pass or step that was stopped: the next gradients are of a first pass."""
        self.restore()
        self._passes.is_second = False

    def diagnostics(self) -> dict[str, float]:
        """Return the base optimizer's, the number of ascents, and ‖e‖₂ of the last one.

        ``ascents`` goes on where a checkpoint is loaded; ``perturbation_norm`` is NaN until the
        next ascent. It is zero where the gradient's norm was zero or not finite.
        """
        return super().diagnostics() | self._passes.diagnostics()


def check_sam_options(options: dict[str, Any], where: str = "") -> None:
    """Check SAM's own options. The base optimizer, perhaps not of this library, checks the rest.

    Raises
    ------
    ValueError
        One is out of its range; ``where`` says in the message whose it is.
    """
    own = {"rho": options[rho_name(options)], "adaptive": options["adaptive"]}
    check_options({name: to_plain(value) for name, value in own.items()}, where=where)


def _check_members(members: list[Member]) -> None:
    for param, grad, _ in members:
        shape = tuple(param.shape)
        if grad.layout != torch.strided:
            raise RuntimeError(
                f"SAM does not take {grad.layout} gradients: parameter of shape {shape}; use dense "
                "ones, e.g. Embedding(sparse=False)"
            )
        if tuple(grad.shape) != shape:
            raise RuntimeError(
                f"a parameter has shape {shape}, its gradient {tuple(grad.shape)}: expected the "
                "same shape; compute the gradient anew (zero_grad, then backward)"
            )
        check_memory(param, "a parameter")
        if why := memory_objection(grad):
            raise RuntimeError(f"the gradient of a parameter, shape {shape}, {why}")
