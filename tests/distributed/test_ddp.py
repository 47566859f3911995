"""DistributedDataParallel: replicas stay equal bit for bit, and SAM ascends together or apart."""

import functools
import itertools
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import steppe
from helpers.optimizer_configs import REPRESENTATIVE
from helpers.process_group import join, leave, results_of_two

pytestmark = pytest.mark.thorough

STEPS = 50
RADIUS = 0.3

MAKERS: dict[str, Callable[[Any], Optimizer]] = {
    **{str(config): config for config in REPRESENTATIVE[::2]},
    "AdamCM, bf16 state": functools.partial(
        steppe.AdamCM, lr=0.01, capacity=2, state_dtype=torch.bfloat16
    ),
    "AdamCM, int8 state": functools.partial(steppe.AdamCM, lr=0.01, capacity=2, state_dtype="int8"),
    "AdamCM, eager": functools.partial(steppe.AdamCM, lr=0.01, capacity=2, fused=False),
}


def network(width: int = 12) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3))


def samples(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    inputs = torch.randn(8, 4, generator=generator)
    return inputs, torch.randint(3, (8,), generator=generator)


def share(t: int, rank: int) -> tuple[Tensor, Tensor]:
    inputs, targets = samples(t)
    return inputs[rank::2], targets[rank::2]


def replica(make: Callable[[Any], Optimizer], rank: int, width: int) -> dict[str, Tensor]:
    """Take steps on this process's own samples."""
    model = DistributedDataParallel(network(width))
    optimizer = make(model.parameters())
    for t in range(STEPS):
        inputs, targets = share(t, rank)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    found = {name: p.detach() for name, p in model.named_parameters()}
    for i, state in optimizer.state_dict()["state"].items():
        found |= {f"{i} {name}": value for name, value in state.items()}
    return found


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def ascents(rank: int, own: bool, accumulate: bool) -> list[Tensor]:
    """Take steps of SAM whose first pass is each process's own, or all processes'."""
    model = DistributedDataParallel(linear(), gradient_as_bucket_view=own)
    sam = steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=RADIUS)

    def backward(t: int) -> None:
        inputs, targets = share(t, rank)
        nn.functional.cross_entropy(model(inputs.double()), targets).backward()

    for t in range(5):
        parts = [2 * t, 2 * t + 1] if accumulate else [t]
        sam.zero_grad()
        for part in parts:
            with model.no_sync() if own or part != parts[-1] else nullcontext():
                backward(part)
        with sam.perturbed():
            for part in parts:
                with model.no_sync() if part != parts[-1] else nullcontext():
                    backward(part)
        sam.step()
    return [p.detach() for p in model.parameters()]


def reference(own: bool, accumulate: bool) -> list[Tensor]:
    """Return the same by the definition, in one process: m-sharpness, or SAM of the whole batch."""
    params = [p.detach() for p in linear().parameters()]

    def gradient(at: list[Tensor], parts: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        leaves = [p.clone().requires_grad_() for p in at]
        total = torch.zeros((), dtype=torch.float64)
        for inputs, targets in parts:
            hidden = torch.tanh(inputs.double() @ leaves[0].T + leaves[1])
            total = total + nn.functional.cross_entropy(hidden @ leaves[2].T + leaves[3], targets)
        return list(torch.autograd.grad(total, leaves))

    def perturbed(g: list[Tensor]) -> list[Tensor]:
        norm = torch.cat([x.flatten() for x in g]).norm() + 1e-12
        return [p + RADIUS * x / norm for p, x in zip(params, g, strict=True)]

    for t in range(5):
        times = [2 * t, 2 * t + 1] if accumulate else [t]
        shares = [[share(time, rank) for time in times] for rank in range(2)]
        firsts = [gradient(params, parts) for parts in shares]
        if not own:
            firsts = [[(a + b) / 2 for a, b in zip(*firsts, strict=True)]] * 2
        seconds = [gradient(perturbed(g), parts) for g, parts in zip(firsts, shares, strict=True)]
        params = [p - 0.1 * (a + b) / 2 for p, a, b in zip(params, *seconds, strict=True)]
    return params


def work(rank: int, folder: Path) -> None:
    """Run one of the processes."""
    join(rank, folder, 2)
    found: dict[str, Any] = {
        name: replica(make, rank, width=1024 if "int8" in name else 12)
        for name, make in MAKERS.items()
    }
    found["ascents"] = [ascents(rank, *case) for case in itertools.product([False, True], repeat=2)]
    torch.save(found, folder / f"rank{rank}")
    leave()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))


# One test, since each worker of a parallel run would start processes of its own.
def test_replicas_are_equal_and_ascend_as_told(tmp_path: Path) -> None:
    first, second = results_of_two(__file__, tmp_path)
    for name in MAKERS:
        for key, value in first[name].items():
            assert torch.equal(value.nan_to_num(), second[name][key].nan_to_num()), f"{name}: {key}"
        start = dict(network(1024 if "int8" in name else 12).named_parameters())
        assert not torch.equal(first[name]["module.0.weight"], start["0.weight"]), name
    for i, case in enumerate(itertools.product([False, True], repeat=2)):
        expected = reference(*case)
        for found in (first["ascents"][i], second["ascents"][i]):
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
