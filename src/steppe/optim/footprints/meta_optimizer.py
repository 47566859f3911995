"""Make an optimizer on the meta device, and read off the layout of its state and what it sends.

Only :mod:`steppe.optim.footprints.count` uses it. An optimizer that is given stays as it is: what
steps is a copy of it without state, whose parameters are on the meta device.
"""

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from steppe._engines import Group, needs_global_norm, needs_tensor_norm
from steppe.optim._base import RuleOptimizer
from steppe.optim._state import StateEntry, state_layout
from steppe.optim.offload import Offload
from steppe.optim.sam import SAM

#: A class of optimizers, or a function: makes an optimizer of a list of parameters.
OptimizerFactory = Callable[[Any], Optimizer]

#: Norms are summed in float64.
_BYTES_PER_NORM = 8


def optimizer_on_meta(
    optimizer: Optimizer | OptimizerFactory, originals: list[Tensor], metas: list[Parameter]
) -> Optimizer:
    """Return an optimizer of those parameters on the meta device that require a gradient.

    An optimizer that is given is copied, without its state, and stays as it is.

    Parameters
    ----------
    optimizer
        An optimizer, or a function or class that makes one of parameters.
    originals, metas
        The model's parameters, which an existing optimizer may have in its groups, and for each its
        counterpart on the meta device.

    Raises
    ------
    TypeError
        ``optimizer`` is not an optimizer, and does not make one.
    ValueError
        It has several groups with none of the originals in them, or it is an ``Offload``.
    """
    if isinstance(optimizer, Optimizer):
        if isinstance(_base(optimizer), Offload):
            raise ValueError(
                "optimizer=Offload is not valid: footprint counts what devices hold, and Offload's "
                "state is on the host; expected the optimizer that it wraps"
            )
        return _copy_with_groups(optimizer, _groups(optimizer, originals, metas))
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
    """Return the optimizer's groups, with parameters on the meta device in place of its own."""
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
            "parameters: expected the optimizer of this model, or one with a single group"
        )
    return [{**groups[0], "params": list(known.values())}]


def _copy_with_groups(optimizer: Optimizer, groups: list[Group]) -> Optimizer:
    """Return an optimizer like this one, without state and with other groups."""
    twin = copy.copy(optimizer)
    if isinstance(twin, SAM):
        twin.base_optimizer = _copy_with_groups(twin.base_optimizer, groups)
    else:
        twin.state, twin.param_groups = defaultdict(dict), groups
    return twin


def _base(optimizer: Optimizer) -> Optimizer:
    return optimizer.base_optimizer if isinstance(optimizer, SAM) else optimizer


def state_of(optimizer: Optimizer) -> dict[Tensor, dict[str, StateEntry]]:
    """Return the layout of each parameter's state after a step, by the names of its tensors.

    Shapes and number formats are those of whole tensors, not of a shard. An optimizer of this
    library says its layout (:func:`~steppe.optim._state.state_layout`). One of another library
    steps once with empty gradients on the meta device, and what it then has is read off.

    Raises
    ------
    ValueError
        An optimizer of another library cannot step on the meta device.
    """
    base = _base(optimizer)
    if isinstance(base, RuleOptimizer):
        members = [(param, group) for group in base.param_groups for param in group["params"]]
        return {param: state_layout(base._method(group), group, param) for param, group in members}
    for group in base.param_groups:
        for param in group["params"]:
            param.grad = torch.empty_like(param)
    try:
        base.step()
    except Exception as error:
        raise ValueError(
            f"optimizer={type(base).__name__} is not valid: footprint finds its state by a step on "
            f"the meta device, which failed ({error})"
        ) from error
    return {
        param: {
            name: StateEntry(tuple(value.shape), value.dtype)
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
        for param, state in base.state.items()
    }


def message_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of the norms that the optimizer sums over the devices in a step.

    A norm is 8 bytes, as it is summed in float64. A global norm, which critical momenta and
    gradients need, is one; n tensors with norms of their own (``scope="tensor"``, ``scale_free``)
    are n + 1; SAM adds one. Of an optimizer of another library 0 is returned, and so what it sends
    is not counted.
    """
    base, norms = _base(optimizer), int(isinstance(optimizer, SAM))
    if isinstance(base, RuleOptimizer):
        kinds = [(base._method(group), group) for group in base.param_groups]
        own = sum(
            len(group["params"]) for method, group in kinds if needs_tensor_norm(method, group)
        )
        norms += own + (own > 0 or any(needs_global_norm(*kind) for kind in kinds))
    return _BYTES_PER_NORM * norms
