"""Spectral densities against dense spectra."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from helpers.known_spectra import dense_hessian, interrupting, matrix, operator, small_network
from steppe.landscape import Operator, density, hessian
from steppe.landscape.spectra._fewer_steps import with_half_the_steps


def integral(found) -> float:
    return float(np.trapezoid(found.density, found.grid))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "spectrum",
    [
        torch.logspace(1, -3, 150),
        torch.cat([torch.zeros(140), torch.tensor([5.0, 9.0])]),
        torch.full((30,), 2.0),
        torch.zeros(12),
        torch.tensor([-1.0, 1.0]),
    ],
    ids=["decaying", "low rank", "equal", "zero", "two"],
)
def test_integral_is_1_and_moments_are_the_spectrums(
    spectrum: torch.Tensor, dtype: torch.dtype
) -> None:
    found = density(operator(matrix(spectrum), dtype), probes=30, steps=20)
    assert integral(found) == pytest.approx(1.0, abs=1e-6)
    assert found.weights.sum(axis=1) == pytest.approx(1.0)
    scale = spectrum.abs().max().item()
    for power in (1, 2, 3):
        mean, error = found.moment(power)
        truth = (spectrum.double() ** power).mean().item()
        assert abs(mean - truth) <= 4 * error + 1e-5 * scale**power
    assert found.trace == pytest.approx(len(spectrum) * found.moment(1)[0])
    assert found.trace_stderr == pytest.approx(len(spectrum) * found.moment(1)[1])


def test_is_the_dense_spectrum_smoothed() -> None:
    spectrum = torch.cat([torch.linspace(-1, 0, 300), torch.linspace(3, 3.2, 100)])
    found = density(operator(matrix(spectrum)), probes=60, steps=80, bandwidth=0.1)
    distance = (found.grid[:, None] - spectrum.double().numpy()) / 0.1
    truth = np.exp(-0.5 * distance**2).mean(1) / (0.1 * math.sqrt(2 * math.pi))
    close = np.abs(found.density - truth) <= 4 * found.stderr + 0.02
    assert close.mean() > 0.99


@pytest.mark.thorough
def test_first_moment_is_the_trace_within_its_error() -> None:
    """In 50 seeds, two standard errors hold the truth at least 84 % of the time."""
    dense = dense_hessian()
    truth, H = dense.trace().item(), operator(dense)
    found = [density(H, steps=12, seed=seed) for seed in range(50)]
    held = [abs(each.trace - truth) <= 2 * each.trace_stderr for each in found]
    assert np.mean(held) >= 0.84
    assert all(integral(each) == pytest.approx(1.0, abs=1e-6) for each in found)


def test_errors_hold_what_products_are_rounded_by() -> None:
    """Of equal eigenvalues every probe finds the same, and products in 16 bits are off alike."""
    epsilon = torch.finfo(torch.bfloat16).eps
    exact = density(Operator(40, lambda rows: 3 * rows), bandwidth=0.5)
    off = Operator(40, lambda rows: 3 * (1 + epsilon) * rows, precision=lambda: epsilon)
    found = density(off, bandwidth=0.5)
    for power in (1, 2, 3):
        mean, error = found.moment(power)
        assert abs(mean - 3.0**power) <= 1.1 * error <= 1.3 * power * epsilon * 3.0**power
    assert abs(found.trace - 120) <= 1.1 * found.trace_stderr
    there = np.interp(exact.grid, found.grid, found.density)
    error = np.interp(exact.grid, found.grid, found.stderr)
    assert (np.abs(there - exact.density) <= 1.1 * error + 2e-4).all()
    assert exact.trace_stderr == pytest.approx(120 * torch.finfo(torch.float32).eps, rel=1e-3)


def test_of_a_networks_hessian_through_its_products() -> None:
    H = hessian(*small_network())
    found = density(H, probes=3, steps=8)
    assert found.products == H.products == 24
    again = density(operator(dense_hessian()), probes=3, steps=8)
    np.testing.assert_allclose(found.nodes, again.nodes, rtol=1e-8, atol=1e-10)


def test_one_after_the_other_is_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    H = operator(matrix(torch.linspace(0, 1, 60)))
    together = density(H, probes=4, steps=10)
    monkeypatch.setattr(sys.modules["steppe.landscape.spectra.density"], "_TOGETHER_BYTES", 1)
    single = density(H, probes=4, steps=10)
    np.testing.assert_allclose(together.nodes, single.nodes, atol=1e-12)


def test_ctrl_c_returns_what_there_is() -> None:
    dense = matrix(torch.linspace(0, 1, 100))
    found = density(interrupting(operator(dense), after=25), probes=5, steps=20)
    assert not found.converged
    assert integral(found) == pytest.approx(1.0, abs=1e-6)
    assert abs(found.trace - 50.0) < 4 * found.trace_stderr
    with pytest.raises(KeyboardInterrupt):
        density(interrupting(operator(dense), after=0))


def test_bad_input() -> None:
    H = operator(matrix(torch.linspace(0, 1, 20)))
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        density(H, probes=0)
    with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
        density(H, steps=1)
    for bandwidth in (0.0, float("inf")):
        message = rf"bandwidth={bandwidth} must be a finite number above 0"
        with pytest.raises(ValueError, match=message):
            density(H, bandwidth=bandwidth)
    with pytest.raises(ValueError, match="too small for eigenvalues from"):
        density(H, bandwidth=1e-9)
    with pytest.raises(ValueError, match="not finite"):
        density(Operator(4, lambda rows: rows * torch.inf))


def test_can_be_written_and_drawn() -> None:
    found = density(operator(matrix(torch.linspace(0, 1, 20))), probes=1, steps=5)
    assert np.isnan(found.stderr).all()
    assert json.loads(json.dumps(found.to_dict()))["size"] == 20
    assert found.plot().get_yscale() == "log"


def test_numpys_errors_may_be_raised() -> None:
    """Gaussians underflow far from their nodes."""
    with np.errstate(all="raise"):
        found = density(operator(matrix(torch.linspace(0, 1, 40))), steps=20)
    assert integral(found) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.thorough
def test_effective_dimension_is_the_spectrums() -> None:
    """Within its error, which is that of the spread over seeds; negative values count as none."""
    spectrum = torch.cat([torch.logspace(1, -4, 140), -torch.logspace(0, -3, 20)]).double()
    H = operator(matrix(spectrum))
    found = [density(H, probes=8, steps=40, seed=seed) for seed in range(20)]
    for alpha in (1e-3, 0.1, 10.0):
        positive = spectrum.clamp(min=0)
        truth = float((positive / (positive + alpha)).sum())
        values, reported = np.array([each.effective_dimension(alpha) for each in found]).T
        errors = values - truth
        assert (np.abs(errors) < 2.5 * reported).mean() >= 0.9
        # Where the steps resolve α; eight probes scatter like Student's t of seven degrees.
        if alpha > 0.01:
            assert abs(errors.mean()) < 4 * errors.std() / math.sqrt(20)
            assert 0.6 < np.sqrt(np.square(reported).mean()) / errors.std() < 2.0


def test_half_the_steps_are_those_of_a_shorter_run() -> None:
    H = operator(matrix(torch.logspace(1, -4, 80)))
    whole = density(H, probes=1, steps=40)
    shorter = density(H, probes=1, steps=20)
    nodes, weights = with_half_the_steps(whole.nodes[0], whole.weights[0])
    assert nodes == pytest.approx(shorter.nodes[0], abs=1e-9)
    assert weights == pytest.approx(shorter.weights[0], abs=1e-9)


def test_effective_dimension_of_a_networks_hessian() -> None:
    values = torch.linalg.eigvalsh(dense_hessian()).clamp(min=0)
    found = density(operator(dense_hessian()), probes=8, steps=60)
    for alpha in (0.01, 0.1):
        value, error = found.effective_dimension(alpha)
        assert abs(value - float((values / (values + alpha)).sum())) < 3 * error


def test_effective_dimension_takes_positive_numbers() -> None:
    found = density(operator(torch.eye(3)))
    assert found.effective_dimension(1.0)[0] == pytest.approx(1.5)
    for alpha in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="alpha"):
            found.effective_dimension(alpha)
    with pytest.raises(TypeError, match="alpha"):
        found.effective_dimension("1")
