"""What footprint counts is what optimizers allocate, and what processes send."""

import functools
import gc
import importlib.util
import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

import steppe
from helpers.optimizer_configs import CONFIGS, NAMES
from helpers.process_group import join, leave, results_of_two
from steppe._engines.base.number_formats import BLOCK
from steppe.optim import ByteCounts, footprint

ROOT = Path(__file__).parents[2]
FORMATS: tuple[Any, ...] = (None, torch.bfloat16, "int8")
#: 8 bits from 4096 elements on; of the last, the second of two processes holds nothing.
SHAPES = [(1501, 3), (4097,), (70, 60), (5,), (1, 300)]
OFFLOADED = steppe.optim.Offload([torch.nn.Parameter(torch.ones(5))], steppe.AdamCM)

TORCH: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": torch.optim.SGD,
    "SGD momentum": functools.partial(torch.optim.SGD, momentum=0.9),
    "AdamW": torch.optim.AdamW,
    "AdamW amsgrad": functools.partial(torch.optim.AdamW, amsgrad=True),
    "RMSprop": functools.partial(torch.optim.RMSprop, centered=True, momentum=0.9),
    "NAdam": torch.optim.NAdam,
}
WRAPPED: dict[str, Callable[[Any], Optimizer]] = {
    "SAM": lambda params: steppe.SAM(torch.optim.AdamW(params)),
    "SAM of AdamCM": lambda params: steppe.SAM(steppe.AdamCM(params, capacity=2)),
}


MAKERS = {
    f"{config}, {state_dtype}": functools.partial(config, state_dtype=state_dtype, fused=False)
    for config, state_dtype in itertools.product(CONFIGS, FORMATS)
} | TORCH
#: One of each kind, for two processes.
SHARDED = {
    **{
        f"{name}, {state_dtype}": functools.partial(getattr(steppe, name), state_dtype=state_dtype)
        for name, state_dtype in itertools.product(NAMES, FORMATS)
    },
    "AdamCM of tensors": functools.partial(steppe.AdamCM, scope="tensor"),
    "DualAdam, scale-free": functools.partial(steppe.DualAdam, scale_free=True),
    **WRAPPED,
    "AdamW": TORCH["AdamW"],
}


def tensors(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    params = [torch.ones(shape, dtype=dtype, requires_grad=True) for shape in SHAPES]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


def local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def size(values: Iterable[Any]) -> int:
    return sum(local(value).nbytes for value in values if isinstance(value, Tensor))


def state_size(optimizer: Optimizer) -> int:
    return sum(size(state.values()) for state in optimizer.state.values())


@pytest.mark.parametrize("name", MAKERS)
def test_one_device_holds_what_is_counted(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.complex64):
        params = tensors(dtype)
        optimizer = MAKERS[name](params)
        optimizer.step()
        held = ByteCounts(size(params), size(p.grad for p in params), state_size(optimizer))
        counted = footprint(SHAPES, MAKERS[name], 1, dtype=dtype)
        assert counted.numel == sum(param.numel() for param in params)
        assert counted.fsdp.device == counted.fsdp.everywhere == counted.ddp.device == held
        assert counted.fsdp.sent == counted.ddp.sent == ByteCounts(0, 0, 0)


@pytest.mark.parametrize("name", WRAPPED)
def test_the_copy_of_sam_is_counted(name: str) -> None:
    params = tensors()
    sam = WRAPPED[name](params)
    assert isinstance(sam, steppe.SAM)
    sam.required = False
    sam.step()
    before = {id(each) for each in gc.get_objects()}
    sam.perturb()
    new = [x for x in gc.get_objects() if id(x) not in before and isinstance(x, Tensor)]
    # Each parameter's copy is a view of the memory of all.
    memory = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in new if x.numel() > 1}
    copies = sum(each.nbytes() for each in memory.values())
    sam.restore()
    assert footprint(SHAPES, WRAPPED[name], 1).fsdp.device.optimizer == state_size(sam) + copies


def test_the_options_of_an_optimizer_are_taken() -> None:
    model = nn.Sequential(nn.Linear(70, 60), nn.Linear(60, 5))
    matrices = {"params": [model[0].weight, model[1].weight], "state_dtype": "int8"}
    others = {"params": [model[0].bias, model[1].bias], "capacity": 2}
    optimizer = steppe.AdamCM([matrices, others], capacity=3)
    model[1].bias.requires_grad_(False)
    model(torch.ones(2, 70)).sum().backward()
    optimizer.step()
    state = {param: dict(each) for param, each in optimizer.state.items()}
    for each in (optimizer, steppe.SAM(optimizer)):
        held = footprint(model, each, 1).ddp.device
        params = list(model.parameters())
        assert held.parameters == size(params)
        assert held.gradients == size(params[:3])
        copies = held.gradients * isinstance(each, steppe.SAM)
        assert held.optimizer == state_size(optimizer) + copies
    # It is as it was.
    assert optimizer.param_groups[0]["params"][0] is model[0].weight
    assert all(optimizer.state[param][k] is v for param, s in state.items() for k, v in s.items())


def test_an_optimizer_of_another_library_is_not_stepped() -> None:
    params = tensors()
    optimizer = torch.optim.AdamW(params, amsgrad=True)
    torch.optim.lr_scheduler.ConstantLR(optimizer)  # replaces the method step
    before = [param.detach().clone() for param in params]
    counted = footprint(SHAPES, optimizer, 1)
    assert not optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    assert counted == footprint(SHAPES, TORCH["AdamW amsgrad"], 1)


def test_models_shapes_and_numbers_are_counted_alike() -> None:
    with torch.device("meta"):
        model = nn.Linear(300, 200)
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    of_model = footprint(model, steppe.DualAdamCM, 3)
    assert footprint(shapes, steppe.DualAdamCM, 3) == of_model
    assert footprint(iter(shapes.values()), steppe.DualAdamCM, 3) == of_model
    assert footprint(60_200, steppe.InvAdam, 1) == footprint([(60_200,)], steppe.InvAdam, 1)
    half = footprint(model, steppe.InvAdam, 1, dtype=torch.bfloat16)
    assert half == footprint(model.bfloat16(), steppe.InvAdam, 1)


def test_seventy_billions_cost_nothing_to_count() -> None:
    """From the formulas: AdamCM in 8 bits keeps seven bytes a number, and a scale each 256."""
    numel, devices = 70_000_000_000, 512
    counted = footprint(numel, functools.partial(steppe.AdamCM, state_dtype="int8"), devices)
    share = numel // devices
    blocks = -(-share // BLOCK)
    books = 8 + 2 * 5 * 8 + 8
    assert counted.fsdp.device == ByteCounts(
        4 * share, 4 * share, 7 * share + 7 * 4 * blocks + books
    )
    assert counted.fsdp.everywhere.optimizer == devices * counted.fsdp.device.optimizer
    assert counted.ddp.everywhere.optimizer == devices * counted.ddp.device.optimizer
    assert counted.fsdp.sent == ByteCounts(2 * 4 * share * 511, 4 * share * 511, 16)
    assert counted.ddp.sent == ByteCounts(0, 2 * 4 * share * 511, 0)


@pytest.mark.parametrize(
    ("optimizer", "numbers"),
    [
        (steppe.DualAdam, 0),
        (functools.partial(steppe.DualAdam, scale_free=True), 1 + len(SHAPES)),
        (steppe.AdamCM, 1),
        (functools.partial(steppe.AdamCM, capacity=0), 0),
        (functools.partial(steppe.AdamCG, scope="tensor"), 1 + len(SHAPES)),
        (torch.optim.AdamW, 0),
        (WRAPPED["SAM"], 1),
        (WRAPPED["SAM of AdamCM"], 2),
    ],
)
def test_messages_are_of_the_numbers_that_a_method_needs(
    optimizer: Callable[[Any], Optimizer], numbers: int
) -> None:
    counted = footprint(SHAPES, optimizer, 8)
    assert counted.message == 8 * numbers
    assert counted.fsdp.sent.optimizer == 14 * numbers
    assert counted.ddp.sent.optimizer == 0


def test_half_precision_halves_what_fsdp_sends() -> None:
    full = footprint(SHAPES, steppe.AdamCM, 2)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    half = footprint(SHAPES, steppe.AdamCM, 2, mp_policy=policy)
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    sent = footprint(SHAPES, steppe.AdamCM, 2, mp_policy=mixed).fsdp.sent
    assert (half.fsdp.device, half.ddp) == (full.fsdp.device, full.ddp)
    assert 2 * half.fsdp.sent.parameters == 2 * sent.parameters == full.fsdp.sent.parameters
    assert 2 * half.fsdp.sent.gradients == sent.gradients == full.fsdp.sent.gradients


def test_it_prints_as_a_table() -> None:
    lines = str(footprint([(512, 512)], WRAPPED["SAM of AdamCM"], 4)).splitlines()
    assert lines[0] == "262,144 parameters, 4 devices"
    assert lines[2].split() == ["parameters", "256.00", "KiB", "1.00", "MiB", "1.00", "MiB"]
    assert lines[8].split() == ["optimizer", "24", "B", "0", "B"]
    assert {len(line) for line in lines[1:]} == {56}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((SHAPES, steppe.AdamCM, 0), ValueError, "world_size=0"),
        ((SHAPES, steppe.AdamCM, 2.0), ValueError, "world_size=2.0"),
        ((1.5, steppe.AdamCM, 2), TypeError, "model_or_counts=1.5"),
        ((-5, steppe.AdamCM, 2), TypeError, "model_or_counts has"),
        (([100, 200], steppe.AdamCM, 2), TypeError, "model_or_counts has 100"),
        ((SHAPES, "AdamCM", 2), TypeError, "optimizer='AdamCM'"),
        ((SHAPES, list, 2), TypeError, "expected an optimizer"),
        ((SHAPES, OFFLOADED, 2), ValueError, "state is on the host"),
        ((SHAPES, steppe.SAM(OFFLOADED), 2), ValueError, "state is on the host"),
        ((SHAPES, torch.optim.LBFGS, 2), ValueError, "LBFGS.*meta device"),
        ((SHAPES, torch.optim.Adafactor, 2), ValueError, "Adafactor.*meta device"),
    ],
)
def test_what_cannot_be_counted_is_refused(
    arguments: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        footprint(*arguments)


@pytest.mark.parametrize("name", ["dtype", "mp_policy"])
def test_formats_are_not_names(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}='bfloat16' is not valid: expected"):
        footprint(SHAPES, steppe.AdamCM, 2, **{name: "bfloat16"})


def test_groups_of_other_parameters_are_refused() -> None:
    params = tensors()
    optimizer = steppe.AdamCM([{"params": params[:2]}, {"params": params[2:], "capacity": 2}])
    with pytest.raises(ValueError, match="has 2 groups"):
        footprint(SHAPES, optimizer, 2)


def page_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "footprint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.thorough
def test_the_pages_say_what_is_counted() -> None:
    tool = page_tool()
    for name, said in (("scaling", "| 70 B |"), ("critical-momenta", "| C = 10 |")):
        page = (tool.DOCS / f"{name}.md").read_text()
        assert said in page
        assert tool.rewritten(page) == page
        assert tool.rewritten(page.replace(said, "| ? |")) == page
    # The published sizes of Llama 3.2 1B, Llama 3.1 8B and 70B.
    sizes = [sum(map(math.prod, shapes)) for shapes in tool.MODELS.values()]
    assert sizes == [1_235_814_400, 8_030_261_248, 70_553_706_496]


# Two processes

#: Which argument of a collective is what each process gives; the first, of others.
GIVEN = {"_allgather_base_": 1, "_reduce_scatter_base_": 1}


class Sent(TorchDispatchMode):
    """Collects how many bytes a process gives to collectives, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, list[int]] = defaultdict(list)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func._schema.name.split("::")[1]
            given = args[GIVEN.get(name, 0)]
            self.sizes[name].append(size(given if isinstance(given, list) else [given]))
        return func(*args, **(kwargs or {}))


class Model(nn.Module):
    """Uses all of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in SHAPES])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([(x * param.square()).sum() for param in self.all]).sum()


def sent_by_passes(model: nn.Module) -> dict[str, list[int]]:
    with Sent() as sent:
        model(torch.ones(1)).backward()
    return dict(sent.sizes)


def reduced_by_ddp() -> int:
    """Return how many bytes of gradients a process gives to all-reduces."""
    sizes: list[int] = []

    def hook(_: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        sizes.append(bucket.buffer().nbytes)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model = nn.parallel.DistributedDataParallel(Model())
    model.register_comm_hook(None, hook)
    model(torch.ones(1)).backward()
    return sum(sizes)


def sharded(model: nn.Module, make: Callable[[Any], Optimizer]) -> dict[str, Any]:
    """Return what a process holds after a step, and what the next one sends."""
    params = list(model.parameters())
    optimizer, grads = make(params), [param.grad for param in params]
    if isinstance(optimizer, steppe.SAM):
        optimizer.required = False
    optimizer.step()
    with Sent() as sent:
        if isinstance(optimizer, steppe.SAM):
            optimizer.perturb()
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
        optimizer.step()
    held = size(params), size(grads), state_size(optimizer)
    return {"held": held, "sent": dict(sent.sizes)}


def work(rank: int, folder: Path) -> None:
    """Run one of the processes."""
    join(rank, folder, 2)
    model = fully_shard(Model(), mesh=init_device_mesh("cpu", (2,)), reshard_after_forward=True)
    found: dict[str, Any] = {"passes": sent_by_passes(model), "ddp": reduced_by_ddp()}
    found["alike"] = footprint(model, steppe.AdamCM(model.parameters()), 2) == footprint(
        SHAPES, steppe.AdamCM, 2
    )
    found["steps"] = {name: sharded(model, make) for name, make in SHARDED.items()}
    torch.save(found, folder / f"rank{rank}")
    leave()


# One test, since each worker of a parallel run would start processes of its own.
@pytest.mark.thorough
def test_two_processes_hold_and_send_what_is_counted(tmp_path: Path) -> None:
    processes = results_of_two(__file__, tmp_path)
    assert all(each["alike"] for each in processes), "a sharded model is counted otherwise"
    compare_what_passes_send(processes)
    for name in SHARDED:
        compare_what_is_held(name, [each["steps"][name]["held"] for each in processes])
        compare_messages(name, [each["steps"][name]["sent"] for each in processes])


def compare_messages(name: str, processes: list[dict[str, list[int]]]) -> None:
    """Compare what a step sends, which is its message and nothing else."""
    message = footprint(SHAPES, SHARDED[name], 2).message
    reductions = 2 if name == "SAM of AdamCM" else int(message > 0)
    for sent in processes:
        assert sent.keys() <= {"allreduce_"}, name
        assert len(sent.get("allreduce_", [])) == reductions, name
        assert sum(sent.get("allreduce_", [])) == message, name


def compare_what_passes_send(processes: list[dict[str, Any]]) -> None:
    """Each process sends its part in a gather of two, and the other's part in a reduction."""
    counted = footprint(SHAPES, steppe.DualAdam, 2)
    for each in processes:
        assert each["passes"].keys() == {"_allgather_base_", "_reduce_scatter_base_"}
        assert counted.fsdp.sent.parameters == sum(each["passes"]["_allgather_base_"])
        assert counted.fsdp.sent.gradients == sum(each["passes"]["_reduce_scatter_base_"]) // 2
        assert counted.ddp.sent.gradients == each["ddp"]


def compare_what_is_held(name: str, held: list[tuple[int, int, int]]) -> None:
    counted = footprint(SHAPES, SHARDED[name], 2).fsdp
    for expected, real in (
        (counted.device, held[0]),
        (counted.everywhere, tuple(map(sum, zip(*held, strict=True)))),
    ):
        parameters, gradients, state = real
        assert (expected.parameters, expected.gradients) == (parameters, gradients), name
        copies = parameters if name in WRAPPED else 0
        # A part may begin within a block, and so have one more scale than its size tells.
        spare = 4 * 12 * len(SHAPES) if "int8" in name else 0
        assert abs(expected.optimizer - copies - state) <= spare, name


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
