"""Every optimizer against float64 NumPy references written from the papers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.float64_reference import reference
from helpers.optimizer_configs import CONFIGS, REPRESENTATIVE, SHAPES, Config

STEPS = 200


def wavy_gradient(q: np.ndarray, i: int, t: int) -> np.ndarray:
    """Of a sum of non-convex functions, with a phase that depends on the step."""
    return 3.0 * np.cos(3.0 * q + i + 0.7 * t) + 0.5 * q + np.sin(t + i)


def worst_error(config: Config, dtype: torch.dtype, capturable: bool) -> float:
    """Largest distance to the reference in 200 steps, relative to the trajectory's size.

    Some gradients are missing. Those of our parameters are fed to both, so that the function's
    own chaos amplifies no error.
    """
    generator = np.random.default_rng(0)
    start = [generator.normal(size=shape).astype(np.float32) for shape in SHAPES]
    truth = reference(config.name, [x.astype(np.float64) for x in start], **config.options)
    params = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in start]
    optimizer = config(params, capturable=capturable)
    worst, size = 0.0, 0.0
    for t in range(STEPS):
        gradients = []
        for i, p in enumerate(params):
            missing = (t % 7 == 3 and i == 1) or (t < 5 and i == 3)
            g = wavy_gradient(p.detach().double().numpy(), i, t)
            p.grad = None if missing else torch.tensor(g, dtype=dtype)
            gradients.append(None if p.grad is None else p.grad.double().numpy())
        truth.step(gradients)
        optimizer.step()
        ours, theirs = _flat([p.detach().double().numpy() for p in params]), _flat(truth.params)
        size = max(size, np.linalg.norm(theirs))
        worst = max(worst, np.linalg.norm(ours - theirs) / size)
    return worst


def _flat(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([x.ravel() for x in arrays])


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_float64_follows_the_paper(config: Config) -> None:
    assert worst_error(config, torch.float64, capturable=False) < 1e-10


@pytest.mark.parametrize("config", REPRESENTATIVE[::2], ids=str)
def test_counts_on_the_device_follow_the_paper(config: Config) -> None:
    assert worst_error(config, torch.float64, capturable=True) < 1e-10


@pytest.mark.parametrize("config", REPRESENTATIVE, ids=str)
def test_float32_follows_the_paper(config: Config) -> None:
    assert worst_error(config, torch.float32, capturable=False) < 1e-5


def test_capacities_and_decays_differ_by_group_under_one_global_priority() -> None:
    start = [np.full(3, 1.0), np.full(2, -1.0)]
    truth = reference("AdamCM", start, lr=0.03)
    truth.buffers[1].capacity, truth.buffers[1].priority_decay = 2, 0.99
    params = [torch.tensor(x, requires_grad=True) for x in start]
    groups = [
        {"params": params[:1]},
        {"params": params[1:], "capacity": 2, "priority_decay": 0.99},
    ]
    optimizer = Config("AdamCM")(groups, lr=0.03)
    for t in range(60):
        gradients = [wavy_gradient(x, i, t) * (1 + t % 5) for i, x in enumerate(truth.params)]
        for p, g in zip(params, gradients, strict=True):
            p.grad = torch.tensor(g)
        truth.step(gradients)
        optimizer.step()
    for i, p in enumerate(params):
        np.testing.assert_allclose(p.detach().numpy(), truth.params[i], rtol=1e-10)
        keys = optimizer.state[p]["slot_keys"].tolist()
        np.testing.assert_allclose(keys, truth.keys(i), rtol=1e-12)


@settings(max_examples=60)
@given(
    scales=st.lists(
        st.sampled_from([0.0, 1e-3, 0.5, 1.0, -1.0, 7.0, -7.0, float("inf"), float("nan")]),
        min_size=1,
        max_size=25,
    ),
    capacity=st.integers(0, 4),
    decay=st.sampled_from([0.5, 0.7, 1.0]),
    replacement=st.sampled_from(["priority", "fifo"]),
    scope=st.sampled_from(["global", "tensor"]),
    capturable=st.booleans(),
)
def test_buffers_decide_as_the_paper_says(
    scales: list[float],
    capacity: int,
    decay: float,
    replacement: str,
    scope: str,
    capturable: bool,
) -> None:
    """Ties, zero, infinite and NaN priorities, full and missing buffers."""
    choice = {
        "capacity": capacity,
        "priority_decay": decay,
        "replacement": replacement,
        "scope": scope,
    }
    truth = reference("SGDCG", [np.zeros(2), np.zeros(3)], **choice)
    params = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (2, 3)]
    optimizer = Config("SGDCG")(params, capturable=capturable, **choice)
    for scale in scales:
        gradients = [np.array([3.0, 4.0]) * scale, np.array([1.0, 5.0, 12.0]) * scale]
        for p, g in zip(params, gradients, strict=True):
            p.grad = torch.tensor(g)
        truth.step(gradients)
        optimizer.step()
    for i, p in enumerate(params):
        state = optimizer.state[p]
        keys = [key for key in state.get("slot_keys", torch.empty(0)).tolist() if key >= 0]
        np.testing.assert_allclose(keys, truth.keys(i), rtol=1e-12)
        for j, slot in enumerate(truth.slots(i)):
            np.testing.assert_array_equal(state[f"slot_{j}"].numpy(), slot)
