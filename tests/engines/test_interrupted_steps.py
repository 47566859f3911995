"""A step that Ctrl-C or an error stops: what it has not updated, it has not counted either.

A count without its update would give all later steps the wrong bias corrections, without a word.
The truth is the state before the step, or a run that nothing has stopped.
"""

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import steppe
from helpers.optimizer_configs import (
    Config,
    assert_same_state,
    equal,
    parameters,
    set_gradients,
    train,
    values,
)
from steppe._engines.base.norms import Norms
from steppe._engines.cpu import engine as cpu
from steppe._engines.cpu import openmp
from steppe._engines.cpu.compile_cache import Native
from steppe._engines.eager import engine as eager
from steppe.optim import Offload

CONFIGS = [
    Config("DualAdam"),
    Config("DualAdam", {"scale_free": True}),
    Config("AdamCM", {"capacity": 2}),
    Config("SGDCM", {"capacity": 2, "scope": "tensor"}),
]
ROUNDED = Config("SGDCM", {"capacity": 1, "scope": "tensor", "state_dtype": "bfloat16"})


def of_two_batches() -> list[Tensor]:
    """Parameters in two number formats, which share no launch."""
    return [*parameters(torch.float32), *parameters(torch.float64, seed=1)]


def failing(function: Callable[..., Any], on_call: int) -> Callable[..., Any]:
    """Return the function, with one call that Ctrl-C stops before it has done anything."""
    calls = 0

    def wrapped(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == on_call:
            raise KeyboardInterrupt
        return function(*arguments)

    return wrapped


def assert_goes_on_as_if_never_stopped(
    config: Config, params: list[Tensor], optimizer: torch.optim.Optimizer, **options: Any
) -> None:
    alone = of_two_batches()
    truth = config(alone, **options)
    train(truth, alone, range(3))
    train(optimizer, params, range(3))
    assert equal(values(params), values(alone))
    assert_same_state(optimizer.state_dict()["state"], truth.state_dict()["state"])


@pytest.mark.parametrize(
    ("config", "kernel"),
    [
        *((config, "update_kernel") for config in CONFIGS),
        *((config, "norm_kernel") for config in CONFIGS if config.has_buffer),
    ],
    ids=str,
)
def test_ctrl_c_while_the_second_kernel_compiles(
    config: Config, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = of_two_batches()
    start, optimizer = values(params), config(params)
    with monkeypatch.context() as patch:
        patch.setattr(cpu, kernel, failing(getattr(cpu, kernel), 2))
        set_gradients(params, 0)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    assert equal(values(params), start)
    assert all(state["step"] == 0 for state in optimizer.state.values())
    assert_goes_on_as_if_never_stopped(config, params, optimizer)


@pytest.mark.parametrize(
    "options", [{}, {"fused": False}, {"capturable": True}], ids=["fused", "eager", "capturable"]
)
@pytest.mark.parametrize("missing", [False, True], ids=["all", "some"])
def test_an_error_while_norms_are_summed(
    options: dict[str, Any], missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another process has gone, in the first step or in a later one."""
    params = of_two_batches()
    optimizer = Config("AdamCM", {"capacity": 2})(params, **options)
    for t in range(2):
        set_gradients(params, t)
        if missing and t:
            params[1].grad = params[-1].grad = None
        before, state = values(params), copy.deepcopy(optimizer.state_dict()["state"])
        with monkeypatch.context() as patch:
            patch.setattr(Norms, "whole", failing(Norms.whole, 1))
            with pytest.raises(KeyboardInterrupt):
                optimizer.step()
        assert equal(values(params), before)
        if t:
            assert_same_state(optimizer.state_dict()["state"], state)
        assert all(state["step"] == t for state in optimizer.state.values())
        optimizer.step()


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("name", ["DualAdam", "AdamCM"])
def test_plain_torch_counts_what_it_has_stepped(
    name: str, capturable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may run out at any row: those before it have been stepped, and are counted."""
    config, params, alone = Config(name), of_two_batches(), of_two_batches()
    optimizer = config(params, fused=False, capturable=capturable)
    truth = config(alone, fused=False, capturable=capturable)
    set_gradients(params, 0)
    with monkeypatch.context() as patch:
        patch.setattr(eager, "load_state", failing(eager.load_state, 2 * 2 + 1))
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    set_gradients(alone, 0)
    truth.step()
    stepped = [bool((optimizer.state[p]["step"] == 1).item()) for p in params]
    assert stepped == [True, True, *[False] * 6]
    assert equal(values(params[:2]), values(alone[:2]))
    assert equal(values(params[2:]), values(of_two_batches()[2:]))


@pytest.mark.parametrize("missing", [False, True], ids=["all", "some"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_ctrl_c_during_a_kernel_is_raised_when_it_has_ended(
    config: Config, missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameters have been updated by then, and are counted, buffers and means included."""
    params, alone = parameters(torch.float32), parameters(torch.float32)
    optimizer, truth = config(params), config(alone)
    stopping = False

    def run(kernel: Native, arguments: int) -> None:
        kernel.call(arguments)
        if stopping and kernel.address == update.address:
            raise KeyboardInterrupt

    threads = openmp.Threads(1, 0, lambda kernel, arguments: partial(run, kernel, arguments))
    monkeypatch.setattr(openmp, "threads", lambda *_: threads)
    kernels: list[Native] = []

    def noted(*arguments: Any, kernel_of: Callable[..., Native] = cpu.update_kernel) -> Native:
        kernels.append(kernel_of(*arguments))
        return kernels[-1]

    monkeypatch.setattr(cpu, "update_kernel", noted)
    for t in range(4):
        for these, by in ((alone, truth), (params, optimizer)):
            set_gradients(these, t)
            if missing and t:
                these[t - 1].grad = None
            stopping = these is params and t > 0
            update = kernels[0] if kernels else None
            try:
                by.step()
            except KeyboardInterrupt:
                assert stopping
            else:
                assert not stopping
    assert equal(values(params), values(alone))
    assert_same_state(optimizer.state_dict()["state"], truth.state_dict()["state"])


def interrupted_at(call: int, step: Callable[[], Any]) -> bool:
    """Take a step, and raise Ctrl-C at a call or return, where Python raises a signal's too."""
    seen, is_over = 0, False

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal seen
        # Of functions in C it raises a signal's when they have returned.
        seen += event != "c_call"
        if seen == call and not is_over:
            raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        step()
        is_over = True
    except KeyboardInterrupt:
        is_over = True
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.parametrize(
    ("config", "options"),
    [
        *((config, {}) for config in [*CONFIGS, ROUNDED]),
        *((config, {"fused": False}) for config in CONFIGS[1:]),
        (CONFIGS[-1], {"capturable": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("missing", [False, True], ids=["all", "some"])
def test_wherever_it_is_stopped_each_parameter_is_stepped_or_not(
    config: Config, missing: bool, options: dict[str, Any]
) -> None:
    params = parameters(torch.float32)[:3]
    optimizer = config(params, **options)
    train(optimizer, params, range(3))
    if missing:
        params[1].grad = None
    assert_each_is_stepped_or_not(params, optimizer, optimizer.step)


def test_offload_hands_on_what_was_stepped_before_it_was_stopped() -> None:
    params = parameters(torch.float32)[:3]
    optimizer = Offload(params, steppe.DualAdam)
    train(optimizer, params, range(3))
    assert_each_is_stepped_or_not(params, optimizer, optimizer.step)


def test_a_first_step_of_offload_that_is_stopped_keeps_its_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params, alone = parameters(torch.float32), parameters(torch.float32)
    optimizer, truth = Offload(params, steppe.DualAdam), steppe.DualAdam(alone)
    with monkeypatch.context() as patch:
        patch.setattr(Offload, "_take_back", failing(Offload._take_back, 1))
        with pytest.raises(KeyboardInterrupt):
            train(optimizer, params, range(1))
    train(optimizer, params, range(1, 3))
    train(truth, alone, range(3))
    assert equal(values(params), values(alone))
    assert_same_state(optimizer.state_dict()["state"], truth.state_dict()["state"])


def test_sam_leaves_nothing_perturbed_wherever_it_is_stopped() -> None:
    params = parameters(torch.float32)[:3]
    sam = steppe.SAM(steppe.DualAdam(params))

    def closure() -> Tensor:
        sam.zero_grad()
        loss = torch.stack([param.cos().sum() for param in params]).sum()
        loss.backward()
        return loss

    sam.step(closure)
    assert_each_is_stepped_or_not(params, sam, lambda: sam.step(closure))


def assert_each_is_stepped_or_not(
    params: list[Tensor], optimizer: torch.optim.Optimizer, step: Callable[[], Any]
) -> None:
    """Stop a step at every call, and compare each parameter with before and after a whole one.

    Those without a gradient stay as they are.
    """
    is_still = [param.grad is None for param in params]
    step()
    each = [[param.data, *optimizer.state[param].values()] for param in params]
    before = [[tensor.clone() for tensor in tensors] for tensors in each]
    step()
    after = [[tensor.clone() for tensor in tensors] for tensors in each]
    assert [equal(*pair) for pair in zip(before, after, strict=True)] == is_still
    outcomes = set()
    is_stopped, call = True, 0
    while is_stopped:
        for tensors, old in zip(each, before, strict=True):
            for tensor, value in zip(tensors, old, strict=True):
                # Not seen as a user's change, for which the step would be planned anew.
                tensor.data.copy_(value)
        call += 1
        is_stopped = interrupted_at(call, step)
        assert torch.is_grad_enabled()
        for tensors, *known in zip(each, before, after, strict=True):
            is_taken = [equal(tensors, values) for values in known]
            assert any(is_taken), call
            outcomes.add(tuple(is_taken))
    assert outcomes >= {(True, False), (False, True)}
