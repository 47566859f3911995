"""What is stepped."""

import torch

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
