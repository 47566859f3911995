"""What the optimizers with a buffer of critical momenta or gradients share.

:mod:`steppe.optim.critical_momenta` and :mod:`steppe.optim.critical_gradients` build on it. The
buffers that torch modules register are another thing: see :mod:`steppe.optim._module_buffers`.
"""

from steppe import rules
from steppe._engines import Buffer, Function
from steppe.optim import _diagnostics
from steppe.optim._base import RuleOptimizer
from steppe.optim._options import Replacement

_REMEMBER = {"priority": rules.remember_priority, "fifo": rules.remember_fifo}


def describe_buffer(aggregate: Function, replacement: Replacement) -> Buffer:
    """Return what an engine must know of a buffer: how to aggregate it, what to replace."""
    return Buffer(aggregate, _REMEMBER[replacement])


class BufferOptimizer(RuleOptimizer):
    """An optimizer whose parameters each own a buffer of C slots, and a key for each slot.

    Each step offers one item, a momentum or a gradient, with the gradient's L2 norm as its
    priority. It is stored in a free slot; if there is none, it replaces the item with the smallest
    key, provided the priority is strictly greater. Its key is the priority. Then all keys are
    multiplied by ``priority_decay``. A priority that is not finite stores nothing: an infinite key
    would never be replaced. A parameter without a gradient skips the step.
    """

    def diagnostics(self) -> dict[str, float]:
        """Report the state of the buffers.

        Returns
        -------
        dict
            Averages over the parameters: ``buffer_fill``, the number of filled slots;
            ``replacement_rate``, items stored per step; ``slot_age``, the mean age of filled slots
            in steps. Over all slots: ``key_min`` and ``key_max``, the smallest and largest key. A
            value is NaN if no step has been taken, or ``capacity`` is 0.
        """
        return _diagnostics.buffer_statistics(self._rows_with_state())
