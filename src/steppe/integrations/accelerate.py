"""SAM's passes in loops with Accelerate, whose wrapper then keeps our methods reachable."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import nn

from steppe.integrations._sam import find_sam
from steppe.optim import SAM

T = TypeVar("T")

#: What steps inside of its own backward pass, or keeps parameters to itself.
ENGINES = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_UNSUPPORTED = (*ENGINES, DistributedType.XLA)


def refuse_engines(accelerator: Any, engines: Iterable[DistributedType]) -> None:
    """Refuse engines under which nothing can move parameters for a second pass.

    Raises
    ------
    RuntimeError
        The accelerator trains under one of them.
    """
    kind = accelerator.distributed_type
    if kind in engines:
        raise RuntimeError(
            f"SAM does not train under {kind.value}: its engine owns the parameters and steps them "
            "itself, so that nothing can move them between two passes; use FSDP2 or DDP"
        )


class OpenOptimizer(AcceleratedOptimizer):  # type: ignore[misc]
    """Accelerate's wrapper, through which all of the optimizer's attributes can be reached."""

    def __getattr__(self, name: str) -> Any:
        # Not found in the wrapper; "optimizer" itself is missing while a copy is being made.
        if name == "optimizer" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.optimizer, name)


def prepare(accelerator: Accelerator, *objects: Any) -> Any:
    """Prepare objects as ``accelerator.prepare`` does, and keep the optimizers' methods reachable.

    ``perturbed``, ``diagnostics``, ``preconditioner`` and whatever else an optimizer has can be
    called on what is returned.

    Examples
    --------
    >>> import torch, steppe
    >>> from accelerate import Accelerator
    >>> model = torch.nn.Linear(3, 1)
    >>> model, optimizer = prepare(
    ...     Accelerator(cpu=True), model, steppe.DualAdam(model.parameters(), total_steps=100)
    ... )
    >>> sorted(optimizer.diagnostics())
    ['alpha', 'inverse_share', 'steps_to_switch']
    """
    prepared = accelerator.prepare(*objects)
    for each in prepared if isinstance(prepared, tuple) else (prepared,):
        if type(each) is AcceleratedOptimizer:
            each.__class__ = OpenOptimizer
    return prepared


def passes(
    accelerator: Accelerator, model: nn.Module, optimizer: Any, batches: Iterable[T]
) -> Iterator[T]:
    """Yield batches for SAM's passes: the loop below them stays as it is without SAM.

    Of two passes the batches that a step accumulates come first at p, then once more at p + e; of
    one, each comes at p + e. In all but the last pass ``accelerator.sync_gradients`` is False, so
    that the wrappers' ``step`` and ``zero_grad`` and the scheduler do nothing, as in accumulation.

    Parameters
    ----------
    accelerator
        With ``gradient_accumulation_steps`` as wanted; a loop over this needs no ``accumulate``.
    model
        As it was prepared.
    optimizer
        As it was prepared, with a :class:`steppe.SAM` inside.
    batches
        The prepared loader.

    Raises
    ------
    TypeError
        The optimizer is no SAM.
    RuntimeError
        Under DeepSpeed, Megatron-LM or XLA, whose engines own the parameters.

    Examples
    --------
    >>> import torch, steppe
    >>> from accelerate import Accelerator
    >>> accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    >>> model = torch.nn.Linear(3, 1)
    >>> sam = steppe.SAM(model.parameters(), torch.optim.AdamW, lr=1e-3)
    >>> loader = torch.utils.data.DataLoader(torch.randn(32, 3), batch_size=8)
    >>> model, sam, loader = prepare(accelerator, model, sam, loader)
    >>> for batch in passes(accelerator, model, sam, loader):
    ...     accelerator.backward(model(batch).square().mean())
    ...     if accelerator.sync_gradients:
    ...         _ = accelerator.clip_grad_norm_(model.parameters(), 1.0)
    ...     sam.step()
    ...     sam.zero_grad()
    >>> sam.diagnostics()["ascents"]
    2.0
    """
    sam = find_sam(optimizer)
    refuse_engines(accelerator, _UNSUPPORTED)
    return _passes(accelerator, model, sam, iter(batches))


def _passes(
    accelerator: Accelerator, model: nn.Module, sam: SAM, batches: Iterator[T]
) -> Iterator[T]:
    while window := list(islice(batches, accelerator.gradient_accumulation_steps)):
        if not sam.is_active:
            yield from _in_turn(accelerator, model, window, ends=True)
            continue
        if sam.has_two_passes:
            yield from _in_turn(accelerator, model, window, ends=False)
        with sam.perturbed():
            yield from _in_turn(accelerator, model, window, ends=True)


def _in_turn(
    accelerator: Accelerator, model: nn.Module, window: list[T], *, ends: bool
) -> Iterator[T]:
    """Yield batches; gradients are exchanged with the last one, which may end the step."""
    state = accelerator.gradient_state
    for number, batch in enumerate(window, start=1):
        is_last = number == len(window)
        state._set_sync_gradients(ends and is_last)
        with nullcontext() if is_last else accelerator.no_sync(model):
            yield batch
