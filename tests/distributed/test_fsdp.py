"""FSDP2 and tensor parallelism, with checkpoints that other numbers of processes load."""

import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.optim import Optimizer

import steppe
from helpers.process_group import PATIENCE_S, join, leave, results_of, started

pytestmark = pytest.mark.thorough

Outcome = dict[str, Tensor]

#: Steps before a checkpoint, and after it.
BEFORE, AFTER = 3, 2

MAKERS: dict[str, Callable[..., Optimizer]] = {
    "AdamCM": functools.partial(steppe.AdamCM, lr=0.05, capacity=2, weight_decay=0.1),
    "AdamCM eager": functools.partial(steppe.AdamCM, lr=0.05, capacity=2, fused=False),
    "AdamCM tensor": functools.partial(steppe.AdamCM, lr=0.05, capacity=2, scope="tensor"),
    "AdamCM capturable": functools.partial(steppe.AdamCM, lr=0.05, capturable=True),
    "DualAdam": functools.partial(
        steppe.DualAdam, lr=0.05, switch_rate=0.1, scale_free=True, weight_decay=0.1
    ),
    "RMSpropCG": functools.partial(steppe.RMSpropCG, lr=0.01, momentum=0.9, centered=True),
    "AdamCM bf16": functools.partial(
        steppe.AdamCM, lr=0.05, capacity=2, state_dtype=torch.bfloat16
    ),
    "AdamCM int8": functools.partial(steppe.AdamCM, lr=0.05, capacity=2, state_dtype="int8"),
    "AdamCM 24 bits": functools.partial(
        steppe.AdamCM, lr=0.05, capacity=2, param_error="int8", state_dtype=torch.bfloat16
    ),
    "DualAdam int8": functools.partial(steppe.DualAdam, lr=0.05, state_dtype="int8", fused=False),
    "SAM": lambda params: steppe.SAM(torch.optim.AdamW(params, lr=0.05), rho=0.3),
    "ASAM": lambda params: steppe.SAM(steppe.AdamCM(params, lr=0.05, capacity=2), adaptive=True),
}
#: Blocks of 8 bits that are cut have a scale for each part, so these end near the whole steps.
NEAR = [name for name in MAKERS if "int8" in name]


class Network(nn.Module):
    """Five lines do not divide by four; of the last layer three of four processes have nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 1400), nn.Linear(1400, 5)
        self.last = nn.Linear(5, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


def network(mesh: DeviceMesh | None, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = Network().to(dtype)
    if mesh is None:
        return model
    if mesh.ndim == 2:
        plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
        parallelize_module(model, mesh["model"], plan)
        mesh = mesh["data"]
    for layer in (model.second, model):
        fully_shard(layer, mesh=mesh)
    return model


def train(model: nn.Module, opt: Optimizer, steps: range, mesh: DeviceMesh | None) -> None:
    """Descend on each process's own samples: gradients are those of all of them."""
    dtype = next(model.parameters()).dtype
    inputs = torch.linspace(-1, 1, 24, dtype=dtype).reshape(8, 3)
    count, rank = 1, 0
    if mesh is not None:
        data = mesh["data"] if mesh.ndim == 2 else mesh
        count, rank = data.size(), data.get_local_rank()
    own = inputs[rank::count]
    for t in steps:

        def closure(t: int = t) -> Tensor:
            opt.zero_grad()
            loss = (model(own) - (own + 0.1 * t).prod(1, keepdim=True)).square().mean()
            loss.backward()
            return loss

        opt.step(closure)


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def outcome(model: nn.Module, opt: Optimizer) -> Outcome:
    """Return the parameters and all of their state, whole."""
    found = {name: whole(p) for name, p in model.named_parameters()}
    saved = get_optimizer_state_dict(model, opt)
    for name, state in saved["state"].items():
        found |= {f"{name} {key}": whole(value) for key, value in state.items()}
    return found


def trained(mesh: DeviceMesh | None, name: str, dtype: torch.dtype = torch.float64) -> Outcome:
    model = network(mesh, dtype)
    opt = MAKERS[name](model.parameters())
    train(model, opt, range(BEFORE), mesh)
    return outcome(model, opt)


def released(mesh: DeviceMesh) -> Outcome:
    """Train with parameters that take their steps in the backward pass."""
    model = network(mesh)
    opt = MAKERS["DualAdam"](model.parameters())
    with opt.release_gradients(model):
        train(model, opt, range(BEFORE), mesh)
    return outcome(model, opt)


def prepared(mesh: DeviceMesh | None, name: str) -> Outcome:
    """Make all state, as distributed checkpointing does: one step with no gradient and no rate."""
    model = network(mesh)
    return outcome(model, MAKERS[name](model.parameters()))


def refilled(mesh: DeviceMesh | None, name: str, options: StateDictOptions) -> Outcome:
    """Train, save to memory, load into a new model and optimizer, and train on."""
    model = network(mesh)
    opt = MAKERS[name](model.parameters())
    train(model, opt, range(BEFORE), mesh)
    weights, saved = get_state_dict(model, opt, options=options)
    model = network(mesh)
    opt = MAKERS[name](model.parameters())
    set_state_dict(model, opt, model_state_dict=weights, optim_state_dict=saved, options=options)
    train(model, opt, range(BEFORE, BEFORE + AFTER), mesh)
    return outcome(model, opt)


def contents(model: nn.Module, opt: Optimizer, flat: bool) -> dict[str, Any]:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    weights, state = get_state_dict(model, opt, options=options)
    return {"model": weights, "optimizer": state}


def save(place: Path, model: nn.Module, opt: Optimizer, flat: bool = False) -> None:
    with warnings.catch_warnings():
        # Of a single process, that it is one.
        warnings.simplefilter("ignore")
        dcp.save(contents(model, opt, flat), checkpoint_id=place)


def load(place: Path, model: nn.Module, opt: Optimizer, flat: bool = False) -> None:
    found = contents(model, opt, flat)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(found, checkpoint_id=place)
    set_state_dict(
        model,
        opt,
        model_state_dict=found["model"],
        optim_state_dict=found["optimizer"],
        options=StateDictOptions(flatten_optimizer_state_dict=flat),
    )


def resumed(
    mesh: DeviceMesh | None, name: str, place: Path, steps: range, dtype: torch.dtype, flat: bool
) -> tuple[nn.Module, Optimizer]:
    model = network(mesh, dtype)
    opt = MAKERS[name](model.parameters())
    load(place, model, opt, flat)
    train(model, opt, steps, mesh)
    return model, opt


def loaded_alone(name: str, place: Path, dtype: torch.dtype, flat: bool) -> Outcome:
    """Return what a checkpoint holds, read by one process."""
    return outcome(*resumed(None, name, place, range(0), dtype, flat))


def saved_meanwhile(mesh: DeviceMesh, place: Path) -> tuple[Outcome, Outcome]:
    """Save while training goes on; return what was to be saved, and what was."""
    model = network(mesh)
    opt = MAKERS["AdamCM"](model.parameters())
    train(model, opt, range(BEFORE), mesh)
    expected = outcome(model, opt)
    # Of its own: what is saved must not come between what is trained.
    group = torch.distributed.new_group()
    saving = dcp.async_save(contents(model, opt, False), checkpoint_id=place, process_group=group)
    train(model, opt, range(BEFORE, BEFORE + AFTER), mesh)
    saving.result()
    again = network(mesh)
    found = MAKERS["AdamCM"](again.parameters())
    load(place, again, found)
    return expected, outcome(again, found)


#: By name: a maker's, the number format of parameters, and whether checkpoints are flat. The
#: makers that are left out keep what one of these keeps.
CHECKPOINTS = {
    **{
        name: (name, torch.float64, False)
        for name in ("AdamCM", "DualAdam", "RMSpropCG", "AdamCM bf16", "AdamCM int8", "ASAM")
    },
    "AdamCM flat in float32": ("AdamCM", torch.float32, True),
    "AdamCM 24 bits": ("AdamCM 24 bits", torch.bfloat16, False),
}
HALF, END = range(BEFORE), range(BEFORE, BEFORE + AFTER)
#: Where tensors are cut in two dimensions, the others stand for these.
IN_SQUARE = MAKERS.keys() - {"RMSpropCG", "AdamCM bf16", "AdamCM 24 bits", "ASAM"}
WHOLE = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
REFILLED = ("ASAM", "AdamCM int8")


def four(rank: int, folder: Path) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (4,))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    # What layers in tensor parallelism return is a view, and nothing here writes to it.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    found: dict[str, Any] = {}
    for name, (maker, dtype, flat) in CHECKPOINTS.items():
        model = network(mesh, dtype)
        opt = MAKERS[maker](model.parameters())
        train(model, opt, HALF, mesh)
        save(folder / f"four {name}", model, opt, flat)
        model, opt = resumed(mesh, maker, folder / f"one {name}", END, dtype, flat)
        save(folder / f"one to four {name}", model, opt, flat)
    for name in sorted(IN_SQUARE):
        found[f"square {name}"] = trained(square, name)
    for name in ("AdamCM", "SAM"):
        found[f"prepared {name}"] = prepared(mesh, name)
    found["released"], found["at once"] = released(mesh), trained(mesh, "DualAdam")
    for name in REFILLED:
        found[f"refilled {name}"] = refilled(mesh, name, StateDictOptions())
        found[f"refilled whole {name}"] = refilled(mesh, name, WHOLE)
    found["meanwhile"], found["saved meanwhile"] = saved_meanwhile(mesh, folder / "meanwhile")
    return found


def two(rank: int, folder: Path) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for name, (maker, dtype, flat) in CHECKPOINTS.items():
        model, opt = resumed(mesh, maker, folder / f"four {name}", range(0), dtype, flat)
        found[f"loaded {name}"] = outcome(model, opt)
        train(model, opt, END, mesh)
        save(folder / f"two {name}", model, opt, flat)
    return found


def killed(rank: int, folder: Path) -> None:
    """Die in the middle of the second save: when all is written but what says that it is."""
    model = network(init_device_mesh("cpu", (2,)))
    opt = MAKERS["AdamCM"](model.parameters())
    train(model, opt, HALF, None)
    save(folder / "1", model, opt)
    found = outcome(model, opt)
    if rank == 0:
        torch.save(found, folder / "expected")
        dcp.FileSystemWriter.finish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    train(model, opt, END, None)
    save(folder / "2", model, opt)


def work(rank: int, folder: Path, part: str) -> None:
    """Run one of the processes."""
    run = {"four": four, "two": two, "killed": killed}[part]
    place = folder / part
    join(rank, place, 4 if part == "four" else 2)
    torch.save(run(rank, folder), place / f"rank{rank}")
    leave()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]).parent, Path(sys.argv[2]).name)


def run(folder: Path, part: str, count: int) -> list[dict[str, Outcome]]:
    place = folder / part
    place.mkdir()
    found = results_of(__file__, place, count)
    for other in found[1:]:
        for name, value in found[0].items():
            assert list(value) == list(other[name]), name
            for key in value:
                assert torch.equal(value[key], other[name][key]), f"{name}: {key} differs"
    return found[0]


# One test, since each worker of a parallel run would start processes of its own.
def test_a_run_goes_on_in_any_number_of_processes(tmp_path: Path) -> None:
    half, end = {}, {}
    for name, (maker, dtype, flat) in CHECKPOINTS.items():
        model = network(None, dtype)
        opt = MAKERS[maker](model.parameters())
        train(model, opt, HALF, None)
        save(tmp_path / f"one {name}", model, opt, flat)
        half[name] = outcome(model, opt)
        train(model, opt, END, None)
        end[name] = outcome(model, opt)

    in_four = run(tmp_path, "four", 4)
    in_two = run(tmp_path, "two", 2)
    for name, (maker, dtype, flat) in CHECKPOINTS.items():
        in_one = {
            place: loaded_alone(maker, tmp_path / f"{place} {name}", dtype, flat)
            for place in ("four", "one to four", "two")
        }
        compare(f"four, {name}", in_one["four"], half[name])
        compare(f"one to four, {name}", in_one["one to four"], end[name])
        compare(f"four to two, {name}", in_one["two"], end[name])
        if name not in NEAR:
            same(f"loaded, {name}", in_two[f"loaded {name}"], in_one["four"])
    for name in IN_SQUARE:
        compare(f"square, {name}", in_four[f"square {name}"], trained(None, name))
    for name in ("AdamCM", "SAM"):
        found = in_four[f"prepared {name}"]
        assert any("exp_avg_sq" in key for key in found)
        same(f"prepared {name}", found, prepared(None, name))
        for key, start in network(None).named_parameters():
            assert torch.equal(found[key], start), f"prepared {name}: {key} has moved"
    for name in REFILLED:
        compare(f"refilled, {name}", in_four[f"refilled {name}"], end[name])
        same(name, in_four[f"refilled {name}"], in_four[f"refilled whole {name}"])
    same("meanwhile", in_four["meanwhile"], in_four["saved meanwhile"])
    # State is listed as it was made: from the last layer to the first.
    same("released", *(dict(sorted(in_four[name].items())) for name in ("released", "at once")))


def same(name: str, found: Outcome, expected: Outcome) -> None:
    assert list(found) == list(expected), name
    for key, value in expected.items():
        assert torch.equal(found[key], value), f"{name}: {key}"


def compare(name: str, found: Outcome, expected: Outcome) -> None:
    """Compare parameters and state; where the arithmetic is coarse, the parameters on the whole."""
    if any(each in name for each in (*NEAR, "float32", "24 bits")):
        ours, theirs = (
            torch.cat([values[key].flatten().double() for key in expected if " " not in key])
            for values in (found, expected)
        )
        # Each of five steps is of 0.05.
        bound = 1e-6 * theirs.norm() if "float32" in name else 0.03 * len(theirs) ** 0.5
        assert (ours - theirs).norm() <= bound, name
        return
    assert list(found) == list(expected), name
    for key, value in expected.items():
        ours, theirs = (x.double().nan_to_num(neginf=-1.0) for x in (found[key], value))
        assert found[key].dtype == value.dtype, f"{name}: {key}"
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm(), f"{name}: {key}"


def test_a_kill_in_the_middle_of_a_save_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    place = tmp_path / "killed"
    place.mkdir()
    with started(__file__, place, 2) as processes:
        processes[0].wait(PATIENCE_S)
        assert processes[0].returncode == -signal.SIGKILL
    assert list((tmp_path / "2").glob("*.distcp"))
    with pytest.raises(dcp.CheckpointException):
        loaded_alone("AdamCM", tmp_path / "2", torch.float64, False)
    found = loaded_alone("AdamCM", tmp_path / "1", torch.float64, False)
    same("killed", found, torch.load(tmp_path / "expected"))
