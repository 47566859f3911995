"""SAM's passes in loops with Accelerate, whose wrapper then keeps our methods reachable."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import nn

from steppe.integrations._kept_batch import KeptBatch
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
    A batch comes in both passes, so what is to be done once a step, such as counting, goes under
    ``if accelerator.sync_gradients``; that is at p + e. Gradients are cleared before each step, and
    ``accelerator.accumulate`` is left out. For a bar wrap the loader: ``passes(…, tqdm(loader))``.

    A loop that is left in a pass at p + e, by ``break`` or an error, puts the parameters back when
    nothing holds the iterator any more. Where a variable does, as in ``bar = tqdm(passes(…))``,
    write ``with contextlib.closing(passes(…)) as batches:`` around the loop.

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
        Under DeepSpeed, Megatron-LM or XLA, whose engines own the parameters; or, in the loop, the
        first pass has changed a batch in place, which the second one gets too.

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
    return _passes(accelerator, model, sam, batches)


class _Fetched(NamedTuple):
    """A batch, and what Accelerate knew of its loader when it was fetched."""

    batch: Any
    loader: Any
    is_last: bool
    remainder: int


def _fetched(batches: Iterable[Any], state: Any) -> Iterator[_Fetched]:
    for batch in batches:
        yield _Fetched(batch, state.active_dataloader, state.end_of_dataloader, state.remainder)


def _passes(
    accelerator: Accelerator, model: nn.Module, sam: SAM, batches: Iterable[Any]
) -> Iterator[Any]:
    fetched = _fetched(batches, accelerator.gradient_state)
    while window := list(islice(fetched, accelerator.gradient_accumulation_steps)):
        # The wrapper's zero_grad does nothing in a pass that does not end the step, and a loop that
        # was left may have left some.
        sam.zero_grad()
        if not sam.is_active:
            yield from _in_turn(accelerator, model, sam, window, ends=True)
            continue
        if not sam.has_two_passes:
            with sam.perturbed():
                yield from _in_turn(accelerator, model, sam, window, ends=True)
            continue
        kept = [KeptBatch(each.batch) for each in window]
        yield from _in_turn(accelerator, model, sam, window, ends=False)
        if not sam.has_gradients:
            # The loop has skipped all batches of the step.
            continue
        second = [
            each._replace(batch=batch.again()) for each, batch in zip(window, kept, strict=True)
        ]
        with sam.perturbed():
            yield from _in_turn(accelerator, model, sam, second, ends=True)


def _in_turn(
    accelerator: Accelerator,
    model: nn.Module,
    sam: SAM,
    window: list[_Fetched],
    *,
    ends: bool,
) -> Iterator[Any]:
    """Yield batches; gradients are exchanged with the last one, which may end the step."""
    state = accelerator.gradient_state
    for number, fetched in enumerate(window, start=1):
        is_last = number == len(window)
        state._set_sync_gradients(ends and is_last)
        with (
            _as_fetched(state, fetched),
            _without_accumulate(accelerator),
            # The gradients of the other batches are there now.
            sam.keeping_gradients() if ends and is_last and number > 1 else nullcontext(),
            nullcontext() if is_last else accelerator.no_sync(model),
        ):
            yield fetched.batch


@contextmanager
def _without_accumulate(accelerator: Any) -> Iterator[None]:
    """Refuse ``accelerator.accumulate``, which counts batches, and so would count passes."""

    def refuse() -> None:
        raise RuntimeError(
            "accelerator.accumulate(…) inside of steppe's passes(…) would count passes as batches: "
            "leave it out, passes accumulates as gradient_accumulation_steps says"
        )

    accelerator._do_sync = refuse
    try:
        yield
    finally:
        del accelerator._do_sync


@contextmanager
def _as_fetched(state: Any, fetched: _Fetched) -> Iterator[None]:
    """Let Accelerate know of the batch what it knew then: the loader may have ended since.

    ``gather_for_metrics`` drops by it what the last batch was filled up with.
    """
    loader = fetched.loader
    if loader is None:
        yield
        return
    now = loader.end_of_dataloader, loader.remainder
    has_ended = state.active_dataloader is not loader
    if has_ended:
        state._add_dataloader(loader)
    loader.end_of_dataloader, loader.remainder = fetched.is_last, fetched.remainder
    try:
        yield
    finally:
        loader.end_of_dataloader, loader.remainder = now
        if has_ended:
            state._remove_dataloader(loader)
