"""Sharded tensors of all kinds, in four processes: the same steps as of whole ones, in one."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

import steppe
from helpers.optimizer_configs import CONFIGS, REPRESENTATIVE, Config
from helpers.process_group import join, leave, results_of

pytestmark = pytest.mark.thorough

Part = tuple[Tensor, tuple[int, ...]]
Outcome = dict[str, Part]

RANKS = 4
STEPS = 7

#: Of each tensor: its shape, the mesh it is on, and how it lies there. Over four processes the
#: first is uneven and leaves one with nothing, the second leaves three with nothing.
MIXED: list[tuple[tuple[int, ...], str, tuple[Any, ...]]] = [
    ((5, 3), "line", (Shard(0),)),
    ((1, 7), "line", (Shard(0),)),
    ((3, 10), "line", (Shard(1),)),
    ((7, 5), "square", (Shard(0), Shard(1))),
    ((9, 2), "square", (Shard(0), Shard(0))),
    ((4, 3), "square", (Replicate(), Shard(0))),
    ((6,), "square", (Shard(0), Replicate())),
    ((2, 3, 6), "line", (Shard(2),)),
    ((3,), "line", (Replicate(),)),
    ((2, 2), "", ()),
    ((), "", ()),
]
#: Larger ones, for number formats: lines of whole blocks, cut by lines and by columns; and others.
ALIGNED = [
    ((7, 1024), "line", (Shard(0),)),
    ((5, 2048), "line", (Shard(1),)),
    ((6, 1024), "square", (Shard(0), Shard(1))),
]
MISALIGNED = [
    ((9, 700), "line", (Shard(0),)),
    ((5, 1300), "line", (Shard(1),)),
    ((4, 5, 331), "line", (Shard(2),)),
    ((4097,), "line", (Shard(0),)),
    ((7, 1001), "square", (Shard(0), Shard(1))),
]
LOW = [
    Config("DualAdam", {"lr": 0.01, "switch_rate": 0.01}),
    Config("AdamCM", {"lr": 0.01, "capacity": 2}),
    Config("AdamCG", {"lr": 0.01, "amsgrad": True, "capacity": 2, "scope": "tensor"}),
]


def random_sam(params: Any, **options: Any) -> Optimizer:
    # The largest seed of all processes counts: the single one that they are compared with has it.
    is_shared = any(isinstance(p, DTensor) for p in params)
    torch.manual_seed(100 + (torch.distributed.get_rank() if is_shared else RANKS - 1))
    return steppe.SAM(params, torch.optim.AdamW, lr=0.05, rho=0.3, direction="random", **options)


ASCENTS: dict[str, Callable[[Any], Optimizer]] = {
    "SAM": lambda params: steppe.SAM(torch.optim.AdamW(params, lr=0.05), rho=0.3),
    "MSAM": lambda params: steppe.SAM(
        steppe.AdamCM(params, lr=0.05, capacity=2), rho=0.3, direction="momentum"
    ),
    "MSAM, torch": lambda params: steppe.SAM(
        params, torch.optim.AdamW, lr=0.05, rho=0.3, direction="momentum", metric="adaptive"
    ),
    "PSAM": lambda params: steppe.SAM(
        params, torch.optim.AdamW, lr=0.05, rho=0.3, metric="preconditioned"
    ),
    "PSAM, 8 bits": lambda params: steppe.SAM(
        params, steppe.DualAdam, lr=0.05, rho=0.3, metric="preconditioned", state_dtype="int8"
    ),
    "random": random_sam,
    "random, adaptive": functools.partial(random_sam, metric="adaptive"),
    "ASAM": lambda params: steppe.SAM(steppe.AdamCM(params, lr=0.05, capacity=2), adaptive=True),
}
ENGINES = {"fused": True, "eager": False}


def in_engines(configs: list[Config], eager: list[Config]) -> list[tuple[Config, str]]:
    """Return all in the fused engine, and some in the eager one: how they are cut is one code."""
    return [*((config, "fused") for config in configs), *((config, "eager") for config in eager)]


def placed(tensor: Tensor, place: tuple[str, tuple[Any, ...]], meshes: dict[str, Any]) -> Tensor:
    mesh, placements = place
    if not mesh or not meshes:
        return tensor
    cut = distribute_tensor(tensor, meshes[mesh], placements, src_data_rank=None)
    return like(cut, cut.to_local().contiguous())


def like(tensor: DTensor, held: Tensor) -> Tensor:
    """Return the sharded tensor of which this process holds a part."""
    where = {"shape": tensor.shape, "stride": tensor.stride()}
    return DTensor.from_local(held, tensor.device_mesh, tensor.placements, run_check=False, **where)


def gradient(p: Tensor, i: int, t: int) -> Tensor:
    """Gradient of a wavy bowl that shifts with the step, element by element."""
    held = p.to_local() if isinstance(p, DTensor) else p
    g = 3.0 * torch.cos(3.0 * held + i + 0.7 * t) + 0.5 * held
    return like(p, g) if isinstance(p, DTensor) else g


def part(tensor: Tensor) -> Part:
    """Return what this process holds of a tensor, and where it begins in the whole."""
    if not isinstance(tensor, DTensor):
        return tensor.clone(), (0,) * tensor.dim()
    place = tensor.shape, tensor.device_mesh, tensor.placements
    return tensor.to_local().clone(), tuple(compute_local_shape_and_global_offset(*place)[1])


def train(
    make: Callable[[Any], Optimizer], kinds: Any, meshes: dict[str, Any], dtype: torch.dtype
) -> Outcome:
    """Return parameters and state; all are whole where there is no mesh."""
    generator = torch.Generator().manual_seed(0)
    params = [
        nn.Parameter(placed(torch.randn(shape, generator=generator).to(dtype), place, meshes))
        for shape, *place in kinds
    ]
    optimizer = make(params)
    for t in range(STEPS):

        def closure(t: int = t) -> None:
            with torch.no_grad():
                for i, p in enumerate(params):
                    p.grad = gradient(p, i, t)

        optimizer.step(closure)
    with torch.no_grad():
        found = {f"{i}": part(p) for i, p in enumerate(params)}
        for i, state in optimizer.state_dict()["state"].items():
            found |= {f"{i} {name}": part(value) for name, value in state.items()}
    told = {name: torch.tensor(value).double() for name, value in optimizer.diagnostics().items()}
    return found | {name: part(value) for name, value in told.items()}


RUNS: dict[str, Callable[[dict[str, Any]], Outcome]] = (
    {
        f"{config}, {engine}": functools.partial(
            train, functools.partial(config, fused=ENGINES[engine]), MIXED, dtype=torch.float32
        )
        for config, engine in in_engines(REPRESENTATIVE, REPRESENTATIVE[1::3])
    }
    | {
        name: functools.partial(train, make, MIXED, dtype=torch.float32)
        for name, make in ASCENTS.items()
    }
    | {
        f"{config}, complex, {engine}": functools.partial(
            train, functools.partial(config, fused=ENGINES[engine]), MIXED, dtype=torch.complex64
        )
        for config, engine in in_engines(CONFIGS[1:4], CONFIGS[1:2])
    }
)


def low(
    config: Config, engine: str, state: Any, kinds: Any, dtype: torch.dtype
) -> Callable[[dict[str, Any]], Outcome]:
    make = functools.partial(config, fused=ENGINES[engine], state_dtype=state)
    return functools.partial(train, make, kinds, dtype=dtype)


#: What is rounded where it lies in the whole tensor, and equal bit for bit.
EXACT = {
    f"{config}, {engine}, {state} state of {dtype}, {name}": low(
        config, engine, state, kinds, dtype
    )
    for config, engine in in_engines(LOW, LOW[1:2])
    for state, dtype, name, kinds in (
        (torch.bfloat16, torch.float32, "misaligned", MISALIGNED),
        (torch.bfloat16, torch.bfloat16, "misaligned", MISALIGNED),
        (None, torch.bfloat16, "mixed", MIXED),
        ("int8", torch.float32, "aligned", ALIGNED),
        ("int8", torch.bfloat16, "aligned", ALIGNED),
    )
}
#: Blocks that are cut have a scale for each part.
CUT = {
    f"{config}, {engine}": low(config, engine, "int8", MISALIGNED, torch.float32)
    for config, engine in in_engines(LOW, LOW[1:2])
}


def work(rank: int, folder: Path) -> None:
    """Run one of the processes."""
    join(rank, folder, RANKS)
    meshes = {
        "line": init_device_mesh("cpu", (RANKS,)),
        "square": init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model")),
    }
    found = {kind: {name: run(meshes) for name, run in runs.items()} for kind, runs in ALL.items()}
    torch.save(found, folder / f"rank{rank}")
    leave()


ALL = {"runs": RUNS, "exact": EXACT, "cut": CUT}

if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))


# One test, since each worker of a parallel run would start processes of its own.
def test_shards_take_the_whole_tensors_steps(tmp_path: Path) -> None:
    ranks = results_of(__file__, tmp_path, RANKS)
    for kind, name in ((kind, name) for kind, runs in ALL.items() for name in runs):
        expected = ALL[kind][name]({})
        for found in (rank[kind][name] for rank in ranks):
            if kind == "cut":
                compare_cut(name, found, expected)
            else:
                compare(name, found, expected, rtol=0.0 if kind == "exact" else 1e-6)


def compare(name: str, found: Outcome, expected: Outcome, rtol: float) -> None:
    assert list(found) == list(expected), name
    for key, (value, _) in expected.items():
        held, place = found[key]
        assert held.dtype == value.dtype, f"{name}: {key}"
        wide = torch.complex128 if held.is_complex() else torch.float64
        ours, theirs = (x.to(wide).nan_to_num(-1.0, neginf=-1.0) for x in (held, value))
        # Norms and means of all, and what is told of them, are added up in another order.
        bound = 1e-12 if held.dtype == torch.float64 and not rtol else rtol
        assert (ours - at(theirs, held, place)).norm() <= bound * theirs.norm(), f"{name}: {key}"


def at(tensor: Tensor, held: Tensor, place: tuple[int, ...]) -> Tensor:
    """Return the part of a whole tensor that a process holds."""
    return tensor[tuple(slice(i, i + n) for i, n in zip(place, held.shape, strict=True))]


def compare_cut(name: str, found: Outcome, expected: Outcome) -> None:
    """Compare parameters: in blocks that no process's part ends in, to the last bit."""
    for i, (shape, mesh, placements) in enumerate(MISALIGNED):
        held, place = found[f"{i}"]
        apart = (held - at(expected[f"{i}"][0], held, place)).abs()
        is_cut = in_cut_blocks(shape, 2 if mesh == "square" else RANKS, placements)
        assert i > 0 or not is_cut.all()
        assert (apart[~at(is_cut, held, place)] == 0.0).all(), f"{name}: {shape}"
        # Of a step of 8 bits, 1.6 % of the block's largest, in each of seven moves of 0.01.
        assert (apart < 0.03).all(), f"{name}: {shape}"


def in_cut_blocks(shape: tuple[int, ...], ranks: int, placements: tuple[Any, ...]) -> Tensor:
    """Return which elements are in blocks of 256 that several processes have a part of."""
    owner = torch.zeros(shape, dtype=torch.long)
    for placement in placements:
        size = shape[placement.dim]
        nth = torch.arange(size) // -(-size // ranks)
        lies = [1] * len(shape)
        lies[placement.dim] = size
        owner = owner * ranks + nth.view(lies)
    flat = owner.reshape(-1)
    blocks = torch.arange(len(flat)) // 256
    least = torch.full((int(blocks[-1]) + 1,), RANKS).scatter_reduce(0, blocks, flat, "amin")
    most = torch.zeros(int(blocks[-1]) + 1, dtype=torch.long).scatter_reduce(
        0, blocks, flat, "amax"
    )
    return (least != most)[blocks].view(shape)
