"""Rounded weights against brute force, and compensation against the solved least squares."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from steppe.landscape.perturbations.error_compensation import round_with_compensation
from steppe.landscape.perturbations.rounding import (
    Scales,
    round_to_bits,
    round_weight,
    scale_of,
)


def nearest(channel: np.ndarray, scale: float, most: int) -> np.ndarray:
    """Return each weight's nearest level, by trying all."""
    levels = scale * np.arange(-most, most + 1)
    return levels[np.abs(channel[:, None] - levels).argmin(axis=1)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_largest_weight_is_kept_by_absmax_scales(bits: int) -> None:
    weights = torch.randn(5, 40, generator=torch.Generator().manual_seed(bits)).double()
    rounded = round_to_bits(weights, bits, "absmax")
    most = 2 ** (bits - 1) - 1
    for row, channel in zip(rounded.numpy(), weights.numpy(), strict=True):
        scale = np.abs(channel).max() / most
        np.testing.assert_allclose(row, nearest(channel, scale, most), atol=1e-12)
        assert len(np.unique(row.round(9))) <= 2**bits - 1
    largest = weights.abs().argmax(dim=1, keepdim=True)
    torch.testing.assert_close(rounded.gather(1, largest), weights.gather(1, largest))


@given(
    seed=st.integers(0, 2**31),
    bits=st.sampled_from([2, 3, 4]),
    heavy=st.booleans(),
    count=st.integers(2, 60),
)
def test_no_scale_has_a_smaller_error_than_that_of_least_error(
    seed: int, bits: int, heavy: bool, count: int
) -> None:
    random = np.random.default_rng(seed)
    channel = random.standard_t(2, count) if heavy else random.standard_normal(count)
    most = 2 ** (bits - 1) - 1
    found = round_to_bits(torch.from_numpy(channel)[None], bits, "least error")[0].numpy()
    error = ((channel - found) ** 2).sum()
    tried = np.abs(channel).max() / most * np.linspace(0.002, 1.2, 2_000)
    least = min(((channel - nearest(channel, scale, most)) ** 2).sum() for scale in tried)
    assert error <= least * (1 + 1e-9) + 1e-12


def test_ternary_gaussian_weights_have_the_known_error() -> None:
    """The best three levels for a normal distribution leave 0.190 of its variance (Max 1960)."""
    weights = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0)).double()
    error = (weights - round_to_bits(weights, 2, "least error")).square().mean() / weights.var()
    assert float(error) == pytest.approx(0.1902, abs=0.003)
    assert float(scale_of(weights, 2, "least error")) == pytest.approx(1.224, abs=0.01)


def test_a_channel_of_zeros_stays_zero() -> None:
    weights = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    for scales in ("absmax", "least error"):
        assert round_to_bits(weights, 3, scales)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scales", ["absmax", "least error"])
def test_each_group_of_a_channel_is_rounded_as_if_it_were_one(scales: Scales) -> None:
    weights = torch.randn(3, 20, generator=torch.Generator().manual_seed(0)).double()
    weights[:, 8:16] *= 100
    found = round_to_bits(weights, 3, scales, group=8)
    for first, last in ((0, 8), (8, 16), (16, 20)):
        alone = round_to_bits(weights[:, first:last], 3, scales)
        torch.testing.assert_close(found[:, first:last], alone, rtol=0, atol=0)
    whole = round_to_bits(weights, 3, scales)
    torch.testing.assert_close(round_to_bits(weights, 3, scales, group=20), whole)
    # One scale for all has nothing left for the small weights.
    assert not whole[:, :8].any()
    assert found[:, :8].any()


def test_groups_of_a_convolution_run_through_its_flattened_filters() -> None:
    layer = nn.Conv2d(4, 2, 3)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        round_weight(layer, layer.weight, 2, "absmax", 9)
    for channel, own in zip(before.flatten(0, 1), layer.weight.detach().flatten(0, 1), strict=True):
        size = float(channel.abs().max())
        assert {round(float(x) / size, 5) for x in own.flatten()} <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize(
    ("module", "dimension"),
    [
        (nn.Linear(6, 3), 0),
        (nn.Conv2d(2, 3, 3), 0),
        (nn.ConvTranspose2d(2, 3, 3), 1),
        (nn.Embedding(4, 6), 0),
    ],
    ids=["linear", "convolution", "transposed", "embedding"],
)
def test_each_output_channel_has_a_scale_of_its_own(module: nn.Module, dimension: int) -> None:
    with torch.no_grad():
        weight = module.weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        factors = torch.logspace(-3, 3, weight.shape[dimension])
        shape = [1] * weight.ndim
        shape[dimension] = -1
        weight.mul_(factors.reshape(shape))
        before = weight.clone()
        round_weight(module, weight, 3, "absmax")
    after = weight.detach()
    for channel, rounded in zip(before.unbind(dimension), after.unbind(dimension), strict=True):
        step = channel.abs().max() / 3
        assert float((channel - rounded).abs().max()) <= float(step) * 0.5001


def solved(weight: np.ndarray, moments: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Round column after column; before each, solve for the best values of all that are left.

    Given the columns D that are rounded, ``min ‖(w − ŵ)X‖²`` over the others F is at
    ``w_F + H_FF⁻¹ H_FD (w_D − ŵ_D)``.
    """
    outputs, inputs = weight.shape
    most = 2 ** (bits - 1) - 1
    H = moments + 0.01 * np.diag(moments).mean() * np.eye(inputs)
    rounded = np.zeros_like(weight)
    for column in range(inputs):
        done, left = slice(0, column), slice(column, inputs)
        fixed = (weight - rounded)[:, done]
        best = weight[:, left] + np.linalg.solve(H[left, left], H[left, done] @ fixed.T).T
        if column % group == 0:
            own = torch.from_numpy(best[:, :group])
            scale = scale_of(own, bits, "least error").numpy()[:, 0]
        for row in range(outputs):
            rounded[row, column] = nearest(best[row, :1], scale[row], most)[0]
    return rounded


@pytest.mark.parametrize(
    ("bits", "group", "seed"), list(itertools.product([2, 3, 4], [None, 5], range(3)))
)
def test_compensation_is_the_solution_of_least_squares(
    bits: int, group: int | None, seed: int
) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((5, 12))
    inputs = random.standard_normal((40, 12)) @ random.standard_normal((12, 12))
    moments = inputs.T @ inputs
    given = torch.from_numpy(weight), torch.from_numpy(moments)
    found = round_with_compensation(*given, bits, group).numpy()
    np.testing.assert_allclose(found, solved(weight, moments, bits, group or 12), atol=1e-9)


def test_compensation_changes_outputs_less_than_rounding_to_nearest() -> None:
    random = np.random.default_rng(0)
    weight = torch.from_numpy(random.standard_normal((20, 30)))
    inputs = torch.from_numpy(random.standard_normal((500, 30)) @ random.standard_normal((30, 30)))
    compensated = round_with_compensation(weight, inputs.T @ inputs, 3)
    plain = round_to_bits(weight, 3, "least error")
    errors = [float(((weight - each) @ inputs.T).square().sum()) for each in (compensated, plain)]
    assert errors[0] < 0.8 * errors[1]


def test_inputs_that_are_always_zero_do_not_hinder_compensation() -> None:
    weight = torch.tensor([[0.9, 0.3, -1.0]])
    moments = torch.diag(torch.tensor([1.0, 0.0, 1.0]))
    assert round_with_compensation(weight, moments, 3).isfinite().all()
    assert round_with_compensation(weight, torch.zeros(3, 3), 3).isfinite().all()
