"""Read a user's batches: how to call the model on each, what to compare with, and its size.

Every instrument takes batches through it, in whatever form a data loader gives them.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import is_dataclass
from functools import cache
from inspect import signature
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

# Names of targets in mappings.
_LABELS = ("labels", "label", "targets", "target", "y")

#: ``(inputs, targets)`` pairs, or mappings of keyword arguments.
Batches = Iterable[Any]


class Batch(NamedTuple):
    """One batch on the model's device: ``model(*inputs, **keywords)``, and the loss's targets."""

    position: int
    inputs: tuple[Any, ...]
    keywords: Mapping[str, Any]
    targets: Any
    size: int
    #: Where the size is from: it is that of all tensors or of the labels; of most; or of the first.
    size_from: Literal["all", "most", "first"] = "all"

    def copied(self) -> "Batch":
        """Return the batch with copies of what it holds, which model and loss may change in place.

        Later passes, and the user, find the batch as it was.
        """
        # By their identities: what is an input and a target too stays one.
        copies: dict[int, Any] = {}
        return self._replace(
            inputs=tuple(_copied(part, copies) for part in self.inputs),
            keywords=_copied(self.keywords, copies),
            targets=_copied(self.targets, copies),
        )


def read_batch(position: int, batch: Any, device: torch.device) -> Batch:
    """Move a batch to a device and find out how the model is called on it.

    Parameters
    ----------
    position : int
        Position of the batch in the data, for error messages and for dropout's seed.
    batch : tuple, list, mapping or Batch
        ``(inputs, targets)``; or a mapping, which then is the targets as well; or a batch that has
        been read already.
    device : torch.device
        Tensors are moved there, inside tuples, lists and mappings too.

    Raises
    ------
    ValueError
        It is neither a pair nor a mapping, or has no tensor that tells the number of samples.

    Examples
    --------
    >>> batch = read_batch(0, (torch.ones(3, 2), torch.zeros(3)), torch.device("cpu"))
    >>> len(batch.inputs), batch.size
    (1, 3)
    """
    if isinstance(batch, Batch):
        return batch

    # Cached, as autoencoders have their inputs as targets.
    @cache
    def move(tensor: Tensor) -> Tensor:
        # A view of its own: a model that calls requires_grad_() on its inputs, as checkpointing
        # asks for, would change the user's tensor.
        return tensor.to(device).detach().requires_grad_(tensor.requires_grad)

    if isinstance(batch, Mapping):
        keywords = _moved(batch, device, move)
        return Batch(position, (), keywords, keywords, *_size(position, keywords))
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"batch {position} is {type(batch).__name__}, expected (inputs, targets) or a mapping"
        )
    inputs, targets = (_moved(part, device, move) for part in batch)
    is_list = _are_by_sample(targets, inputs)
    size = (len(targets),) if is_list else _size(position, targets, inputs)
    # A tuple that is a type of its own (PackedSequence, a named tuple) is one argument, and so is a
    # mapping that is one (the outputs of a model): only plain ones are several arguments.
    if isinstance(inputs, Mapping) and not is_dataclass(inputs):
        return Batch(position, (), inputs, targets, *size)
    positional = tuple(inputs) if type(inputs) in (tuple, list) else (inputs,)
    return Batch(position, positional, {}, targets, *size)


def check_data(data: Any) -> None:
    """Refuse data that cannot be iterated over again and again.

    Raises
    ------
    ValueError
        The data is an iterator, or is not iterable.
    """
    if isinstance(data, Iterator):
        raise ValueError(
            "data is an iterator, which can be gone through only once: pass a list or a DataLoader"
        )
    # A Dataset has no __iter__: Python would go through its samples as if they were batches.
    if not isinstance(data, Iterable):
        raise ValueError(
            f"data is a {type(data).__name__}, expected batches: pass a list or a DataLoader"
        )


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return a copy of nested tuples, lists and mappings, of the same types, with changed tensors.

    Parameters
    ----------
    value : object
        Anything; what is neither a tensor nor a container is returned as it is.
    change : callable
        What becomes of a tensor.

    Examples
    --------
    >>> map_tensors({"a": [torch.ones(2), 3]}, torch.neg)
    {'a': [tensor([-1., -1.]), 3]}
    """
    return map_leaves(value, lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_of(part)


def labels_of(targets: Any) -> Any:
    """Return the labels of a mapping, by their usual names; nothing where it has none.

    Other targets are labels as they are.
    """
    if not isinstance(targets, Mapping):
        return targets
    return [targets[name] for name in _LABELS if name in targets]


def without_labels(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping without its labels, by their usual names."""
    return {name: value for name, value in keywords.items() if name not in _LABELS}


def in_full_precision(batch: Batch) -> Batch:
    """Return a batch with float32 in the place of half precision."""
    return batch._replace(
        inputs=tuple(map_tensors(part, widened) for part in batch.inputs),
        keywords=map_tensors(batch.keywords, widened),
        targets=map_tensors(batch.targets, widened),
    )


def widened(tensor: Tensor) -> Tensor:
    """Return half precision as float32, and every other format as it is."""
    is_half = tensor.is_floating_point() and tensor.dtype.itemsize == 2
    return tensor.float() if is_half else tensor


def part_named(name: str, value: Any) -> Any:
    """Return a mapping's entry or an object's attribute, or None."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _moved(value: Any, device: torch.device, move: Callable[[Tensor], Tensor]) -> Any:
    """Move tensors to a device, inside containers too, and whatever has a method ``to``."""
    if isinstance(value, PackedSequence):
        return value.to(device)  # type: ignore[arg-type]
    if isinstance(value, Tensor | Mapping | tuple | list):
        return map_tensors(value, move)
    return value.to(device) if _takes(value, "to", device) else value


def _copied(value: Any, copies: dict[int, Any]) -> Any:
    """Copy what nested containers hold; ``copies`` are those made so far, as ``deepcopy`` notes."""

    def copy_of(leaf: Any) -> Any:
        if id(leaf) not in copies:
            copies[id(leaf)] = _copy(leaf, copies)
            # While it lives, no other object has its identity.
            copies.setdefault(id(copies), []).append(leaf)
        return copies[id(leaf)]

    return map_leaves(value, copy_of)


def _copy(leaf: Any, copies: dict[int, Any]) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    known = len(copies)
    try:
        copied = leaf.clone() if _takes(leaf, "clone") else copy.deepcopy(leaf, copies)
        # An object that hands on whatever it does not have gives a copy of what it holds.
        if isinstance(copied, type(leaf)):
            return copied
    except Exception:
        while len(copies) > known:
            copies.popitem()  # objects that have been filled in part
    return _copied_by_attributes(leaf, copies)


def _copied_by_attributes(leaf: Any, copies: dict[int, Any]) -> Any:
    """Copy an object of which some part cannot be copied; such parts are in the copy themselves.

    They are locks, files and generators, which are hardly what a model computes with. Tensors in
    autograd's graph, which ``deepcopy`` refuses, are copied.
    """
    kind = type(leaf)
    if not hasattr(leaf, "__dict__") or any(vars(base).get("__slots__") for base in kind.__mro__):
        return leaf
    try:
        # Without asking the object: copy.copy would, before it has what it hands questions on to.
        copied = object.__new__(kind)
    except TypeError:
        return leaf  # of a type in C
    copies[id(leaf)] = copied
    vars(copied).update({name: _copied(part, copies) for name, part in vars(leaf).items()})
    return copied


def _takes(value: Any, name: str, *arguments: Any) -> bool:
    """Whether a value has a method that can be called with these arguments.

    Its type is asked: some objects hand whatever they do not have on to what they hold, and classes
    have their instances' methods. A name alone says little of what a method does.
    """
    method = getattr(type(value), name, None)
    try:
        signature(method).bind(value, *arguments)  # type: ignore[arg-type]
    except TypeError:
        return False
    except ValueError:
        pass  # a function in C may not tell
    return True


def map_leaves(
    value: Any, change: Callable[[Any], Any], is_leaf: Callable[[Any], bool] = lambda value: False
) -> Any:
    """Return a copy of nested containers, of the same types, with all else in them changed.

    ``is_leaf`` tells which containers are changed as a whole.
    """
    if isinstance(value, Tensor) or is_leaf(value):
        return change(value)
    if isinstance(value, MutableMapping):
        copied = _shallow_copy(value)
        for name, part in value.items():
            copied[name] = map_leaves(part, change, is_leaf)
        return copied
    if isinstance(value, Mapping):
        return {name: map_leaves(part, change, is_leaf) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return _with_parts(value, [map_leaves(part, change, is_leaf) for part in value])
    return change(value)


def _shallow_copy(value: Any) -> Any:
    """Copy a mapping; ``copy.copy`` of a user's own would share what it keeps entries in."""
    copied = copy.copy(value)
    for name, part in getattr(copied, "__dict__", {}).items():
        if isinstance(part, MutableMapping):
            vars(copied)[name] = copy.copy(part)
    return copied


def _with_parts(value: Any, parts: list[Any]) -> Any:
    """Return a list or tuple like one, named or a user's, whatever its constructor takes."""
    if isinstance(value, list):
        copied = copy.copy(value)
        copied[:] = parts
        return copied
    kind = type(value)
    try:
        made: Any = tuple.__new__(kind, parts)
    except TypeError:
        return kind(parts)  # of a type in C, such as torch.Size and torch.return_types.max
    if hasattr(value, "__dict__"):
        vars(made).update(vars(value))
    return made


def _are_by_sample(targets: Any, inputs: Any) -> bool:
    """Whether targets are a list with an entry for each sample, as those of detection are.

    Their tensors have a row for each object of a sample, and do not tell how many samples there
    are.
    """
    rows = next((len(each) for each in tensors_of(inputs) if each.ndim), None)
    if rows is not None and is_of_samples(targets, rows):
        return True
    # Images of several sizes are a list too.
    is_argument_each = type(inputs) in (tuple, list)
    return is_of_mappings(targets) and is_argument_each and len(inputs) == len(targets)


def is_of_samples(value: Any, size: int) -> bool:
    """Whether a list has an entry for each sample, and isn't one of tensors with a row for each."""
    if type(value) not in (tuple, list) or len(value) != size:
        return False
    have_rows = [each.ndim > 0 and len(each) == size for each in tensors_of(value)]
    if is_of_mappings(value):
        return True
    if type(value) is list:
        are_alike = len({getattr(each, "ndim", None) for each in value}) == 1
        return are_alike and (not have_rows or not all(have_rows))
    # A tuple has parts of different kinds, such as targets and a mask that samples share.
    return bool(have_rows) and not any(have_rows)


def is_of_mappings(value: Any) -> bool:
    """Whether a list or tuple has mappings only, which are targets of one sample each."""
    if type(value) not in (tuple, list) or not value:
        return False
    return all(isinstance(each, Mapping) for each in value)


def unknown_size(batch: Batch) -> str:
    """Say that it cannot be told how many samples a batch has."""
    sizes = {name: row for name, value in batch.keywords.items() for row in _rows(value)}
    found = ", ".join(f"{name}: {size}" for name, size in sizes.items()) or "several"
    return (
        f"it cannot be told how many samples batch {batch.position} has: its tensors' first "
        f"dimensions differ ({found}); call its targets {_LABELS[0]!r} or {_LABELS[-1]!r}, or pass "
        "weight=, a function of outputs and targets that returns what the loss is divided by"
    )


def _size(
    position: int, targets: Any, inputs: Any = ()
) -> tuple[int, Literal["all", "most", "first"]]:
    """Return how many samples a batch has, and where that is from.

    Labels have a row for each. Otherwise it is the first dimension that most of its tensors have:
    some are shared by samples, as positions, or have another structure, as the edges of a graph.
    """
    named = targets if isinstance(targets, Mapping) else {}
    for name in _LABELS:
        if name in named and (rows := _rows(named[name])):
            return rows[0], "all"
    rows = _rows(targets)
    both = [*rows, *_rows(inputs)]
    if not both:
        raise ValueError(
            f"batch {position} has no tensor whose first dimension could be its samples"
        )
    if len(set(rows)) == 1:
        return rows[0], "all"
    # Of equally many the first; targets stand before inputs.
    (most, votes), *others = Counter(both).most_common()
    if not others:
        return most, "all"
    return most, "most" if votes > others[0][1] else "first"


def _rows(value: Any) -> list[int]:
    """Return the first dimension of each tensor, and the length of a list of samples' objects."""
    if isinstance(value, PackedSequence):
        return [int(value.batch_sizes[0])]
    if is_of_mappings(value):
        return [len(value)]
    if isinstance(value, Tensor):
        return [len(value)] if value.ndim else []
    if isinstance(value, Mapping | tuple | list):
        parts = value.values() if isinstance(value, Mapping) else value
        return [size for part in parts for size in _rows(part)]
    return []
