"""The Triton engine on a GPU: launches, synchronisation, CUDA graphs. Parity is test_gpu.py's."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from helpers.no_synchronisation import no_synchronisation
from helpers.optimizer_configs import Config, equal, parameters, set_gradients, train, values

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SHAPES = [(64, 3, 7, 7), (64,), (512, 64, 3, 3), (1000, 512), (1000,), (), (4097,)]
ADAM = Config("DualAdam", {"weight_decay": 0.1, "switch_rate": 0.01})
CONFIGS = [
    ADAM,
    Config("DualAdam", {"switch_rate": 0.01, "scale_free": True}),
    Config("DualAdam", {"state_dtype": "int8"}),
    Config("AdamCM", {"capacity": 2}),
    Config("AdamCM", {"capacity": 2, "state_dtype": torch.bfloat16}),
    Config("SGDCG", {"capacity": 2, "scope": "tensor"}),
]
WEIGHTS_OF_24_BITS = Config("AdamCM", {"param_error": "int8", "state_dtype": "int8"})


def leaves(
    shapes: list[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    return parameters(dtype, shapes, device="cuda")


def kernels(optimizer: torch.optim.Optimizer) -> list[str]:
    """Return what one step launches, copies aside."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        optimizer.step()
        torch.cuda.synchronize()
    on_device = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    # torch marks the step itself, on the device too.
    launched = [event.name for event in on_device if not event.is_user_annotation]
    return [name for name in launched if not name.startswith("Mem")]


@pytest.mark.parametrize("config", [*CONFIGS, WEIGHTS_OF_24_BITS], ids=str)
@pytest.mark.parametrize("capturable", [False, True])
def test_nothing_is_read_back(config: Config, capturable: bool) -> None:
    has_error = "param_error" in config.options
    params = leaves(dtype=torch.bfloat16 if has_error else torch.float32)
    optimizer = config(params, fused=True, capturable=capturable)
    train(optimizer, params, range(2))
    set_gradients(params, 2)
    optimizer.param_groups[0]["lr"] *= 0.5
    with no_synchronisation():
        optimizer.step()


def test_a_step_is_one_launch() -> None:
    params = leaves(SHAPES * 9)
    optimizer = ADAM([{"params": [p], "lr": 1e-3 * i} for i, p in enumerate(params)], fused=True)
    train(optimizer, params, range(2))
    set_gradients(params, 2)
    assert kernels(optimizer) == ["update"]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_squares_take_one_more(config: Config) -> None:
    params = leaves()
    optimizer = config(params, fused=True)
    train(optimizer, params, range(2))
    set_gradients(params, 2)
    found = kernels(optimizer)
    needs_squares = config.has_buffer or config.options.get("scale_free", False)
    state_formats = {value.dtype for p in params for value in optimizer.state[p].values()}
    batches = 2 if torch.uint8 in state_formats else 1
    assert found.count("update") == batches
    assert found.count("reduce") == batches * needs_squares


class Captured:
    """A forward and backward pass and a step, in one CUDA graph."""

    def __init__(self, config: Config, params: list[Tensor], **options: Any) -> None:
        self.params, self.t = params, torch.zeros((), device="cuda")
        self.optimizer = config(params, capturable=True, **options)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.pass_()
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.pass_()

    def pass_(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.t += 1.0
        loss = sum((3.0 * p + i + 0.7 * self.t).sin().sum() for i, p in enumerate(self.params))
        loss.backward()
        self.optimizer.step()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_graphs_replay_the_step(config: Config) -> None:
    ours, theirs = leaves(), leaves()
    captured = Captured(config, ours, fused=True, lr=torch.tensor(0.01, device="cuda"))
    plain = Captured(config, theirs, fused=False, lr=torch.tensor(0.01, device="cuda"))
    for _ in range(3):
        captured.graph.replay()
        plain.graph.replay()
        for each in (captured, plain):
            each.optimizer.param_groups[0]["lr"].mul_(0.5)
    for p, q in zip(ours, theirs, strict=True):
        assert (p - q).norm() <= 1e-5 * q.norm()
    assert all(state["step"] == 6 for state in captured.optimizer.state.values())


def test_graphs_outlive_steps_beside_them() -> None:
    """Whatever is stepped in between, a replay finds what it was captured with."""
    ours, theirs = leaves(), leaves()
    captured = Captured(ADAM, ours, fused=True)
    for _ in range(3):
        captured.graph.replay()
        ours[0].grad, kept = torch.ones_like(ours[0]), [p.grad for p in ours]
        for p in ours[1:]:
            p.grad = None
        captured.optimizer.step()
        for p, grad in zip(ours, kept, strict=True):
            p.grad = grad
    optimizer = ADAM(theirs, fused=True, capturable=True)
    beside = Captured.__new__(Captured)
    beside.params, beside.optimizer, beside.t = theirs, optimizer, torch.zeros((), device="cuda")
    for _ in range(3):
        beside.pass_()
    for _ in range(3):
        beside.pass_()
        optimizer.zero_grad(set_to_none=True)
        theirs[0].grad = torch.ones_like(theirs[0])
        optimizer.step()
    assert equal(values(ours), values(theirs))


def test_capture_demands_capturable() -> None:
    params = leaves()
    optimizer = ADAM(params, fused=True)
    train(optimizer, params, range(2))
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="capturable=True"), torch.cuda.graph(graph):
        optimizer.step()
