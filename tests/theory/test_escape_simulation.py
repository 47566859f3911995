"""Walkers against a reference in plain Python; censoring, determinism, Ctrl-C."""

import itertools
import math
import re
import signal
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from steppe.theory import (
    escape_simulation,
    escape_time,
    limit_well,
    path_coefficient,
    simulate_escape,
)

LOW = limit_well("sgd", 1.0)
PAGE = (Path(__file__).parents[2] / "docs" / "escape.md").read_text()
OUTSIDE = re.findall(
    r"^\| ([\d.]+) \| ([\d.]+) \| [\d.]+ and [\d.]+ \| ([\d.]+) ± [\d.]+ \| ([\d.]+) \|$",
    PAGE,
    re.MULTILINE,
)


def reference(
    method: str, walker: int, seed: int, *, alpha: float = 0.0, moment: str = "local",
    beta1: float = 0.0, beta2: float = 1.0, noise: float = 1.0, **well: float,
) -> int:  # fmt: skip
    """Step one walker as the papers write it, and count."""
    h_a, h_b, B = well["h_min"], well["h_saddle"], well["batch_size"]
    stream = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(walker,))))
    joint = math.sqrt(2 * well["barrier"] * h_b / (h_a * (h_a + h_b)))
    top = joint * (1 + h_a / h_b)
    x, m, v, t = 0.0, 0.0, noise * h_a / B, 0
    while x <= top + 2 * (top - joint):
        h = h_a if x < joint else h_b
        g = (h_a * x if x < joint else h_b * (top - x)) + math.sqrt(noise * h / B) * (
            stream.standard_normal()
        )
        m = beta1 * m + (1 - beta1) * g
        v = noise * h / B if moment == "local" else beta2 * v + (1 - beta2) * g * g
        P = {
            "sgd": 1.0, "adam": 1 / math.sqrt(v), "invadam": math.sqrt(v),
            "dualadam": (1 - alpha) / math.sqrt(v) + alpha * math.sqrt(v),
        }[method]  # fmt: skip
        x, t = x - well["lr"] * P * (g if method == "sgd" else m), t + 1
    return t


@pytest.mark.parametrize(
    ("method", "alpha", "options"),
    [
        ("sgd", None, {}),
        ("adam", None, {"noise": 1.5}),
        ("invadam", None, {"beta1": 0.5}),
        ("dualadam", 0.7, {}),
        ("adam", None, {"second_moment": "frozen"}),
        ("adam", None, {"second_moment": "ema", "beta2": 0.9}),
        ("dualadam", 0.7, {"second_moment": "ema", "beta2": 0.99, "beta1": 0.9}),
    ],
)
def test_walkers_step_by_the_papers_rules(method: str, alpha: float | None, options: dict) -> None:
    well = limit_well(method, 0.5, 0.7, batch_size=4.0, alpha=alpha)
    found = simulate_escape(method, **well, **options, walkers=8, seed=3)
    own = {name: value for name, value in options.items() if name != "second_moment"}
    own |= {"moment": options.get("second_moment", "local"), "alpha": alpha or 0.0}
    expected = [
        reference(method, walker, 3, **own, **{k: x for k, x in well.items() if k != "alpha"})
        for walker in range(8)
    ]
    assert found.times.tolist() == expected
    assert found.out.all()
    assert found.complete


def exact(P: Callable[[float], float], panels: int = 50, **well: float | None) -> float:
    """Solve u(x) = 1 + ∫K(x, y)u(y)dy, Gaussian steps from x, by quadrature; return u(0)."""
    h_a, h_b, B, lr = (well[name] for name in ("h_min", "h_saddle", "batch_size", "lr"))
    top = math.sqrt(2 * well["barrier"] * (1 / h_a + 1 / h_b))
    joint = top * h_b / (h_a + h_b)
    low, end = -7 * math.sqrt(lr * P(h_a / B) / (2 * B)), top + 2 * (top - joint)
    points, weights = np.polynomial.legendre.leggauss(8)
    # The step changes at the joint: no panel lies across it.
    edges = np.r_[np.linspace(low, joint, panels), np.linspace(joint, end, panels)[1:]]
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    y, dy = (middle[:, None] + half[:, None] * points).ravel(), np.outer(half, weights).ravel()

    def kernel(x: np.ndarray) -> np.ndarray:
        C = np.where(x < joint, h_a, h_b) / B
        p = np.where(x < joint, P(h_a / B), P(h_b / B))
        mean = x - lr * p * np.where(x < joint, h_a * x, h_b * (top - x))
        sd = (lr * p * np.sqrt(C))[:, None]
        return np.exp(-(((y - mean[:, None]) / sd) ** 2) / 2) / sd / math.sqrt(2 * math.pi) * dy

    u = np.linalg.solve(np.eye(len(y)) - kernel(y), np.ones(len(y)))
    return 1 + (kernel(np.zeros(1)) @ u).item()


@pytest.mark.parametrize(("ratio", "barrier"), [(1.0, 0.02), (0.5, 0.01)])
def test_walkers_take_the_iterations_own_mean(ratio: float, barrier: float) -> None:
    """InvAdam with large steps, where the formula does not hold."""
    well = {"lr": 0.56, "batch_size": 16.0, "barrier": barrier, "h_min": 1.0, "h_saddle": ratio}
    found = simulate_escape("invadam", **well, walkers=1000)
    assert abs(found.mean - exact(math.sqrt, **well)) < 3 * found.standard_error


def test_the_pages_numbers_outside_the_limits_are_the_iterations() -> None:
    assert len(OUTSIDE) == 5
    for step, ratio, simulated, solved in OUTSIDE:
        well = {
            "lr": 4 * float(step), "batch_size": 16.0, "h_min": 1.0, "h_saddle": float(ratio),
        }  # fmt: skip
        s = path_coefficient(1.0, float(ratio))
        unit = escape_time("invadam", **well, s=s, barrier=1.0)
        well["barrier"] = 8.0 / unit.exponent
        share = exact(math.sqrt, **well) / escape_time("invadam", **well, s=s).steps
        assert share == pytest.approx(float(solved), abs=6e-4)
        assert float(simulated) == pytest.approx(share, rel=0.2)


@pytest.mark.parametrize(
    ("method", "P"),
    [("sgd", lambda v: 1.0), ("adam", lambda v: v**-0.5), ("invadam", lambda v: v**0.5)],
    ids=["sgd", "adam", "invadam"],
)
def test_at_the_limits_the_formula_is_the_iterations_mean(
    method: str, P: Callable[[float], float]
) -> None:
    for ratio in (1.0 / 1.076, 1.0, 1.076):
        well = limit_well(method, 3.0, ratio, batch_size=16.0)
        found = escape_time(method, **well, s=path_coefficient(1.0, ratio))
        assert 0.9975 < exact(P, **well) / found.steps < 1.0065


@pytest.mark.parametrize(("term", "share"), [(3.0, 1.01), (2.0, 1.02), (1.2, 1.05), (0.3, 0.88)])
def test_the_formula_holds_from_terms_of_three(term: float, share: float) -> None:
    well = {"lr": 0.005, "batch_size": 1.0, "h_min": 1.0, "h_saddle": 1.0, "barrier": term * 0.005}
    found = escape_time("sgd", **well, s=0.5)
    assert found.terms == pytest.approx((term, term))
    assert exact(lambda v: 1.0, **well) / found.steps == pytest.approx(share, abs=6e-3)


def test_answers_hang_on_the_seed_alone() -> None:
    threads = torch.get_num_threads()
    alone = simulate_escape("sgd", **LOW, walkers=100, seed=5, threads=1)
    for count in (2, 3):
        together = simulate_escape("sgd", **LOW, walkers=100, seed=5, threads=count)
        np.testing.assert_array_equal(together.times, alone.times)
    few = simulate_escape("sgd", **LOW, walkers=7, seed=5)
    np.testing.assert_array_equal(few.times, alone.times[:7])
    other = simulate_escape("sgd", **LOW, walkers=7, seed=6)
    assert (other.times != few.times).all()
    assert torch.get_num_threads() == threads


def test_a_mean_is_that_of_the_times() -> None:
    found = simulate_escape("sgd", **LOW, walkers=200)
    assert (found.walkers, found.escaped) == (200, 200)
    assert found.mean == pytest.approx(found.times.mean())
    assert found.standard_error == pytest.approx(found.mean / math.sqrt(200))
    # Exponential times scatter as far as their mean.
    assert found.times.std() == pytest.approx(found.mean, rel=0.3)
    order = np.sort(found.times)
    np.testing.assert_array_equal(found.survival_times, np.unique(order))
    expected = [(order > t).mean() for t in found.survival_times]
    np.testing.assert_allclose(found.survival, expected, atol=1e-12)


def test_who_is_stopped_counts_as_long_as_it_walked() -> None:
    free = simulate_escape("sgd", **LOW, walkers=400)
    limit = int(np.median(free.times))
    found = simulate_escape("sgd", **LOW, walkers=400, max_steps=limit)
    np.testing.assert_array_equal(found.times, np.minimum(free.times, limit))
    np.testing.assert_array_equal(found.out, free.times <= limit)
    assert found.complete
    assert found.mean == pytest.approx(found.times.sum() / found.escaped)
    assert found.standard_error == pytest.approx(found.mean / math.sqrt(found.escaped))
    assert abs(found.mean - free.mean) < 3 * found.standard_error
    early = free.survival[free.survival_times <= limit]
    np.testing.assert_allclose(found.survival, early, atol=1e-12)


def test_nobody_out_means_infinity() -> None:
    found = simulate_escape("sgd", **LOW, walkers=4, max_steps=2)
    assert found.mean == math.inf
    assert math.isnan(found.standard_error)
    assert found.times.tolist() == [2] * 4
    assert len(found.survival) == 0


def test_where_walkers_count_as_out_matters_before_the_top_is_well_behind() -> None:
    well = limit_well("adam", 3.0, batch_size=16.0)
    at_top, near, far = (
        simulate_escape("adam", **well, walkers=80, past=past).mean for past in (0.0, 1.0, 3.0)
    )
    assert near == pytest.approx(far, rel=0.02)
    assert at_top / far == pytest.approx(0.5, abs=0.15)


def test_an_interrupt_leaves_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes as soon as ten are out, and again should nothing have come of it."""
    main, out = threading.main_thread().ident, itertools.count(1)

    def advance(steps: int) -> None:
        # Where Python cannot raise, as in a finaliser, an interrupt is lost.
        if next(out) % 10_000 == 10:
            signal.pthread_kill(main, signal.SIGINT)

    monkeypatch.setattr(escape_simulation, "progress", lambda what, total: nullcontext(advance))
    found = simulate_escape("sgd", **limit_well("sgd", 2.0), walkers=10_000_000)
    assert not found.complete
    assert 10 <= found.escaped < found.walkers
    assert (found.times > 0).all()


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("sdg", {}, "did you mean sgd"),
        ("sgd", {"walkers": 0}, "walkers must be at least 1, got 0"),
        ("sgd", {"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ("sgd", {"threads": 0}, "threads must be at least 1, got 0"),
        ("sgd", {"seed": -1}, "seed must be at least 0, got -1"),
        ("sgd", {"past": -1.0}, "past must be 0 or a positive number, got -1.0"),
        ("sgd", {"past": math.nan}, "past must be 0 or a positive number, got nan"),
        ("sgd", {"barrier": -1.0}, "barrier must be a finite number > 0, got -1.0"),
        ("sgd", {"h_saddle": -1.0}, "h_saddle=-1.0 must be positive: the magnitude"),
        ("sgd", {"noise": math.inf}, "noise must be a finite number > 0, got inf"),
        ("sgd", {"second_moment": "ema", "beta2": 0.9}, "'sgd' keeps no averages"),
        ("sgd", {"beta1": 0.9}, "'sgd' keeps no averages"),
        ("adam", {"second_moment": "emma"}, "did you mean ema"),
        ("adam", {"second_moment": "ema"}, "beta2=None: second_moment='ema' needs it"),
        ("adam", {"second_moment": "ema", "beta2": 1.0}, "beta2 must lie between 0 and 1, got 1.0"),
        ("adam", {"beta2": 0.99}, "it needs second_moment='ema'"),
        ("adam", {"beta1": 1.0}, "beta1 must be from 0 to below 1, got 1.0"),
        ("adam", {"alpha": 0.5}, "only 'dualadam' takes one"),
        ("sgd", {"lr": 2.0 / LOW["h_min"]}, "is unstable at the minimum: take less than"),
    ],
)
def test_mistakes_are_named(method: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate_escape(method, **LOW | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"walkers": 2.5}, "walkers must be an integer, got 2.5"),
        ({"seed": 0.5}, "seed must be an integer, got 0.5"),
        ({"past": "a"}, "past must be a number, got 'a'"),
        ({"second_moment": None}, "second_moment must be a name, got None"),
        ({"beta1": "a"}, "beta1 must be a number, got 'a'"),
        ({"second_moment": "ema", "beta2": "a"}, "beta2 must be a number, got 'a'"),
    ],
)
def test_what_is_no_number_is_named(changes: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        simulate_escape("adam", **LOW | changes)
