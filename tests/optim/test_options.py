"""Arguments out of range are named before anything is made."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.optimizer_configs import NAMES, Config, parameters, train

BAD: dict[str, list[Any]] = {
    "lr": [
        *(-1e-3, math.nan, math.inf, "0.1", None, 10**400),
        *(torch.tensor(-1.0), torch.ones(2), torch.tensor(math.inf), torch.tensor(1j)),
    ],
    "betas": [(1.0, 0.999), (0.9, 1.0), (-0.1, 0.999), (0.9,), 0.9, (math.nan, 0.9)],
    "eps": [-1e-8, math.nan, math.inf],
    "weight_decay": [-0.1, math.nan, True],
    "momentum": [-0.1, 1.1, math.nan],
    "dampening": [-0.1, 1.1],
    "alpha": [-0.1, 1.0],
    "switch_rate": [-1e-5, 1.5, math.nan],
    "integration_order": [0, 4, 2.0, True, None],
    "integration_rate": [-0.1, 1.0, math.nan, None],
    "kappa": [-1.0, math.nan],
    "capacity": [-1, 2.5, True, "5"],
    "priority_decay": [0.0, -1.0, 2.0, math.nan],
    "scope": ["model", None],
    "replacement": ["lru"],
    "variant": ["paper"],
    "aggregation": ["max"],
    "scale_free": [1, None],
    "amsgrad": ["no"],
    "centered": [0],
    "maximize": [None],
    "capturable": [1],
    "differentiable": ["yes"],
    "fused": ["fast", 1],
    "state_dtype": ["int4", torch.int8, torch.float16],
    "param_error": ["bfloat16", torch.int8, 8, True],
}


def bad_options(name: str) -> Iterator[tuple[str, Any]]:
    """Yield every option of an optimizer with every value that it does not take."""
    for option in Config(name)(parameters()).defaults:
        for value in BAD[option]:
            yield option, value


@pytest.mark.parametrize("name", NAMES)
def test_the_error_names_argument_value_and_range(name: str) -> None:
    for option, value in bad_options(name):
        with pytest.raises(ValueError, match=rf"^{option}=.* is not valid: expected ") as caught:
            Config(name)(parameters(), **{option: value})
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_checked_too_and_nothing_is_added(name: str) -> None:
    optimizer = Config(name)(parameters())
    for option, value in bad_options(name):
        with pytest.raises(ValueError, match=rf"^{option}="):
            optimizer.add_param_group({"params": parameters(), option: value})
        assert len(optimizer.param_groups) == 1


def test_scale_free_needs_eps() -> None:
    with pytest.raises(ValueError, match=r"eps=0 is not valid with scale_free=True"):
        Config("DualAdam")(parameters(), eps=0, scale_free=True)


def test_unknown_arguments_are_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="capcity"):
        Config("AdamCM")(parameters(), capcity=5)


@pytest.mark.parametrize("name", NAMES)
def test_the_limits_themselves_are_taken(name: str) -> None:
    limits = {
        "lr": 0.0,
        "betas": (0.0, 0.0),
        "eps": 0.0,
        "momentum": 1.0,
        "dampening": 1.0,
        "alpha": 0.0,
        "switch_rate": 0.0,
        "kappa": 0.0,
        "capacity": 0,
        "priority_decay": 1.0,
    }
    defaults = Config(name)(parameters()).defaults
    params = parameters()
    optimizer = Config(name)(params, **{k: v for k, v in limits.items() if k in defaults})
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in params)


@pytest.mark.parametrize("name", NAMES)
def test_numpy_scalars_are_numbers_and_checkpoints_can_hold_them(name: str, tmp_path: Path) -> None:
    defaults = Config(name)(parameters()).defaults
    sweep = {
        "lr": np.float32(0.01),
        "betas": (np.float64(0.8), np.float64(0.99)),
        "capacity": np.int64(2),
        "amsgrad": np.bool_(True),
    }
    sweep = {k: v for k, v in sweep.items() if k in defaults}
    params = parameters()
    optimizer = Config(name)([{"params": params[:1], **sweep}, {"params": params[1:]}], **sweep)
    train(optimizer, params, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "run.pt")
    torch.load(tmp_path / "run.pt", weights_only=True)
    for group in optimizer.param_groups:
        assert not any(isinstance(value, np.generic) for value in group.values())


def test_a_groups_own_keys_are_the_users() -> None:
    group = {"params": parameters(), "alpha": 16, "momentum": "none", "layer": 3}
    optimizer = Config("DualAdam")([group])
    assert optimizer.param_groups[0]["alpha"] == 16


def test_a_tensor_lr_may_have_a_dimension() -> None:
    params = parameters()
    optimizer = Config("AdamCM")(params, lr=torch.tensor([0.01]), capturable=True)
    train(optimizer, params, range(2))
    assert all(torch.isfinite(p).all() for p in params)


def test_engine_is_named() -> None:
    assert Config("DualAdam")(parameters()).engine == "cpu"
    assert Config("DualAdam")(parameters(), fused=False).engine == "eager"
    assert Config("DualAdam")(parameters(torch.bfloat16)).engine == "cpu"
    assert Config("DualAdam")(parameters(), capturable=True).engine == "eager"
