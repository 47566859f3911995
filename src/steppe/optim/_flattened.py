"""Parameters that FSDP1 has flattened: shards that know nothing of one another."""

from torch import Tensor

from steppe._engines import Group, Method, goes_by_own, goes_by_whole

_ADVICE = (
    "parameters that FSDP1 (FullyShardedDataParallel) has flattened: each process would take its "
    "shards for all there is; expected FSDP2, torch.distributed.fsdp.fully_shard"
)


def check_whole(param: Tensor, method: Method, group: Group, name: str) -> None:
    """Refuse what needs more than its own element where no shard knows of the others.

    Raises
    ------
    RuntimeError
        The method remembers, or takes a mean over the tensor, and FSDP1 has flattened it.
    """
    if goes_by_whole(method, group) or goes_by_own(method, group):
        refuse_flattened(param, name)


def refuse_flattened(param: Tensor, name: str) -> None:
    """Refuse a flattened parameter.

    Raises
    ------
    RuntimeError
        FSDP1 has flattened it.
    """
    # torch.distributed.fsdp._common_utils: the mark by which it knows them itself.
    if getattr(param, "_fsdp_flattened", False):
        raise RuntimeError(f"{name} does not take {_ADVICE}")
