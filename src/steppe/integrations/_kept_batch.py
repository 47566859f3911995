"""A batch of the first pass, kept as it was for the second."""

from collections.abc import Iterator, MutableMapping
from copy import copy
from typing import Any

from torch import Tensor


class KeptBatch:
    """A batch with its dictionaries, lists and tuples copied, and its tensors watched.

    What a loop takes out of a dictionary is still there in the second pass. Tensors are not copied.

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
                raise RuntimeError(
                    f"the first pass changed a batch in place, its tensor of shape "
                    f"{tuple(tensor.shape)}, which the second pass would change once more: change "
                    "a copy, as in x = x / 2 in the place of x.div_(2)"
                )
        return _copied(self._batch)


def _copied(value: Any) -> Any:
    if isinstance(value, MutableMapping):
        made = copy(value)
        made.update({name: _copied(each) for name, each in value.items()})
        return made
    if isinstance(value, list):
        return [_copied(each) for each in value]
    if type(value) is tuple:
        return tuple(_copied(each) for each in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        # Those of inference mode count no versions.
        if not value.is_inference():
            yield value
        return
    if isinstance(value, MutableMapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
