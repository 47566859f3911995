"""Engines run one rule over many tensors. They know number formats and launches, no method.

An engine is a module with a ``name``, an ``objection(batch)`` that says why it cannot run a batch
(or None), a ``square_norm(batch)`` of its gradients, and a ``step(batch, priority)`` that advances
the batch by one step, buffers included.
What it runs is a :class:`Kernel`; what it runs on is a :class:`Batch`.
"""

from typing import Protocol

import torch
from torch import Tensor

from steppe.engines import cpu, eager, gpu
from steppe.engines.bind import bind
from steppe.engines.kernel import Buffer, Kernel
from steppe.engines.plan import Batch, Demand, Plan, Row

__all__ = [
    "FUSED",
    "Batch",
    "Buffer",
    "Demand",
    "Engine",
    "Kernel",
    "Plan",
    "Row",
    "bind",
    "choose",
    "step",
]


class Engine(Protocol):
    """What every engine module offers."""

    name: str

    def objection(self, batch: Batch) -> str | None:
        """Return why this engine cannot run the batch, or None if it can."""

    def square_norm(self, batch: Batch) -> Tensor:
        """Return the squared L2 norm of all gradients of the batch, over every shard."""

    def step(self, batch: Batch, priority: Tensor | None) -> None:
        """Advance every row of the batch by one step."""


#: Engines with fused kernels, fastest first.
FUSED: tuple[Engine, ...] = (cpu, gpu)


def choose(batch: Batch) -> Engine:
    """Return the fastest engine for a batch, obeying ``fused`` as torch.optim does.

    Raises
    ------
    RuntimeError
        ``fused=True`` and no fused engine can run the batch; it says why.
    """
    fused = batch.demand.fused
    if fused is False:
        return eager
    objections = {engine.name: engine.objection(batch) for engine in FUSED}
    for engine in FUSED:
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
    for batch in plan.batches:
        batch.count()
    priority = _global_norm(engines, plan.batches) if _needs_global_norm(plan) else None
    for engine, batch in zip(engines, plan.batches, strict=True):
        engine.step(batch, priority)


def _needs_global_norm(plan: Plan) -> bool:
    return any(
        row.group["scope"] == "global" and row.capacity > 0
        for batch in plan.batches
        if batch.kernel.buffer is not None
        for row in batch.rows
    )


@torch.no_grad()
def _global_norm(engines: list[Engine], batches: list[Batch]) -> Tensor:
    squares = [engine.square_norm(batch) for engine, batch in zip(engines, batches, strict=True)]
    if len(squares) == 1:
        return squares[0].sqrt()
    return torch.stack([square.to(squares[0].device) for square in squares]).sum().sqrt()
