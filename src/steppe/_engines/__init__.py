"""Engines run one rule over many tensors. They know number formats and launches, no method.

What they run is a :class:`Method`; what they run it on is a :class:`ParamBatch`; which of them runs
which batch is :mod:`steppe._engines.dispatch`'s to say.
"""

from steppe._engines.base.bind import bind
from steppe._engines.base.method import (
    BIRTHS,
    KEYS,
    MEAN,
    REPLACEMENTS,
    SLOT_SUM,
    Buffer,
    Method,
)
from steppe._engines.base.plan import Demand, ParamBatch, ParamRow, Plan
from steppe._engines.dispatch import FUSED, Engine, choose, step

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
    "Method",
    "ParamBatch",
    "ParamRow",
    "Plan",
    "bind",
    "choose",
    "step",
]
