"""SAM knows a missing or a lost pass under FSDP2, whose gradients change below their DTensors."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import steppe
from helpers.process_group import join, leave, results_of_two

pytestmark = pytest.mark.thorough


def network(inputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(inputs, 1)


def loss_of(model: nn.Module, inputs: int) -> Tensor:
    return model(torch.ones(4, inputs)).square().mean()


def cleared_to_zero(model: nn.Module, inputs: int) -> list[Tensor]:
    """Take steps whose gradients are zeros, and not None, before the first pass."""
    sam = steppe.SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    for _ in range(3):
        sam.zero_grad(set_to_none=False)
        loss_of(model, inputs).backward()
        with sam.perturbed():
            loss_of(model, inputs).backward()
        sam.step()
    return [getattr(p.detach(), "full_tensor", p.detach)() for p in model.parameters()]


def message_of(act: Callable[[], Any]) -> str:
    try:
        act()
    except RuntimeError as error:
        return str(error)
    return "nothing was refused"


def second_pass_again(model: nn.Module) -> str:
    sam = steppe.SAM(model.parameters(), torch.optim.SGD, lr=0.1)

    def both() -> None:
        loss_of(model, 3).backward()
        with sam.perturbed():
            loss_of(model, 3).backward()

    both()
    return message_of(both)


def closure_that_adds(model: nn.Module) -> str:
    sam = steppe.SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    loss_of(model, 3).backward()

    def closure() -> Tensor:
        loss = loss_of(model, 3)
        loss.backward()
        return loss

    return message_of(lambda: sam.step(closure))


def work(rank: int, folder: Path) -> None:
    """Run one of the processes."""
    join(rank, folder, 2)

    def sharded(inputs: int) -> nn.Module:
        return fully_shard(network(inputs))

    # Of one row a process has all, and the other nothing.
    found = {
        "zeros": cleared_to_zero(sharded(1), 1),
        "again": second_pass_again(sharded(3)),
        "adds": closure_that_adds(sharded(3)),
    }
    torch.save(found, folder / f"rank{rank}")
    leave()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))


def test_passes_are_told_apart_under_fsdp2(tmp_path: Path) -> None:
    expected = cleared_to_zero(network(1), 1)
    for found in results_of_two(__file__, tmp_path):
        for ours, theirs in zip(found["zeros"], expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        assert "perturb() after a second pass and before step()" in found["again"]
        assert "the closure added to gradients that were there before" in found["adds"]
