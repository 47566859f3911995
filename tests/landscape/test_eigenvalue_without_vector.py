"""The first eigenvalue with three vectors in memory, against dense matrices."""

import numpy as np
import pytest
import torch

from helpers.known_spectra import (
    dense_hessian,
    interrupting,
    matrix,
    operator,
    outermost,
    small_network,
)
from steppe.bench.memory import peak_extra
from steppe.landscape import Operator, hessian, top_eigenvalues

SPECTRA = {
    "decaying": torch.logspace(2, -4, 200),
    "both signs": torch.cat([-torch.logspace(1, -2, 100), torch.logspace(1.2, -2, 100)]),
    "close": torch.cat([torch.tensor([1.0, 0.98]), torch.linspace(0.5, 0, 200)]),
    "rank 2": torch.cat([torch.tensor([3.0, -2.0]), torch.zeros(98)]),
    "repeated": torch.cat([torch.full((5,), 2.0), torch.linspace(1, 0, 80)]),
    "all equal": torch.full((50,), -4.0),
    "zero": torch.zeros(20),
    "one": torch.tensor([-3.0]),
}


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SPECTRA)
def test_is_that_of_the_dense_matrix(name: str, dtype: torch.dtype, which: str) -> None:
    dense = matrix(SPECTRA[name])
    if (name, which) in {
        ("decaying", "SA"),
        ("both signs", "SA"),
        ("repeated", "SA"),
        ("close", "SA"),
    }:
        pytest.skip("the smallest lie close together, as the smallest parts of the largest do")
    found = top_eigenvalues(operator(dense, dtype), 1, which=which, vectors=False)
    (truth,) = outermost(dense, 1, which)
    assert found.is_done
    assert found.values[0] == pytest.approx(truth, rel=1e-3, abs=1e-5)
    assert abs(found.values[0] - truth) <= found.errors[0] + 1e-5 * max(abs(truth), 1e-3)
    assert found.vectors.shape == (len(dense), 0)


@pytest.mark.parametrize("name", ["decaying", "both signs", "close"])
def test_takes_as_many_products_as_with_a_basis(name: str) -> None:
    """Over 30 seeds; none ends at the second eigenvalue."""
    dense = matrix(SPECTRA[name])
    (truth,) = outermost(dense, 1, "LM")
    for seed in range(30):
        found = top_eigenvalues(operator(dense), 1, seed=seed, vectors=False)
        whole = top_eigenvalues(operator(dense), 1, seed=seed)
        assert found.values[0] == pytest.approx(truth, rel=1e-3)
        assert (found.products, found.reason) == (whole.products, "")
        assert found.values[0] == pytest.approx(whole.values[0], rel=1e-9)


def test_of_a_networks_hessian() -> None:
    H = hessian(*small_network())
    found = top_eigenvalues(H, 1, tol=1e-5, vectors=False)
    np.testing.assert_allclose(found.values, outermost(dense_hessian(), 1, "LM"), rtol=1e-5)
    assert found.products == H.products


def test_goes_on_where_vectors_have_lost_their_orthogonality() -> None:
    """Copies of converged values come then; the first stays right."""
    dense = matrix(SPECTRA["decaying"]).float()
    found = top_eigenvalues(
        operator(dense, torch.float32), 1, tol=1e-12, max_products=150, vectors=False
    )
    assert found.values[0] == pytest.approx(100, rel=1e-5)


@pytest.mark.thorough
def test_holds_three_vectors() -> None:
    size = 12_000_000  # glibc gives memory of more than 32 MiB back at once
    diagonal = torch.linspace(0, 1, size)

    def product(rows: torch.Tensor) -> torch.Tensor:
        return rows * diagonal

    def search(vectors: bool):
        return top_eigenvalues(
            Operator(size, product), 1, tol=1e-9, max_products=11, vectors=vectors
        )

    search(vectors=False)
    few = peak_extra(lambda: search(vectors=False), torch.device("cpu"))
    many = peak_extra(lambda: search(vectors=True), torch.device("cpu"))
    if few is None or many is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert few < 5.5 * 4 * size < 11 * 4 * size < many


@pytest.mark.parametrize("verify", [True, False])
def test_from_a_start_vector(verify: bool) -> None:
    dense = matrix(SPECTRA["decaying"])
    values, vectors = torch.linalg.eigh(dense)
    near = vectors[:, -1] + 0.01 * torch.ones(200)
    found = top_eigenvalues(operator(dense), 1, start=near, verify=verify, vectors=False)
    assert found.values[0] == pytest.approx(float(values[-1]), rel=1e-3)
    assert found.is_done


def test_an_operator_that_returns_its_vectors_is_the_identity() -> None:
    found = top_eigenvalues(Operator(6, lambda rows: rows), 1, vectors=False)
    assert (found.values[0], found.products) == (pytest.approx(1.0), 1)


def test_ctrl_c_and_too_few_products() -> None:
    dense = matrix(SPECTRA["close"])
    found = top_eigenvalues(interrupting(operator(dense), 3), 1, vectors=False)
    assert (found.is_done, found.reason) == (False, "interrupted")
    found = top_eigenvalues(operator(dense), 1, max_products=3, vectors=False)
    assert not found.is_done
    assert "3 products were not enough" in found.reason


def test_products_of_no_symmetric_matrix_are_noticed() -> None:
    dense = matrix(SPECTRA["close"])
    dense[0, 1:] += 0.2
    found = top_eigenvalues(operator(dense), 1, vectors=False)
    assert not found.is_done
    assert "no symmetric matrix" in found.reason


def test_mistakes_are_named() -> None:
    H = operator(matrix(SPECTRA["close"]))
    with pytest.raises(ValueError, match="vectors=False finds one eigenvalue, and k=2"):
        top_eigenvalues(H, 2, vectors=False)
    with pytest.raises(TypeError, match="vectors must be True or False, got 1"):
        top_eigenvalues(H, 1, vectors=1)
    with pytest.raises(ValueError, match="a product is not finite"):
        top_eigenvalues(Operator(3, lambda rows: rows * float("inf")), 1, vectors=False)
