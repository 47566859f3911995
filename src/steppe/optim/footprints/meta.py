"""An optimizer on the meta device: what state it has and what it sends, without the memory."""

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from steppe._engines import Group, goes_by_own, goes_by_whole
from steppe.optim._base import RuleOptimizer
from steppe.optim._state import Entry, layout
from steppe.optim.offload import Offload
from steppe.optim.sam import SAM

Make = Callable[[Any], Optimizer]

#: Norms are added up in float64.
_NUMBER = 8


def made(optimizer: Optimizer | Make, originals: list[Tensor], metas: list[Parameter]) -> Optimizer:
    """Return the optimizer of those parameters on the meta device that need a gradient.

    Parameters
    ----------
    optimizer
        One that exists, or what makes one.
    originals, metas
        The parameters that one that exists may have in its groups, and those that stand for them.

    Raises
    ------
    TypeError
        ``optimizer`` is not an optimizer, and makes none.
    ValueError
        It has several groups, and none of the originals in them; or its state is on the host.
    """
    if isinstance(optimizer, Optimizer):
        if isinstance(_base(optimizer), Offload):
            raise ValueError(
                "optimizer=Offload is not valid: its state is on the host, and counted is what "
                "devices hold; expected the optimizer that it is around"
            )
        return _twin(optimizer, _groups(optimizer, originals, metas))
    if not callable(optimizer):
        raise TypeError(
            f"optimizer={optimizer!r} is not valid: expected an optimizer, its class, or a "
            "function of the parameters, e.g. functools.partial(steppe.AdamCM, capacity=5)"
        )
    product = optimizer([param for param in metas if param.requires_grad])
    if not isinstance(product, Optimizer):
        raise TypeError(f"optimizer={optimizer!r} made {product!r}: expected an optimizer")
    return product


def _groups(optimizer: Optimizer, originals: list[Tensor], metas: list[Parameter]) -> list[Group]:
    """Return the optimizer's groups with the parameters on the meta device in them."""
    pairs = zip(originals, metas, strict=True)
    known = {original: param for original, param in pairs if param.requires_grad}
    groups: list[Group] = [
        {**group, "params": [known[param] for param in group["params"] if param in known]}
        for group in optimizer.param_groups
    ]
    if any(group["params"] for group in groups):
        return groups
    if len(groups) > 1:
        raise ValueError(
            f"optimizer={type(optimizer).__name__} has {len(groups)} groups, and none of these "
            "parameters: expected the model that it was made for, or one group"
        )
    return [{**groups[0], "params": list(known.values())}]


def _twin(optimizer: Optimizer, groups: list[Group]) -> Optimizer:
    """Return an optimizer like this one, without state and with other groups."""
    twin = copy.copy(optimizer)
    if isinstance(twin, SAM):
        twin.base_optimizer = _twin(twin.base_optimizer, groups)
    else:
        twin.state, twin.param_groups = defaultdict(dict), groups
    return twin


def _base(optimizer: Optimizer) -> Optimizer:
    return optimizer.base_optimizer if isinstance(optimizer, SAM) else optimizer


def state_of(optimizer: Optimizer) -> dict[Tensor, dict[str, Entry]]:
    """Return what each parameter's state consists of after a step.

    Raises
    ------
    ValueError
        An optimizer of another library cannot take a step on the meta device.
    """
    base = _base(optimizer)
    if isinstance(base, RuleOptimizer):
        members = [(param, group) for group in base.param_groups for param in group["params"]]
        return {param: layout(base._method(group), group, param) for param, group in members}
    for group in base.param_groups:
        for param in group["params"]:
            param.grad = torch.empty_like(param)
    try:
        base.step()
    except Exception as error:
        raise ValueError(
            f"optimizer={type(base).__name__} is not valid: its step cannot be taken on the meta "
            f"device, so that its state is not known ({error})"
        ) from error
    return {
        param: {
            name: Entry(tuple(value.shape), value.dtype)
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
        for param, state in base.state.items()
    }


def message(optimizer: Optimizer) -> int:
    """Return the bytes that the optimizer adds up over the devices in a step."""
    base, numbers = _base(optimizer), int(isinstance(optimizer, SAM))
    if isinstance(base, RuleOptimizer):
        kinds = [(base._method(group), group) for group in base.param_groups]
        own = sum(len(group["params"]) for method, group in kinds if goes_by_own(method, group))
        numbers += own + (own > 0 or any(goes_by_whole(*kind) for kind in kinds))
    return _NUMBER * numbers
