"""Read the samples of a task in whatever form it has them, hold shares out, and hash them."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from steppe.compare.data.datasets import Data, Stream, TensorSamples, parts_of, size_of
from steppe.compare.data.sample_hash import hash_samples
from steppe.compare.tasks.modifiers import modified_data

if TYPE_CHECKING:
    from steppe.compare.tasks.task import Task

# Fixed, and not a run's seed: every optimizer and every seed gets the same samples.
_SPLIT_SEED = 0


def read_data(task: "Task") -> Data:
    """Return a task's samples as its modifiers change them, with a hash of them.

    Raises
    ------
    TypeError
        An argument is no samples.
    ValueError
        A part has no samples, one share is not between 0 and 1, only some of the parts are
        streams, or the samples are none that a modifier can change.
    """
    return modified_data(task, _hashed(task))


def _hashed(task: "Task") -> Data:
    found = _given(task) if task.data is None else task.data()
    if not isinstance(found, Data):
        raise TypeError(f"data must return Data, got {type(found).__name__}")
    parts = {name: getattr(found, name) for name in ("train", "validation", "test")}
    for name, part in parts.items():
        if not all(map(size_of, parts_of(part))):
            raise ValueError(f"{name} has no samples")
    counts = {len(parts_of(part)) if isinstance(part, Stream) else 0 for part in parts.values()}
    if len(counts) > 1:
        raise ValueError("train, validation and test must all be streams of equally many tasks")
    _check_weights(found)
    if found.fingerprint:
        return found
    if found.plain is not None:
        # What augments is another sample each time.
        parts["train"] = found.plain
    hashed: list[tuple[str, Dataset[Any]]] = [*parts.items(), ("plain", found.unaugmented)]
    if found.weights is not None:
        hashed.append(("weights", TensorDataset(torch.as_tensor(found.weights))))
    digest = hash_samples(hashed)
    return replace(found, fingerprint=digest)


def _given(task: "Task") -> Data:
    train = as_dataset("train", task.train)
    plain = None if task.plain is None else as_dataset("plain", task.plain)
    if plain is not None and size_of(plain) != size_of(train):
        raise ValueError(
            f"plain must be the samples of train without augmentation: {size_of(train)}, got "
            f"{size_of(plain)}"
        )
    shares = {
        name: share
        for name in ("test", "validation")
        if isinstance(share := getattr(task, name), int | float)
    }
    if not shares:
        parts = as_dataset("validation", task.validation), as_dataset("test", task.test)
        return Data(train, *parts, plain=plain, weights=_weights_of(task, train))
    return _held_out(task, train, plain, shares)


def _weights_of(task: "Task", train: Dataset[Any]) -> list[float] | None:
    if task.sample_weights is None:
        return None
    weights = torch.as_tensor(task.sample_weights, dtype=torch.float64).flatten().tolist()
    if len(weights) != size_of(train):
        raise ValueError(
            f"sample_weights must be one for each of the {size_of(train)} samples of train, got "
            f"{len(weights)}"
        )
    return weights


def _check_weights(data: Data) -> None:
    weights = data.weights
    if weights is None:
        return
    if data.is_stream or len(weights) != size_of(data.train):
        raise ValueError("weights must be one for each training sample, which are no stream")
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ValueError("weights must be finite numbers of at least 0, and not all 0")


def _held_out(
    task: "Task", train: Dataset[Any], plain: Dataset[Any] | None, shares: dict[str, float]
) -> Data:
    for name, share in shares.items():
        if not 0 < share < 1:
            raise ValueError(f"{name}={share!r} must be a share of train between 0 and 1")
    if isinstance(train, Stream):
        raise ValueError("of a stream no share can be held out: give validation and test")
    count = size_of(train)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SPLIT_SEED)).tolist()
    source = train if plain is None else plain
    held: dict[str, Dataset[Any]] = {}
    for name, share in shares.items():
        size = round(share * count)
        held[name], order = Subset(source, sorted(order[:size])), order[size:]
    rest = sorted(order)
    for name in ("validation", "test"):
        if name not in held:
            held[name] = as_dataset(name, getattr(task, name))
    weights = _weights_of(task, train)
    return Data(
        Subset(train, rest),
        held["validation"],
        held["test"],
        plain=None if plain is None else Subset(plain, rest),
        weights=None if weights is None else [weights[row] for row in rest],
    )


def as_dataset(name: str, given: Any) -> Dataset[Any]:
    """Return the samples that an argument is, or stands for.

    Raises
    ------
    TypeError
        It is nothing that has samples; the message names the argument.
    ValueError
        It is a tuple of tensors of different lengths, or an iterable without a length.

    Examples
    --------
    >>> len(as_dataset("train", (torch.zeros(5, 2), torch.zeros(5))))
    5
    """
    if isinstance(given, DataLoader):
        raise TypeError(f"{name} is a DataLoader, whose items are batches: give its dataset")
    if callable(given) and not _is_sequence(given) and not isinstance(given, Dataset):
        given = given()
    if isinstance(given, tuple) and given and all(map(_is_array, given)):
        return _of_arrays(name, given)
    _refuse_columns(name, given)
    if isinstance(given, Mapping) and given and all(map(_is_array, given.values())):
        return _Columns(name, given)
    if isinstance(given, IterableDataset) or (isinstance(given, Iterable) and _lacks_items(given)):
        return _read_once(name, given)
    if _is_sequence(given) and not isinstance(given, str | bytes):
        return given  # type: ignore[no-any-return]  # any sequence is a map-style data set
    raise TypeError(
        f"{name} must be a data set, a tuple of tensors, or a function that returns one, got "
        f"{type(given).__name__}"
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) or _is_table(value)


def _is_table(value: Any) -> bool:
    """Whether a value is a table or a column of pandas or polars."""
    return hasattr(value, "to_numpy")


def _tensor(name: str, value: Any) -> Tensor:
    """Return a tensor of a tensor, an array, or a table of pandas or polars."""
    try:
        # A copy: pandas may hand out memory that must not be written.
        return torch.as_tensor(np.array(value) if _is_table(value) else value)
    except TypeError as error:
        raise TypeError(f"{name} must have numbers alone in its arrays: {error}") from error


def _refuse_columns(name: str, given: Any) -> None:
    """Refuse what would be a data set of two samples, and is inputs and targets of many."""
    if _is_table(given):
        raise TypeError(f"{name} is one table: give a tuple of inputs and targets")
    if type(given) not in (tuple, list) or len(given) != 2:
        return
    if not all(_is_array(each) or type(each) is list for each in given):
        return
    lengths = {len(each) for each in given if not hasattr(each, "ndim") or each.ndim}
    if len(lengths) == 1 and lengths.pop() > 2:
        raise TypeError(
            f"{name} is a {type(given).__name__} of inputs and targets: give a tuple of tensors or "
            "arrays, as (torch.tensor(inputs), torch.tensor(targets))"
        )


def _is_sequence(value: Any) -> bool:
    return hasattr(value, "__getitem__") and hasattr(value, "__len__")


def _lacks_items(value: Any) -> bool:
    return not hasattr(value, "__getitem__")


def _of_arrays(name: str, arrays: tuple[Any, ...]) -> Dataset[Any]:
    tensors = [_tensor(name, each) for each in arrays]
    lengths = [len(each) if each.ndim else 0 for each in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"{name} must have a row for each sample in all tensors, got {lengths}")
    return TensorSamples(*tensors) if len(tensors) == 2 else TensorDataset(*tensors)


def _read_once(name: str, samples: Any) -> Dataset[Any]:
    """Read an iterable into memory, so that every epoch can shuffle it by the run's seed."""
    length: Callable[[], int] | None = getattr(samples, "__len__", None)
    if length is None:
        raise ValueError(
            f"{name} is iterable, and does not say how many samples it has: give it __len__"
        )
    count = length()
    found = list(islice(iter(samples), count))
    if len(found) < count:
        raise ValueError(f"{name} says that it has {count} samples, and has {len(found)}")
    return found  # type: ignore[return-value]  # a list is a map-style data set


class _Columns(Dataset[dict[str, Tensor]]):
    """Samples that are dictionaries, of a dictionary of tensors with a row for each."""

    def __init__(self, name: str, columns: Mapping[str, Any]) -> None:
        self._columns = {key: _tensor(name, column) for key, column in columns.items()}
        lengths = {key: len(each) if each.ndim else 0 for key, each in self._columns.items()}
        if len({*lengths.values()}) > 1:
            raise ValueError(
                f"{name} must have a row for each sample in all tensors, got {lengths}"
            )

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {key: column[row] for key, column in self._columns.items()}
