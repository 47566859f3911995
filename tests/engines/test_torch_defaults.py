"""Steps, checkpoints and diagnostics are the same whatever torch's default format and device are.

A script that sets them, as ones for large models do, speaks of the tensors that it makes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import steppe
from helpers.optimizer_configs import (
    REPRESENTATIVE,
    assert_same_state,
    equal,
    parameters,
    set_gradients,
    values,
)
from helpers.torch_defaults import DEFAULTS, torch_default
from steppe._engines.cpu import tensor_reader
from steppe.optim import Offload

BY_DEFAULT = pytest.mark.parametrize("default", DEFAULTS, ids=str)
MORE: list[dict[str, Any]] = [
    {},
    {"fused": False},
    {"capturable": True},
    {"state_dtype": "int8"},
]
MAKERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    f"{config}-{more}": partial(config, **more) for config in REPRESENTATIVE[::2] for more in MORE
} | {
    "Offload": lambda params: Offload(params, steppe.AdamCM, capacity=2),
    "SAM": lambda params: steppe.SAM(steppe.DualAdam(params), rho=0.1),
    "SAM-eager": lambda params: steppe.SAM(steppe.AdamCM(params, fused=False), rho=0.1),
}


def run(maker: str, defaults: AbstractContextManager[Any]) -> Any:
    """Step, with a checkpoint and gradients for some parameters alone in between."""
    params = parameters(torch.float32, [(70, 61), (5,), ()])
    tensor_reader._reader.cache_clear()
    with defaults:
        optimizer = MAKERS[maker](params)
        for t in range(4):

            def closure(t: int = t) -> None:
                set_gradients(params, t)
                params[t % 3].grad = None if t == 2 else params[t % 3].grad

            closure()
            optimizer.step(closure if isinstance(optimizer, steppe.SAM) else None)
            if t == 1:
                optimizer.load_state_dict(optimizer.state_dict())
        diagnostics = getattr(optimizer, "diagnostics", dict)()
    return values(params), optimizer.state_dict()["state"], diagnostics


@BY_DEFAULT
@pytest.mark.parametrize("maker", MAKERS)
def test_nothing_depends_on_them(maker: str, default: Any) -> None:
    (params, state, diagnostics), truth = (
        run(maker, torch_default(default)),
        run(maker, nullcontext()),
    )
    assert equal(params, truth[0])
    assert_same_state(state, truth[1])
    assert str(diagnostics) == str(truth[2])


@BY_DEFAULT
def test_a_warm_start_does_not_depend_on_them(default: Any) -> None:
    """SGD's checkpoint has no step count: it is made."""

    def warm_started(context: AbstractContextManager[Any]) -> Any:
        params = parameters(torch.float32)
        theirs = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        set_gradients(params, 0)
        theirs.step()
        with context:
            ours = steppe.SGDCM(params, lr=0.1)
            ours.load_state_dict(theirs.state_dict())
            set_gradients(params, 1)
            ours.step()
        return values(params), ours.state_dict()["state"]

    (params, state), truth = warm_started(torch_default(default)), warm_started(nullcontext())
    assert equal(params, truth[0])
    assert_same_state(state, truth[1])
