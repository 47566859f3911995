"""Steps on tensors whose numbers are not to be read: fake ones, and those that torch.func wraps."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Linear, Parameter

import steppe
from helpers.optimizer_configs import REPRESENTATIVE, Config


@pytest.mark.parametrize("more", [{}, {"fused": False}, {"state_dtype": "int8"}], ids=str)
@pytest.mark.parametrize("config", REPRESENTATIVE[1::3], ids=str)
def test_fake_parameters_are_stepped_as_others(config: Config, more: dict[str, Any]) -> None:
    """Shapes and formats of the state are those of a real run, which is how its size is found."""

    def state_after_steps() -> tuple[dict[str, Any], Linear]:
        model = Linear(80, 60)
        optimizer = config(model.parameters(), **more)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 80)).square().mean().backward()
            optimizer.step()
        if "state_dtype" not in more:  # scales by lines are joined by their values
            optimizer.load_state_dict(optimizer.state_dict())
            optimizer.step()
        return optimizer.state[model.weight], model

    state, _ = state_after_steps()
    with FakeTensorMode():
        fake_state, model = state_after_steps()
        assert type(model.weight) is FakeTensor
    assert state.keys() == fake_state.keys()
    for name, value in state.items():
        assert (value.shape, value.dtype) == (fake_state[name].shape, fake_state[name].dtype), name


@pytest.mark.parametrize("more", [{}, {"fused": False}], ids=str)
@pytest.mark.parametrize("config", REPRESENTATIVE, ids=str)
def test_a_step_inside_torch_func_is_the_same(config: Config, more: dict[str, Any]) -> None:
    start = torch.linspace(-1.0, 1.0, 5)
    inside: list[Tensor] = []

    def stepped(values: Tensor) -> Tensor:
        p = Parameter(values.clone())
        optimizer = config([p], **more)
        for _ in range(3):
            p.grad = values.detach() * 2.0
            optimizer.step()
        inside.append(p)
        return p.sum()

    torch.func.grad(stepped)(start)
    stepped(start)
    traced = torch._C._functorch.get_unwrapped(inside[0])
    torch.testing.assert_close(traced, inside[1].detach(), rtol=1e-5, atol=1e-7)


def test_fake_state_of_a_real_parameter_is_refused() -> None:
    p = Parameter(torch.ones(5))
    p.grad = torch.ones(5)
    optimizer = steppe.AdamCM([p])
    message = r"state 'exp_avg' of parameter 0 of group 0, shape \(5,\), is a FakeTensor"
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises(RuntimeError, match=message),
    ):
        optimizer.step()
    assert p.tolist() == [1.0] * 5
    optimizer.state.clear()
    optimizer.step()
    assert optimizer.state[p]["step"].item() == 1.0
