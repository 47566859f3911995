"""First steps worked out by hand, and limits in which one method is another."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_optimizer import DualAdam as PeerDualAdam

from helpers.optimizer_configs import Config, parameters, set_gradients, train
from steppe._engines import bind
from steppe.rules import integral_weights


def path(name: str, gradients: list[float], **options: Any) -> list[float]:
    """Return the moves of one parameter, from 0, under a sequence of gradients."""
    p = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = Config(name)([p], **options)
    positions = [0.0]
    for g in gradients:
        p.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
        positions.append(p.item())
    return [b - a for a, b in pairwise(positions)]


def test_inv_adam() -> None:
    """m̂ = g and d = |g| on the first step: −lr·g·|g|."""
    assert path("InvAdam", [-3.0], lr=0.1, eps=0.0) == pytest.approx([0.9])


def test_dual_adam() -> None:
    """α = 0.75 at t = 1: −lr·(0.25·g/|g| + 0.75·g·|g|)."""
    assert path("DualAdam", [2.0], lr=0.1, eps=0.0, switch_rate=0.25) == pytest.approx(
        [-0.1 * (0.25 + 0.75 * 4)]
    )


def test_dual_adam_scale_free() -> None:
    """Gradients 1 and 7: r = √25 = 5, q = (1, 7)/5, α = 0.5."""
    p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([1.0, 7.0], dtype=torch.float64)
    Config("DualAdam")([p], lr=0.1, eps=1e-300, switch_rate=0.5, scale_free=True).step()
    q = torch.tensor([0.2, 1.4], dtype=torch.float64)
    torch.testing.assert_close(p.detach(), -0.1 * q * (0.5 / q + 0.5 * q))


@pytest.mark.parametrize(("order", "integrals"), [(1, (0.1, 0.24)), (2, (0.1, 0.29))])
def test_mi_adam(order: int, integrals: tuple[float, float]) -> None:
    """The momentum is 0.1, then 0.19; with κ = 0.5 its sum is 0.24, and the sum of sums 0.29."""
    moves = path(
        "MIAdam",
        [1.0, 1.0, 1.0],
        lr=0.1,
        eps=0.0,
        integration_order=order,
        integration_rate=0.5,
        switch_rate=1 / 3,
    )
    first, second = (0.1**order * x for x in integrals)
    assert moves == pytest.approx([-first / 0.1, -second / 0.19, -0.1])


def test_mi_adam_of_order_one_without_memory_is_adamw() -> None:
    """κ = 0 and n = 1: the integral is m, and lr to the first power."""
    gradients = [1.0, -3.0, 0.5, 2.0]
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.2}
    moves = path("MIAdam", gradients, integration_order=1, integration_rate=0.0, **options)
    assert moves == pytest.approx(path("AdamCG", gradients, capacity=0, **options), rel=1e-14)


def test_mi_adam_switches_at_its_step() -> None:
    """From step ζ on the integral has no weight, however 1/ζ is rounded."""
    weights = bind(integral_weights, np)
    for zeta in range(1, 1000):
        assert weights(np.float64(zeta), 0.1, 1 / zeta, 3) == (0.0, 1.0)
        before = weights(np.float64(zeta - 1), 0.1, 1 / zeta, 3)
        assert before == (pytest.approx(0.01), 0.0)


def test_adam_cm() -> None:
    """Step 1 is −lr; at step 2, g = 1 again, so a = 1 + 1 = 2."""
    v_hat = (0.999 * 0.001 * 1 + 0.001 * 4) / (1 - 0.999**2)
    assert path("AdamCM", [1.0, 1.0], lr=0.1, eps=0.0) == pytest.approx(
        [-0.1, -0.1 * 2 / math.sqrt(v_hat)]
    )


def test_adam_cm_as_the_authors_released_it() -> None:
    """Nothing, then (0.1 + 1)/0.19/√(0.001·1.21/(1 − 0.999²)) = 7.44 times lr."""
    moves = path("AdamCM", [1.0, 1.0], lr=0.1, eps=0.0, variant="authors")
    v_hat = 0.001 * 1.1**2 / (1 - 0.999**2)
    assert moves == pytest.approx([0.0, -0.1 * 1.1 / 0.19 / math.sqrt(v_hat)])
    assert moves[1] == pytest.approx(-0.744, abs=1e-3)


def test_dual_adam_cm() -> None:
    """As AdamCM on the first step, with α = 0.5: −lr·(0.5 + 0.5·g²)."""
    assert path("DualAdamCM", [3.0], lr=0.1, eps=0.0, switch_rate=0.5) == pytest.approx(
        [-0.1 * (0.5 + 0.5 * 9)]
    )


def test_sgd_cm() -> None:
    """M = 1, then 0.5 + 1 = 1.5 plus κ·mean(1) = 2·1."""
    moves = path("SGDCM", [1.0, 1.0], lr=0.1, momentum=0.5, kappa=2.0)
    assert moves == pytest.approx([-0.1, -0.35])


def test_sgd_cm_steps_one_plus_kappa_times_sgd_on_a_steady_gradient() -> None:
    moves = path("SGDCM", [1.0] * 200, lr=0.1, momentum=0.5, kappa=0.7, replacement="fifo")
    assert moves[-1] == pytest.approx(-0.1 * 2.0 * 1.7)


@pytest.mark.parametrize(
    ("aggregation", "second"), [("sum", 3.0 + 0.5), ("mean", (3.0 + 0.5) / 2), ("mid", 1.75)]
)
def test_sgd_cg(aggregation: str, second: float) -> None:
    moves = path("SGDCG", [1.0, 3.0], lr=0.1, aggregation=aggregation, kappa=0.5)
    assert moves == pytest.approx([-0.1, -0.1 * second])


def test_adam_cg() -> None:
    """Aggregates 1 and (3 + 1)/2 = 2."""
    m_hat = (0.9 * 0.1 * 1 + 0.1 * 2) / (1 - 0.9**2)
    v_hat = (0.999 * 0.001 * 1 + 0.001 * 4) / (1 - 0.999**2)
    assert path("AdamCG", [1.0, 3.0], lr=0.1, eps=0.0) == pytest.approx(
        [-0.1, -0.1 * m_hat / math.sqrt(v_hat)]
    )


def test_rmsprop_cg() -> None:
    """Aggregates 1 and 2; v = 0.25, then 0.75·0.25 + 0.25·4."""
    moves = path("RMSpropCG", [1.0, 3.0], lr=0.1, alpha=0.75, eps=0.0)
    assert moves == pytest.approx([-0.1 / 0.5, -0.1 * 2 / math.sqrt(1.1875)])


@pytest.mark.parametrize("name", ["DualAdam", "MIAdam"])
def test_who_switches_is_adamw_after_the_switch(name: str) -> None:
    """From equal state: the switch is over after 20 steps."""
    ours, theirs = parameters(), parameters()
    switched = Config(name, {"switch_rate": 1 / 20, "weight_decay": 0.1})(ours)
    train(switched, ours, range(20))
    adamw = torch.optim.AdamW(theirs, weight_decay=0.1, foreach=False)
    set_gradients(theirs, 0)
    adamw.step()  # makes the state, which is then set
    for p, q in zip(ours, theirs, strict=True):
        q.data.copy_(p.detach())
        for moment in adamw.state[q]:
            adamw.state[q][moment].copy_(switched.state[p][moment])
    for t in range(20, 120):
        for params, optimizer in ((ours, switched), (theirs, adamw)):
            set_gradients(params, t)
            optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_pytorch_optimizers_dual_adam_agrees(decay: float) -> None:
    """A second opinion, at its settings: one step count for all, gradients everywhere."""
    ours, theirs = parameters(), parameters()
    options = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": decay}
    dual = Config("DualAdam")(ours, switch_rate=0.01, **options)
    peer = PeerDualAdam(theirs, switch_rate=0.01, weight_decouple=True, **options)
    for t in range(150):
        for params, optimizer in ((ours, dual), (theirs, peer)):
            set_gradients(params, t)
            optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ("AdamCG", torch.optim.AdamW, {"weight_decay": 0.1}),
        ("AdamCG", torch.optim.AdamW, {"weight_decay": 0.1, "amsgrad": True}),
        ("SGDCG", torch.optim.SGD, {"weight_decay": 0.1, "momentum": 0.9, "dampening": 0.5}),
        ("SGDCM", torch.optim.SGD, {"weight_decay": 0.1, "momentum": 0.9, "dampening": 0.5}),
        ("SGDCM", torch.optim.SGD, {"momentum": 0.0, "dampening": 0.5}),
        ("RMSpropCG", torch.optim.RMSprop, {"centered": True, "momentum": 0.9}),
    ],
)
def test_without_a_buffer_it_is_torchs_optimizer(
    ours: str, theirs: Any, options: dict[str, Any]
) -> None:
    ps, qs = parameters(), parameters()
    optimizers = [Config(ours)(ps, lr=0.01, capacity=0, **options), theirs(qs, lr=0.01, **options)]
    for t in range(60):
        for params, optimizer in zip((ps, qs), optimizers, strict=True):
            set_gradients(params, t)
            optimizer.step()
    for p, q in zip(ps, qs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def test_adam_cm_at_kappa_zero_is_not_adam_but_adam_with_v_of_m_hat() -> None:
    """As its documentation says."""
    p = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = Config("AdamCM")([p], kappa=0.0, lr=0.01)
    x, m, v = torch.ones(3, dtype=torch.float64), torch.zeros(3), torch.zeros(3)
    for t in range(1, 30):
        g = torch.cos(torch.arange(3.0, dtype=torch.float64) + t)
        p.grad = g
        optimizer.step()
        m = 0.9 * m + 0.1 * g
        m_hat = m / (1 - 0.9**t)
        v = 0.999 * v + 0.001 * m_hat**2
        x = x - 0.01 * m_hat / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(p.detach(), x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-4, 1e6])
def test_scale_free_does_not_see_the_scale_of_the_loss(scale: float) -> None:
    plain, scaled = parameters(), parameters()
    options = {"scale_free": True, "switch_rate": 0.01, "eps": 1e-30, "lr": 0.01}
    optimizers = [Config("DualAdam")(plain, **options), Config("DualAdam")(scaled, **options)]
    for t in range(50):
        set_gradients(plain, t)
        for p, q in zip(plain, scaled, strict=True):
            q.grad = p.grad * scale
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(plain, scaled, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_scale_free_stands_still_on_zero_gradients(dtype: torch.dtype) -> None:
    params = [torch.ones(3, dtype=dtype, requires_grad=True)]
    optimizer = Config("DualAdam")(params, scale_free=True)
    for _ in range(3):
        params[0].grad = torch.zeros(3, dtype=dtype)
        optimizer.step()
    assert torch.equal(params[0], torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("fused", [False, True])
def test_scale_free_may_be_switched_on_and_off(fused: bool) -> None:
    """The mean of v̂ is that of v̂ at every step, whoever kept it before."""
    params, truth = (parameters(torch.float64) for _ in range(2))
    optimizer = Config("DualAdam")(params, lr=0.01, switch_rate=0.05, fused=fused)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in truth]
    for t in range(1, 13):
        scale_free = t in (4, 5, 9, 10)
        optimizer.param_groups[0]["scale_free"] = scale_free
        train(optimizer, params, range(t, t + 1))
        set_gradients(truth, t)
        alpha = max(0.0, 1.0 - 0.05 * t)
        for p, (m, v) in zip(truth, moments, strict=True):
            m.mul_(0.9).add_(0.1 * p.grad)
            v.mul_(0.999).add_(0.001 * p.grad**2)
            direction, d = m / (1 - 0.9**t), (v / (1 - 0.999**t)).sqrt() + 1e-8
            if scale_free:
                r = (v / (1 - 0.999**t)).mean().sqrt() + 1e-8
                direction, d = direction / r, d / r
            p.data -= 0.01 * ((1 - alpha) * direction / d + alpha * direction * d)
        torch.testing.assert_close(params, truth, rtol=1e-12, atol=1e-13)
        assert all(("exp_avg_sq_mean" in optimizer.state[p]) == scale_free for p in params)
