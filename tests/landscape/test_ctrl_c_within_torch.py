"""Ctrl-C in the middle of what torch does leaves torch, the model and later calls as they were."""

import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward
import torch.nn.functional as F
import torch.nn.utils._named_member_accessor as accessor
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.utils.data import DataLoader

from steppe.landscape import hessian, sharpness, trace

X, Y = torch.linspace(-1, 1, 40).reshape(10, 4), torch.arange(10) % 3
DATA = [(X[:5], Y[:5]), (X[5:], Y[5:])]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def interrupt(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Let a Ctrl-C come before the given call of a function."""
    function, calls = getattr(owner, name), 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGINT)
        return function(*args, **kwargs)

    patch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("call", [1, 3, 5, 8, 9, 14])
def test_parameters_stay_the_models_own(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    own = list(model.parameters())
    operator = hessian(model, F.cross_entropy, DATA, product="forward-over-reverse")
    before = operator.matvec(torch.ones(operator.size))
    with monkeypatch.context() as patch:
        interrupt(patch, accessor, "swap_tensor", call)
        with pytest.raises(KeyboardInterrupt):
            operator.matvec(torch.ones(operator.size))
    assert [id(now) for now in model.parameters()] == [id(then) for then in own]
    assert torch.equal(operator.matvec(torch.ones(operator.size)), before)


@pytest.mark.parametrize("name", ["enter_dual_level", "exit_dual_level", "make_dual"])
def test_no_dual_level_stays_open(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = hessian(network(), F.cross_entropy, DATA, product="forward-over-reverse")
    before = operator.matvec(torch.ones(operator.size))
    with monkeypatch.context() as patch:
        interrupt(patch, forward, name, 1)
        with pytest.raises(KeyboardInterrupt):
            operator.matvec(torch.ones(operator.size))
    assert forward._current_level == -1
    assert torch.equal(operator.matvec(torch.ones(operator.size)), before)


def test_a_weight_normed_model_sets_no_function_mode() -> None:
    seen = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(function_modes()))
        return F.cross_entropy(outputs, targets)

    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    hessian(model, loss_fn, DATA).matvec(torch.ones(18))
    assert set(seen) == {0}


def test_ctrl_c_ends_the_wait_for_a_batch_at_once() -> None:
    fetched = []

    class Slow(list[Any]):
        def __iter__(self) -> Any:
            signal.raise_signal(signal.SIGINT)
            fetched.append(1)
            yield DATA[0]

    with pytest.raises(KeyboardInterrupt):
        hessian(network(), F.cross_entropy, Slow(DATA)).matvec(torch.ones(43))
    assert not fetched


def test_groups_of_samples_can_be_stopped_between_their_batches() -> None:
    calls = 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        signal.raise_signal(signal.SIGINT)
        return F.cross_entropy(outputs, targets)

    single = DataLoader(list(zip(X, Y, strict=True)), batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        sharpness(network(), loss_fn, single, m=10, weight="samples")
    assert calls < 4


def test_what_torch_imports_at_first_use_is_imported_whole() -> None:
    code = (
        "import builtins, signal, torch\n"
        "from torch import nn\n"
        "from steppe.landscape import hessian\n"
        "own, done = builtins.__import__, []\n"
        "def imported(name, *rest):\n"
        "    if name.startswith('sympy.polys') and not done:\n"
        "        done.append(name)\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    return own(name, *rest)\n"
        "builtins.__import__ = imported\n"
        "data = [(torch.ones(2, 1), torch.ones(2, 1))]\n"
        "H = hessian(nn.Linear(1, 1), nn.MSELoss(), data)\n"
        "try:\n"
        "    H.matvec(torch.ones(2))\n"
        "except KeyboardInterrupt:\n"
        "    assert done\n"
        "print(H.matvec(torch.ones(2)).tolist())\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[4.0, 4.0]", "")


def global_state() -> list[Any]:
    cuda = torch.backends.cuda
    return [
        torch.backends.mha.get_fastpath_enabled(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        torch.utils.checkpoint._checkpoint_without_reentrant_generator,
        vars(torch.utils.checkpoint.CheckpointFunction).get("apply"),
        torch._weight_norm,
    ]


def test_threads_that_measure_at_once_leave_torch_as_it_was() -> None:
    before, models = global_state(), [network(), network()]
    meeting = threading.Barrier(2, timeout=0.5)
    alone = [trace(hessian(model, F.cross_entropy, DATA), products=9).value for model in models]

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        # Two threads inside of one measurement would meet here.
        try:
            meeting.wait()
        except threading.BrokenBarrierError:
            meeting_failed.append(1)
        return F.cross_entropy(outputs, targets)

    meeting_failed: list[int] = []
    found: dict[int, float] = {}

    def measure(index: int) -> None:
        operator = hessian(models[index], loss_fn, DATA, weight="samples")
        found[index] = trace(operator, products=9).value

    threads = [threading.Thread(target=measure, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert meeting_failed
    assert [found[0], found[1]] == alone
    assert global_state() == before
