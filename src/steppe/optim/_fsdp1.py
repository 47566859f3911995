"""Parameters flattened by FSDP1: plain tensors that do not say which shard of what they are.

So norms and means over them cannot be made whole. Optimizers that need such a norm or mean refuse
these parameters; the others step them exactly.
"""

from torch import Tensor

from steppe._engines import Group, Method, needs_global_norm, needs_tensor_norm

_ADVICE = (
    "parameters that FSDP1 (FullyShardedDataParallel) has flattened: each process would take its "
    "shards for the whole model; expected FSDP2, torch.distributed.fsdp.fully_shard"
)


def check_takes_fsdp1(param: Tensor, method: Method, group: Group, name: str) -> None:
    """Refuse a parameter flattened by FSDP1 if the method needs a norm or mean over its tensor.

    Raises
    ------
    RuntimeError
        FSDP1 has flattened it, and the method has a buffer or takes a mean over the tensor.
    """
    if needs_global_norm(method, group) or needs_tensor_norm(method, group):
        refuse_fsdp1(param, name)


def refuse_fsdp1(param: Tensor, name: str) -> None:
    """Refuse a flattened parameter.

    Raises
    ------
    RuntimeError
        FSDP1 has flattened it.
    """
    # The attribute by which FSDP1 recognises them itself: torch.distributed.fsdp._common_utils.
    if getattr(param, "_fsdp_flattened", False):
        raise RuntimeError(f"{name} does not take {_ADVICE}")
