"""Choose an engine for each batch of a step, and have each take its part of it.

This is the only place that knows all engines. Who adds one adds its folder, and its name to
:data:`FUSED`.

If Ctrl-C or an error stops a step, :func:`step` takes back the counts of the parameters that were
not updated. What was being written is completed by ``cpu/engine.py`` or ``eager/engine.py``, so
that no parameter is left half updated; docs/engines.md says what remains possible on GPUs.
"""

from typing import Protocol

import numpy as np
from torch import Tensor
from torch.autograd.graph import increment_version

from steppe._engines.base import packing
from steppe._engines.base.batch import ParamBatch
from steppe._engines.base.gradients import copy_gradients, fit_gradients, resolve_negatives
from steppe._engines.base.memory_layout import overlap
from steppe._engines.base.norms import Norms
from steppe._engines.base.plan import Plan
from steppe._engines.base.tensor_facts import LAYOUT, Fact, have_memory, meet, span
from steppe._engines.cpu import engine as cpu
from steppe._engines.cpu import tensor_reader
from steppe._engines.eager import engine as eager
from steppe._engines.gpu import engine as gpu


class Engine(Protocol):
    """What every engine module offers. Engines work on what this process holds of a tensor."""

    @property
    def name(self) -> str:
        """What ``optimizer.engine`` says."""

    @property
    def reads_amp(self) -> bool:
        """Whether kernels read what a GradScaler leaves to them, or are told by the host."""

    def objection(self, batch: ParamBatch) -> str | None:
        """Return why this engine cannot run the batch, or None if it can."""

    def prepare(self, batch: ParamBatch) -> None:
        """Take note of where the tensors of this step lie, before anything is changed.

        What takes long or may fail, such as to compile a kernel, is best done here.
        """

    def square_sums(self, batch: ParamBatch) -> Tensor:
        """Return the sum of the squared gradient of each row here, and last that of all."""

    def step(self, batch: ParamBatch, norms: Norms) -> None:
        """Advance every row of the batch by one step, buffers included.

        The engine raises ``batch.advanced`` when it begins to write.
        """


#: Engines with fused kernels, fastest first.
FUSED: tuple[Engine, ...] = (cpu, gpu)

#: What runs where none of them can, or none is wanted: it never objects.
FALLBACK: Engine = eager


def choose(batch: ParamBatch) -> Engine:
    """Return the fastest engine for a batch, obeying ``fused`` as torch.optim does.

    Raises
    ------
    RuntimeError
        ``fused=True`` and no fused engine can run the batch; it says why.
    """
    fused = batch.request.fused
    if fused is False:
        return FALLBACK
    objections = {}
    for engine in FUSED:
        objections[engine.name] = engine.objection(batch)
        if objections[engine.name] is None:
            return engine
    if fused:
        reasons = "; ".join(f"{name}: {why}" for name, why in objections.items())
        raise RuntimeError(
            f"fused=True: {reasons}; fused=None takes the fastest engine that there is"
        )
    return FALLBACK


def prepare(plan: Plan) -> None:
    """Choose the engine of each batch of a new plan, and note the facts that it goes by.

    Raises
    ------
    RuntimeError
        As :func:`choose` does.
    """
    for batch in plan.whole:
        batch.engine, held = choose(batch), batch.held
        if held is not None and held.is_plain:
            held.note(tensor_reader.read(held.tensors, held.dims))


def check(plan: Plan) -> bool:
    """Whether what a plan goes by still holds of the tensors of a step, the gradients included.

    Raises
    ------
    RuntimeError
        A gradient does not fit its parameter.
    """
    return all(map(_holds, plan.batches))


def step(plan: Plan) -> bool:
    """Count and take one step, with one gradient norm over all batches if any needs it.

    Norms come first: by them it is decided what a buffer remembers, and each batch stores that in
    the same pass that updates it.

    Returns
    -------
    bool
        False if a parameter or its state has changed its shape, format or layout: nothing has
        changed then, and the step is to be planned anew.

    Raises
    ------
    RuntimeError
        A gradient does not fit its parameter. Nothing has changed then.
    BaseException
        Whatever stops a step, as Ctrl-C does: parameters that it has not updated are not counted.
    """
    if not check(plan):
        return False
    for batch in plan.batches:
        if batch.is_gathered:
            packing.gather(batch)
        batch.engine.prepare(batch)
        batch.amp, batch.unscale = None, 1.0
        batch.advanced = len(batch.rows)
    has_scaler = plan.grad_scale is not None or plan.found_inf is not None
    if has_scaler and not _hand_on_amp(plan):
        return True
    has_whole = is_sharded = False
    try:
        for batch in plan.batches:
            has_whole |= batch.needs_global_norm
            is_sharded |= batch.shard_group is not None
            if batch.is_gathered or batch.request.capturable:
                packing.count(batch)
            else:
                # Ctrl-C is raised at calls and where a loop turns back: not between these two.
                batch.steps += 1.0
                batch.advanced = 0
        sums = []
        for batch in plan.batches:
            if has_whole or (batch.needs_tensor_norm and batch.shard_group is not None):
                sums.append((batch, batch.engine.square_sums(batch)))
        norms = Norms(sums, has_whole)
        if is_sharded:
            norms.begin()
        for batch in plan.batches:
            batch.engine.step(batch, norms)
            if batch.engine is not FALLBACK:
                # Kernels write where autograd does not see it: a backward pass through what has
                # been stepped in between must find out.
                increment_version(batch.params)
    except BaseException:
        # A count without its update would silently give all later steps the wrong bias corrections.
        for batch in plan.batches:
            packing.uncount(batch)
        raise
    return True


def _holds(batch: ParamBatch) -> bool:
    """Whether what was checked of a batch's tensors still holds; and see to its gradients.

    It reads anew what the kernels rely on, and compares: this costs less than to check, and what a
    tensor's address says of it is not enough (see :mod:`steppe._engines.base.tensor_facts`).
    """
    held, grads = batch.held, batch.grads
    assert held is not None
    count = len(grads)
    if any(map(Tensor.is_neg, grads)):
        batch.grads = grads = resolve_negatives(grads)
    if any(map(Tensor.is_neg, held.tensors[:count])):
        return False
    if not held.is_plain:
        return fit_gradients(batch, for_kernel=False)
    if set(map(type, grads)) != {Tensor}:
        fit_gradients(batch, batch.engine is not FALLBACK)
        grads = batch.grads
    facts = tensor_reader.read([*held.tensors, *grads], held.dims)
    fixed, found = facts[:-count], facts[-count:]
    if not np.array_equal(fixed, held.facts):
        if not np.array_equal(fixed[:, LAYOUT:], held.facts[:, LAYOUT:]):
            return False
        # They have only moved: is there memory, on the device, and for each its own?
        devices = {tensor.device for tensor in held.tensors}
        if devices != {batch.device} or not have_memory(fixed, held.spans, held.items):
            return False
        if overlap(fixed[:, Fact.ADDRESS], held.spans):
            return False
        held.renew(fixed)
    spans, items = held.spans[:count], held.items[:count]
    is_alike = np.array_equal(found[:, LAYOUT:], fixed[:count, LAYOUT:])
    if not (is_alike and have_memory(found, spans, items)):
        fit_gradients(batch, batch.engine is not FALLBACK)
        found = tensor_reader.read(batch.grads, held.dims)
        items = np.array([grad.element_size() for grad in batch.grads], dtype=np.int64)
        spans = span(batch.grads, found, items)
    in_the_way = meet(held.occupied, found, spans)
    if in_the_way.any():
        copy_gradients(batch, in_the_way)
        found = tensor_reader.read(batch.grads, held.dims)
    batch.grad_addresses = found[:, Fact.ADDRESS]
    return True


def _hand_on_amp(plan: Plan) -> bool:
    """Hand on what a GradScaler has left to do; return whether to take the step.

    For engines of the host the scale becomes a number; others read it where it is.
    """
    scale, found_inf = plan.grad_scale, plan.found_inf
    reads_all = all(batch.engine.reads_amp for batch in plan.batches)
    if not reads_all and found_inf is not None and found_inf.item():
        return False
    for batch in plan.batches:
        reads_amp = batch.engine.reads_amp
        batch.amp = (scale, found_inf) if reads_amp else None
        batch.unscale = 1.0 if reads_amp or scale is None else 1.0 / scale.item()
    return True
