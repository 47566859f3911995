"""Random directions: the norm of every filter, and what seeds and bad input do."""

import pytest
import torch
from torch import nn

from steppe.landscape.objective.objective import Objective
from steppe.landscape.surfaces._directions import checked_direction, filter_normalised


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4, bias=False)
    ).to(dtype)


def drawn(objective: Objective, seed: int = 0) -> torch.Tensor:
    return filter_normalised(objective, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_filter_is_as_long_as_that_of_the_parameters(dtype: torch.dtype) -> None:
    objective = Objective(network(dtype), None, [])
    direction = drawn(objective)
    assert (direction.shape, direction.dtype) == ((objective.size,), dtype)
    parts = dict(zip(objective.names, objective.split(direction), strict=True))
    for name, param in objective.model.named_parameters():
        if param.ndim < 2:
            assert not parts[name].any()
            continue
        for part, kernel in zip(parts[name], param, strict=True):
            torch.testing.assert_close(part.norm(), kernel.detach().norm())


def test_is_gaussian_within_a_filter() -> None:
    layer = nn.Linear(20_000, 1, bias=False)
    direction = drawn(Objective(layer, None, []))
    numbers = direction / direction.square().mean().sqrt()
    # The third and fourth moments are 0 and 3, with standard errors √(15/n) and √(96/n).
    assert abs(numbers.pow(3).mean()) < 4 * (15 / 20_000) ** 0.5
    assert abs(numbers.pow(4).mean() - 3) < 4 * (96 / 20_000) ** 0.5


def test_a_direction_scales_with_its_filter_only() -> None:
    model = network()
    before = drawn(Objective(model, None, []))
    with torch.no_grad():
        model[0].weight[1] *= 10
    after = drawn(Objective(model, None, []))
    is_scaled = after != before
    torch.testing.assert_close(after[is_scaled], 10 * before[is_scaled])
    assert is_scaled.sum() == model[0].weight[1].numel()


def test_a_filter_of_zeros_gets_zeros() -> None:
    model = network()
    with torch.no_grad():
        model[3].weight[2] = 0
    objective = Objective(model, None, [])
    assert not objective.split(drawn(objective))[-1][2].any()


def test_the_seed_decides() -> None:
    objective = Objective(network(), None, [])
    assert torch.equal(drawn(objective, 3), drawn(objective, 3))
    assert not torch.equal(drawn(objective, 3), drawn(objective, 4))


def test_the_order_is_that_of_params() -> None:
    model = network()
    params = [model[3].weight, model[0].bias]
    direction = drawn(Objective(model, None, [], params=params))
    assert direction[:12].all()
    assert not direction[12:].any()


def test_refuses_parameters_without_filters() -> None:
    objective = Objective(nn.BatchNorm1d(3), None, [])
    with pytest.raises(ValueError, match="no parameter has a filter"):
        drawn(objective)


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        (torch.ones(3), r"direction has shape \(3,\), expected \(2,\)"),
        (torch.ones(1, 2), r"direction has shape \(1, 2\), expected \(2,\)"),
        (torch.tensor([1.0, torch.nan]), "direction is not finite"),
        (torch.zeros(2), "direction is zero"),
    ],
)
def test_refuses_a_direction_that_leads_nowhere(direction: torch.Tensor, message: str) -> None:
    objective = Objective(nn.Linear(2, 1, bias=False), None, [])
    with pytest.raises(ValueError, match=message):
        checked_direction(objective, "direction", direction)
