"""Restore parameters and module buffers after SAM's second pass, bit for bit.

Both are copied before the ascent; ``_sam_perturbing.py`` says when to copy and when to restore.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import Module

from steppe._engines import local_part
from steppe.optim._module_buffers import ModuleBuffers


class RestorePoint:
    """Copies of the tensors that a perturbation or the second pass changes.

    ``SAM`` and the wrappers that copy its attributes share one object, so it is changed in place.
    """

    def __init__(self, module: Module | None) -> None:
        self._buffers = ModuleBuffers(module)
        self._undo: list[Callable[[], object]] = []

    @property
    def is_set(self) -> bool:
        """Whether there is something to restore."""
        return bool(self._undo)

    def save_buffers(self, params: Sequence[Tensor]) -> None:
        """Copy the buffers of all modules in training that hold one of the parameters."""
        self._undo.extend(self._buffers.save(params))

    def save_param(self, param: Tensor) -> None:
        """Copy a parameter; of a sharded one, this process's part."""
        self._undo.append(partial(_write_back, param, local_part(param).clone()))

    def restore(self) -> None:
        """Write everything back; nothing happens if nothing is saved."""
        if not self._undo:
            return
        # Last in, first out: a parameter that is in a group twice was moved twice. What has been
        # written back is dropped only then, so that after an error the rest can be tried again.
        while self._undo:
            self._undo[-1]()
            self._undo.pop()
        # Within one autocast region a weight is cast once, and the cast one would be the moved one.
        torch.clear_autocast_cache()


def _write_back(param: Tensor, original: Tensor) -> None:
    part = local_part(param)
    if part.shape != original.shape:
        raise RuntimeError(
            f"a parameter of shape {tuple(original.shape)} has {tuple(part.shape)} in SAM's second "
            "pass: SAM cannot put it back; prune or exchange parameters between steps"
        )
    part.copy_(original)
