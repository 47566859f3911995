"""What SAM does to parameters between its two passes, and how it is undone.

:class:`~steppe.optim.SAM` derives from :class:`PerturbingWrapper`, whose ``perturb`` ascends by
``_sam_ascent.py`` and whose ``restore`` goes back by ``_sam_restore.py``.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import Module

from steppe.optim._fsdp1 import refuse_fsdp1
from steppe.optim._optimizer_wrapper import TransparentWrapper
from steppe.optim._sam_ascent import Member, ascend
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
            refuse_fsdp1(param, "SAM")
        active = [
            (param, param.grad, group)
            for group in self.param_groups
            for param in group["params"]
            if param.grad is not None
        ]
        _refuse_sparse(active)
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

    @torch.no_grad()
    def restore(self) -> None:
        """Put the parameters back, bit for bit; nothing happens if they are not perturbed."""
        if not gradients(self.param_groups):
            # No pass has run at p + e: what comes now is not the second.
            self._passes.is_second = False
        self._restore_point.restore()

    def diagnostics(self) -> dict[str, float]:
        """Return the base optimizer's, the number of ascents, and ‖e‖₂ of the last one.

        ``ascents`` goes on where a checkpoint is loaded; ``perturbation_norm`` is NaN until the
        next ascent. It is zero where the gradient's norm was zero or not finite.
        """
        return super().diagnostics() | self._passes.diagnostics()


def _refuse_sparse(members: list[Member]) -> None:
    for param, grad, _ in members:
        if grad.layout != torch.strided:
            raise RuntimeError(
                f"SAM does not take {grad.layout} gradients: parameter of shape "
                f"{tuple(param.shape)}; use dense ones, e.g. Embedding(sparse=False)"
            )
