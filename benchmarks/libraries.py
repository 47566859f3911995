"""Libraries that measure curvature, each asked as its documentation shows.

All but steppe are measured only where they are installed: nothing here depends on them.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from steppe import landscape

Data = list[tuple[Tensor, Tensor]]

#: Largest eigenvalues asked for, and to what relative accuracy.
WANTED, TOLERANCE = 5, 1e-3
#: Lanczos steps of a density from one probe.
STEPS = 40


@dataclass(frozen=True)
class Library:
    """What a library is called, and how it is asked.

    Attributes
    ----------
    name, package, module
        For the reader, for pip, and for Python.
    operator
        The Hessian, from a model, a criterion and data.
    eigenvalues
        The five largest in magnitude, from an operator, and how many products they took.
    density
        From an operator, with one probe and 40 Lanczos steps.
    traces
        Estimates by method, from an operator, a number of products and a seed.
    of_matrix
        An operator from a dense matrix; None where a library knows networks only.
    """

    name: str
    package: str
    module: str
    operator: Callable[[nn.Module, nn.Module, Data], Any]
    eigenvalues: Callable[[Any], tuple[list[float], int]]
    density: Callable[[Any], object]
    traces: Mapping[str, Callable[[Any, int, int], float]] = field(hash=False)
    of_matrix: Callable[[Tensor], Any] | None = None

    @property
    def is_installed(self) -> bool:
        """Whether it can be imported."""
        return find_spec(self.module) is not None


def of_matrix(matrix: Tensor) -> landscape.Operator:
    """Return steppe's operator of a dense symmetric matrix."""
    return landscape.Operator(len(matrix), lambda rows: rows @ matrix, dtype=matrix.dtype)


def _steppe() -> Library:
    def eigenvalues(H: landscape.Operator) -> tuple[list[float], int]:
        found = landscape.top_eigenvalues(H, k=WANTED, tol=TOLERANCE)
        return found.values.tolist(), found.products

    def trace(method: Any) -> Callable[[Any, int, int], float]:
        return lambda H, products, seed: (
            landscape.trace(H, method=method, products=products, seed=seed).value
        )

    return Library(
        "steppe",
        "steppe",
        "steppe",
        landscape.hessian,
        eigenvalues,
        lambda H: landscape.density(H, probes=1, steps=STEPS),
        {method: trace(method) for method in ("hutchinson", "hutch++", "xtrace")},
        of_matrix,
    )


def _curvlinops() -> Library:
    """Its operator is SciPy's: eigenvalues are ``eigsh``'s."""

    def operator(model: nn.Module, criterion: nn.Module, data: Data) -> Any:
        import curvlinops

        params = list(model.parameters())
        # Its check for randomness would take products of its own.
        return curvlinops.HessianLinearOperator(
            model, criterion, params, data, check_deterministic=False
        )

    def eigenvalues(operator: Any) -> tuple[list[float], int]:
        from scipy.sparse.linalg import eigsh

        with _counted(operator, "_matmat") as count:
            values, _ = eigsh(operator.to_scipy(), k=WANTED, which="LM", tol=TOLERANCE)
        return values.tolist(), count()

    def density(operator: Any) -> object:
        import curvlinops

        return curvlinops.lanczos_approximate_spectrum(operator, STEPS)

    def trace(function: str, divisor: int) -> Callable[[Any, int, int], float]:
        def estimate(operator: Any, products: int, seed: int) -> float:
            import curvlinops

            torch.manual_seed(seed)
            return float(getattr(curvlinops, function)(operator, products // divisor * divisor))

        return estimate

    return Library(
        "curvlinops",
        "curvlinops-for-pytorch",
        "curvlinops",
        operator,
        eigenvalues,
        density,
        {
            "hutchinson": trace("hutchinson_trace", 1),
            "hutch++": trace("hutchpp_trace", 3),
            "xtrace": trace("xtrace", 2),
        },
        lambda matrix: matrix,
    )


def _hessian_eigenthings() -> Library:
    def operator(model: nn.Module, criterion: nn.Module, data: Data) -> Any:
        import hessian_eigenthings as it

        return it.HessianOperator(model, data, it.supervised_loss(criterion))

    def eigenvalues(operator: Any) -> tuple[list[float], int]:
        import hessian_eigenthings as it

        found = it.lanczos(operator, k=WANTED, max_iter=30, tol=TOLERANCE, seed=0)
        return found.eigenvalues.tolist(), found.iterations

    def density(operator: Any) -> object:
        import hessian_eigenthings as it

        return it.spectral_density(operator, num_runs=1, lanczos_steps=STEPS, seed=0)

    def trace(method: str) -> Callable[[Any, int, int], float]:
        def estimate(operator: Any, products: int, seed: int) -> float:
            import hessian_eigenthings as it

            found = it.trace(operator, num_matvecs=products, method=method, seed=seed)
            return float(found.estimate)

        return estimate

    def of_matrix(matrix: Tensor) -> Any:
        import hessian_eigenthings as it

        return it.LambdaOperator(lambda vector: matrix @ vector, len(matrix), dtype=matrix.dtype)

    return Library(
        "hessian-eigenthings",
        "hessian-eigenthings",
        "hessian_eigenthings",
        operator,
        eigenvalues,
        density,
        {method: trace(method) for method in ("hutchinson", "hutch++")},
        of_matrix,
    )


def _pyhessian() -> Library:
    def operator(model: nn.Module, criterion: nn.Module, data: Data) -> Any:
        import pyhessian

        with warnings.catch_warnings():
            # It leaves the gradient's graph in .grad, so that products need no forward pass.
            warnings.simplefilter("ignore", UserWarning)
            return pyhessian.hessian(deepcopy(model), criterion, data=data[0], cuda=False)

    def eigenvalues(operator: Any) -> tuple[list[float], int]:
        torch.manual_seed(0)
        # The package's name for this module is also that of the class in it.
        with _counted(sys.modules["pyhessian.hessian"], "hessian_vector_product") as count:
            values, _ = operator.eigenvalues(top_n=WANTED, tol=TOLERANCE)
        return values, count()

    def trace(operator: Any, products: int, seed: int) -> float:
        torch.manual_seed(seed)
        samples = operator.trace(maxIter=products, tol=0.0)
        return float(sum(samples) / len(samples))

    return Library(
        "PyHessian",
        "pyhessian",
        "pyhessian",
        operator,
        eigenvalues,
        lambda operator: operator.density(iter=STEPS, n_v=1),
        {"hutchinson": trace},
    )


@contextmanager
def _counted(owner: Any, function: str) -> Iterator[Callable[[], int]]:
    """Count the calls of a function meanwhile."""
    calls = 0
    original = getattr(owner, function)

    def counting(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*args, **keywords)

    with mock.patch.object(owner, function, counting):
        yield lambda: calls


STEPPE = _steppe()
LIBRARIES = (STEPPE, _curvlinops(), _hessian_eigenthings(), _pyhessian())
