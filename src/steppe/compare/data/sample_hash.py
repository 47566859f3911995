"""Hash the samples of data sets, and see that the same index gives the same sample again."""

import hashlib
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from steppe.compare.data.datasets import TensorSamples, parts_of, size_of

# Of data sets that are not in memory so many samples are hashed, evenly spaced: a folder of a
# million images would take an hour.
_MOST_HASHED = 1000
# Samples that are read a second time.
_READ_AGAIN = 30


def hash_samples(named: Iterable[tuple[str, Dataset[Any]]]) -> str:
    """Hash data sets: tensors as a whole, of all others up to 1 000 samples, evenly spaced.

    Parameters
    ----------
    named : iterable of (str, Dataset)
        The data sets by the names of the task's arguments.

    Raises
    ------
    TypeError
        A sample holds something that cannot be hashed.
    ValueError
        An index gives another sample the second time, other than in "train".
    """
    digest = hashlib.sha256()
    known: dict[int, bytes] = {}
    augmented = False
    for name, dataset in named:
        if id(dataset) not in known:
            known[id(dataset)], differs = _hash_of(name, dataset, may_augment=name == "train")
            augmented |= differs
            if name == "train" and differs:
                trained = dataset
        if name == "plain" and augmented and dataset is trained:
            raise ValueError(
                "train gives another sample each time that an index is read, as augmentation does: "
                "give the same samples without it as plain=, to evaluate the model on"
            )
        digest.update(name.encode() + known[id(dataset)])
    return digest.hexdigest()[:16]


def _hash_of(name: str, dataset: Dataset[Any], *, may_augment: bool) -> tuple[bytes, bool]:
    digest, differs = hashlib.sha256(), False
    for part in parts_of(dataset):
        if (tensors := _in_memory(part)) is not None:
            _add(digest, tensors, name)
            continue
        count = size_of(part)
        rows = torch.linspace(0, count - 1, min(count, _MOST_HASHED)).round().long().tolist()
        _add(digest, count, name)
        hashes = [sample_hash(part[row], name) for row in rows]
        again = list(zip(rows, hashes, strict=True))[:: max(1, len(rows) // _READ_AGAIN)]
        changed = [row for row, first in again if sample_hash(part[row], name) != first]
        if changed and not may_augment:
            raise ValueError(
                f"{name}[{changed[0]}] is another sample each time that it is read: {name} must "
                "not augment, so that all models are evaluated on the same samples"
            )
        differs |= bool(changed)
        for each in () if changed else hashes:
            digest.update(each)
    return digest.digest(), differs


def _in_memory(part: Dataset[Any]) -> tuple[Tensor, ...] | None:
    """Return all samples of a data set of tensors, or of a part of one."""
    if isinstance(part, TensorSamples):
        return part.inputs, part.targets
    if isinstance(part, TensorDataset):
        return part.tensors
    if isinstance(part, Subset) and (whole := _in_memory(part.dataset)) is not None:
        rows = torch.as_tensor(list(part.indices))
        return tuple(each[rows] for each in whole)
    return None


def sample_hash(sample: Any, name: str) -> bytes:
    """Hash a sample, or a batch, of the named part.

    Raises
    ------
    TypeError
        It holds something that cannot be hashed.
    """
    digest = hashlib.sha256()
    _add(digest, sample, name)
    return digest.digest()


def _add(digest: Any, value: Any, name: str) -> None:
    """Add a value to a hash, with its type and shape, whatever it is nested in."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.to_dense() if value.layout != torch.strided else value
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, str | bytes | numbers.Number | None):
        digest.update(repr(value).encode())
    elif isinstance(value, Mapping):
        digest.update(f"mapping{len(value)}".encode())
        for key in value:
            _add(digest, key, name)
            _add(digest, value[key], name)
    elif isinstance(value, np.ndarray):
        # Of Python's objects, whose addresses say nothing.
        _add(digest, [value.shape, *value.ravel()], name)
    elif isinstance(value, tuple | list):
        digest.update(f"sequence{len(value)}".encode())
        for part in value:
            _add(digest, part, name)
    elif is_dataclass(value) and not isinstance(value, type):
        _add(digest, {each.name: getattr(value, each.name) for each in fields(value)}, name)
    elif hasattr(value, "tobytes") and hasattr(value, "size"):
        # An image of Pillow.
        digest.update(f"{getattr(value, 'mode', '')}{value.size}".encode() + value.tobytes())
    else:
        raise TypeError(
            f"a sample of {name} holds a {type(value).__name__}, which cannot be hashed to tell "
            "data apart: return Data(..., fingerprint=...) by data=, with a text that changes when "
            "the samples do"
        )
