"""Engines run one rule over many tensors. They know number formats and launches, no method.

What they run is a :class:`Kernel`; what they run it on is a :class:`Batch`; which of them runs
which batch is :mod:`steppe.engines.dispatch`'s to say.
"""

from steppe.engines.bind import bind
from steppe.engines.dispatch import FUSED, Engine, choose, step
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
