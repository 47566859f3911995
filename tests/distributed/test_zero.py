"""ZeroRedundancyOptimizer: two processes that share the state take the steps of one."""

import copy
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import steppe
from helpers.process_group import join, leave, results_of_two

pytestmark = pytest.mark.thorough

STEPS = 12
Wrap = Callable[[Optimizer], Optimizer]
Make = Callable[..., Optimizer]


def makers() -> dict[str, Make]:
    """Return what is exact, by name: what looks at no other tensor to decide."""
    slots: dict[str, Any] = {"lr": 0.02, "capacity": 2, "scope": "tensor"}
    made: dict[str, Make] = {
        "InvAdam": partial(steppe.InvAdam, lr=0.02),
        "DualAdam": partial(steppe.DualAdam, lr=0.02, switch_rate=0.05, weight_decay=0.1),
        "DualAdam scale-free": partial(steppe.DualAdam, lr=0.02, switch_rate=0.05, scale_free=True),
        "AdamCM fifo": partial(steppe.AdamCM, lr=0.02, capacity=2, replacement="fifo"),
        "AdamCM without a buffer": partial(steppe.AdamCM, lr=0.02, capacity=0),
        "DualAdamCM": partial(steppe.DualAdamCM, **slots, switch_rate=0.05),
    }
    for name in ("AdamCM", "SGDCM", "SGDCG", "AdamCG", "RMSpropCG"):
        made[name] = partial(getattr(steppe, name), **slots)
    return made


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))


def batch(rank: int | None) -> tuple[Tensor, Tensor]:
    inputs = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(8, 3).sin()
    if rank is not None:
        inputs = inputs[4 * rank :][:4]
    return inputs, inputs.prod(1, True)


def train(model: nn.Module, optimizer: Optimizer, steps: range, rank: int | None) -> None:
    """Fit targets that jump, so that the norms of gradients rise and fall; lr falls."""
    inputs, targets = batch(rank)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(inputs) - wanted).square().mean()
        loss.backward()
        return loss

    for t in steps:
        wanted = targets + (t * 5 % 7 - 3) * inputs[:, :1]
        for group in optimizer.param_groups:
            group["lr"] = 0.02 / (1 + t)
        optimizer.step(closure)


def alone(make: Make, wrap: Wrap = lambda base: base, steps: int = STEPS) -> list[Tensor]:
    model = network().double()
    train(model, wrap(make(model.parameters())), range(steps), None)
    return weights(model)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def sharing(make: Make, rank: int, wrap: Wrap, **options: Any) -> tuple[nn.Module, Optimizer, Any]:
    with warnings.catch_warnings():
        # Of torch's own: it compiles functional optimizers with torch.jit.
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.distributed.optim import ZeroRedundancyOptimizer

    model = DistributedDataParallel(network().double())
    zero = ZeroRedundancyOptimizer(model.parameters(), make, **options)
    return model, wrap(zero), zero


def shared(
    make: Make, rank: int, wrap: Wrap = lambda base: base, **options: Any
) -> dict[str, list[Tensor]]:
    """Train with shared state; half-way, save it, and load it into another such, and into none."""
    model, optimizer, zero = sharing(make, rank, wrap, **options)
    train(model, optimizer, range(STEPS // 2), rank)
    zero.consolidate_state_dict(to=0)
    parcel = [(optimizer.state_dict(), model.module.state_dict()) if rank == 0 else None]
    parcel = copy.deepcopy(parcel)
    torch.distributed.broadcast_object_list(parcel)
    saved, values = parcel[0]
    train(model, optimizer, range(STEPS // 2, STEPS), rank)

    other, resumed, _ = sharing(make, rank, wrap, **options)
    other.module.load_state_dict(values)
    resumed.load_state_dict(copy.deepcopy(saved))
    train(other, resumed, range(STEPS // 2, STEPS), rank)

    plain = network().double()
    plain.load_state_dict(values)
    single = wrap(make(plain.parameters()))
    single.load_state_dict(saved)
    train(plain, single, range(STEPS // 2, STEPS), None)
    return {"ended": weights(model), "resumed": weights(other), "resumed alone": weights(plain)}


def in_shares(make: Make, rank: int) -> dict[str, Any]:
    """Train with shared state, and say which process had which parameters."""
    model, optimizer, zero = sharing(make, rank, lambda base: base)
    train(model, optimizer, range(STEPS), rank)
    params = list(model.parameters())
    owners = [zero._param_to_rank[p] for p in params]
    return {"ended": weights(model), "owners": owners}


def unusual(rank: int) -> dict[str, Any]:
    """LocalShard one parameter among two processes, and ask for an overlap that cannot be had."""
    sharing(steppe.AdamCM, rank, lambda base: base)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    param = nn.Parameter(torch.ones(3))
    zero = ZeroRedundancyOptimizer([param], steppe.AdamCM, lr=0.1)
    param.grad = torch.ones(3)
    zero.step()
    try:
        ZeroRedundancyOptimizer([param], steppe.AdamCM, overlap_with_ddp=True)
    except ValueError as error:
        return {"param": param.detach(), "error": str(error)}
    return {}


GLOBAL = partial(steppe.AdamCM, lr=0.02, capacity=2)
AROUND = partial(steppe.SAM, rho=0.1)


def work(rank: int, folder: Path) -> None:
    """Be one of two processes."""
    join(rank, folder, 2)
    found: dict[str, Any] = {name: shared(make, rank) for name, make in makers().items()}
    found["in buckets"] = shared(makers()["DualAdam"], rank, parameters_as_bucket_view=True)
    found["SAM"] = shared(makers()["DualAdam"], rank, AROUND)
    found["global"] = in_shares(GLOBAL, rank)
    found["unusual"] = unusual(rank)
    torch.save(found, folder / f"rank{rank}")
    leave()


# One test, since the processes cost more than all they do.
def test_shared_state_takes_the_steps_of_whole_state(tmp_path: Path) -> None:
    ranks = results_of_two(__file__, tmp_path)
    for found in ranks:
        for name, make in makers().items():
            assert_near(found[name], alone(make), name)
        assert_near(found["in buckets"], alone(makers()["DualAdam"]), "in buckets")
        assert_near(found["SAM"], alone(makers()["DualAdam"], AROUND), "SAM")
        torch.testing.assert_close(found["unusual"]["param"], torch.full((3,), 0.9))
        assert "functional optimizer" in found["unusual"]["error"]
        assert_shares_decide_alone(found["global"])
        assert all(map(torch.equal, found["global"]["ended"], ranks[0]["global"]["ended"]))


def assert_near(found: dict[str, list[Tensor]], expected: list[Tensor], name: str) -> None:
    for how, ended in found.items():
        for p, q in zip(ended, expected, strict=True):
            torch.testing.assert_close(
                p, q, rtol=1e-10, atol=1e-12, msg=lambda m, h=how: f"{name}, {h}: {m}"
            )


def assert_shares_decide_alone(found: dict[str, Any]) -> None:
    """With scope="global" a process's norm is that of its own parameters, as is documented."""
    model = network().double()
    params, owners = list(model.parameters()), found["owners"]
    shares = [
        GLOBAL([p for p, owner in zip(params, owners, strict=True) if owner == rank])
        for rank in range(2)
    ]

    def both(closure: Callable[[], Tensor]) -> None:
        closure()
        for share in shares:
            share.step()

    groups = [group for share in shares for group in share.param_groups]
    shard_group: Any = type("Both", (), {"param_groups": groups, "step": staticmethod(both)})()
    shard_group.zero_grad = model.zero_grad
    train(model, shard_group, range(STEPS), None)
    for p, q in zip(weights(model), found["ended"], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    whole = alone(GLOBAL)
    assert max((p - q).abs().max() for p, q in zip(found["ended"], whole, strict=True)) > 1e-4


def test_numbers_that_were_loaded_onto_the_host_come_back() -> None:
    """There ZeRO puts what has no dimensions, wherever the parameters are."""
    from steppe.optim._state import add_missing_state

    param = torch.ones(3, requires_grad=True)
    optimizer = steppe.AdamCM([param])
    param.grad = torch.ones(3)
    optimizer.step()
    state, group = dict(optimizer.state[param]), optimizer.param_groups[0]
    add_missing_state(state, param.to("meta"), optimizer._method(group), group)
    assert state.pop("step").device.type == "cpu"
    assert {value.device.type for value in state.values()} == {"meta"}


def test_scales_of_8_bits_that_were_loaded_by_lines_are_the_blocks_again() -> None:
    """ZeRO puts a checkpoint's tensors into the state as they are."""
    optimizers = []
    for _ in range(2):
        param = nn.Parameter(torch.linspace(-1, 1, 700 * 8).view(700, 8))
        optimizers.append((param, steppe.AdamCM([param], lr=0.02, capacity=2, state_dtype="int8")))

    def step(number: int, t: int) -> None:
        param, optimizer = optimizers[number]
        param.grad = torch.sin(param.detach() * (5 + t))
        optimizer.step()

    step(0, 0)
    (first, saving), (second, loading) = optimizers
    saved = copy.deepcopy(saving.state_dict())["state"][0]
    second.data.copy_(first.detach())
    loading.state[second] = dict(saved)
    assert all(map(torch.equal, loading.state_dict()["state"][0].values(), saved.values()))
    assert torch.equal(loading.preconditioner()[second], saving.preconditioner()[first])
    loading.state[second] = dict(saved)
    for number in range(2):
        step(number, 1)
    assert torch.equal(first, second)
    scales = saving.state[first]["exp_avg_scale"]
    assert torch.equal(loading.state[second]["exp_avg_scale"], scales)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
