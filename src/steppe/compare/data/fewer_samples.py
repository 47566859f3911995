"""Fewer training samples of any data set, always the same ones."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from steppe.compare.data.datasets import (
    Data,
    Stream,
    are_classes,
    held_out,
    parts_of,
    size_of,
    stored_targets,
)

# Fixed, and not a run's seed: every optimizer and every seed gets the same samples.
_CHOICE_SEED = 0


def fewer_samples(data: Data, samples: int) -> Data:
    """Keep only so many training samples; those for validation and testing stay.

    They are drawn at random, with the classes in their proportions where targets are classes that
    can be read without loading an input. A larger choice contains every smaller one. Of a stream
    they are counted in each task, and a task that has no more stays whole.

    Parameters
    ----------
    data : Data
        All samples.
    samples : int
        How many, at least 2.

    Raises
    ------
    ValueError
        There are not that many.

    Examples
    --------
    >>> from steppe.compare.data.datasets import digits
    >>> len(fewer_samples(digits(), 250).train)
    250
    """
    most = max(map(size_of, parts_of(data.train)))
    if not 2 <= samples <= most:
        raise ValueError(
            f"samples must be between 2 and the {most} training samples, got {samples}"
        )
    rows = [_order(part)[:samples].tolist() for part in parts_of(data.unaugmented)]
    weights = data.weights
    return replace(
        data,
        train=_chosen(data.train, rows),
        plain=None if data.plain is None else _chosen(data.plain, rows),
        weights=None if weights is None else [weights[row] for row in rows[0]],
    )


def _order(samples: Dataset[Any]) -> Tensor:
    targets = stored_targets(samples)
    if targets is not None and are_classes(targets):
        return held_out(targets.long(), 0.0)[0]
    generator = torch.Generator().manual_seed(_CHOICE_SEED)
    return torch.randperm(size_of(samples), generator=generator)


def _chosen(samples: Dataset[Any], rows: Sequence[list[int]]) -> Dataset[Any]:
    parts = [Subset(*each) for each in zip(parts_of(samples), rows, strict=True)]
    return Stream(parts) if isinstance(samples, Stream) else parts[0]
