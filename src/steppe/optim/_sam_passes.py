"""Which pass the gradients come from, how many steps there were, and what the last move was.

SAM refuses a step by it if no pass was perturbed; diagnostics report the move.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from steppe._engines import Group, ShardGroup, agreed_number, joint_norm, local_part

#: The norm of what each parameter was moved by, and the processes that hold more of it.
Moves = list[tuple[Tensor, ShardGroup | None]]

_COUNTED = ("ascents", "steps", "seed")


class Passes:
    """What SAM knows of its passes.

    ``SAM`` and the wrappers that copy its attributes, such as Lightning's LightningOptimizer, share
    one object, so it is changed in place.

    Attributes
    ----------
    ascents
        Number of perturbations so far.
    steps
        Number of steps so far.
    seed
        Of random perturbations; None before the first.
    is_perturbed
        Whether the gradients are those of a perturbed pass, or will be.
    is_at_perturbed
        Whether the parameters are at p + e now; e may be zero.
    has_cleared
        Whether gradients have been cleared since a closure was called.
    are_kept
        Whether clearing the gradients is refused, until the next step.
    """

    def __init__(self) -> None:
        self.ascents = 0
        self.steps = 0
        self.seed: int | None = None
        self.is_perturbed = False
        self.is_at_perturbed = False
        self.has_cleared = False
        self.are_kept = False
        self._moves: Moves | None = None
        self._left: Versions = []
        self._cleared: Versions = []

    def clear(self, grads: list[Tensor]) -> None:
        """Note that gradients were cleared, and those that are zero now in the place of None."""
        self.has_cleared = True
        self._cleared = _versions(grads)

    def leave(self, grads: list[Tensor]) -> None:
        """Note the gradients at the end of a second pass, without keeping them alive."""
        self._left = _versions(grads)

    def have_run(self, grads: list[Tensor]) -> bool:
        """Whether a pass has computed them: they are not the zeros that clearing has left."""
        return _changed(grads, self._cleared) or any(map(_is_nonzero, grads))

    def check_first_pass(self, grads: list[Tensor]) -> None:
        """Refuse to go along gradients that no pass has computed: e would be zero.

        Raises
        ------
        RuntimeError
            There are none, or they are the zeros that clearing has left.
        """
        if self.have_run(grads):
            return
        raise RuntimeError(
            "SAM found no gradients to go along: run the first pass (forward and backward) before "
            "perturbed(), and the second one within it; direction='momentum' needs one pass"
        )

    def check_nothing_is_added(self, grads: list[Tensor]) -> None:
        """Refuse a first pass that added to a second one's gradients, which would be left out.

        Raises
        ------
        RuntimeError
            A gradient is a tensor of the last second pass, and has changed.
        """
        if not self.is_perturbed:
            return
        known = {id(left) for ref, _ in self._left if (left := ref()) is not None}
        if _changed([grad for grad in grads if id(grad) in known], self._left):
            raise RuntimeError(
                "perturb() after a second pass and before step() would leave that pass out: call "
                "step() first, or zero_grad(); to accumulate over several batches, run all first "
                "passes, then all second ones under one perturbed()"
            )

    def note(self, moves: Moves) -> None:
        """Note that the parameters were moved."""
        self.ascents += 1
        self._moves = moves

    def counts(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {name: getattr(self, name) for name in _COUNTED}

    def resume(self, groups: list[Group]) -> list[Group]:
        """Take the counts out of a checkpoint's groups; return the groups without them."""
        for name in _COUNTED:
            found = [group[name] for group in groups if group.get(name) is not None]
            setattr(self, name, max(found, default=None if name == "seed" else 0))
        return [{k: v for k, v in group.items() if k not in _COUNTED} for group in groups]

    def noise_seed(self, params: Iterable[Tensor]) -> int:
        """Return the seed of random perturbations: that of torch's generator when first asked.

        Processes that share parameters agree on one: copies would drift apart otherwise.
        """
        if self.seed is None:
            self.seed = agreed_number(torch.initial_seed() & 0xFFFFFFFF, params)
        return self.seed

    def diagnostics(self) -> dict[str, float]:
        """Return the number of ascents, and ‖e‖₂ of the last one: NaN if none was here."""
        if self._moves is None:
            norm = float("nan")
        else:
            norm = float(joint_norm(self._moves)) if self._moves else 0.0
        return {"ascents": float(self.ascents), "perturbation_norm": norm}


#: Tensors and their version counters, without keeping them alive.
Versions = list[tuple[weakref.ref[Tensor], int]]


def _versions(tensors: list[Tensor]) -> Versions:
    return [(weakref.ref(each), version_of(each)) for each in tensors]


def version_of(tensor: Tensor) -> int:
    """Return the version counter of what this process holds: FSDP2 adds to that alone."""
    return local_part(tensor)._version


def _changed(tensors: list[Tensor], before: Versions) -> bool:
    """Whether some tensor is another one, or has changed, since its version was noted."""
    known = {id(each): version for ref, version in before if (each := ref()) is not None}
    # No generator: Ctrl-C would leave it unfinished, of which Python warns.
    return [version_of(each) for each in tensors] != [known.get(id(each)) for each in tensors]


def gradients(groups: Iterable[Group]) -> list[Tensor]:
    """Return all gradients that there are."""
    return [p.grad for group in groups for p in group["params"] if p.grad is not None]


def check_perturbed_pass(groups: list[Group], *, is_second: bool) -> None:
    """Refuse a step whose gradients come from no perturbed pass.

    A step that changes no parameter is none: with it, checkpoint libraries such as
    ``torch.distributed.checkpoint`` make the state that they load into.

    Parameters
    ----------
    groups
        The optimizer's.
    is_second
        Whether the perturbed pass is the second of two.

    Raises
    ------
    RuntimeError
        There are gradients, and some are not zero or some learning rate is not.
    """
    found = gradients(groups)
    is_still = all(float(group.get("lr", 0.0)) == 0.0 for group in groups)
    if found and not (is_still and not any(map(_is_nonzero, found))):
        missing, needed = ("a second", "the second") if is_second else ("a perturbed", "the")
        raise RuntimeError(
            f"SAM.step() without {missing} pass would be the base optimizer's step: run {needed} "
            "pass under perturbed() before it, or give it a closure; steppe.integrations has this "
            "for frameworks, and SAM(..., required=False) allows phases of training without SAM"
        )


def _is_nonzero(grad: Tensor) -> bool:
    grad = local_part(grad)
    return grad.layout != torch.strided or not (grad.is_meta or not grad.any())


class AccumulationGuard:
    """Refuse a closure that adds to the gradients of batches before it.

    Of a closure SAM perturbs the batch that it computes, so the other batches would be left out, or
    stay unperturbed. Lightning's ``accumulate_grad_batches`` passes such closures.
    """

    def __init__(self, groups: list[Group], passes: Passes) -> None:
        self._passes = passes
        self._groups = groups
        self._before = {id(grad): (grad, version_of(grad)) for grad in gradients(groups)}
        passes.has_cleared = False

    def check(self) -> None:
        """Refuse the closure if it has been called and has cleared no gradients.

        Raises
        ------
        RuntimeError
            A gradient is a tensor that was there before, and has changed.
        """
        if self._passes.has_cleared:
            return
        for grad in gradients(self._groups):
            _, version = self._before.get(id(grad), (grad, version_of(grad)))
            if version_of(grad) != version:
                raise RuntimeError(
                    "the closure added to gradients that were there before, which SAM would leave "
                    "unperturbed: call SAM's zero_grad() first in the closure; to accumulate over "
                    "several batches, run them all under perturbed() before step(), those of two "
                    "passes once more, as steppe.integrations does for frameworks"
                )
