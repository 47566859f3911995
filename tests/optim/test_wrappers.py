"""Wrappers that imitate what they wrap by inheriting from its class, as Lightning's do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import steppe


class Wrapper:
    """Of the wrapped object it has the class but no attribute, and steps with an empty closure."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.wrapped = optimizer
        kind = type(optimizer)
        self.__class__ = type(f"Wrapped{kind.__name__}", (Wrapper, kind), {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def step(self, closure: Any = None) -> Any:
        return self.wrapped.step(closure or (lambda: None))


def loss_of(model: nn.Module) -> Tensor:
    inputs: Tensor = torch.linspace(-1, 1, 12).reshape(4, 3)
    outputs: Tensor = model(inputs)
    return outputs.square().mean()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def train(model: nn.Module, sam: Any) -> list[Tensor]:
    """Take steps with two passes spelled out."""
    for _ in range(4):
        sam.zero_grad()
        loss_of(model).backward()
        with sam.perturbed():
            loss_of(model).backward()
        sam.step()
    return [param.detach() for param in model.parameters()]


def test_state_and_instruments_are_those_of_the_wrapped() -> None:
    model = network()
    optimizer: Any = steppe.AdamCM(model.parameters())
    for _ in range(3):
        loss_of(model).backward()
        optimizer.step()
    wrapper: Any = Wrapper(optimizer)
    assert isinstance(wrapper, steppe.AdamCM)
    assert wrapper.diagnostics() == optimizer.diagnostics()
    assert wrapper.state is optimizer.state
    assert wrapper.engine == optimizer.engine
    found, expected = wrapper.preconditioner(), optimizer.preconditioner()
    assert all(torch.equal(found[param], expected[param]) for param in model.parameters())


def test_sam_takes_both_passes_through_a_wrapper() -> None:
    one, two = network(), network()
    plain = steppe.SAM(steppe.AdamCM(one.parameters(), lr=0.1), rho=0.3)
    wrapper = Wrapper(steppe.SAM(steppe.AdamCM(two.parameters(), lr=0.1), rho=0.3))
    for a, b in zip(train(one, plain), train(two, wrapper), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(one.parameters()), next(network().parameters()))


def test_a_closure_of_one_s_own_is_passed_twice_after_a_skipped_step() -> None:
    one, two = network(), network()
    plain = steppe.SAM(torch.optim.SGD(one.parameters(), lr=0.1), rho=0.3)
    skipping = steppe.SAM(torch.optim.SGD(two.parameters(), lr=0.1), rho=0.3)
    loss_of(two).backward()
    with skipping.perturbed():
        loss_of(two).backward()

    for model, sam in ((one, plain), (two, skipping)):

        def closure(model: nn.Module = model, sam: Any = sam) -> Tensor:
            sam.zero_grad()
            loss = loss_of(model)
            loss.backward()
            return loss

        sam.step(closure)
    assert torch.equal(next(one.parameters()), next(two.parameters()))


def test_a_closure_without_a_pass_is_refused_and_moves_nothing() -> None:
    model = network()
    sam = steppe.SAM(steppe.AdamCM(model.parameters()), rho=0.3)
    before = [param.detach().clone() for param in model.parameters()]
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match=r"computed no gradients.*under perturbed"):
        Wrapper(sam).step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert not sam.state


def test_a_second_pass_that_returns_a_loss_may_be_skipped() -> None:
    model = network()
    sam = steppe.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.3)
    before = [param.detach().clone() for param in model.parameters()]
    calls = iter([True, False])

    def closure() -> Tensor | None:
        sam.zero_grad()
        if not next(calls):
            return None
        loss = loss_of(model)
        loss.backward()
        return loss

    assert sam.step(closure) is not None
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
