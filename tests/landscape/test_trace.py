"""Traces against dense matrices; their errors against the spread over seeds."""

import json
import math

import numpy as np
import pytest
import torch

from helpers.known_spectra import dense_hessian, interrupting, matrix, operator, small_network
from steppe.landscape import Operator, hessian, trace

METHODS = ["hutchinson", "hutch++", "xtrace"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_is_within_its_own_error(method: str, dtype: torch.dtype) -> None:
    """Over 60 seeds: unbiased, and the reported error is that of the spread."""
    spectrum = torch.cat([torch.logspace(2, -1, 60), -torch.linspace(0, 1, 60)])
    H = operator(matrix(spectrum), dtype)
    found = [trace(H, method=method, products=30, seed=seed) for seed in range(60)]
    errors = np.array([each.value for each in found]) - spectrum.sum().item()
    reported = np.array([each.stderr for each in found])
    assert abs(errors.mean()) < 3.5 * errors.std() / math.sqrt(60)
    assert 0.6 < np.sqrt((reported**2).mean()) / np.sqrt((errors**2).mean()) < 1.6
    assert (np.abs(errors) < 2 * reported).mean() > 0.84
    assert {each.products for each in found} == {30}


@pytest.mark.thorough
@pytest.mark.parametrize(("method", "bound"), [("hutch++", 0.004), ("xtrace", 0.004)])
def test_of_a_small_network_with_99_products(method: str, bound: float) -> None:
    H = operator(dense_hessian())
    truth = dense_hessian().trace().item()
    errors = [trace(H, method=method, seed=seed).value / truth - 1 for seed in range(50)]
    assert np.sqrt(np.square(errors).mean()) <= bound


def test_of_a_networks_hessian_through_its_products() -> None:
    H = hessian(*small_network())
    found = trace(H, method="xtrace", products=60)
    assert abs(found.value - dense_hessian().trace().item()) < 4 * found.stderr
    assert found.products == H.products == 60


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_of_a_matrix_of_low_rank_is_exact(method: str, rank: int) -> None:
    spectrum = torch.cat([torch.arange(1.0, 1.0 + rank), torch.zeros(80 - rank)])
    found = trace(operator(matrix(spectrum)), method=method, products=24)
    assert found.value == pytest.approx(spectrum.sum().item(), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_of_a_range_that_is_a_few_coordinates_is_exact(method: str, dtype: torch.dtype) -> None:
    """As of an embedding whose other tokens do not occur: rounding lies within the range too."""
    dense = torch.zeros(300, 300, dtype=torch.float64)
    dense[5:15, 5:15] = matrix(torch.arange(1.0, 11.0))
    found = trace(operator(dense, dtype), method=method, products=99)
    assert found.value == pytest.approx(55.0, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_more_products_than_dimensions(method: str) -> None:
    dense = matrix(torch.tensor([4.0, -1.0, 0.5]))
    found = trace(operator(dense), method=method)
    assert found.value == pytest.approx(3.5, abs=4 * found.stderr + 1e-9)


def test_xtrace_is_its_definition() -> None:
    """Leave each probe out of the range by hand, with a QR of its own."""
    dense = matrix(torch.logspace(1, -3, 40))
    H = operator(dense)
    found = trace(H, method="xtrace", products=12, seed=5)
    tests = []
    trace(Operator(40, lambda rows: tests.append(rows) or rows @ dense, dtype=torch.float64),
          method="xtrace", products=12, seed=5)  # fmt: skip
    probes = next(rows for rows in tests if len(rows) == 6).T
    samples = []
    for i in range(6):
        others = torch.cat([probes[:, :i], probes[:, i + 1 :]], dim=1)
        basis = torch.linalg.qr(dense @ others).Q
        outside = probes[:, i] - basis @ (basis.T @ probes[:, i])
        scale = (40 - 5) / outside.square().sum()
        samples.append((basis.T @ dense @ basis).trace() + scale * (outside @ dense @ outside))
    samples = torch.stack(samples)
    assert found.value == pytest.approx(samples.mean().item(), rel=1e-9)
    # 4/3 of what the spread says, as the samples share their subspace.
    assert found.stderr == pytest.approx(4 / 3 * samples.std().item() / math.sqrt(6), rel=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_stops_where_the_error_is_small_enough(method: str) -> None:
    H = operator(matrix(torch.linspace(1, 2, 200)))
    found = trace(H, method=method, products=300, tol=0.05)
    assert found.converged
    assert found.products < 300
    assert found.stderr <= 0.05 * found.value
    far = trace(H, method=method, products=20, tol=1e-6)
    assert not far.converged


@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_returns_what_there_is(method: str) -> None:
    dense = matrix(torch.linspace(1, 2, 200))
    H = operator(dense)
    found = trace(interrupting(H, after=220), method=method, products=300)
    assert not found.converged
    assert found.products == H.products
    assert found.value == pytest.approx(300, abs=5 * found.stderr)
    assert found.products < 300


@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_before_there_is_anything_goes_through(method: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        trace(interrupting(operator(torch.eye(99)), after=0), method=method)


def test_bad_input() -> None:
    H = operator(torch.eye(4))
    with pytest.raises(ValueError, match="method='exact' is not one of"):
        trace(H, method="exact")
    with pytest.raises(ValueError, match=r"products=5 must be at least 6 for method='hutch\+\+'"):
        trace(H, products=5)
    for tol in (-1, math.inf):
        with pytest.raises(ValueError, match=f"tol={tol} must be a finite number above 0"):
            trace(H, tol=tol)
    with pytest.raises(ValueError, match="not finite"):
        trace(Operator(4, lambda rows: rows * torch.inf), method="hutchinson")


@pytest.mark.parametrize("method", ["hutch++", "hutchinson", "xtrace"])
def test_of_one_dimension_is_exact(method: str) -> None:
    found = trace(operator(torch.tensor([[-3.0]])), method=method)
    assert (found.value, found.stderr, found.converged) == (-3.0, 0.0, True)


def test_can_be_written() -> None:
    found = trace(operator(torch.eye(4)), method="hutchinson", products=8)
    assert json.loads(json.dumps(found.to_dict())) == {
        "value": 4.0, "stderr": 0.0, "products": 8, "method": "hutchinson", "converged": True,
        "asymmetry": 0.0, "reason": "",
    }  # fmt: skip


def test_rounding_beside_a_subspace_that_holds_all_is_no_asymmetry() -> None:
    """The first probe may be in the null space, and was what all others were compared with.

    Of a softmax over two classes, equal changes of both classes' weights change nothing.
    """
    torch.manual_seed(0)
    model, inputs = torch.nn.Linear(3, 2).double(), torch.randn(9, 3).double()
    H = hessian(model, torch.nn.functional.cross_entropy, [(inputs, torch.arange(9) % 2)])
    for seed in range(20):
        found = trace(H, products=18, seed=seed)
        assert found.converged, found.reason
        assert found.asymmetry < 1e-12


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_numpys_integers_are_integers(method: str) -> None:
    diagonal = torch.arange(1.0, 101.0)
    for products in (12, 30, 45):
        found = [
            trace(Operator(size, lambda rows: rows * diagonal), products=count, method=method)
            for size, count in ((100, products), (np.int64(100), np.int64(products)))
        ]
        assert found[0].value == found[1].value


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_products_that_are_not_finite_are_named(method: str) -> None:
    with pytest.raises(ValueError, match="a product is not finite"):
        trace(Operator(30, lambda rows: rows * torch.nan), method=method)
