"""What is stepped."""

import pytest
import torch

from helpers.torch_defaults import torch_default
from steppe.bench.workload import parameters, warm_up

CPU = torch.device("cpu")
FORMATS = (torch.float32, torch.bfloat16)


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


def test_other_number_formats_hold_the_same_numbers_rounded() -> None:
    (exact,), (rounded,) = (parameters([(9,)], CPU, dtype) for dtype in FORMATS)
    assert torch.equal(rounded, exact.to(torch.bfloat16))
    assert torch.equal(rounded.grad, exact.grad.to(torch.bfloat16))


def test_a_step_that_drops_the_gradients_is_refused() -> None:
    class Dropping(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.zero_grad()

    with pytest.raises(ValueError, match="Dropping drops the gradients in its step"):
        warm_up(Dropping(parameters([(9,)], CPU)))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_are_in_float32_whatever_torchs_default(default: torch.dtype) -> None:
    usual = parameters([(9,)], CPU)[0]
    with torch_default(default):
        (made,) = parameters([(9,)], CPU)
    assert made.dtype == torch.float32
    assert torch.equal(made, usual)
