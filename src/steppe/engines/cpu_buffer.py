"""The parts of a buffer's step that are alike for all methods, in Numba."""

from typing import Any

import numpy as np
from numba import float64, int64, njit, prange

from steppe.engines.native import array, compiled

_priority = compiled("remember_priority")
_fifo = compiled("remember_fifo")


@njit(cache=True)
def count_filled(books: Any, capacities: Any) -> Any:
    """Count the filled slots of each row."""
    filled = np.zeros(len(capacities), dtype=np.float64)
    for row in range(len(capacities)):
        if capacities[row] > 0:
            keys = array(books[row, 0], capacities[row], float64)
            for key in keys:
                filled[row] += key > -np.inf
    return filled


@njit(cache=True)
def decide(
    books: Any,
    capacities: Any,
    priorities: Any,
    decays: Any,
    steps: Any,
    fifo: bool,
    resum_every: int,
) -> Any:
    """Enter this step's items into the books, and say where each is to be stored.

    Parameters
    ----------
    books
        Addresses of each row's keys, births and number of replacements.

    Returns
    -------
    arrays
        The slot that takes the row's item, -1 where none does; and whether the row's slots are to
        be summed afresh.
    """
    chosen = np.full(len(capacities), -1)
    due = np.zeros(len(capacities), dtype=np.bool_)
    for row in range(len(capacities)):
        capacity = capacities[row]
        if capacity == 0:
            continue
        keys = array(books[row, 0], capacity, float64)
        births = array(books[row, 1], capacity, float64)
        index = np.arange(capacity)
        if fifo:
            store, new_keys, new_births = _fifo(
                keys, births, index, priorities[row], steps[row], decays[row]
            )
        else:
            store, new_keys, new_births = _priority(
                keys, births, index, priorities[row], steps[row], decays[row]
            )
        keys[:] = new_keys
        births[:] = new_births
        for slot in range(capacity):
            if store[slot]:
                chosen[row] = slot
                replacements = array(books[row, 2], 1, int64)
                replacements[0] += 1
                due[row] = replacements[0] % resum_every == 0
    return chosen, due


@njit(parallel=True, cache=True)
def sum_slots(totals: Any, slots: Any, capacities: Any, chunks: Any, like: Any) -> None:
    """Sum the slots afresh, in the order of the slots; ``like`` has their format."""
    for chunk in prange(len(chunks)):
        row, size = chunks[chunk, 0], chunks[chunk, 2]
        offset = chunks[chunk, 1] * like.itemsize
        total = array(totals[row] + offset, size, like.dtype)
        total[:] = array(slots[row, 0] + offset, size, like.dtype)
        for slot in range(1, capacities[row]):
            values = array(slots[row, slot] + offset, size, like.dtype)
            for i in range(size):
                total[i] += values[i]
