"""The size of an optimizer's state, nested tensors included."""

import torch

from steppe._shared.optimizer_state import state_bytes


def test_nested_tensors_count_and_numbers_do_not() -> None:
    p = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=0.1)
    history = [torch.zeros(5), (torch.zeros(2, dtype=torch.float64), 7)]
    optimizer.state[p] = {"step": 1, "history": history, "inner": {"codes": torch.zeros(4).char()}}
    assert state_bytes(optimizer) == 20 + 16 + 4


def test_an_optimizer_without_state_takes_nothing() -> None:
    assert state_bytes(torch.optim.SGD([torch.zeros(3, requires_grad=True)], lr=0.1)) == 0
