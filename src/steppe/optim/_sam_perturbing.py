"""What SAM does to parameters around a pass, and how it is undone.

:class:`~steppe.optim.SAM` derives from :class:`PerturbingWrapper`, whose ``perturb`` moves the
parameters by ``_sam_perturbations.py`` and whose ``restore`` goes back by ``_sam_restore.py``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Module

from steppe.optim._fsdp1 import refuse_fsdp1
from steppe.optim._grad_mode import without_gradients
from steppe.optim._optimizer_wrapper import TransparentWrapper
from steppe.optim._options import to_plain
from steppe.optim._sam_batches import Members
from steppe.optim._sam_members import members_of
from steppe.optim._sam_options import check_sam_options
from steppe.optim._sam_passes import (
    AccumulationGuard,
    Moves,
    Passes,
    check_perturbed_pass,
    gradients,
)
from steppe.optim._sam_perturbations import perturb_along, perturb_randomly
from steppe.optim._sam_restore import RestorePoint


class PerturbingWrapper(TransparentWrapper):
    """A wrapper that moves the parameters to p + e for a pass, and back.

    Attributes
    ----------
    direction
        What e goes along: "gradient", "momentum" or "random".
    first_step
        The step from which on parameters are perturbed, from 0.
    module
        The model whose buffers are put back; None if it is to be found.
    required
        Whether a step whose gradients come from no perturbed pass raises.
    has_default_rho
        Whether the constructor was given no ρ, so that groups have that of their metric.
    """

    direction: str
    first_step: int
    module: Module | None
    required: bool
    has_default_rho: bool
    _restore_point: RestorePoint
    _passes: Passes

    def _begin_perturbing(self) -> None:
        self._restore_point = RestorePoint(self.module)
        self._passes = Passes()

    @property
    def has_two_passes(self) -> bool:
        """Whether a step takes two passes: e along the gradient needs one before it."""
        return self.direction == "gradient"

    @property
    def is_active(self) -> bool:
        """Whether the next step perturbs: ``start`` of ``total_steps`` lie behind it."""
        return self._passes.steps >= self.first_step

    @property
    def has_gradients(self) -> bool:
        """Whether a pass has computed gradients since they were cleared by :meth:`zero_grad`."""
        return self._passes.have_run(gradients(self.param_groups))

    @property
    def is_perturbed(self) -> bool:
        """Whether the parameters are at p + e now, as within :meth:`perturbed`."""
        return self._passes.is_at_perturbed

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients as the base optimizer does."""
        if self._passes.are_kept:
            raise RuntimeError(
                "zero_grad() before step() would discard the gradients of the batches that the "
                "step has accumulated: call it after step()"
            )
        self.base_optimizer.zero_grad(set_to_none=set_to_none)
        self._passes.clear(gradients(self.param_groups))
        if not self._passes.is_at_perturbed:
            self._passes.is_perturbed = False

    @contextmanager
    def keeping_gradients(self) -> Iterator[None]:
        """Refuse ``zero_grad`` until the next step, as it would discard what is accumulated."""
        self._passes.are_kept = True
        try:
            yield
        finally:
            self._passes.are_kept = False

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Perturb the parameters for a pass, and restore them whatever happens.

        Of two passes it is the second. Along the momentum and at random it is the only one, and
        several may follow each other before a step: their gradients add up.
        """
        try:
            self.perturb()
            yield
            self.restore()
        except BaseException:
            self._give_up()
            raise

    def perturb(self) -> None:
        """Move the parameters to p + e, and clear gradients of passes that were not perturbed.

        Before :attr:`is_active` they stay where they are.

        Raises
        ------
        RuntimeError
            A gradient is sparse or has another shape than its parameter, either has no memory, or
            FSDP1 has flattened a parameter; the base has no momentum; or of two passes the first
            has not been, or the second has and no step after it. Nothing has changed then.
        ValueError
            ``rho`` or ``metric`` of a group was set to a value out of its range, or that does not
            fit the base.
        """
        self._perturb(clears=True)

    @without_gradients
    def _perturb(self, *, clears: bool) -> None:
        self.restore()
        if self.has_two_passes:
            found = gradients(self.param_groups)
            if self.is_active and self.required:
                self._passes.check_first_pass(found)
            self._passes.check_nothing_is_added(found)
        for number, group in enumerate(self.param_groups):
            self._complete(group)
            check_sam_options(group, self.direction, f" in group {number}")
            group.update({name: to_plain(group[name]) for name in self.own_options})
        params = [param for group in self.param_groups for param in group["params"]]
        for param in params:
            refuse_fsdp1(param, "SAM")
        members = Members([], are_apart=True)
        if self.is_active:
            members = members_of(self.base_optimizer, self.direction)
        try:
            if self.has_two_passes:
                self._restore_point.save_buffers(params)
            if self.is_active:
                self._passes.note(self._move(members))
            # Within one autocast region a weight is cast once: the pass would use the cached cast
            # of p instead of p + e.
            torch.clear_autocast_cache()
            if clears and (self.has_two_passes or not self._passes.is_perturbed):
                self.zero_grad()
            self._passes.is_perturbed = self._passes.is_at_perturbed = True
        except BaseException:
            self.restore()
            raise

    def _move(self, members: Members) -> Moves:
        save = self._restore_point.save_params
        if self.direction == "random":
            seed = self._passes.noise_seed(member.param for member in members.all)
            return perturb_randomly(members, save, seed, self._passes.steps)
        return perturb_along(members, save)

    @without_gradients
    def restore(self) -> None:
        """Put the parameters back, bit for bit; nothing happens if they are not perturbed."""
        self._passes.is_at_perturbed = False
        found = gradients(self.param_groups)
        if not found:
            # No pass has run at p + e: what comes now is not perturbed.
            self._passes.is_perturbed = False
        if self._restore_point.is_set:
            self._passes.leave(found)
        try:
            self._restore_point.restore()
        except BaseException:
            # What Ctrl-C has stopped goes on: who then saves the model would save p + e.
            self._restore_point.restore()
            raise

    def _run(self, closure: Callable[[], Any] | None) -> Any:
        """Run the passes that a closure computes and that have not been run."""
        if closure is None:
            if self.required and self.is_active and not self._passes.is_perturbed:
                check_perturbed_pass(self.param_groups, is_second=self.has_two_passes)
            return None
        if not self.is_active:
            with torch.enable_grad():
                return closure()
        if not self.has_two_passes:
            return self._run_only_pass(closure)
        guard = AccumulationGuard(self.param_groups, self._passes)
        with torch.enable_grad():
            loss = closure()
        if not self._passes.is_perturbed:
            guard.check()
            self._run_second_pass(closure, returned_loss=loss is not None)
        return loss

    def _run_only_pass(self, closure: Callable[[], Any]) -> Any:
        """Call the closure at p + e; it may add to gradients that are of perturbed passes."""
        adds_to_perturbed = self._passes.is_perturbed
        guard = AccumulationGuard(self.param_groups, self._passes)
        self._perturb(clears=False)
        with torch.enable_grad():
            loss = closure()
        if not adds_to_perturbed:
            guard.check()
        self.restore()
        return loss

    def _run_second_pass(self, closure: Callable[[], Any], *, returned_loss: bool) -> None:
        """Call the closure at p + e; refuse one that returns no loss and computes no gradients."""
        if not self.has_gradients:
            # The closure skipped the step, as Lightning's does if training_step returns None.
            return
        with self.perturbed(), torch.enable_grad():
            closure()
        if not returned_loss and not gradients(self.param_groups):
            raise RuntimeError(
                "the closure computed no gradients: expected one that runs forward and backward. "
                "Where a framework passes an empty one, as Lightning does in manual optimization, "
                "run the second pass under perturbed() before step()"
            )

    def _give_up(self) -> None:
        """Restore after a pass or step that was stopped: the next gradients are of a first pass."""
        self.restore()
        self._passes.is_perturbed = False

    def diagnostics(self) -> dict[str, float]:
        """Return the base optimizer's, the number of ascents, and ‖e‖₂ of the last one.

        ``ascents`` goes on where a checkpoint is loaded; ``perturbation_norm`` is NaN until the
        next one. It is zero where the norm that e is divided by was zero or not finite.
        """
        return super().diagnostics() | self._passes.diagnostics()
