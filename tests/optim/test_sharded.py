"""Sharded parameters: two processes take the same steps as one that holds everything."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as checkpoint
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement
from torch.optim import Optimizer

import steppe

Outcome = dict[str, Tensor]

RANKS = 2
STEPS = 6
#: 5 and 3 do not divide by 2.
SHAPES = [(5, 3), (4, 2), (3,)]
#: Large enough for 8 bits; of the second, one process has nothing.
LARGE = [(5, 1000), (1, 4100), (3,)]

MAKERS: dict[str, Callable[..., Optimizer]] = {
    "AdamCM": functools.partial(steppe.AdamCM, lr=0.05, capacity=2, weight_decay=0.1),
    "AdamCM tensor": functools.partial(steppe.AdamCM, lr=0.05, capacity=2, scope="tensor"),
    "DualAdam": functools.partial(
        steppe.DualAdam, lr=0.05, switch_rate=0.1, scale_free=True, weight_decay=0.1
    ),
    "SGDCM": functools.partial(steppe.SGDCM, lr=0.01, capacity=2, weight_decay=0.1),
    "AdamCM bf16": functools.partial(
        steppe.AdamCM, lr=0.05, capacity=2, state_dtype=torch.bfloat16
    ),
    "AdamCM bf16 capturable": functools.partial(
        steppe.AdamCM, lr=0.05, capacity=2, state_dtype=torch.bfloat16, capturable=True
    ),
    "AdamCM int8": functools.partial(steppe.AdamCM, lr=0.05, capacity=2, state_dtype="int8"),
    "SAM": lambda params: steppe.SAM(torch.optim.AdamW(params, lr=0.05), rho=0.3),
    "ASAM": lambda params: steppe.SAM(steppe.AdamCM(params, lr=0.05, capacity=2), adaptive=True),
}


def rows(tensor: Tensor) -> Placement:
    return Shard(0)


def columns(tensor: Tensor) -> Placement:
    return Shard(tensor.ndim - 1)


def copies(tensor: Tensor) -> Placement:
    return Replicate()


def gathered(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def closure_of(loss: Callable[[], Tensor], opt: Optimizer) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        opt.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def outcome(params: list[nn.Parameter], opt: Optimizer) -> Outcome:
    """Return the parameters and all of their state, whole."""
    result = {f"{i}": gathered(p) for i, p in enumerate(params)}
    for i, p in enumerate(params):
        result |= {f"{i} {name}": gathered(value) for name, value in opt.state[p].items()}
    for name, value in opt.diagnostics().items():
        result[name] = torch.tensor(value, dtype=torch.float64).nan_to_num(-1.0)
    return result


def train_tensors(
    mesh: DeviceMesh | None,
    name: str,
    placed: Callable[[Tensor], Placement] = rows,
    shapes: list[tuple[int, ...]] = SHAPES,
    dtype: torch.dtype = torch.float64,
) -> Outcome:
    """Descend on Σ w·sin(3p) + p²/10, which is not convex."""

    def distributed(tensor: Tensor, mesh: DeviceMesh | None) -> Tensor:
        return tensor if mesh is None else distribute_tensor(tensor, mesh, [placed(tensor)])

    torch.manual_seed(0)
    starts = [torch.randn(shape, dtype=dtype) for shape in shapes]
    weights = [distributed(torch.randn_like(start), mesh) for start in starts]
    params = [nn.Parameter(distributed(start, mesh)) for start in starts]
    opt = MAKERS[name](params)

    def loss() -> Tensor:
        terms = [
            (w * (3 * p).sin() + p**2 / 10).sum() for w, p in zip(weights, params, strict=True)
        ]
        return torch.stack(terms).sum()

    for _ in range(STEPS):
        opt.step(closure_of(loss, opt))
    return outcome(params, opt)


def network(mesh: DeviceMesh | None, width: int = 5) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1)).double()
    if mesh is not None:
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
    return model


def train_network(model: nn.Module, opt: Optimizer, steps: int = STEPS) -> Outcome:
    inputs = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(8, 3)
    for _ in range(steps):
        opt.step(closure_of(lambda: (model(inputs) - inputs.prod(1, True)).square().mean(), opt))
    return outcome(list(model.parameters()), opt)


def resumed(mesh: DeviceMesh | None, name: str, whole: bool, width: int = 5) -> Outcome:
    """Train, save and load with torch's distributed checkpointing, and train on.

    What is saved as a whole is loaded as from a file of the first process's.
    """
    options = checkpoint.StateDictOptions(full_state_dict=whole)
    model = network(mesh, width)
    opt = MAKERS[name](model.parameters())
    train_network(model, opt, steps=3)
    weights, saved = checkpoint.get_state_dict(model, opt, options=options)

    model = network(mesh, width)
    opt = MAKERS[name](model.parameters())
    options.broadcast_from_rank0 = whole and mesh is not None
    checkpoint.set_state_dict(
        model, opt, model_state_dict=weights, optim_state_dict=saved, options=options
    )
    return train_network(model, opt, steps=STEPS - 3)


def prepared(mesh: DeviceMesh | None, name: str) -> Outcome:
    """Make all state, as distributed checkpointing does: one step with no gradient and no rate."""
    model = network(mesh)
    opt = MAKERS[name](model.parameters())
    checkpoint.get_optimizer_state_dict(model, opt)
    return outcome(list(model.parameters()), opt)


def trained(mesh: DeviceMesh | None, name: str, width: int = 5) -> Outcome:
    model = network(mesh, width)
    return train_network(model, MAKERS[name](model.parameters()))


RUNS: dict[str, Callable[[DeviceMesh | None], Outcome]] = {
    "tensors, AdamCM": functools.partial(train_tensors, name="AdamCM"),
    "tensors, AdamCM tensor": functools.partial(train_tensors, name="AdamCM tensor"),
    "tensors, SGDCM": functools.partial(train_tensors, name="SGDCM"),
    "empty shards, AdamCM": functools.partial(train_tensors, name="AdamCM", shapes=[(1, 3)]),
    "tensors, SAM": functools.partial(train_tensors, name="SAM"),
    "tensors, AdamCM bf16": functools.partial(train_tensors, name="AdamCM bf16"),
    "columns, AdamCM bf16": functools.partial(train_tensors, name="AdamCM bf16", placed=columns),
    "copies, AdamCM bf16": functools.partial(train_tensors, name="AdamCM bf16", placed=copies),
    "tensors, AdamCM bf16 capturable": functools.partial(
        train_tensors, name="AdamCM bf16 capturable"
    ),
    "bf16 tensors, AdamCM bf16": functools.partial(
        train_tensors, name="AdamCM bf16", dtype=torch.bfloat16
    ),
    "copies, AdamCM int8": functools.partial(
        train_tensors, name="AdamCM int8", placed=copies, shapes=LARGE
    ),
    "fsdp, AdamCM bf16": functools.partial(trained, name="AdamCM bf16"),
    "fsdp, AdamCM": functools.partial(trained, name="AdamCM"),
    "fsdp, DualAdam": functools.partial(trained, name="DualAdam"),
    "fsdp, ASAM": functools.partial(trained, name="ASAM"),
    "prepared, AdamCM": functools.partial(prepared, name="AdamCM"),
    "prepared, SAM": functools.partial(prepared, name="SAM"),
    "resumed, ASAM": functools.partial(resumed, name="ASAM", whole=False),
    "resumed whole, AdamCM": functools.partial(resumed, name="AdamCM", whole=True),
    "resumed, AdamCM bf16": functools.partial(resumed, name="AdamCM bf16", whole=False),
}

#: Blocks of 8 bits are each process's own, so these are near the whole steps, and not they.
EIGHT_BITS: dict[str, Callable[[DeviceMesh | None], Outcome]] = {
    "tensors": functools.partial(train_tensors, name="AdamCM int8", shapes=LARGE),
    "columns": functools.partial(train_tensors, name="AdamCM int8", placed=columns, shapes=LARGE),
    "fsdp": functools.partial(trained, name="AdamCM int8", width=1501),
    "resumed": functools.partial(resumed, name="AdamCM int8", width=1501, whole=False),
    "resumed whole": functools.partial(resumed, name="AdamCM int8", width=1501, whole=True),
}


def work(rank: int, folder: Path) -> None:
    """Run one of the processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    mesh = init_device_mesh("cpu", (RANKS,))
    runs = {**RUNS, **EIGHT_BITS}
    torch.save({name: run(mesh) for name, run in runs.items()}, folder / f"rank{rank}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Outcome]]:
    """Return what each of the processes ended with."""
    folder = tmp_path_factory.mktemp("sharded")
    where = os.pathsep.join(sys.path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(rank), str(folder)],
            env={**os.environ, "PYTHONPATH": where, "PYTHONHASHSEED": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return [torch.load(folder / f"rank{rank}", weights_only=True) for rank in range(RANKS)]


# One test, since each worker of a parallel run would start processes of its own.
def test_sharded_steps_are_the_whole_ones(outcomes: list[dict[str, Outcome]]) -> None:
    compare_in_full(outcomes)
    compare_8_bits(outcomes)


def compare_in_full(outcomes: list[dict[str, Outcome]]) -> None:
    """Compare what the processes end with, the keys of the buffers included."""
    for name, run in RUNS.items():
        expected, (first, second) = run(None), (ranks[name] for ranks in outcomes)
        # Processes that gather state in different orders gather each other's.
        assert list(expected) == list(first) == list(second), name
        for key, value in expected.items():
            what = f"{name}: {key}"
            assert torch.equal(first[key], second[key]), f"{what} differs between processes"
            assert first[key].dtype == value.dtype, what
            torch.testing.assert_close(
                first[key], value, rtol=1e-12, atol=1e-12, msg=lambda m, w=what: f"{w}: {m}"
            )
    for name in ("prepared, AdamCM", "prepared, SAM"):
        assert any("exp_avg_sq" in key for key in outcomes[0][name])
        for i, start in enumerate(network(None).parameters()):
            assert torch.equal(outcomes[0][name][f"{i}"], start), f"{name}: moved"


def compare_8_bits(outcomes: list[dict[str, Outcome]]) -> None:
    """Six steps of 0.05 each end within a few hundredths of the whole ones', on the whole."""
    for name in ("tensors", "columns", "fsdp"):
        expected, (first, second) = EIGHT_BITS[name](None), (ranks[name] for ranks in outcomes)
        for key in ("0", "1"):
            assert torch.equal(first[key], second[key]), f"{name}: {key} differs between processes"
            apart = (first[key] - expected[key]).square().mean().sqrt()
            assert apart < 0.03, f"{name}: {key}"
    for ranks in outcomes:
        for name in ("resumed", "resumed whole"):
            for key, value in ranks["fsdp"].items():
                assert torch.equal(ranks[name][key], value), f"{name}: {key}"


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
