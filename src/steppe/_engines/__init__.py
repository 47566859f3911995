"""Engines run one rule over many tensors. They know number formats and launches, no method.

What they run is a :class:`Method`; what they run it on is a :class:`ParamBatch`; which of them runs
which batch is :mod:`steppe._engines.dispatch`'s to say.
"""

from steppe._engines.base.bind import bind
from steppe._engines.base.cache_chunks import pieces
from steppe._engines.base.method import (
    BIRTHS,
    KEYS,
    MEAN,
    REPLACEMENTS,
    SLOT_SUM,
    Buffer,
    Function,
    Method,
    goes_by_own,
    goes_by_whole,
    slot_name,
)
from steppe._engines.base.norms import joint_norm, whole_sum
from steppe._engines.base.number_formats import BLOCK, SMALL, blocks, scale_name, wide_dtype
from steppe._engines.base.plan import (
    Demand,
    Group,
    ParamBatch,
    ParamRow,
    Plan,
    State,
    batches,
    held,
)
from steppe._engines.base.sharding import (
    ShardGroup,
    is_member,
    is_sharded,
    local,
    shard_group_of,
    share_of,
)
from steppe._engines.checkpoint_scales import pack, spread_of, unpack
from steppe._engines.dispatch import FUSED, Engine, choose, step
from steppe._engines.eager.codecs import load, slot_sum, widened

__all__ = [
    "BIRTHS",
    "BLOCK",
    "FUSED",
    "KEYS",
    "MEAN",
    "REPLACEMENTS",
    "SLOT_SUM",
    "SMALL",
    "Buffer",
    "Demand",
    "Engine",
    "Function",
    "Group",
    "Method",
    "ParamBatch",
    "ParamRow",
    "Plan",
    "ShardGroup",
    "State",
    "batches",
    "bind",
    "blocks",
    "choose",
    "goes_by_own",
    "goes_by_whole",
    "held",
    "is_member",
    "is_sharded",
    "joint_norm",
    "load",
    "local",
    "pack",
    "pieces",
    "scale_name",
    "shard_group_of",
    "share_of",
    "slot_name",
    "slot_sum",
    "spread_of",
    "step",
    "unpack",
    "whole_sum",
    "wide_dtype",
    "widened",
]
