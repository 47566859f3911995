"""Outermost eigenvalues against dense matrices."""

import json
import signal
import sys

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
from steppe.landscape import Eigenvalues, Operator, hessian, top_eigenvalues
from steppe.landscape.spectra._orthonormal_basis import OrthonormalBasis

SPECTRA = {
    "decaying": torch.logspace(2, -4, 200),
    "both signs": torch.cat([-torch.logspace(1, -2, 100), torch.logspace(1.2, -2, 100)]),
    "rank 2": torch.cat([torch.tensor([3.0, -2.0]), torch.zeros(98)]),
    "all equal": torch.full((50,), -4.0),
    "zero": torch.zeros(20),
    "three numbers": torch.tensor([2.0, -7.0, 0.5]),
}


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SPECTRA)
def test_are_those_of_the_dense_matrix(name: str, dtype: torch.dtype, which: str) -> None:
    dense = matrix(SPECTRA[name])
    k = min(5, len(dense))
    if (name, which) == ("decaying", "SA"):
        pytest.skip("the smallest lie 1e-6 of the largest apart")
    found = top_eigenvalues(operator(dense, dtype), k, which=which, tol=1e-4)
    assert found.converged.all()
    truth = outermost(dense, k, which)
    np.testing.assert_allclose(found.values, truth, rtol=2e-4, atol=1e-5)
    vectors = found.vectors.double()
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(k).double(), rtol=0, atol=1e-5)
    residuals = (dense @ vectors - vectors * torch.from_numpy(found.values)).norm(dim=0)
    scale = max(abs(truth).max(), 1.0)
    assert (residuals.numpy() <= found.residuals + 1e-5 * scale).all()


@pytest.mark.parametrize("name", ["decaying", "both signs"])
def test_errors_are_bounds(name: str) -> None:
    """Over seeds and tolerances, and smaller than the residuals."""
    dense = matrix(SPECTRA[name])
    truth = outermost(dense, 4, "LM")
    for seed in range(20):
        found = top_eigenvalues(operator(dense), 4, tol=10.0 ** -(3 + seed % 4), seed=seed)
        assert (np.abs(found.values - truth) <= found.errors + 1e-9).all()
        assert (found.errors <= found.residuals).all()
        assert found.converged.all()


def test_of_a_networks_hessian() -> None:
    H = hessian(*small_network())
    found = top_eigenvalues(H, 5, tol=1e-6)
    np.testing.assert_allclose(found.values, outermost(dense_hessian(), 5, "LM"), rtol=1e-6)
    assert found.products == H.products


@pytest.mark.parametrize("which", ["LM", "SA"])
def test_restarts_change_cost_not_the_answer(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = matrix(torch.linspace(-1.0, 1.1, 300) ** 3)
    free = top_eigenvalues(operator(dense), 4, which=which, tol=1e-5)
    monkeypatch.setattr(sys.modules["steppe.landscape.spectra.eigenvalues"], "_BASIS_BYTES", 0)
    H = operator(dense)
    small = top_eigenvalues(H, 4, which=which, tol=1e-5)
    assert small.products > free.products
    assert small.converged.all()
    np.testing.assert_allclose(small.values, outermost(dense, 4, which), rtol=1e-5)
    np.testing.assert_allclose(small.values, free.values, rtol=1e-5)


def test_gives_up_and_says_so() -> None:
    found = top_eigenvalues(operator(matrix(torch.linspace(0, 1, 300))), 3, max_products=8)
    assert found.products == 8
    assert not found.converged.all()
    # A Ritz value lies within its residual of an eigenvalue, converged or not.
    spectrum = torch.linspace(0, 1, 300).double().numpy()
    gaps = np.abs(found.values[:, None] - spectrum).min(axis=1)
    assert (gaps <= found.residuals + 1e-12).all()


def test_ctrl_c_returns_what_there_is() -> None:
    H = operator(matrix(torch.linspace(0, 1, 300)))
    found = top_eigenvalues(interrupting(H, after=9), 3)
    assert found.products == 9
    assert not found.converged.all()
    with pytest.raises(KeyboardInterrupt):
        top_eigenvalues(interrupting(operator(matrix(torch.linspace(0, 1, 300))), after=2), 3)


def is_sound(found: Eigenvalues, dense: torch.Tensor) -> bool:
    vectors, values = found.vectors, torch.from_numpy(found.values)
    residuals = (dense @ vectors - vectors * values).norm(dim=0)
    return torch.allclose(residuals, torch.from_numpy(found.residuals), atol=1e-9)


@pytest.mark.parametrize("after", [15, 16, 17, 21, 22])
def test_ctrl_c_about_a_restart(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 16 products the basis is full, and the 17th comes when it has been cut."""
    monkeypatch.setattr(sys.modules["steppe.landscape.spectra.eigenvalues"], "_BASIS_BYTES", 0)
    dense = matrix(torch.linspace(0, 1, 300))
    found = top_eigenvalues(interrupting(operator(dense), after), 4)
    assert found.products == after
    assert not found.converged.all()
    assert is_sound(found, dense)


@pytest.mark.parametrize("method", ["append", "orthogonalise", "rotate"])
@pytest.mark.parametrize("calls", [1, 10])
def test_ctrl_c_between_two_products(
    method: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is put off until basis and projection are of one size."""
    monkeypatch.setattr(sys.modules["steppe.landscape.spectra.eigenvalues"], "_BASIS_BYTES", 0)
    dense = matrix(torch.linspace(0, 1, 300))
    plain, done = getattr(OrthonormalBasis, method), []

    def pressed(*args):
        done.append(1)
        if len(done) == (calls if method == "rotate" else 10 + calls):
            signal.raise_signal(signal.SIGINT)
        return plain(*args)

    monkeypatch.setattr(OrthonormalBasis, method, pressed)
    found = top_eigenvalues(operator(dense), 4, tol=1e-9)
    assert not found.converged.all()
    assert is_sound(found, dense)


def test_same_seed_same_numbers() -> None:
    H = operator(matrix(torch.linspace(0, 1, 80)), torch.float32)
    one, two, other = (top_eigenvalues(H, 2, seed=seed) for seed in (3, 3, 4))
    assert (one.values == two.values).all()
    assert torch.equal(one.vectors, two.vectors)
    assert not torch.equal(one.vectors, other.vectors)


def test_a_product_that_is_not_finite_is_refused() -> None:
    H = Operator(4, lambda rows: rows * torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        top_eigenvalues(H, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": 5}, "k=5 must lie between 1 and the operator's size 4"),
        ({"which": "SM"}, "which='SM' is not one of LM, LA, SA"),
        ({"tol": 0.0}, "tol=0.0 must be above 0"),
        ({"k": 2, "max_products": 1}, "max_products=1 must be at least k=2"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top_eigenvalues(operator(torch.eye(4)), **{"k": 1, **options})


def test_can_be_written_and_drawn() -> None:
    found = top_eigenvalues(operator(matrix(SPECTRA["three numbers"])), 2)
    written = json.loads(json.dumps(found.to_dict()))
    assert written["values"] == pytest.approx([-7.0, 2.0])
    assert "vectors" not in written
    assert len(found.plot().containers) == 1
    many = top_eigenvalues(operator(matrix(torch.linspace(1, 3, 80))), 60)
    assert len(many.plot().get_xticks()) < 20
