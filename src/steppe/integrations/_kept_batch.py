"""A batch of the first pass, kept as it was for the second."""

from collections.abc import Iterator, Mapping, MutableMapping
from copy import copy
from typing import Any

from torch import Tensor, nn

# How many containers may lie in each other: graphs of torch_geometric are three.
_DEPTH = 6


class KeptBatch:
    """A batch whose containers are copied, and whose tensors are watched.

    What a loop takes out of a dictionary, a list or an object's attributes is there again in the
    second pass. Tensors are not copied.

    Parameters
    ----------
    batch
        As the first pass gets it, before that has run.
    """

    def __init__(self, batch: Any) -> None:
        self._batch = _copied(batch)
        self._versions = [(each, each._version) for each in _tensors(batch)]

    def again(self) -> Any:
        """Return the batch for another pass.

        Raises
        ------
        RuntimeError
            A tensor of it has been changed in place.
        """
        for tensor, version in self._versions:
            if tensor._version != version:
                what = "a nested tensor" if tensor.is_nested else f"of shape {tuple(tensor.shape)}"
                raise RuntimeError(
                    f"the first pass changed a batch in place (its tensor {what}), which the "
                    "second pass would change once more: change a copy, as in x = x / 2 in the "
                    "place of x.div_(2)"
                )
        return _copied(self._batch)


def _copied(value: Any, depth: int = _DEPTH) -> Any:
    """Return a value with new containers around the same tensors."""
    if depth == 0 or not _is_container(value):
        return value
    if isinstance(value, tuple):
        parts = [_copied(each, depth - 1) for each in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    try:
        made = copy(value)
    except Exception:  # an object that cannot be copied is watched all the same
        return value
    for place, each in _parts(made):
        part = _copied(each, depth - 1)
        if part is each:
            continue
        if isinstance(made, MutableMapping | list):
            made[place] = part
        else:
            # Dataclasses may be frozen.
            object.__setattr__(made, place, part)
    return made


def _tensors(value: Any, depth: int = _DEPTH) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        # Those of inference mode count no versions.
        if not value.is_inference():
            yield value
    elif depth and _is_container(value):
        for _, each in _parts(value):
            yield from _tensors(each, depth - 1)


def _is_container(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple):
        return True
    return hasattr(value, "__dict__") and not isinstance(value, Tensor | nn.Module | type)


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """Return what a container holds, with the key, index or name of each."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    return list(vars(value).items())
