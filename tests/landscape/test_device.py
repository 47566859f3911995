"""The instruments on a GPU say what they say on the CPU; skipped where there is none."""

import copy

import numpy as np
import pytest
import torch

from helpers.known_spectra import small_network
from steppe.landscape import plane, profile

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_the_card_is_that_of_the_cpu() -> None:
    model, loss_fn, data = small_network()
    card = profile(model, loss_fn, data)
    # The data stays where it is: batches are moved to the model.
    there = profile(copy.deepcopy(model).cuda(), loss_fn, data)
    np.testing.assert_allclose(there.top.values, card.top.values, rtol=1e-6)
    assert there.trace.value == pytest.approx(card.trace.value, rel=1e-9)
    np.testing.assert_allclose(there.density.nodes, card.density.nodes, rtol=1e-6, atol=1e-9)
    assert there.worst.value == pytest.approx(card.worst.value, rel=1e-9)
    assert there.average.value == pytest.approx(card.average.value, rel=1e-9)
    np.testing.assert_allclose(there.random.losses, card.random.losses, rtol=1e-9)


def test_a_plane_is_that_of_the_cpu() -> None:
    model, loss_fn, data = small_network()
    here = plane(model, loss_fn, data, points=3)
    there = plane(copy.deepcopy(model).cuda(), loss_fn, data, points=3)
    np.testing.assert_allclose(there.losses, here.losses, rtol=1e-9)
