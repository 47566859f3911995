"""Which of SAM's two passes the gradients come from, and what the last ascent was.

A step is refused by it if no second pass came before; diagnostics report the ascent.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from steppe._engines import Group, ShardGroup, joint_norm, local_part

#: The norm of what each parameter was moved by, and the processes that hold more of it.
Moves = list[tuple[Tensor, ShardGroup | None]]


class Passes:
    """What SAM knows of its passes.

    ``SAM`` and the wrappers that copy its attributes, such as Lightning's LightningOptimizer, share
    one object, so it is changed in place.

    Attributes
    ----------
    ascents
        Number of ascents so far.
    is_second
        Whether the gradients are those of a second pass, or will be.
    has_cleared
        Whether gradients have been cleared since a closure was called.
    """

    def __init__(self, ascents: int) -> None:
        self.ascents = ascents
        self.is_second = False
        self.has_cleared = False
        self._moves: Moves | None = None

    def begin_second(self, moves: Moves) -> None:
        """Note an ascent."""
        self.is_second = True
        self.ascents += 1
        self._moves = moves

    def diagnostics(self) -> dict[str, float]:
        """Return the number of ascents, and ‖e‖₂ of the last one: NaN if none was here."""
        if self._moves is None:
            norm = float("nan")
        else:
            norm = float(joint_norm(self._moves)) if self._moves else 0.0
        return {"ascents": float(self.ascents), "perturbation_norm": norm}


def gradients(groups: Iterable[Group]) -> list[Tensor]:
    """Return all gradients that there are."""
    return [p.grad for group in groups for p in group["params"] if p.grad is not None]


def check_second_pass(groups: list[Group]) -> None:
    """Refuse a step whose gradients come from no second pass.

    A step that changes no parameter is none: with it, checkpoint libraries such as
    ``torch.distributed.checkpoint`` make the state that they load into.

    Raises
    ------
    RuntimeError
        There are gradients, and some are not zero or some learning rate is not.
    """
    found = gradients(groups)
    is_still = all(float(group.get("lr", 0.0)) == 0.0 for group in groups)
    if found and not (is_still and not any(map(_is_nonzero, found))):
        raise RuntimeError(
            "SAM.step() without a second pass would be the base optimizer's step: run the second "
            "pass under perturbed() before it, or give it a closure; SAM(..., required=False) "
            "allows phases of training without SAM"
        )


def _is_nonzero(grad: Tensor) -> bool:
    grad = local_part(grad)
    return grad.layout != torch.strided or not (grad.is_meta or not grad.any())


class AccumulationGuard:
    """Refuse a closure that adds to the gradients of batches before it.

    SAM calls a closure twice, so its second pass would leave the other batches out. Lightning's
    ``accumulate_grad_batches`` passes such closures.
    """

    def __init__(self, groups: list[Group], passes: Passes) -> None:
        self._passes = passes
        self._groups = groups
        self._before = {id(grad): (grad, grad._version) for grad in gradients(groups)}
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
            _, version = self._before.get(id(grad), (grad, grad._version))
            if grad._version != version:
                raise RuntimeError(
                    "the closure added to gradients that were there before, which SAM's second "
                    "pass would leave out: call SAM's zero_grad() first in the closure; to "
                    "accumulate over several batches, run them all once more under perturbed() "
                    "before step()"
                )
