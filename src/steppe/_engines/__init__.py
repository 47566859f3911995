"""Engines run one rule over many tensors. They know number formats and launches, no method.

An engine is a module with a ``name``, an ``objection(batch)`` that says why it cannot run a batch
(or None), the ``square_sums(batch)`` of its gradients, a ``step(batch, norms)`` that advances the
batch by one step, buffers included, and ``reads_amp``: whether its kernels read what a GradScaler
leaves to them, or are told by the host. Engines work on what this process holds of a tensor.
What it runs is a :class:`Kernel`; what it runs on is a :class:`ParamBatch`.
"""

from typing import Protocol

from torch import Tensor

from steppe._engines.base.bind import bind
from steppe._engines.base.method import (
    BIRTHS,
    KEYS,
    MEAN,
    REPLACEMENTS,
    SLOT_SUM,
    Buffer,
    Kernel,
)
from steppe._engines.base.norms import Norms
from steppe._engines.base.plan import Demand, ParamBatch, ParamRow, Plan
from steppe._engines.cpu import engine as cpu
from steppe._engines.eager import engine as eager
from steppe._engines.gpu import engine as gpu

__all__ = [
    "BIRTHS",
    "FUSED",
    "KEYS",
    "MEAN",
    "REPLACEMENTS",
    "SLOT_SUM",
    "Buffer",
    "Demand",
    "Engine",
    "Kernel",
    "ParamBatch",
    "ParamRow",
    "Plan",
    "bind",
    "choose",
    "step",
]


class Engine(Protocol):
    """What every engine module offers."""

    name: str
    reads_amp: bool

    def objection(self, batch: ParamBatch) -> str | None:
        """Return why this engine cannot run the batch, or None if it can."""

    def square_sums(self, batch: ParamBatch) -> Tensor:
        """Return the sum of the squared gradient of each row here, and last that of all."""

    def step(self, batch: ParamBatch, norms: Norms) -> None:
        """Advance every row of the batch by one step."""


#: Engines with fused kernels, fastest first.
FUSED: tuple[Engine, ...] = (cpu, gpu)


def choose(batch: ParamBatch) -> Engine:
    """Return the fastest engine for a batch, obeying ``fused`` as torch.optim does.

    Raises
    ------
    RuntimeError
        ``fused=True`` and no fused engine can run the batch; it says why.
    """
    fused = batch.demand.fused
    if fused is False:
        return eager
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
    return eager


def step(plan: Plan) -> None:
    """Count and take one step, with one gradient norm over all batches if any needs it.

    Raises
    ------
    RuntimeError
        As :func:`choose` does, before anything has changed.
    """
    engines = [choose(batch) for batch in plan.batches]
    if not _amp(plan, engines):
        return
    pairs = list(zip(engines, plan.batches, strict=True))
    deferring = [batch for engine, batch in pairs if engine is cpu and cpu.defers(batch)]
    at_once = [(engine, batch) for engine, batch in pairs if not any(batch is x for x in deferring)]
    for _, batch in at_once:
        cpu.settle(batch)
    for batch in deferring:
        cpu.decide(batch)
    for batch in plan.batches:
        batch.count()
    for batch in deferring:
        cpu.update(batch)
    norms = Norms(pairs)
    for engine, batch in at_once:
        engine.step(batch, norms)
    for batch in deferring:
        cpu.defer(batch, norms)


def settle(plan: Plan) -> None:
    """Store what the last step has left to the next one, so that the state is complete."""
    for batch in plan.batches:
        cpu.settle(batch)


def _amp(plan: Plan, engines: list[Engine]) -> bool:
    """Hand on what a GradScaler has left to do; return whether to take the step.

    For engines of the host the scale becomes a number; others read it where it is.
    """
    scale, found_inf = plan.grad_scale, plan.found_inf
    amp = None if scale is None and found_inf is None else (scale, found_inf)
    if (
        not all(engine.reads_amp for engine in engines)
        and found_inf is not None
        and found_inf.item()
    ):
        return False
    for batch, engine in zip(plan.batches, engines, strict=True):
        on_host = not engine.reads_amp
        batch.amp = None if on_host else amp
        batch.unscale = 1.0 / scale.item() if on_host and scale is not None else 1.0
    return True
