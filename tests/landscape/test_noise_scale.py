"""The gradient noise scale against samples' own gradients, and where the truth is known."""

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.stateful_model import snapshot
from steppe.landscape import noise_scale


def half_square(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).square().sum(1).mean() / 2


def known(samples: int, size: int, seed: int) -> tuple[nn.Module, list]:
    """Return a model whose samples' gradients are N((.5, 0, 1), diag(1, 4, .25)), and batches.

    So tr(Σ) is 5.25 and ‖G‖² 1.25.
    """
    model = nn.Linear(1, 3, bias=False).double()
    nn.init.zeros_(model.weight)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    gradients = torch.tensor([0.5, 0, 1]) + noise * torch.tensor([1, 2, 0.5])
    ones = torch.ones(samples, 1, dtype=torch.float64)
    return model, list(zip(ones.split(size), (-gradients).split(size), strict=True))


@pytest.mark.thorough
@pytest.mark.parametrize("size", [4, 7])
def test_is_unbiased_and_within_its_error(size: int) -> None:
    """Over 60 seeds, the last batch smaller than the others or not."""
    found = [noise_scale(*_with_loss(known(80, size, seed))) for seed in range(50)]
    for name, truth in (("variance", 5.25), ("slope", 1.25), ("value", 4.2)):
        values = np.array([getattr(each, name) for each in found])
        errors = values - truth
        reported = np.array(
            [getattr(x, "stderr" if name == "value" else f"{name}_stderr") for x in found]
        )
        if name != "value":  # a ratio has a bias of its own
            assert abs(errors.mean()) < 3 * errors.std() / math.sqrt(50)
        assert 0.7 < np.sqrt(np.square(reported).mean()) / errors.std() < 1.5
        assert (np.abs(errors) < 2 * reported).mean() > 0.85
    assert found[0].samples == 80
    assert found[0].batches == math.ceil(80 / size)


def _with_loss(pair):
    return pair[0], half_square, pair[1]


def test_of_single_samples_it_is_that_of_their_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.zeros(9, dtype=torch.long)
    data = list(zip(x.split(1), y.split(1), strict=True))
    rows = []
    for a, b in data:
        grads = torch.autograd.grad(F.cross_entropy(model(a), b), list(model.parameters()))
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    gradients = torch.stack(rows)
    before = snapshot(model)
    found = noise_scale(model, F.cross_entropy, data)
    variance = float(gradients.var(0).sum())
    assert found.variance == pytest.approx(variance)
    assert found.slope == pytest.approx(float(gradients.mean(0).square().sum()) - variance / 9)
    assert found.value == pytest.approx(found.variance / found.slope)
    left_out = [torch.cat([gradients[:i], gradients[i + 1 :]]).var(0).sum() for i in range(9)]
    error = math.sqrt(8 * float(torch.stack(left_out).var(correction=0)))
    assert found.variance_stderr == pytest.approx(error)
    assert snapshot(model) == before
    part = noise_scale(model, F.cross_entropy, data, params="2")
    assert part.variance == pytest.approx(float(gradients[:, 15:].var(0).sum()))


def test_batches_weigh_by_their_targets() -> None:
    """One whose targets are all ignored is left out."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    kept = list(zip(x.split(3), y.split(3), strict=True))
    ignored = torch.full((3,), -100)
    found = noise_scale(model, F.cross_entropy, [*kept, (x[:3], ignored)])
    assert found.to_dict() == pytest.approx(noise_scale(model, F.cross_entropy, kept).to_dict())


def test_at_a_minimum_it_is_infinite() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    ones = torch.ones(4, 1, 1, dtype=torch.float64)
    data = list(
        zip(ones, torch.tensor([1.0, -1.0, 2.0, -2.0]).double().reshape(4, 1, 1), strict=True)
    )
    found = noise_scale(model, half_square, data)
    assert found.slope < 0
    assert (found.value, found.stderr) == (math.inf, math.inf)


def test_mistakes_are_named() -> None:
    model, data = known(4, 2, 0)
    with pytest.raises(ValueError, match="data has 2 batches: the noise scale needs at least 3"):
        noise_scale(model, half_square, data)
    summed = functools.partial(F.mse_loss, reduction="sum")
    with pytest.raises(ValueError, match="the loss is a sum over samples"):
        noise_scale(model, summed, known(9, 3, 0)[1])
