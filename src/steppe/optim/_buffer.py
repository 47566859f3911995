"""What optimizers that remember momenta or gradients share."""

from typing import Literal

from steppe import rules
from steppe._engines import Buffer, Function
from steppe.optim import _diagnostics
from steppe.optim._base import RuleOptimizer

Scope = Literal["global", "tensor"]
Replacement = Literal["priority", "fifo"]

_REMEMBER = {"priority": rules.remember_priority, "fifo": rules.remember_fifo}


def buffer(aggregate: Function, replacement: Replacement) -> Buffer:
    """Describe a buffer to the engines."""
    return Buffer(aggregate, _REMEMBER[replacement])


class BufferOptimizer(RuleOptimizer):
    """An optimizer whose parameters each own a buffer of C slots, and a key for each slot.

    A step's item is stored with its priority, the gradient's norm, as key: in a free slot, else in
    the slot with the smallest key if the priority is strictly greater. Then all keys are multiplied
    by ``priority_decay``. A priority that is not finite stores nothing, so that one broken step
    does not poison the keys; a parameter without a gradient sits the step out.
    """

    def diagnostics(self) -> dict[str, float]:
        """Report the state of the buffers.

        Returns
        -------
        dict
            ``buffer_fill``: filled slots per parameter. ``replacement_rate``: items stored per
            step. ``slot_age``: mean age of filled slots, in steps. ``key_min``, ``key_max``: the
            extremes of all priority keys. NaN where there is nothing yet.
        """
        return _diagnostics.buffer(self._rows_with_state())
