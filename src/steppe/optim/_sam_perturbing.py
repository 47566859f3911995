"""What SAM does to parameters around a pass, and how it is undone.

:class:`~steppe.optim.SAM` derives from :class:`PerturbingWrapper`, whose ``perturb`` moves the
parameters by ``_sam_perturbations.py`` and whose ``restore`` goes back by ``_sam_restore.py``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from steppe import _engines
from steppe._engines import (
    Group,
    check_memory,
    local_param_and_grad,
    memory_objection,
    shard_group_of,
)
from steppe.optim._fsdp1 import refuse_fsdp1
from steppe.optim._grad_mode import without_gradients
from steppe.optim._optimizer_wrapper import TransparentWrapper
from steppe.optim._options import to_plain
from steppe.optim._sam_base_state import momenta, preconditioners
from steppe.optim._sam_batches import Kind, Member, Members
from steppe.optim._sam_options import check_sam_options
from steppe.optim._sam_passes import (
    AccumulationGuard,
    Moves,
    Passes,
    check_perturbed_pass,
    gradients,
)
from steppe.optim._sam_perturbations import perturb_along, perturb_randomly, rho_name
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
        members = self._members() if self.is_active else Members([], are_apart=True)
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

    def _members(self) -> Members:
        """Return the parameters that move, and along what.

        Raises
        ------
        RuntimeError
            A parameter cannot be written, or a gradient cannot be read.
        """
        found = self._directions()
        alongs = [along for *_, along in found if along is not None]
        diagonals = {} if self.direction == "random" else self._preconditioners()
        are_usual = _engines.are_usual([param for param, *_ in found], alongs)
        members = []
        for number, (param, group, sign, along) in enumerate(found):
            part, shard_group = param, None
            if not are_usual:
                if self.has_two_passes:
                    along = _local_gradient(param)
                part, shard_group = local_param_and_grad(param, param)[0], shard_group_of(param)
            diagonal = diagonals.get(param)
            # At random, processes add up the numbers of one sharded parameter after the other, and
            # parameters of a batch together; but batches are not the same everywhere.
            is_alone = along is None and shard_group is not None
            kind = Kind(
                group[rho_name(group)] * sign,
                group["metric"] == "adaptive",
                diagonal is not None,
                shard_group,
                number if is_alone else None,
            )
            members.append(Member(number, param, part, kind, along, diagonal))
        if not are_usual:
            for member in members:
                check_memory(member.param, "a parameter")
        return Members(members, are_usual)

    def _directions(self) -> list[tuple[Tensor, Group, int, Tensor | None]]:
        """Return each parameter that moves, its group, and what it moves along, with the sign."""
        owned = [(param, group) for group in self.param_groups for param in group["params"]]
        if self.direction == "random":
            return [(param, group, 1, None) for param, group in owned if param.requires_grad]
        if self.direction == "momentum":
            known = momenta(self.base_optimizer)
            # Down, where the base goes next; of groups that maximise the momentum is that of −g.
            return [
                (param, group, -1, known[param])
                for param, group in owned
                if param in known and param.requires_grad
            ]
        return [
            (param, group, _uphill(group), grad)
            for param, group in owned
            if (grad := param.grad) is not None
        ]

    def _preconditioners(self) -> dict[Tensor, Tensor]:
        """Return those of groups in whose metric they are."""
        chosen = [g for g in self.param_groups if g["metric"] == "preconditioned"]
        if not chosen:
            return {}
        known = preconditioners(self.base_optimizer)
        return {p: known[p] for group in chosen for p in group["params"] if p in known}

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


def _uphill(group: Group) -> int:
    """Sign of the gradient: a group that maximises its objective minimises minus the objective."""
    return -1 if group.get("maximize") else 1


def _local_gradient(param: Tensor) -> Tensor:
    """Return what this process holds of a parameter's gradient; refuse one that cannot be used."""
    grad, shape = param.grad, tuple(param.shape)
    assert grad is not None
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"SAM does not take {grad.layout} gradients: parameter of shape {shape}; use dense "
            "ones, e.g. Embedding(sparse=False)"
        )
    if tuple(grad.shape) != shape:
        raise RuntimeError(
            f"a parameter has shape {shape}, its gradient {tuple(grad.shape)}: expected the same "
            "shape; compute the gradient anew (zero_grad, then backward)"
        )
    if why := memory_objection(grad):
        raise RuntimeError(f"the gradient of a parameter, shape {shape}, {why}")
    return local_param_and_grad(param, grad)[1]
