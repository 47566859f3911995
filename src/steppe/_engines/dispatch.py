"""Choose an engine for each batch of a step, and have each take its part of it.

This is the only place that knows all engines. Who adds one adds its folder, and its name to
:data:`FUSED`.
"""

from typing import Protocol

import torch
from torch import Tensor

from steppe._engines.base.norms import Norms
from steppe._engines.base.plan import ParamBatch, Plan
from steppe._engines.cpu import engine as cpu
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

    def square_sums(self, batch: ParamBatch) -> Tensor:
        """Return the sum of the squared gradient of each row here, and last that of all."""

    def step(self, batch: ParamBatch, norms: Norms) -> None:
        """Advance every row of the batch by one step, buffers included."""


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


def step(plan: Plan) -> None:
    """Count and take one step, with one gradient norm over all batches if any needs it.

    Norms come first: by them it is decided what a buffer remembers, and each batch stores that in
    the same pass that updates it.

    Raises
    ------
    RuntimeError
        As :func:`choose` does, before anything has changed.
    """
    pairs = [(choose(batch), batch) for batch in plan.batches]
    for batch in plan.batches:
        batch.amp, batch.unscale = None, 1.0
    has_scaler = plan.grad_scale is not None or plan.found_inf is not None
    if has_scaler and not _hand_on_amp(plan, pairs):
        return
    has_whole = is_sharded = False
    for batch in plan.batches:
        has_whole |= batch.needs_global_norm
        is_sharded |= batch.shard_group is not None
        if batch.request.capturable:
            torch._foreach_add_([row.state["step"] for row in batch.rows], 1.0)
        else:
            batch.steps += 1.0
    sums = []
    for engine, batch in pairs:
        if has_whole or (batch.needs_tensor_norm and batch.shard_group is not None):
            sums.append((batch, engine.square_sums(batch)))
    norms = Norms(sums, has_whole)
    if is_sharded:
        norms.begin()
    for engine, batch in pairs:
        engine.step(batch, norms)


def _hand_on_amp(plan: Plan, pairs: list[tuple[Engine, ParamBatch]]) -> bool:
    """Hand on what a GradScaler has left to do; return whether to take the step.

    For engines of the host the scale becomes a number; others read it where it is.
    """
    scale, found_inf = plan.grad_scale, plan.found_inf
    reads_all = all(engine.reads_amp for engine, _ in pairs)
    if not reads_all and found_inf is not None and found_inf.item():
        return False
    for engine, batch in pairs:
        batch.amp = (scale, found_inf) if engine.reads_amp else None
        batch.unscale = 1.0 if engine.reads_amp or scale is None else 1.0 / scale.item()
    return True
