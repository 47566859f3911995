"""Corruptions against SciPy, against their formulas, and against what must not change."""

from collections.abc import Iterable

import numpy as np
import pytest
import scipy.ndimage
import torch

from steppe.landscape.perturbations.corruptions import (
    IMAGE_CORRUPTIONS,
    SEVERITIES,
    TOKEN_CORRUPTIONS,
    InputScale,
    RunningScale,
    corrupt_images,
    corrupt_tokens,
)


def images(count: int = 6, channels: int = 2, height: int = 20, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 + 2 * torch.randn(count, channels, height, width, generator=generator)


def input_scale(parts: Iterable[torch.Tensor]) -> InputScale:
    scale = RunningScale()
    for part in parts:
        scale.add(part)
    return scale.result()


def corrupted(kind: str, severity: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return corrupt_images(images(), kind, severity, input_scale([images()]), generator)


def test_the_scale_of_several_batches_is_that_of_all_numbers() -> None:
    parts = images().double().split([1, 2, 3])
    found = input_scale(parts)
    assert found.std == pytest.approx(float(images().double().std(correction=0)), rel=1e-12)
    assert (found.low, found.high) == (float(images().min()), float(images().max()))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_is_a_gaussian_filter_that_repeats_the_edge(severity: int) -> None:
    width = 24 * (0.03, 0.045, 0.06, 0.08, 0.1)[severity - 1]
    reach = max(1, int(np.ceil(3 * width)))
    expected = scipy.ndimage.gaussian_filter(
        images().double().numpy(), (0, 0, width, width), mode="nearest", radius=(0, 0, reach, reach)
    )
    np.testing.assert_allclose(corrupted("blur", severity).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shifted_images_are_the_same_but_for_their_edges(severity: int) -> None:
    length = 24 * (0.05, 0.1, 0.15, 0.2, 0.25)[severity - 1]
    moves = []
    for before, after in zip(images(), corrupted("shift", severity), strict=True):
        fits = [
            (row, column)
            for row in range(-7, 8)
            for column in range(-7, 8)
            if np.array_equal(after.numpy(), moved(before.numpy(), row, column))
        ]
        assert len(fits) == 1
        moves += fits
    assert all(abs(np.hypot(*move) - max(1, length)) <= 0.8 for move in moves)
    assert len(set(moves)) > 2


def moved(image: np.ndarray, row: int, column: int) -> np.ndarray:
    return scipy.ndimage.shift(image, (0, row, column), order=0, mode="nearest")


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_its_standard_deviation(severity: int) -> None:
    share = (0.2, 0.4, 0.7, 1.0, 1.5)[severity - 1]
    added = corrupted("noise", severity) - images()
    expected = share * float(images().double().std(correction=0))
    assert float(added.std()) == pytest.approx(expected, rel=0.03)
    assert float(added.mean()) == pytest.approx(0, abs=0.05 * expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_and_brightness_follow_their_formulas(severity: int) -> None:
    before = images().double().numpy()
    middle = before.mean(axis=(1, 2, 3), keepdims=True)
    factor = (0.7, 0.5, 0.35, 0.25, 0.15)[severity - 1]
    contrast = corrupted("contrast", severity).numpy()
    np.testing.assert_allclose(contrast, middle + factor * (before - middle), atol=1e-5)
    brighter = before + (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1] * (before.max() - before.min())
    brightness = corrupted("brightness", severity).numpy()
    np.testing.assert_allclose(brightness, np.minimum(brighter, before.max()), atol=1e-5)


@pytest.mark.parametrize("kind", IMAGE_CORRUPTIONS)
def test_a_seed_gives_the_same_corruption_and_harder_ones_change_more(kind: str) -> None:
    assert torch.equal(corrupted(kind, 3), corrupted(kind, 3))
    assert corrupted(kind, 1).shape == images().shape
    if kind == "shift":
        return  # noise is as unlike itself after any shift
    changes = [float((corrupted(kind, each) - images()).square().mean()) for each in SEVERITIES]
    assert changes == sorted(changes)


def tokens() -> torch.Tensor:
    # Distinct in each sequence, so that a place tells where a token comes from.
    return torch.stack([100 * row + torch.arange(50) for row in range(200)])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_dropout_replaces_its_share_by_tokens_of_the_batch(severity: int) -> None:
    found = corrupt_tokens(tokens(), "dropout", severity, torch.Generator().manual_seed(0))
    share = (0.02, 0.05, 0.1, 0.2, 0.4)[severity - 1]
    changed = found != tokens()
    assert float(changed.double().mean()) == pytest.approx(share, abs=4 * np.sqrt(share / 10_000))
    assert np.isin(found.numpy(), tokens().numpy()).all()
    # From all sequences, not from its own alone.
    assert float((found // 100 != tokens() // 100)[changed].double().mean()) > 0.9


@pytest.mark.parametrize("severity", SEVERITIES)
def test_swaps_exchange_neighbours_once(severity: int) -> None:
    found = corrupt_tokens(tokens(), "swaps", severity, torch.Generator().manual_seed(0))
    assert torch.equal(found.sort(dim=1).values, tokens())
    by = found - tokens()
    assert set(by.unique().tolist()) == {-1, 0, 1}
    assert torch.equal(by == 1, torch.nn.functional.pad(by == -1, (-1, 1)))
    share = (0.02, 0.05, 0.1, 0.2, 0.4)[severity - 1]
    # A token that has been exchanged is not free for the next exchange.
    expected = share / (1 + share)
    found_share = float((by == 1).double().mean())
    assert found_share == pytest.approx(expected, abs=4 * np.sqrt(expected / 10_000))


@pytest.mark.parametrize("kind", TOKEN_CORRUPTIONS)
def test_padding_stays_and_is_not_drawn(kind: str) -> None:
    real = torch.arange(50).expand(200, 50) < 30
    padded = tokens().where(real, torch.tensor(-1))
    found = corrupt_tokens(padded, kind, 5, torch.Generator().manual_seed(0), real)
    assert torch.equal(found[~real], padded[~real])
    assert (found[real] >= 0).all()
    assert not torch.equal(found, padded)


def test_unknown_kinds_and_severities_are_named() -> None:
    scale, generator = input_scale([images()]), torch.Generator()
    with pytest.raises(ValueError, match="no corruption is called 'blurr': did you mean blur"):
        corrupt_images(images(), "blurr", 1, scale, generator)
    with pytest.raises(ValueError, match="severity=6 must be a whole number from 1 to 5"):
        corrupt_tokens(tokens(), "swaps", 6, generator)
