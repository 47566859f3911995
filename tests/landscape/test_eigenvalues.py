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
from steppe.landscape.spectra._lanczos import ThickRestartLanczos
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


@pytest.mark.thorough
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
        ({"tol": 0.0}, "tol=0.0 must be a finite number above 0"),
        ({"tol": float("inf")}, "tol=inf must be a finite number above 0"),
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


@pytest.mark.parametrize("seed", range(4))
def test_of_a_linear_layer_are_found_as_often_as_they_are_there(seed: int) -> None:
    torch.manual_seed(seed)
    x, y, model = torch.randn(200, 20), torch.randn(200, 10), torch.nn.Linear(20, 10)
    H = hessian(model, torch.nn.MSELoss(), [(x, y)])
    second = torch.cat([x, torch.ones(200, 1)], dim=1).double()
    # Each eigenvalue of the inputs' second moment, ten times.
    truth = np.repeat(np.linalg.eigvalsh((second.T @ second).numpy())[::-1], 10) * 2 / 2000
    for k in (1, 5, 12):
        found = top_eigenvalues(H, k)
        assert found.is_done
        np.testing.assert_allclose(found.values, truth[:k], rtol=1e-3)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
def test_repeated_ones_at_both_ends(
    which: str, restarts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if restarts:
        monkeypatch.setattr(sys.modules["steppe.landscape.spectra.eigenvalues"], "_BASIS_BYTES", 0)
    ends = torch.tensor([5.0, 5.0, -5.0, -5.0, 4.0, 4.0, 4.0, -3.0])
    dense = matrix(torch.cat([ends, torch.linspace(-1, 1, 192)]))
    for seed in range(5):
        found = top_eigenvalues(operator(dense), 4, which=which, seed=seed)
        assert found.is_done, found.reason
        np.testing.assert_allclose(
            np.sort(found.values), np.sort(outermost(dense, 4, which)), rtol=1e-3
        )


def test_without_products_left_to_verify_only_the_first_has_converged() -> None:
    dense = matrix(torch.cat([torch.full((3,), 5.0), torch.linspace(0, 1, 197)]))
    whole = top_eigenvalues(operator(dense), 3)
    np.testing.assert_allclose(whole.values, 5.0, rtol=1e-3)
    found = top_eigenvalues(operator(dense), 3, max_products=whole.products - 1)
    assert not found.converged[1:].all()
    assert "raise max_products" in found.reason


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(
    ("top", "which"),
    [((1.02, 1.0, 0.6), "LM"), ((1.02, 1.0, 0.6), "LA"), ((-1.02, 1.0, -1.0, 0.6), "LM"),
     ((-1.02, -1.0, -0.6, 0.3), "SA"), ((1.005, 1.0, 0.6), "LM")],
)  # fmt: skip
def test_a_start_vector_without_luck_hides_nothing(
    top: tuple[float, ...], which: str, restarts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One search in twelve ended at the second value, and said that it had converged.
    if restarts:
        monkeypatch.setattr(sys.modules["steppe.landscape.spectra.eigenvalues"], "_BASIS_BYTES", 0)
    diagonal = torch.cat([torch.tensor(top), 0.3 * torch.linspace(1, 0, 1000) ** 4]).double()
    H = Operator(len(diagonal), lambda rows: rows * diagonal, dtype=torch.float64)
    for seed in range(16):
        found = top_eigenvalues(H, 1, which=which, seed=seed)
        assert found.is_done
        assert found.values[0] == pytest.approx(top[0], rel=1e-3)
        # It is known two products later.
        cut = top_eigenvalues(H, 1, which=which, seed=seed, max_products=found.products - 1)
        assert not cut.is_done
        assert "raise max_products" in cut.reason


def test_nor_where_all_wanted_values_lie_within_the_tolerance() -> None:
    # Then no copy of one would change anything, and none is looked for.
    diagonal = torch.linspace(0, 1, 1000).double()
    diagonal[:3] = torch.tensor([10, 9.8, 9.7])
    H = Operator(len(diagonal), lambda rows: rows * diagonal, dtype=torch.float64)
    for seed in range(80):
        found = top_eigenvalues(H, 2, tol=1e-2, seed=seed)
        assert found.is_done
        assert found.values[0] == pytest.approx(10.0, rel=1e-2)


@pytest.mark.parametrize(("products", "capacity"), [(5, 20), (14, 11), (30, 11), (31, 6)])
def test_what_an_eigenvector_has_of_the_start_vector_follows_from_its_eigenvalue(
    products: int, capacity: int
) -> None:
    diagonal = torch.cat([torch.tensor([3.0]), torch.linspace(2.9, -1, 400)]).double()
    H = Operator(len(diagonal), lambda rows: rows * diagonal, dtype=torch.float64)
    search = ThickRestartLanczos(H, 1, "LM", 1e-9, 0, capacity)
    start = search.pending[0].clone()
    for _ in range(products):
        search.extend()
    (pending,) = search.pending
    # The first unit vector is an eigenvector.
    eigenvector = torch.eye(1, len(diagonal)).double()[0]
    parts = torch.cat([search.basis.orthogonalise(eigenvector)[0], pending[:1]])
    assert search.start is not None
    growth = search.start.growth(search.projected, search.rows[-1], 3.0)
    assert growth == pytest.approx(float(parts.norm() / start[0].abs()), rel=1e-6)


def test_products_that_are_not_symmetric_are_marked() -> None:
    dense = matrix(torch.linspace(0, 1, 100) ** 4)
    dense[3, 70] += 0.05
    found = top_eigenvalues(Operator(100, lambda rows: rows @ dense.T, dtype=torch.float64), 3)
    assert not found.converged.any()
    assert found.asymmetry > 1e-6
    assert "no symmetric matrix" in found.reason


def crossed() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix whose outermost eigenvalues are 1 and 1.1, −0.7 and −0.8, and its vectors."""
    ends = torch.tensor([-0.8, -0.7, 1.0, 1.1])
    spectrum = torch.cat([torch.linspace(-0.2, 0.3, 296), ends]).double()
    dense = matrix(spectrum)
    return dense, torch.linalg.eigh(dense).eigenvectors


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
def test_a_start_vector_does_not_change_the_answer(which: str) -> None:
    """Near the wanted eigenvector, orthogonal to it at the next one, or anywhere else."""
    dense, vectors = crossed()
    truth = outermost(dense, 1, which)
    for seed in range(20):
        for start in (vectors[:, -1], vectors[:, -2], vectors[:, 1], 1e-20 * vectors[:, 7]):
            found = top_eigenvalues(
                operator(dense), 1, which=which, tol=1e-3, seed=seed, start=start
            )
            assert found.is_done
            np.testing.assert_allclose(found.values, truth, rtol=1e-3)


def test_a_start_vector_saves_products_where_nothing_is_verified() -> None:
    dense, vectors = crossed()
    truth = outermost(dense, 1, "LA")
    noise = torch.randn(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = vectors[:, -1] + 0.1 * noise / noise.norm()
    options = {"which": "LA", "tol": 1e-2}
    for seed in range(10):
        cold = top_eigenvalues(operator(dense), 1, **options, seed=seed)
        warm = top_eigenvalues(operator(dense), 1, **options, seed=seed, start=start, verify=False)
        assert warm.is_done
        np.testing.assert_allclose(warm.values, truth, rtol=1e-2)
        assert warm.products <= 0.75 * cold.products


def test_without_verification_values_are_eigenvalues_still() -> None:
    """At the second eigenvector a larger one may be missed, and is not where it is verified."""
    dense, vectors = crossed()
    spectrum = np.linalg.eigvalsh(dense.numpy())
    for seed in range(10):
        found = top_eigenvalues(
            operator(dense), 1, which="LA", seed=seed, start=vectors[:, -2], verify=False
        )
        assert np.abs(spectrum - found.values[0]).min() <= found.residuals[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start": torch.ones(2)}, ValueError, r"start has shape \(2,\), expected \(3,\)"),
        ({"start": torch.zeros(3)}, ValueError, "start must be finite and not zero, .* norm 0.0"),
        ({"start": torch.full((3,), torch.nan)}, ValueError, "start must be finite .* norm nan"),
        ({"start": [1.0, 0.0, 0.0]}, TypeError, "start must be a tensor of real numbers, got list"),
        ({"start": torch.ones(3) * 1j}, TypeError, "start must .* got torch.complex64"),
        ({"verify": 1}, TypeError, "verify must be True or False, got 1"),
    ],
)
def test_wrong_starts_are_refused(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        top_eigenvalues(operator(torch.eye(3).double()), 1, **options)
