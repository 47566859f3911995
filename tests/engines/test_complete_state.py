"""After every step the state is complete: a step stores what it remembers."""

import copy
import threading
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
REMEMBERING = [
    Config("AdamCM", ADAM),
    Config("AdamCM", {**ADAM, "amsgrad": True, "scope": "tensor"}),
    Config("DualAdamCM", {**ADAM, "switch_rate": 0.02, "replacement": "fifo"}),
    Config("SGDCM", {"lr": 0.01, "dampening": 0.3, "capacity": 1}),
    Config("AdamCG", ADAM),
]


def state_of(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> list[Tensor]:
    return [value.clone() for p in params for value in optimizer.state[p].values()]


@pytest.mark.parametrize("config", REMEMBERING, ids=str)
def test_after_each_step_the_held_state_is_plain_torchs(config: Config) -> None:
    """In float64, where the paths do not part by rounding; what is held was taken at the start."""
    left, right = (parameters(torch.float64, SMALL_SHAPES) for _ in range(2))
    ours, theirs = config(left, fused=True), config(right, fused=False)
    train(ours, left, range(1))
    train(theirs, right, range(1))
    held = [ours.state[p] for p in left]
    for t in range(1, 40):
        train(ours, left, range(t, t + 1))
        train(theirs, right, range(t, t + 1))
        seen = [value for state in held for value in state.values()]
        torch.testing.assert_close(seen, state_of(theirs, right), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("config", REMEMBERING, ids=str)
def test_a_state_dict_in_another_thread_changes_nothing(config: Config, fused: bool) -> None:
    left, watched = (parameters(torch.float32, SHAPES) for _ in range(2))
    ours, theirs = config(left, fused=fused), config(watched, fused=fused)
    train(ours, left, range(40))
    failures: list[Exception] = []
    has_ended = threading.Event()

    def watch() -> None:
        try:
            # It waits, or the other thread would get its turn 5 ms later in each of its operations.
            while not has_ended.wait(1e-4):
                theirs.state_dict()
        except Exception as error:
            failures.append(error)

    # The first step adds the state; whoever reads it meanwhile may get Python's "dictionary changed
    # size during iteration", as from torch's own optimizers.
    train(theirs, watched, range(1))
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        train(theirs, watched, range(1, 40))
    finally:
        has_ended.set()
        thread.join()
    assert not failures
    assert equal(left, watched)
    assert equal(state_of(ours, left), state_of(theirs, watched))


def test_a_momentum_zeroed_through_a_held_state_is_zero_in_the_next_step() -> None:
    left, right = (parameters(torch.float64) for _ in range(2))
    for params, fused in ((left, True), (right, False)):
        optimizer = Config("AdamCM", ADAM)(params, fused=fused)
        train(optimizer, params, range(2))
        held = [optimizer.state[p] for p in params]
        train(optimizer, params, range(2, 4))
        for state in held:
            state["exp_avg"].zero_()
        train(optimizer, params, range(4, 6))
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "config", [*REMEMBERING, Config("DualAdam", {"scale_free": True})], ids=str
)
def test_a_dictionary_taken_after_loading_stays_the_live_one(config: Config, fused: bool) -> None:
    params = parameters(torch.float32)
    optimizer = config(params, fused=fused)
    train(optimizer, params, range(2))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    taken = {i: dict(state) for i, state in optimizer.state_dict()["state"].items()}
    train(optimizer, params, range(2, 5))
    assert taken[0]["step"] == 5
    for number, p in enumerate(params):
        for name, value in optimizer.state[p].items():
            assert taken[number][name] is value, name


def test_parameters_that_come_and_go_leave_the_held_state_the_live_one() -> None:
    params = parameters(torch.float32)
    optimizer = Config("AdamCM", ADAM)(params, fused=True)
    train(optimizer, params, range(1))
    held = [dict(optimizer.state[p]) for p in params]
    for t in range(6):
        set_gradients(params, t)
        params[t % 3].grad = None
        optimizer.step()
    assert [int(state["step"]) for state in held] == [5, 5, 5, 7]
    assert all(
        held[i][name] is x for i, p in enumerate(params) for name, x in optimizer.state[p].items()
    )


def test_a_shallow_copy_steps_on_the_same_state() -> None:
    """Each moves what the other keeps side by side, and finds it again."""
    params, alone = (parameters(torch.float64) for _ in range(2))
    optimizer, truth = (Config("AdamCM", ADAM)(p, fused=True) for p in (params, alone))
    train(optimizer, params, range(2))
    other = copy.copy(optimizer)
    for t in range(2, 8):
        train(other if t % 2 else optimizer, params, range(t, t + 1))
    train(truth, alone, range(8))
    assert equal(params, alone)
    assert equal(state_of(optimizer, params), state_of(truth, alone))


def test_options_of_the_step_that_remembers_count() -> None:
    """m̂ is corrected by the betas of its own step."""
    left, right = (parameters(torch.float64) for _ in range(2))
    ours, theirs = (Config("AdamCM")(p, fused=f) for p, f in ((left, True), (right, False)))
    for t in range(12):
        for optimizer, params in ((ours, left), (theirs, right)):
            optimizer.param_groups[0]["betas"] = (0.9 - 0.05 * t, 0.999)
            train(optimizer, params, range(t, t + 1))
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("state_dtype", [None, "int8"], ids=str)
def test_one_norm_over_groups_with_and_without_a_buffer(state_dtype: Any) -> None:
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
    for a, b in zip(state_of(ours, left), state_of(theirs, right), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


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
