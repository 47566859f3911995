"""Instruments in two processes with unequal shares of the data, against one that has it all."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from helpers.process_group import join, leave, results_of_two
from steppe import landscape

pytestmark = pytest.mark.thorough

Pairs = list[tuple[Tensor, Tensor]]

#: Which of seven samples each process has, in which batches.
SHARES = {
    "uneven": ([slice(0, 3), slice(3, 5)], [slice(5, 7)]),
    "empty": ([slice(0, 4), slice(4, 7)], []),
}


def network(scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(scale)
    return model


def samples(parts: list[slice]) -> Pairs:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (7,), generator=generator)
    return [(inputs[part], targets[part]) for part in parts]


def measured(model: nn.Module, other: nn.Module, data: Pairs) -> dict[str, Any]:
    H, task = landscape.hessian(model, F.cross_entropy, data), (model, F.cross_entropy, data)
    results = {
        "eigenvalues": landscape.top_eigenvalues(H, 3),
        "hutchinson": landscape.trace(H, method="hutchinson", products=20),
        "hutch++": landscape.trace(H, products=20),
        "xtrace": landscape.trace(H, method="xtrace", products=20),
        "density": landscape.density(H, probes=3, steps=9),
        "sharpness": landscape.sharpness(*task),
        "adaptive": landscape.sharpness(*task, adaptive=True, ascent_steps=3),
        "average": landscape.sharpness(*task, kind="average"),
        "m": landscape.sharpness(*task, m=1),
        "line": landscape.line(*task, points=5),
        "plane": landscape.plane(*task, points=3),
        "barrier": landscape.barrier(model, other, F.cross_entropy, data, points=5),
    }
    return {name: result.to_dict() for name, result in results.items()}


def watched(model: nn.Module, data: Pairs) -> dict[str, Any]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = landscape.Monitor(model, F.cross_entropy, data, optimizer, every=1, tol=1e-6)
    for param in model.parameters():
        param.grad = torch.full_like(param, 0.1)
    for _ in range(2):
        optimizer.step()
        monitor.step()
    return monitor.history[-1].values


def work(rank: int, folder: Path) -> None:
    """Run one of the processes."""
    join(rank, folder, 2)
    model, other = DistributedDataParallel(network()), DistributedDataParallel(network(-1.5))
    found = {}
    for name, share in SHARES.items():
        found[name] = measured(model, other, samples(share[rank]))
        fresh = DistributedDataParallel(network())
        found[name]["monitor"] = watched(fresh, samples(share[rank]))
    # By the clocks of two processes no common step could be chosen.
    with pytest.raises(ValueError, match="every=None cannot be taken"):
        landscape.Monitor(model, F.cross_entropy, [], torch.optim.SGD(model.parameters()))
    torch.save(found, folder / f"rank{rank}")
    leave()


def assert_near(found: Any, truth: Any, where: str) -> None:
    if isinstance(truth, Mapping):
        for name, part in truth.items():
            assert_near(found[name], part, f"{where} {name}")
    elif isinstance(truth, list):
        assert len(found) == len(truth), where
        for one, other in zip(found, truth, strict=True):
            assert_near(one, other, where)
    elif isinstance(truth, float) and math.isfinite(truth):
        assert found == pytest.approx(truth, rel=1e-6, abs=1e-9), where
    else:
        assert found == truth, where


def test_all_processes_have_what_one_has_that_has_all_samples(tmp_path: Path) -> None:
    first, second = results_of_two(__file__, tmp_path)
    assert first == second
    whole = measured(network(), network(-1.5), samples([slice(0, 7)]))
    whole["monitor"] = watched(network(), samples([slice(0, 7)]))
    for name in SHARES:
        assert_near(first[name], whole, name)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
