"""The Numba engine: parity with plain torch, and what a process may do to it."""

import gc
import os
import subprocess
import sys
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.optimizer_configs import (
    CONFIGS,
    Config,
    assert_close,
    equal,
    parameters,
    set_gradients,
    step_from_equal_state,
    train,
    values,
)
from steppe._engines.cpu import engine as cpu
from steppe._engines.cpu import openmp
from steppe._engines.cpu.compile_cache import norm_kernel
from steppe._engines.cpu.table import CHUNK

SHAPES = [(301,), (3, 4), ()]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_each_step_is_plain_torchs(config: Config) -> None:
    """From equal state, 1e-6 relative in float32, over 200 steps."""
    ours, theirs = (parameters(torch.float32, SHAPES) for _ in range(2))
    fused, eager = config(ours, fused=True), config(theirs, fused=False)
    for t in range(200):
        step_from_equal_state(fused, eager, ours, theirs, t)
        gradients = [p.grad for p in ours]
        assert_close(ours, theirs, gradients)
        if t % 10 and t > 10:
            continue
        for name in fused.state[ours[0]]:
            assert_close(
                *([o.state[p][name] for p in ps] for o, ps in ((fused, ours), (eager, theirs)))
            )


FORMATS = [
    (torch.float32, torch.bfloat16),
    (torch.float32, "int8"),
    (torch.float64, "int8"),
    (torch.bfloat16, None),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, None),
]
LARGE = [(70, 61), (33,), ()]


# Every rule with one of the two that are read and written most differently; one with and one
# without a buffer with all.
REPRESENTATIVE = [Config("DualAdam", {"lr": 0.01}), Config("AdamCM", {"lr": 0.01, "capacity": 2})]
CASES = [(c, *FORMATS[1 + 3 * (i % 2)]) for i, c in enumerate(CONFIGS)]
CASES += [(c, *each) for c in REPRESENTATIVE for each in FORMATS]


@pytest.mark.parametrize(("config", "dtype", "state_dtype"), CASES, ids=str)
def test_each_step_is_plain_torchs_in_every_number_format(
    config: Config, dtype: torch.dtype, state_dtype: Any
) -> None:
    """From equal state; a last digit apart, a number may be rounded up here and down there."""
    ours, theirs = (parameters(dtype, LARGE) for _ in range(2))
    fused = config(ours, fused=True, state_dtype=state_dtype)
    eager = config(theirs, fused=False, state_dtype=state_dtype)
    for t in range(8):
        step_from_equal_state(fused, eager, ours, theirs, t)
        assert fused.engine == "cpu"
        for p, q in zip(ours, theirs, strict=True):
            assert_alike(p.detach(), q.detach())
            for name, value in fused.state[p].items():
                assert_alike(value, eager.state[q][name])


def assert_alike(a: Tensor, b: Tensor) -> None:
    """Equal, but for one in a thousand numbers that may be the next one."""
    assert a.dtype == b.dtype
    if a.dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)
        return
    differ = a != b
    assert differ.sum() <= max(1, a.numel() // 1000)
    if a.dtype == torch.uint8:
        assert ((a[differ].int() - b[differ].int()).abs() <= 1).all()
    else:
        spacing = torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
        torch.testing.assert_close(a, b, rtol=1.01 * spacing, atol=1e-6)


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16, "int8"], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        Config("DualAdam"),
        Config("DualAdam", {"scale_free": True}),
        Config("AdamCM", {"capacity": 2}),
        Config("SGDCG", {"scope": "tensor"}),
    ],
    ids=str,
)
def test_results_do_not_depend_on_the_threads(
    config: Config, state_dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One or two of torch's, three of Python's, and three queues of which one is worked on."""

    def path() -> list[Tensor]:
        params = parameters(torch.float32, [(3 * CHUNK + 7,), (5,), (0,), (CHUNK,)])
        optimizer = config(params, fused=True, state_dtype=state_dtype)
        train(optimizer, params, range(4))
        return values(params) + [x for p in params for x in optimizer.state[p].values()]

    alone = path()
    torch.set_num_threads(2)
    assert equal(path(), alone)
    in_pool = openmp.pool_threads(3)
    one_of_three = openmp.Threads(3, 0, lambda kernel, *arguments: partial(kernel.call, *arguments))
    for threads in (in_pool, one_of_three):
        monkeypatch.setattr(openmp, "threads", lambda *_, threads=threads: threads)
        assert equal(path(), alone)
    torch.set_num_threads(1)


def test_a_kernel_lives_as_long_as_what_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that begin together load one each, and the cache keeps that of the last alone."""
    loaded: list[Any] = []

    def load(*arguments: Any) -> Any:
        kernel = norm_kernel.__wrapped__(*arguments)
        loaded.append(weakref.ref(kernel))
        return kernel

    config = Config("AdamCM", {"capacity": 2})
    optimizers = [(config(params), params) for params in (parameters(), parameters())]
    torch.set_num_threads(2)
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "norm_kernel", load)
        for optimizer, params in optimizers:
            train(optimizer, params, range(1))
    torch.set_num_threads(1)
    gc.collect()
    assert len(loaded) >= 2
    assert all(kernel() is not None for kernel in loaded)


@pytest.mark.parametrize("name", ["DualAdam", "AdamCM"])
def test_a_grad_scaler_leaves_its_work_to_the_kernel(name: str) -> None:
    """As if the gradients had been unscaled before, and skipped where one is infinite."""
    params, plain = parameters(torch.float32), parameters(torch.float32)
    optimizer, truth = Config(name)(params, fused=True), Config(name)(plain, fused=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    for t in range(6):
        set_gradients(plain, t)
        truth.step()
        for overflow in (True, False) if t == 3 else (False,):
            set_gradients(params, t)
            scaler.scale(torch.ones(()))
            for p in params:
                p.grad *= float("inf") if overflow else scaler.get_scale()
            before = values(params)
            scaler.step(optimizer)
            scaler.update()
            assert equal(before, params) == overflow
    assert_close(params, plain)
    assert all(state["step"] == 6 for state in optimizer.state.values())


def test_a_grad_scaler_unscales_where_no_kernel_is_demanded() -> None:
    """Others may clip in between, and need the gradients as they are."""
    assert not Config("DualAdam")(parameters())._step_supports_amp_scaling
    assert Config("DualAdam")(parameters(), fused=True)._step_supports_amp_scaling


def test_a_stopped_step_leaves_no_scale_to_the_next() -> None:
    """Which may have no scaler: its gradients would be divided by the scale."""
    params, plain = parameters(torch.float32), parameters(torch.float32)
    optimizer, truth = Config("DualAdam")(params, fused=True), Config("DualAdam")(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    set_gradients(params, 0)
    optimizer.param_groups[0]["lr"] = "1e-3"
    with pytest.raises(ValueError, match="lr='1e-3' is not valid"):
        scaler.step(optimizer)
    optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"]
    for each, tensors in ((optimizer, params), (truth, plain)):
        set_gradients(tensors, 0)
        each.step()
    assert equal(params, plain)


def test_tensors_may_move_and_change_format_between_steps() -> None:
    params, alone = parameters(torch.float32), parameters(torch.float32)
    optimizer, eager = Config("AdamCM")(params), Config("AdamCM")(alone, fused=False)

    def both(steps: range) -> None:
        for tensors, each in ((params, optimizer), (alone, eager)):
            train(each, tensors, steps)
        assert_close(params, alone)

    both(range(4))
    for p in params:  # new storage
        p.data = p.data.clone()
        optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].clone()
        optimizer.state[p]["slot_1"] = optimizer.state[p]["slot_1"].clone()
    both(range(4, 8))
    for p in (*params, *alone):  # another format
        p.data = p.data.double()
        p.grad = None
    both(range(8, 10))


def test_a_forked_process_goes_on_in_one_thread() -> None:
    """The parent's threads are gone there, and OpenMP would wait for them."""
    torch.set_num_threads(2)
    params, alone = parameters(torch.float32), parameters(torch.float32)
    optimizer, truth = Config("AdamCM")(params), Config("AdamCM")(alone)
    train(optimizer, params, range(3))
    train(truth, alone, range(6))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(2)
        train(optimizer, params, range(3, 6))
        count = openmp.threads(2, os.getpid()).count
        os.write(writing, f"{optimizer.engine} {count} {equal(params, alone)}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    torch.set_num_threads(1)
    assert os.read(reading, 100) == b"cpu 1 True"


_FORKED_AFTER_TORCHS_THREADS = """
import os, signal, torch
import steppe

torch.set_num_threads(2)
torch.ones(2000, 2000).sum()
child = os.fork()
if child == 0:
    signal.alarm(60)  # in seconds: a child that hangs ends
    torch.set_num_threads(2)
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimizer = steppe.DualAdam([p])
    optimizer.step()
    os._exit(0 if optimizer.engine == "cpu" and not torch.equal(p, torch.ones(3)) else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.thorough
def test_a_process_forked_after_torch_has_started_its_threads() -> None:
    """Engines are first used, and so imported, in the child."""
    done = subprocess.run(
        [sys.executable, "-c", _FORKED_AFTER_TORCHS_THREADS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "0\n", done.stderr


def test_without_numba_s_compiler_steps_are_plain_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.config.DISABLE_JIT", True)
    assert Config("DualAdam")(parameters()).engine == "eager"
    with pytest.raises(RuntimeError, match="cpu: NUMBA_DISABLE_JIT switches the compiler off"):
        Config("DualAdam")(parameters(), fused=True)


def test_a_process_without_numba_s_compiler_steps() -> None:
    script = (
        "import steppe, torch; p = torch.ones(3, requires_grad=True); p.grad = torch.ones(3); "
        "optimizer = steppe.DualAdam([p]); optimizer.step(); print(optimizer.engine, p[0].item())"
    )
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "eager 0.9990000128746033\n", done.stderr


def test_what_it_does_not_take_is_said() -> None:
    gaps = torch.zeros(4, 4)[:, ::2].requires_grad_()
    with pytest.raises(RuntimeError, match="gaps between its elements"):
        Config("DualAdam")([gaps], fused=True)
    with pytest.raises(RuntimeError, match="capturable or differentiable"):
        Config("DualAdam")(parameters(), fused=True, capturable=True)
