"""Count the bytes that a step must read and write at the least.

The table holds the time of a step against the time that copying so much takes.
"""

import re

from torch import Tensor
from torch.optim import Optimizer

from steppe._engines import BIRTHS, KEYS, MEAN, REPLACEMENTS, SLOT_SUM
from steppe._shared.optimizer_state import held_tensors

# State of a few numbers a tensor, whose traffic does not count.
_SMALL_STATE = frozenset({"step", KEYS, BIRTHS, REPLACEMENTS, MEAN})
_SLOT = re.compile(r"slot_\d")


def least_bytes(optimizer: Optimizer, storing: float) -> float:
    """Return how many bytes a step must read and write at the least, by the optimizer's state.

    Parameters are read and written, gradients read, moments read and written, and so is all state
    of other packages' optimizers. Of one of steppe's buffers the sum of the slots is read, or all
    slots where no sum is kept. A step that stores writes one slot; to bring the sum up to date it
    also reads what was in the slot, and writes the sum.

    Parameters
    ----------
    optimizer : Optimizer
        An optimizer that has taken a step, so that its state is there.
    storing : float
        The share of steps that store into a buffer, from 0 to 1.
    """
    return sum(
        _least_bytes(param, optimizer.state[param], storing)
        for group in optimizer.param_groups
        for param in group["params"]
    )


def items_stored(optimizer: Optimizer) -> float:
    """Return how many items each buffer has taken, on average; 0 without buffers."""
    states = optimizer.state.values()
    counts = [float(state[REPLACEMENTS]) for state in states if REPLACEMENTS in state]
    return sum(counts) / max(len(counts), 1)


def _least_bytes(param: Tensor, state: dict[str, object], storing: float) -> float:
    # HeavyBall names the parts of a state by numbers.
    sizes = {
        str(name): sum(tensor.nbytes for tensor in held_tensors(value))
        for name, value in state.items()
        if name not in _SMALL_STATE
    }
    total = sizes.pop(SLOT_SUM, 0)
    slots = sum(sizes.pop(name) for name in list(sizes) if _SLOT.match(name))
    moved = 3 * param.nbytes + 2 * sum(sizes.values())
    if not slots:
        return moved
    keys = state[KEYS]
    assert isinstance(keys, Tensor)
    slot = slots / keys.numel()
    if not total:
        return moved + slots + storing * slot
    return moved + total + storing * (2 * slot + total)
