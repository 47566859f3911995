"""benchmarks/escape_network.py: walkers against a known case, and the network against autograd."""

import json
import math
from pathlib import Path

import escape_network
import escape_network_model
import numpy as np
import pytest
import torch
from escape_network_model import half_square, network, scene
from escape_walk import Basin, Walk, compiled, leave
from scipy.integrate import cumulative_trapezoid, trapezoid
from torch.nn.utils import parameters_to_vector

pytestmark = pytest.mark.thorough


@compiled
def spring(parameters, row, constants, out) -> None:
    """Add a parabola's slope and the sample's noise."""
    out[0] += constants[0] * parameters[0] + row[0]


def parabola(noise: float, radius: float, steps: int = 0) -> Basin:
    rows = np.array([[noise], [-noise]])
    return Basin(spring, rows, (1.0,), np.zeros(1), np.eye(1), radius, (0.1, steps))


def sgd(lr: float, checks: int) -> Walk:
    return Walk("sgd", lr=lr, batch_size=1, variances=np.ones(1), every=1, checks=checks)


def test_walkers_leave_a_parabola_after_ornsteins_and_uhlenbecks_time() -> None:
    """T'' D − x T' = −1 with T(±R) = 0; steps overshoot R by 0.5826 of their size (Siegmund)."""
    lr, radius = 0.01, 0.15
    D, end = lr / 2, radius + 0.5826 * lr
    x = np.linspace(0, end, 100_001)
    inner = cumulative_trapezoid(np.exp(-(x**2) / (2 * D)) / D, x, initial=0)
    expected = trapezoid(np.exp(x**2 / (2 * D)) * inner, x) / lr
    times, left = leave(parabola(1.0, radius), sgd(lr, 1_000_000), walkers=1000, seed=0)
    assert left.all()
    assert times.mean() == pytest.approx(expected, rel=0.1)
    assert times.std() / times.mean() == pytest.approx(1.0, abs=0.15)


def test_descent_brings_back_who_is_only_out_on_a_slope() -> None:
    walk = sgd(0.01, 5_000)
    assert leave(parabola(1.0, 0.15), walk, walkers=8, seed=0)[1].any()
    times, left = leave(parabola(1.0, 0.15, steps=50), walk, walkers=8, seed=0)
    assert not left.any()
    assert (times == 5_000).all()


def test_walkers_do_not_depend_on_how_many_follow() -> None:
    walk = sgd(0.01, 100_000)
    few, more = (leave(parabola(1.0, 0.15), walk, walkers=n, seed=3)[0] for n in (3, 5))
    assert (few == more[:3]).all()


def test_the_gradient_is_autograds() -> None:
    inputs, targets = escape_network_model.data()
    generator = torch.Generator().manual_seed(2)
    at = torch.randn(9, generator=generator, dtype=torch.float64)
    model = network(at)
    loss = half_square(model(inputs[3:4]), targets[3:4])
    expected = parameters_to_vector(torch.autograd.grad(loss, list(model.parameters())))
    found, row = np.zeros(9), torch.cat([inputs[3], targets[3]]).numpy()
    escape_network_model.gradient(at.numpy(), row, (escape_network_model.DECAY,), found)
    assert found == pytest.approx(expected.numpy(), rel=1e-12)


def test_the_saddle_lies_between_the_minima() -> None:
    here = scene()
    for at, negative in ((here.minimum, 0), (here.saddle, 1), (here.other, 0)):
        model = network(at)
        loss = half_square(model(here.inputs), here.targets)
        slope = parameters_to_vector(torch.autograd.grad(loss, list(model.parameters())))
        assert slope.norm() < 1e-9
        curvatures = torch.linalg.eigvalsh(
            escape_network_model.dense(at, here.inputs, here.targets)
        )
        assert (curvatures < 0).sum() == negative
    assert here.loss(here.other) < here.loss(here.minimum) < here.loss(here.saddle)
    for copy in escape_network_model.copies(here.minimum):
        assert here.loss(copy) == pytest.approx(here.loss(here.minimum), rel=1e-12)


def test_no_noise_leads_to_a_copy() -> None:
    at_minimum, half_way = escape_network.measured_scene()["noise to a copy"]
    assert half_way < 1e-20 < at_minimum


def test_medians_and_means_have_intervals() -> None:
    generator = np.random.default_rng(0)
    covered = np.zeros(2)
    for _ in range(400):
        times = generator.exponential(1.0, 100)
        for i, (truth, found) in enumerate(
            [
                (math.log(2), escape_network.median(times)),
                (1.0, escape_network.mean(times.sum(), 100)),
            ]
        ):
            covered[i] += found[1] <= truth <= found[2]
    assert (covered / 400 > 0.92).all()
    assert escape_network.median(np.array([1.0, 2.0, math.inf]))[0] == 2.0
    assert escape_network.mean(10.0, 0)[0] == math.inf


def test_a_rerun_goes_on_to_the_same_file(tmp_path: Path, monkeypatch, capsys) -> None:
    shape = {"barrier": 0.002, "h_min": 0.1, "h_saddle": 0.03, "s": 0.3, "noise": [1.0, 2.0]}
    monkeypatch.setattr(escape_network, "well", lambda _: shape)
    exponents = dict.fromkeys(escape_network.METHODS, (2.0,))
    spaces = dict.fromkeys(escape_network.EXPONENTS, exponents)
    monkeypatch.setattr(escape_network, "EXPONENTS", spaces)
    monkeypatch.setattr(escape_network, "_MOST_STEPS", 500)
    out = tmp_path / "escape.json"
    escape_network.main(walkers=3, workers=1, out=out, pilot=True, figure=tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000
    whole, printed = out.read_text(), capsys.readouterr().out
    content = json.loads(whole)
    del content["cells"]["line/adam/2"]
    out.write_text(json.dumps(content))
    escape_network.main(walkers=3, workers=1, out=out, pilot=True)
    assert out.read_text() == whole
    assert capsys.readouterr().out == printed
