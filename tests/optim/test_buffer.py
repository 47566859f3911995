"""The sum of the slots stays exact, and the buffers decide alike."""

import pytest
import torch

from helpers.optimizer_configs import Config

pytestmark = pytest.mark.thorough


def drift(optimizer: torch.optim.Optimizer, p: torch.Tensor) -> float:
    """Relative distance of the kept sum from a fresh one in float64."""
    state = optimizer.state[p]
    fresh = sum(state[f"slot_{i}"].double() for i in range(5))
    return ((state["slot_sum"].double() - fresh).norm() / fresh.norm()).item()


@pytest.mark.parametrize("replacement", ["priority", "fifo"])
@pytest.mark.parametrize("shrink", [1.0, 1e-3], ids=["constant", "shrinking"])
def test_the_mean_does_not_drift_in_thousands_of_steps(shrink: float, replacement: str) -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.zeros(100, requires_grad=True)
    optimizer = Config("SGDCM")([p], lr=0.0, momentum=0.0, replacement=replacement)
    # Enough that a sum which is never renewed is 2e-6 off.
    steps = 3_000
    for t in range(steps):
        p.grad = torch.randn(100, generator=generator) * shrink ** (t / steps)
        optimizer.step()
    assert optimizer.state[p]["replacements"] > 600
    assert drift(optimizer, p) < 1e-6


def test_global_priority_is_the_norm_over_all_groups() -> None:
    a, b = (torch.zeros(2, requires_grad=True) for _ in range(2))
    optimizer = Config("AdamCM")(
        [{"params": [a]}, {"params": [b], "priority_decay": 0.5}], priority_decay=1.0
    )
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    optimizer.step()
    assert optimizer.state[a]["slot_keys"][0] == 5.0
    assert optimizer.state[b]["slot_keys"][0] == 2.5


def test_tensor_scope_is_each_tensors_own_norm_beside_a_global_one() -> None:
    a, b, c = (torch.zeros(2, requires_grad=True) for _ in range(3))
    groups = [{"params": [a, b], "scope": "tensor"}, {"params": [c]}]
    optimizer = Config("AdamCM")(groups, priority_decay=1.0)
    a.grad, b.grad, c.grad = (torch.tensor([x, 0.0]) for x in (3.0, 4.0, 12.0))
    optimizer.step()
    assert [optimizer.state[p]["slot_keys"][0] for p in (a, b, c)] == [3.0, 4.0, 13.0]


def test_an_equal_priority_replaces_nothing() -> None:
    """Strictly greater, the method says."""
    p = torch.zeros(1, requires_grad=True)
    optimizer = Config("SGDCG")([p], capacity=1, priority_decay=1.0)
    for gradient in (1.0, -1.0):
        p.grad = torch.tensor([gradient])
        optimizer.step()
    assert optimizer.state[p]["slot_0"] == 1.0


def test_diagnostics_of_a_buffer() -> None:
    """Norms 4, 3, 2, 1 with λ = 1 into two slots: 4 and 3 stay, born at steps 1 and 2."""
    p = torch.zeros(1, requires_grad=True)
    optimizer = Config("SGDCG")([p], capacity=2, priority_decay=1.0)
    for norm in (4.0, 3.0, 2.0, 1.0):
        p.grad = torch.tensor([norm])
        optimizer.step()
    assert optimizer.diagnostics() == {
        "buffer_fill": 2.0,
        "replacement_rate": 0.5,
        "slot_age": 2.5,
        "key_min": 3.0,
        "key_max": 4.0,
    }


def test_diagnostics_before_the_first_step_are_nan() -> None:
    optimizer = Config("DualAdamCM")([torch.zeros(1, requires_grad=True)])
    assert all(value != value for value in optimizer.diagnostics().values())


@pytest.mark.parametrize(("size", "share"), [(1e-3, 1e-6), (10.0, 100 / 101)])
def test_inverse_share_is_of_the_size_that_the_documentation_says(
    size: float, share: float
) -> None:
    """At α = ½ the parts are to each other as the squared gradient RMS to 1."""
    for name in ("DualAdam", "DualAdamCM"):
        p = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        optimizer = Config(name)([p], switch_rate=0.5, eps=1e-12)
        p.grad = torch.full_like(p, size)
        optimizer.step()
        report = optimizer.diagnostics()
        assert report["alpha"] == 0.5
        tolerance = 1e-5 if name == "DualAdam" else 1.0  # the buffer doubles the aggregate
        assert report["inverse_share"] == pytest.approx(share, rel=tolerance)


def test_mi_adams_step_ratio_is_of_the_size_that_the_documentation_says() -> None:
    """Under a steady gradient lrⁿ⁻¹/(1−κ)ⁿ: 0.1 at the defaults; after the switch 1."""
    p = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = Config("MIAdam")([p], switch_rate=1 / 400)
    assert all(value != value for value in optimizer.diagnostics().values())
    for t in range(1, 401):
        p.grad = torch.full_like(p, 3.0)
        optimizer.step()
        if t == 399:
            report = optimizer.diagnostics()
            expected = {"early": 1.0, "step_ratio": pytest.approx(0.1), "steps_to_switch": 1.0}
            assert report == expected
    expected = {"early": 0.0, "step_ratio": 1.0, "steps_to_switch": 0.0}
    assert optimizer.diagnostics() == expected


def test_scale_free_shares_equally_at_equal_gradients() -> None:
    p = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = Config("DualAdam")([p], switch_rate=0.5, scale_free=True)
    p.grad = torch.full_like(p, 1e-4)
    optimizer.step()
    assert optimizer.diagnostics()["inverse_share"] == pytest.approx(0.5)
