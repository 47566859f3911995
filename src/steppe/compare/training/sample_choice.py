"""Some of a data set's samples, always the same ones, for what would take too long on all."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from steppe.compare.data.datasets import Stream, parts_of, size_of
from steppe.compare.models.language_models import Recurrent


def some_samples(dataset: Dataset[Any], samples: int, model: nn.Module) -> Dataset[Any]:
    """Return so many samples, always the same ones, of a stream of each part in proportion.

    Parameters
    ----------
    dataset : Dataset
        All samples; it is returned itself if it has no more.
    samples : int
        How many.
    model : nn.Module
        What reads them: a recurrent one gets the first ones, as it reads on from sample to sample.
    """
    if isinstance(dataset, Stream):
        share = samples / size_of(dataset)
        counts = (max(1, round(share * size_of(part))) for part in parts_of(dataset))
        pairs = zip(parts_of(dataset), counts, strict=True)
        return Stream(some_samples(part, count, model) for part, count in pairs)
    size = size_of(dataset)
    if size <= samples:
        return dataset
    if isinstance(model, Recurrent):
        return Subset(dataset, range(samples))
    # Drawn at random, as data sets may be sorted.
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    return Subset(dataset, order[:samples].tolist())
