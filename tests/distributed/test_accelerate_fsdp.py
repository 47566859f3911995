"""Accelerate's FSDP plugin: the trajectory of one process, saved and resumed; and what FSDP1 can.

Accelerate ignores the plugin on CPUs, where it trains with DDP. Here it is told that its CPUs are
what its plugin is for; all that comes after that decision is its own.
"""

import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR

import steppe
from helpers.process_group import join, leave, results_of_two

pytestmark = pytest.mark.thorough

STEPS = 8
MAKERS: dict[str, Callable[..., Optimizer]] = {
    "AdamCM": partial(steppe.AdamCM, lr=0.02, capacity=2, weight_decay=0.1),
    "DualAdam": partial(steppe.DualAdam, lr=0.02, switch_rate=0.1, scale_free=True),
    "RMSpropCG": partial(steppe.RMSpropCG, lr=0.02, capacity=2, centered=True),
    "SAM": lambda params: steppe.SAM(steppe.DualAdamCM(params, lr=0.02, capacity=2), rho=0.1),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def train(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LinearLR,
    steps: range,
    rank: int | None = None,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> None:
    inputs = torch.linspace(-1, 1, 24).reshape(8, 3).sin()
    if rank is not None:
        inputs = inputs[4 * rank :][:4]
    for t in steps:
        targets = inputs.prod(1, True) + (t * 5 % 7 - 3) * inputs[:, :1]

        def closure(targets: Tensor = targets) -> Tensor:
            optimizer.zero_grad()
            loss = (model(inputs) - targets).square().mean()
            backward(loss)
            return loss

        optimizer.step(closure)
        schedule.step()


def falling(optimizer: Optimizer) -> LinearLR:
    return LinearLR(optimizer, 1.0, 0.1, total_iters=STEPS)


def alone(make: Callable[..., Optimizer]) -> dict[str, Tensor]:
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, falling(optimizer), range(STEPS))
    return model.state_dict()


def prepared(make: Callable[..., Optimizer]) -> tuple[Any, Any, Any, Any]:
    """Set up Accelerate, and let it shard a model, its optimizer and its schedule."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state(reset_partial_state=True)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="size_based_wrap",
        min_num_params=10,
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin, step_scheduler_with_optimizer=False)
    as_if = {"distributed_type": DistributedType.FSDP, "device": torch.device("cpu")}
    PartialState._shared_state.update(as_if)
    accelerator.state.__dict__.update(as_if, fsdp_plugin=plugin)
    assert accelerator.is_fsdp2
    model = network()
    optimizer = make(model.parameters())
    return accelerator, *accelerator.prepare(model, optimizer, falling(optimizer))


def sharded(make: Callable[..., Optimizer], rank: int, folder: Path) -> list[dict[str, Tensor]]:
    """Train, saving everything half-way; load that into a new Accelerator, and train on."""
    accelerator, model, optimizer, schedule = prepared(make)
    assert {type(p).__name__ for p in model.parameters()} == {"DTensor"}
    train(model, optimizer, schedule, range(STEPS // 2), rank, accelerator.backward)
    accelerator.save_state(str(folder))
    train(model, optimizer, schedule, range(STEPS // 2, STEPS), rank, accelerator.backward)
    ended = [whole(model)]

    accelerator, model, optimizer, schedule = prepared(make)
    accelerator.load_state(str(folder))
    train(model, optimizer, schedule, range(STEPS // 2, STEPS), rank, accelerator.backward)
    return [*ended, whole(model)]


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.full_tensor() for name, value in model.state_dict().items()}


def flattened(make: Callable[..., Optimizer], rank: int, keep: bool) -> dict[str, Any]:
    """Train with FSDP1, and gather the state as it does."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    inner = network()
    model = FullyShardedDataParallel(inner, device_id=torch.device("cpu"), use_orig_params=keep)
    optimizer = make(model.parameters())
    try:
        train(model, optimizer, falling(optimizer), range(STEPS), rank)
    except RuntimeError as error:
        return {"error": str(error)}
    saved = FullyShardedDataParallel.optim_state_dict(model, optimizer)
    loadable = FullyShardedDataParallel.optim_state_dict_to_load(model, optimizer, saved)
    optimizer.load_state_dict(loadable)
    shapes = {name: value["exp_avg"].shape for name, value in saved["state"].items()}
    with FullyShardedDataParallel.summon_full_params(model):
        names = [name for name, _ in network().named_parameters()]
        ended = [p.detach().clone() for p in inner.parameters()]
        return {"ended": dict(zip(names, ended, strict=True)), "shapes": shapes}


DUAL = partial(steppe.DualAdam, lr=0.02, switch_rate=0.1)
REFUSED: dict[str, Callable[..., Optimizer]] = {
    "AdamCM": MAKERS["AdamCM"],
    "DualAdam": MAKERS["DualAdam"],
    "SAM": lambda params: steppe.SAM(DUAL(params)),
}


def work(rank: int, folder: Path) -> None:
    """Be one of two processes, as ``accelerate launch`` starts them."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    join(rank, folder, 2)
    found: dict[str, Any] = {
        name: sharded(make, rank, folder / name) for name, make in MAKERS.items()
    }
    with warnings.catch_warnings():
        # Of FSDP1, which torch has given up, about itself.
        warnings.simplefilter("ignore")
        found["FSDP1"] = [flattened(DUAL, rank, keep) for keep in (False, True)]
        found["refused"] = {
            name: [flattened(make, rank, keep) for keep in (False, True)]
            for name, make in REFUSED.items()
        }
    torch.save(found, folder / f"rank{rank}")
    leave()


# One test, since the processes cost more than all they do.
def test_sharded_by_accelerate_is_the_run_of_one_process(tmp_path: Path) -> None:
    ranks = results_of_two(__file__, tmp_path)
    for found in ranks:
        for name, make in MAKERS.items():
            expected = alone(make)
            for ended in found[name]:
                for key, value in expected.items():
                    torch.testing.assert_close(
                        ended[key], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
                    )
            # What was saved is all there is.
            assert all(torch.equal(found[name][0][key], found[name][1][key]) for key in expected)
    first = ranks[0]
    for found in first["FSDP1"]:
        for key, value in alone(DUAL).items():
            torch.testing.assert_close(found["ended"][key], value, rtol=1e-5, atol=1e-6)
            assert found["shapes"][key] == value.shape
    for name, refusals in first["refused"].items():
        for refusal in refusals:
            assert f"{name} does not take parameters that FSDP1" in refusal["error"]


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
