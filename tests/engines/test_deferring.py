"""A momentum is stored in the step after; nobody can tell."""

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.optimizer_configs import (
    Config,
    assert_close,
    equal,
    parameters,
    set_gradients,
    train,
    values,
)
from steppe._engines.cpu.table import CHUNK

SHAPES = [(2 * CHUNK + 5,), (7, 3), ()]
SMALL_SHAPES = [(7, 3), ()]

ADAM = {"lr": 0.01, "weight_decay": 0.1, "capacity": 3}
DEFERRING = [
    Config("AdamCM", ADAM),
    Config("AdamCM", {**ADAM, "amsgrad": True, "scope": "tensor"}),
    Config("DualAdamCM", {**ADAM, "switch_rate": 0.02, "replacement": "fifo"}),
    Config("SGDCM", {"lr": 0.01, "dampening": 0.3, "capacity": 1}),
]


def state_of(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> list[Tensor]:
    return [value.clone() for p in params for value in optimizer.state[p].values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", DEFERRING, ids=str)
def test_whether_somebody_looks_changes_nothing(config: Config, dtype: torch.dtype) -> None:
    """Reading the state stores at once: in the same order, to the last bit."""
    left, watched = (parameters(dtype, SHAPES) for _ in range(2))
    ours, theirs = config(left, fused=True), config(watched, fused=True)
    for t in range(40):
        train(ours, left, range(t, t + 1))
        train(theirs, watched, range(t, t + 1))
        state_of(theirs, watched)
    assert equal(left, watched)
    assert equal(state_of(ours, left), state_of(theirs, watched))


@pytest.mark.parametrize("config", DEFERRING, ids=str)
def test_forty_steps_are_plain_torchs(config: Config) -> None:
    """In float64, where the paths do not part by rounding."""
    left, right = (parameters(torch.float64, SMALL_SHAPES) for _ in range(2))
    ours, theirs = config(left, fused=True), config(right, fused=False)
    train(ours, left, range(40))
    train(theirs, right, range(40))
    for a, b in zip(state_of(ours, left), state_of(theirs, right), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_options_of_the_step_that_remembers_count() -> None:
    """m̂ is corrected by the betas of its own step, whenever it is stored."""
    left, right = (parameters(torch.float64) for _ in range(2))
    ours, theirs = (Config("AdamCM")(p, fused=f) for p, f in ((left, True), (right, False)))
    for t in range(12):
        for optimizer, params in ((ours, left), (theirs, right)):
            optimizer.param_groups[0]["betas"] = (0.9 - 0.05 * t, 0.999)
            train(optimizer, params, range(t, t + 1))
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("state_dtype", [None, "int8"], ids=str)
def test_one_norm_over_those_that_defer_and_those_that_do_not(state_dtype: Any) -> None:
    """Small tensors stay in full precision beside 8 bits; a group without a buffer counts too."""

    def path(fused: bool) -> list[list[float]]:
        params = parameters(torch.float32, [(70, 61), (33,), (5, 2)])
        groups = [{"params": params[:2]}, {"params": params[2:], "capacity": 0}]
        optimizer = Config("AdamCM")(groups, fused=fused, state_dtype=state_dtype)
        found = []
        for t in range(6):
            for i, p in enumerate(params):
                p.grad = torch.full_like(p, 10.0**-i * (1 + t))
            optimizer.step()
            found.append([optimizer.state[p]["slot_keys"].max().item() for p in params[:2]])
        return found

    assert path(True) == [pytest.approx(keys) for keys in path(False)]


def test_a_parameter_may_sit_out_and_come_back() -> None:
    left, right = (parameters(torch.float64) for _ in range(2))
    ours, theirs = (Config("AdamCM")(p, fused=f) for p, f in ((left, True), (right, False)))
    for t in range(10):
        for optimizer, params in ((ours, left), (theirs, right)):
            set_gradients(params, t)
            params[t % 3].grad = None
            optimizer.step()
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_another_engine_finds_the_state_complete() -> None:
    left, right = (parameters(torch.float32) for _ in range(2))
    ours, theirs = (Config("AdamCM")(p, fused=f) for p, f in ((left, None), (right, False)))
    train(ours, left, range(5))
    train(theirs, right, range(5))
    for p in (*left, *right):
        p.data, p.grad = p.data.double(), None
    train(ours, left, range(5, 8))
    train(theirs, right, range(5, 8))
    assert ours.engine == "eager"
    assert_close(left, right)
    assert_close(state_of(ours, left), state_of(theirs, right))


def test_state_exchanged_through_a_dict_taken_earlier_is_found() -> None:
    left, right = (parameters(torch.float64) for _ in range(2))
    ours, theirs = (Config("AdamCM")(p, fused=f) for p, f in ((left, True), (right, False)))
    train(theirs, right, range(6))
    train(ours, left, range(2))
    states = [ours.state[p] for p in left]
    for t in range(2, 6):
        for state in states:
            for name in ("exp_avg", "slot_0", "slot_sum"):
                state[name] = state[name].clone()
        train(ours, left, range(t, t + 1))
    for state in states:
        state["exp_avg"] = state["exp_avg"].clone()
    for a, b in zip(state_of(ours, left), state_of(theirs, right), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_state_that_the_engine_cannot_run_is_refused_before_anything_is_lost() -> None:
    params = parameters(torch.float32)
    optimizer = Config("AdamCM")(params, fused=True)
    train(optimizer, params, range(2))
    state = optimizer.state[params[0]]
    train(optimizer, params, range(2, 3))
    kept, state["exp_avg"] = state["exp_avg"], state["exp_avg"].double()
    with pytest.raises(RuntimeError, match=r"could not be stored: .*format"):
        optimizer.state_dict()
    state["exp_avg"] = kept
    assert optimizer.state_dict()["state"][0]["replacements"] == 3


def test_a_step_that_a_scaler_skips_stores_nothing() -> None:
    params, alone = (parameters(torch.float32) for _ in range(2))
    optimizer, truth = (Config("AdamCM")(p, fused=True) for p in (params, alone))
    train(optimizer, params, range(3))
    train(truth, alone, range(3))
    before = values(params)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf
    assert equal(before, params)
    train(optimizer, params, range(3, 5))
    train(truth, alone, range(3, 5))
    assert equal(params, alone)
    assert equal(state_of(optimizer, params), state_of(truth, alone))
