"""Diagonals against dense matrices; their errors against the spread over seeds."""

import json
import math

import numpy as np
import pytest
import torch

from helpers.known_spectra import dense_hessian, interrupting, matrix, operator, small_network
from steppe.landscape import Operator, diagonal, hessian
from steppe.landscape.spectra._probes import Probes

METHODS = ["hutchinson", "xdiag"]


def positive(size: int = 60, seed: int = 0) -> torch.Tensor:
    """Return a matrix of decaying spectrum, whose diagonal ranges over two decades."""
    dense = matrix(torch.logspace(1, -2, size), seed)
    scale = torch.logspace(0, -1, size, dtype=torch.float64)
    return scale[:, None] * dense * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_is_within_its_own_errors(method: str, dtype: torch.dtype) -> None:
    """Over 60 seeds: unbiased, and the reported errors are those of the spread."""
    dense = positive()
    H = operator(dense, dtype)
    found = [diagonal(H, method=method, products=30, seed=seed) for seed in range(60)]
    errors = torch.stack([each.values - dense.diagonal() for each in found])
    reported = torch.stack([each.stderr for each in found])
    spread = errors.std(0)
    assert (errors.mean(0).abs() < 5 * spread / math.sqrt(60)).all()
    ratio = reported.square().mean(0).sqrt() / errors.square().mean(0).sqrt()
    assert 0.6 < ratio.min() <= ratio.max() < 1.9
    assert (errors.abs() < 2 * reported).double().mean() > 0.84
    assert {each.products for each in found} == {30}


@pytest.mark.parametrize("method", METHODS)
def test_roots_are_within_their_error(method: str) -> None:
    dense = positive()
    truth = float(dense.diagonal().sqrt().sum())
    for products in (16, 40):
        found = [
            diagonal(operator(dense), method=method, products=products, seed=seed)
            for seed in range(60)
        ]
        errors = np.array([each.root_trace for each in found]) - truth
        reported = np.array([each.root_trace_error for each in found])
        assert (np.abs(errors) < 2 * reported).mean() > 0.84
        assert reported.mean() < 0.25 * truth


def test_xdiag_is_its_definition() -> None:
    """With a basis of its own for each probe that is left out: formula (2.4) of the paper."""
    dense = positive(30, seed=2)
    found = diagonal(operator(dense), products=14, seed=5)
    tests = Probes(operator(dense), 5).signs(7).double()
    images = tests @ dense
    samples = []
    for i in range(7):
        basis = torch.linalg.qr(torch.cat([images[:i], images[i + 1 :]]).T).Q
        inside = (basis @ basis.T @ dense).diagonal()
        outside = images[i] - basis @ (basis.T @ images[i])
        samples.append(inside + tests[i] * outside)
    samples = torch.stack(samples)
    torch.testing.assert_close(found.values, samples.mean(0))
    error = 4 / 3 * samples.std(0) / math.sqrt(7)
    torch.testing.assert_close(found.stderr, error, rtol=1e-6, atol=1e-12)


def test_of_a_networks_hessian_through_its_products() -> None:
    H = hessian(*small_network())
    found = diagonal(H, products=120)
    truth = dense_hessian().diagonal()
    assert found.products == H.products == 120
    assert found.converged
    assert ((found.values - truth).abs() < 4 * found.stderr + 1e-12).double().mean() > 0.97
    assert (found.values - truth).norm() < 0.05 * truth.norm()
    roots = float(truth.clamp(min=0).sqrt().sum())
    assert abs(found.root_trace - roots) < 3 * found.root_trace_error
    assert found.root_trace == pytest.approx(roots, rel=0.15)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_xdiag_of_low_rank_is_exact(rank: int) -> None:
    spectrum = torch.cat([torch.arange(1.0, 1.0 + rank), torch.zeros(80 - rank)])
    dense = matrix(spectrum)
    found = diagonal(operator(dense), products=24)
    torch.testing.assert_close(found.values, dense.diagonal(), atol=1e-9, rtol=0)
    roots = float(dense.diagonal().clamp(min=0).sqrt().sum())
    assert found.root_trace == pytest.approx(roots, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_of_a_diagonal_matrix_is_exact(method: str) -> None:
    values = torch.tensor([4.0, -1.0, 0.0, 9.0])
    found = diagonal(Operator(4, lambda rows: rows * values), method=method, products=8)
    torch.testing.assert_close(found.values.float(), values, atol=1e-5, rtol=0)
    assert found.root_trace == pytest.approx(5.0, abs=1e-2)


def test_more_products_than_dimensions() -> None:
    dense = positive(5)
    found = diagonal(operator(dense), products=100)
    assert found.products == 10
    torch.testing.assert_close(found.values, dense.diagonal())


@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_returns_what_there_is(method: str) -> None:
    H = interrupting(operator(positive(200)), after=32)
    found = diagonal(H, method=method, products=90)
    assert (found.converged, found.reason) == (False, "interrupted")
    assert found.values.isfinite().all()
    with pytest.raises(KeyboardInterrupt):
        diagonal(interrupting(operator(positive(200)), after=0), method=method)


def test_products_of_no_symmetric_matrix_are_noticed() -> None:
    dense = positive(40)
    dense[0, 1] += 5.0
    found = diagonal(operator(dense))
    assert not found.converged
    assert "no symmetric matrix" in found.reason


def test_can_be_written_and_repeated() -> None:
    one, other = (diagonal(operator(positive()), seed=3) for _ in range(2))
    assert torch.equal(one.values, other.values)
    content = json.loads(json.dumps(one.to_dict()))
    assert content["method"] == "xdiag"
    assert "values" not in content
    assert not torch.equal(one.values, diagonal(operator(positive()), seed=4).values)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "xtrace"}, ValueError, "'xtrace' is not one of xdiag, hutchinson"),
        ({"products": 3}, ValueError, "products=3 must be at least 4 for method='xdiag'"),
        ({"products": 1, "method": "hutchinson"}, ValueError, "must be at least 2"),
        ({"products": 9.5}, TypeError, "products"),
        ({"seed": 0.5}, TypeError, "seed"),
    ],
    ids=str,
)
def test_mistakes_are_named(options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        diagonal(operator(positive()), **options)


def test_no_operator_and_overflow_are_refused() -> None:
    with pytest.raises(TypeError, match="H must be an operator"):
        diagonal(torch.eye(3))
    with pytest.raises(ValueError, match="a product is not finite"):
        diagonal(Operator(3, lambda rows: rows * math.inf))
