"""The samples that a run is watched on: the first ones, the same at every measurement."""

from collections.abc import Sequence

from steppe.landscape.objective.batches import Batch
from steppe.landscape.objective.objective import Objective
from steppe.landscape.objective.sample_groups import part_of


def first_batches(objective: Objective, samples: int | None) -> list[Batch]:
    """Read batches until there are so many samples, and copy these; None reads all.

    Random generators are restored, and a shuffled loader gives the same samples in each process
    that reads it.

    Raises
    ------
    ValueError
        There are no samples.
    """
    taken: list[Batch] = []
    with objective.evaluation_mode():
        for batch in objective.batches():
            taken.append(batch)
            if samples is not None and count(taken) >= samples:
                break
    # Of several processes one may have none.
    if not count(taken) and not objective.is_distributed:
        raise ValueError("batches is empty: there are no samples to measure on")
    kept = taken if samples is None else limited(taken, samples)
    return [batch.copied() for batch in kept]


def limited(batches: Sequence[Batch], samples: int) -> list[Batch]:
    """Return the first samples of batches; a batch that cannot be cut by samples is kept whole."""
    kept: list[Batch] = []
    for batch in batches:
        left = samples - count(kept)
        if left <= 0:
            break
        is_too_large = batch.size > left and batch.size_from != "first"
        kept.append(part_of(batch, 0, left) if is_too_large else batch)
    return kept


def count(batches: Sequence[Batch]) -> int:
    """Return the number of samples in batches."""
    return sum(batch.size for batch in batches)
