"""Engines run one rule over many tensors. They know number formats and launches, no optimizer.

This is the face of the room: optimizers, benchmarks and tests import from here, and nothing is
meant for users. A :class:`Method` says what is computed, a :class:`ParamBatch` on which tensors;
:mod:`steppe._engines.dispatch` chooses the engine that runs it.
"""

from steppe._engines.base.batch import EngineRequest, ParamBatch, batches_of
from steppe._engines.base.bind import bind
from steppe._engines.base.cache_chunks import PIECE, cache_chunks
from steppe._engines.base.memory_layout import is_plain, is_traced, memory_objection, share_memory
from steppe._engines.base.method import (
    BIRTHS,
    KEYS,
    MEAN,
    NEVER_PARAM_SHAPED,
    REPLACEMENTS,
    RESUM_EVERY,
    SLOT_SUM,
    Buffer,
    Function,
    Method,
    needs_global_norm,
    needs_tensor_norm,
    slot_name,
)
from steppe._engines.base.norms import joint_norm, whole_sum
from steppe._engines.base.number_formats import (
    BLOCK,
    PARAM_ERROR,
    SMALL,
    SQUARES,
    accumulator,
    block_count,
    scale_name,
    takes_error,
    wide_dtype,
)
from steppe._engines.base.param_row import Group, ParamRow, State, check_memory
from steppe._engines.base.plan import Plan, local_param_and_grad
from steppe._engines.base.sharding import (
    LocalShard,
    ShardGroup,
    agreed_number,
    is_member,
    is_sharded,
    local_part,
    local_shard_of,
    real,
    shard_group_of,
)
from steppe._engines.checkpoint_scales import pack_scales, scale_layout_of, unpack_scales
from steppe._engines.cpu.compile_cache import unkept_kernels
from steppe._engines.cpu.kernel_files import kernel_directory
from steppe._engines.cpu.usual_tensors import are_usual
from steppe._engines.dispatch import FUSED, Engine, check, choose, prepare, step
from steppe._engines.eager.codecs import (
    load_param,
    load_state,
    slot_sum,
    store_state,
    widened,
)
from steppe._engines.eager.gaussian import standard_normal

__all__ = [
    "BIRTHS",
    "BLOCK",
    "FUSED",
    "KEYS",
    "MEAN",
    "NEVER_PARAM_SHAPED",
    "PARAM_ERROR",
    "PIECE",
    "REPLACEMENTS",
    "RESUM_EVERY",
    "SLOT_SUM",
    "SMALL",
    "SQUARES",
    "Buffer",
    "Engine",
    "EngineRequest",
    "Function",
    "Group",
    "LocalShard",
    "Method",
    "ParamBatch",
    "ParamRow",
    "Plan",
    "ShardGroup",
    "State",
    "accumulator",
    "agreed_number",
    "are_usual",
    "batches_of",
    "bind",
    "block_count",
    "cache_chunks",
    "check",
    "check_memory",
    "choose",
    "is_member",
    "is_plain",
    "is_sharded",
    "is_traced",
    "joint_norm",
    "kernel_directory",
    "load_param",
    "load_state",
    "local_param_and_grad",
    "local_part",
    "local_shard_of",
    "memory_objection",
    "needs_global_norm",
    "needs_tensor_norm",
    "pack_scales",
    "prepare",
    "real",
    "scale_layout_of",
    "scale_name",
    "shard_group_of",
    "share_memory",
    "slot_name",
    "slot_sum",
    "standard_normal",
    "step",
    "store_state",
    "takes_error",
    "unkept_kernels",
    "unpack_scales",
    "whole_sum",
    "wide_dtype",
    "widened",
]
