"""Symmetric label noise: some labels are replaced by another class, always the same ones."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from steppe.compare.data.datasets import (
    Data,
    Rows,
    Stream,
    are_classes,
    parts_of,
    size_of,
    stored_targets,
)


class Relabelled(Dataset[Any]):
    """Samples, pairs of inputs and a label, with other labels.

    Parameters
    ----------
    samples : Dataset
        The pairs.
    labels : Tensor
        One a sample. Each is given as the type of the label that it replaces.

    Examples
    --------
    >>> from steppe.compare.data.datasets import TensorSamples
    >>> samples = TensorSamples(torch.eye(2), torch.tensor([0, 1]))
    >>> Relabelled(samples, torch.tensor([1, 1]))[0]
    (tensor([1., 0.]), tensor(1))
    """

    def __init__(self, samples: Dataset[Any], labels: Tensor) -> None:
        self._samples, self._labels = samples, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> Any:
        return self._relabelled(self._samples[row], row)

    def __getitems__(self, rows: list[int]) -> Any:
        """Return a whole batch at once where the samples do, else its samples."""
        fetch = getattr(self._samples, "__getitems__", None)
        found = [self._samples[row] for row in rows] if fetch is None else fetch(rows)
        if isinstance(found, Rows):
            return found._replace(targets=self._labels[rows].to(found.targets.dtype))
        return list(map(self._relabelled, found, rows))

    def _relabelled(self, sample: Any, row: int) -> Any:
        inputs, old = sample
        label = self._labels[row]
        new = label.to(old) if isinstance(old, Tensor) else type(old)(label.item())
        return type(sample)((inputs, new))


def with_label_noise(data: Data, probability: float, seed: int = 0) -> Data:
    """Replace labels for training and validation by other classes; those of the test set stay.

    With the probability p a label is replaced by one drawn uniformly among the other classes, those
    that occur in training and validation: each of the K − 1 comes with p/(K − 1). Which labels, and
    by which class, depends on the seed and on the sample's position alone. A stream's tasks keep
    their classes.

    Parameters
    ----------
    data : Data
        Its samples are pairs, and their targets are classes.
    probability : float
        p, above 0 and below 1.
    seed : int, default 0
        Of the draw.

    Raises
    ------
    ValueError
        The targets are no classes, or there is only one class.

    Examples
    --------
    >>> from steppe.compare.data.datasets import digits
    >>> clean = digits()
    >>> noisy = with_label_noise(clean, 0.4)
    >>> changed = [noisy.train[row][1] != clean.train[row][1] for row in range(1000)]
    >>> 350 < sum(map(int, changed)) < 450
    True
    """
    clean = {"train": data.unaugmented, "validation": data.validation}
    labels = {
        name: [_labels(name, part) for part in parts_of(samples)] for name, samples in clean.items()
    }
    noisy: dict[str, list[Tensor]] = {name: [] for name in clean}
    for task, found in enumerate(zip(*labels.values(), strict=True)):
        classes: Tensor = torch.cat(found).unique()  # type: ignore[no-untyped-call]
        if len(classes) < 2:
            raise ValueError(f"label noise needs two classes or more, got {classes.tolist()}")
        for name, own in zip(labels, found, strict=True):
            noisy[name].append(_noisy(own, classes, probability, f"{seed}/{name}/{task}"))
    return replace(
        data,
        train=_relabelled(data.train, noisy["train"]),
        validation=_relabelled(data.validation, noisy["validation"]),
        # The same samples as for training, so with the same labels.
        plain=None if data.plain is None else _relabelled(data.plain, noisy["train"]),
    )


def _noisy(labels: Tensor, classes: Tensor, probability: float, where: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(where.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    # Row by row: a sample's draws do not depend on how many samples follow.
    draws = torch.rand(len(labels), 2, dtype=torch.float64, generator=generator)
    further = 1 + (draws[:, 1] * (len(classes) - 1)).long()
    others = classes[(torch.searchsorted(classes, labels) + further) % len(classes)]
    return torch.where(draws[:, 0] < probability, others, labels)


def _relabelled(samples: Dataset[Any], labels: Sequence[Tensor]) -> Dataset[Any]:
    parts = [Relabelled(*each) for each in zip(parts_of(samples), labels, strict=True)]
    return Stream(parts) if isinstance(samples, Stream) else parts[0]


def _labels(name: str, samples: Dataset[Any]) -> Tensor:
    found = stored_targets(samples)
    if found is None:
        found = torch.tensor([_label(name, samples[row]) for row in range(size_of(samples))])
    if not are_classes(found):
        raise ValueError(
            f"label noise needs classes, an integer of at least 0 for each sample: {name} has "
            f"targets of {found.dtype} in the shape {tuple(found.shape)}"
            + (f", the least {found.min().item()}" if found.numel() and found.ndim == 1 else "")
        )
    return found.long()


def _label(name: str, sample: Any) -> Any:
    if type(sample) not in (tuple, list) or len(sample) != 2:
        raise ValueError(
            f"label noise needs pairs (inputs, label), and a sample of {name} is a "
            f"{type(sample).__name__}"
        )
    label = sample[1]
    is_number = isinstance(label, int | np.integer) and not isinstance(label, bool)
    if not is_number and not (isinstance(label, Tensor) and label.ndim == 0):
        raise ValueError(
            "label noise needs classes, an integer of at least 0 for each sample: a target of "
            f"{name} is a {type(label).__name__}"
        )
    return label
