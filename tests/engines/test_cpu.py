"""The Numba engine: parity with plain torch, and what a process may do to it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from matrix import CONFIGS, Config, equal, parameters, set_gradients, train, values
from steppe.engines import codegen, cpu

SHAPES = [(301,), (3, 4), ()]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_each_step_is_plain_torchs(config: Config) -> None:
    """From equal state, 1e-6 relative in float32, over 200 steps."""
    ours, theirs = (parameters(torch.float32, SHAPES) for _ in range(2))
    fused, eager = config(ours, fused=True), config(theirs, fused=False)
    for t in range(200):
        set_gradients(ours, t)
        for p, q in zip(ours, theirs, strict=True):
            q.data.copy_(p.detach())
            q.grad = p.grad.clone()
            for name, value in fused.state[p].items():
                eager.state[q][name].copy_(value)
        fused.step()
        eager.step()
        gradients = [p.grad for p in ours]
        assert_close(ours, theirs, gradients)
        for name in fused.state[ours[0]]:
            assert_close(
                *([o.state[p][name] for p in ps] for o, ps in ((fused, ours), (eager, theirs)))
            )


def assert_close(ours: list[Tensor], theirs: list[Tensor], gradients: list[Tensor] = ()) -> None:
    """Compare norms, so that an element near zero need not be right to its own last digit.

    Where terms cancel, their rounding is relative to them: the gradient's size stands for theirs.
    """
    a, b, g = (
        torch.cat([torch.nan_to_num(x.detach().double(), neginf=-1.0).ravel() for x in tensors])
        for tensors in (ours, theirs, gradients or theirs)
    )
    assert (a - b).norm() <= 1e-6 * max(b.norm(), 0.3 * g.norm())


@pytest.mark.parametrize("name", ["DualAdam", "AdamCM", "SGDCG"])
def test_results_do_not_depend_on_the_number_of_threads(name: str) -> None:
    ends = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        params = parameters(torch.float32, [(3 * cpu.CHUNK + 7,), (5,)])
        train(Config(name)(params, fused=True), params, range(8))
        ends.append(values(params))
    torch.set_num_threads(1)
    assert equal(*ends)
    params = parameters(torch.float32, [(3 * cpu.CHUNK + 7,), (5,)])
    train(Config(name)(params, fused=False), params, range(8))
    assert_close(ends[0], params)


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
    for p in (*params, *alone):  # another format, which plain torch takes
        p.data = p.data.to(torch.bfloat16)
        p.grad = None
    both(range(8, 10))
    assert optimizer.engine == "eager"


def test_a_forked_process_goes_on_in_plain_torch() -> None:
    params, alone = parameters(torch.float32), parameters(torch.float32)
    optimizer, truth = Config("AdamCM")(params), Config("AdamCM")(alone)
    train(optimizer, params, range(3))
    train(truth, alone, range(6))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        train(optimizer, params, range(3, 6))
        close = all((p - q).abs().max() < 1e-5 for p, q in zip(params, alone, strict=True))
        os.write(writing, f"{optimizer.engine} {close}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"eager True"


RUN = """
import torch, steppe
from steppe.engines.codegen import kernels
p = torch.ones(5, requires_grad=True)
p.grad = torch.ones(5)
optimizer = steppe.InvAdam([p], fused=True)
optimizer.step()
hits = kernels(optimizer._demand(optimizer.param_groups[0]).kernel, "float32").update.stats
print(sum(hits.cache_hits.values()))
"""


def test_kernels_are_compiled_once_and_kept(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    found = [
        subprocess.run(
            [sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert found == ["0", "1"]
    assert len(list((tmp_path / "steppe").glob("steppe_inv_adam_float32_*.py"))) == 1


def test_kernels_go_elsewhere_where_the_cache_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    elsewhere = codegen._directory.__wrapped__()
    assert elsewhere.is_dir()
    assert elsewhere.stat().st_mode & 0o077 == 0
    elsewhere.rmdir()


def test_what_it_does_not_take_is_said() -> None:
    gaps = torch.zeros(4, 4)[:, ::2].requires_grad_()
    with pytest.raises(RuntimeError, match="gaps between its elements"):
        Config("DualAdam")([gaps], fused=True)
    with pytest.raises(RuntimeError, match="capturable or differentiable"):
        Config("DualAdam")(parameters(), fused=True, capturable=True)
