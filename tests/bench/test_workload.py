"""What is stepped."""

import pytest
import torch

from helpers.torch_defaults import torch_default
from steppe.bench.workload import parameters

CPU = torch.device("cpu")


def test_parameters_have_the_shapes_and_gradients() -> None:
    made = parameters([(50, 40), (7,)], CPU)
    assert [tuple(p.shape) for p in made] == [(50, 40), (7,)]
    assert [tuple(p.grad.shape) for p in made] == [(50, 40), (7,)]
    assert 0.009 < made[0].grad.std().item() < 0.011
    assert not torch.equal(made[0], made[0].grad)


def test_everybody_steps_the_same_numbers() -> None:
    for one, other in zip(
        parameters([(9,), (2,)], CPU), parameters([(9,), (2,)], CPU), strict=True
    ):
        assert torch.equal(one, other)
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_are_in_float32_whatever_torchs_default(default: torch.dtype) -> None:
    usual = parameters([(9,)], CPU)[0]
    with torch_default(default):
        (made,) = parameters([(9,)], CPU)
    assert made.dtype == torch.float32
    assert torch.equal(made, usual)
