"""Restore parameters and module buffers after SAM's second pass, bit for bit.

Both are copied before the ascent; ``_sam_perturbing.py`` says when to copy and when to restore.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress

import torch
from torch import Tensor
from torch.nn import Module

from steppe._engines import is_plain, local_part
from steppe.optim._module_buffers import ModuleBuffers


class RestorePoint:
    """Copies of the tensors that a perturbation or the second pass changes.

    ``SAM`` and the wrappers that copy its attributes share one object, so it is changed in place.
    """

    def __init__(self, module: Module | None) -> None:
        self._buffers = ModuleBuffers(module)
        self._undo: list[Callable[[], object]] = []
        self._kept: dict[torch.dtype, Tensor] = {}

    @property
    def is_set(self) -> bool:
        """Whether there is something to restore."""
        return bool(self._undo)

    def save_buffers(self, params: Sequence[Tensor]) -> None:
        """Copy the buffers of all modules in training that hold one of the parameters."""
        self._undo.extend(self._buffers.save(params))

    def save_params(self, params: list[Tensor], parts: list[Tensor]) -> Tensor:
        """Copy parameters of one number format on one device, one behind the other.

        Parameters
        ----------
        params
            The parameters.
        parts
            What this process holds of each, as real numbers.

        Returns
        -------
        Their elements in one dimension.
        """
        sizes = [part.numel() for part in parts]
        copy = self._memory(parts[0], sum(sizes))
        copies = [*map(Tensor.view_as, torch.split_with_sizes(copy, sizes), parts)]
        torch._foreach_copy_(copies, parts)
        originals = [
            torch.view_as_complex(each) if param.is_complex() else each
            for param, each in zip(params, copies, strict=True)
        ]
        self._undo.append(partial(self._write_back, params, originals, copy))
        return copy

    def _memory(self, like: Tensor, count: int) -> Tensor:
        kept = self._kept.pop(like.dtype, None) if _is_kept(like) else None
        if kept is None or kept.numel() != count or kept.is_inference():
            return like.new_empty(count)
        return kept

    def _write_back(self, params: list[Tensor], originals: list[Tensor], copy: Tensor) -> None:
        parts = [*map(local_part, params)]
        fit = [x.shape == y.shape for x, y in zip(parts, originals, strict=True)]
        _copy([*compress(parts, fit)], [*compress(originals, fit)])
        if not all(fit):
            part, original = parts[fit.index(False)], originals[fit.index(False)]
            raise RuntimeError(
                f"a parameter of shape {tuple(original.shape)} has {tuple(part.shape)} in SAM's "
                "second pass: SAM cannot put it back; prune or exchange parameters between steps"
            )
        if _is_kept(copy):
            self._kept[copy.dtype] = copy

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


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    is_lazy = any(map(Tensor.is_conj, targets)) or any(map(Tensor.is_neg, targets))
    if targets and not is_lazy:
        torch._foreach_copy_(targets, sources)
        return
    # Operations on lists do not turn the signs of views.
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _is_kept(tensor: Tensor) -> bool:
    """Whether memory for copies is kept from step to step.

    That of CPUs is: what is freed and handed out anew, page by page, takes three times as long to
    write. Of accelerators torch keeps it, and others may have it meanwhile.
    """
    return tensor.device.type == "cpu" and is_plain(tensor)
