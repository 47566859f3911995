"""Arguments that are wrong are refused by name, and what is unusual but right is measured."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from steppe.landscape import (
    Trajectory,
    density,
    ggn,
    hessian,
    line,
    plane,
    preconditioned,
    profile,
    sharpness,
    top_eigenvalues,
    trace,
)

torch.manual_seed(0)
X, Y = torch.randn(20, 4), torch.arange(20) % 3
DATA = [(X[:12], Y[:12]), (X[12:], Y[12:])]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


H = hessian(network(), F.cross_entropy, DATA)
SEEDED: dict[str, Callable[[Any], Any]] = {
    "eigenvalues": lambda seed: top_eigenvalues(H, 1, seed=seed).values,
    "trace": lambda seed: trace(H, seed=seed, products=6).value,
    "density": lambda seed: density(H, probes=2, steps=3, seed=seed).trace,
    "sharpness": lambda seed: (
        sharpness(network(), F.cross_entropy, DATA, kind="average", draws=2, seed=seed).value
    ),
    "line": lambda seed: line(network(), F.cross_entropy, DATA, points=3, seed=seed).losses,
    "plane": lambda seed: plane(network(), F.cross_entropy, DATA, points=3, seed=seed).losses,
    "profile": lambda seed: profile(network(), F.cross_entropy, DATA, k=1, seed=seed).loss,
}


@pytest.mark.parametrize("name", SEEDED)
def test_seeds_are_integers_of_64_bits(name: str) -> None:
    measure = SEEDED[name]
    for seed in (1.5, None, "a", True):
        with pytest.raises(TypeError, match=f"seed must be an integer, got {seed!r}"):
            measure(seed)
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match=f"seed must have at most 64 bits, got {seed}"):
            measure(seed)
    if name != "profile":
        assert np.array_equal(measure(np.int64(3)), measure(3))


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD(network().parameters(), lr=0.1)


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no model": (
        lambda: hessian(None, F.cross_entropy, DATA), TypeError, "model must be a module",
    ),
    "an optimizer": (
        lambda: sharpness(optimizer(), F.cross_entropy, DATA), TypeError, "model must be a module",
    ),
    "no loss": (lambda: hessian(network(), "ce", DATA), TypeError, "loss_fn must be a function"),
    "a class": (
        lambda: hessian(network(), nn.MSELoss, DATA), TypeError, "loss_fn must be a function",
    ),
    "complex loss": (
        lambda: hessian(network(), lambda o, t: o.sum().to(torch.complex64), DATA).matvec(
            torch.ones(51)
        ),
        ValueError, "loss_fn must return a real number",
    ),
    "params": (
        lambda: hessian(network(), F.cross_entropy, DATA, params=5), TypeError, "params must be",
    ),
    "one parameter": (
        lambda: hessian(model := network(), F.cross_entropy, DATA, params=model[0].weight),
        TypeError, "params must be a list of the model's parameters.*got Parameter",
    ),
    "named parameters": (
        lambda: hessian(m := network(), F.cross_entropy, DATA, params=m.named_parameters()),
        TypeError, r"params\[0\] must be a parameter of the model.*got tuple",
    ),
    "a dictionary of parameters": (
        lambda: hessian(m := network(), F.cross_entropy, DATA, params=dict(m.named_parameters())),
        TypeError, "params must be a list of the model's parameters.*got dict",
    ),
    "weight": (
        lambda: hessian(network(), F.cross_entropy, DATA, weight=lambda o, t: None).matvec(
            torch.ones(51)
        ),
        TypeError, "weight must return a number, got None",
    ),
    "no optimizer": (
        lambda: preconditioned(H, None), TypeError, "optimizer must be an optimizer, got NoneType",
    ),
    "a name": (lambda: preconditioned(H, "adam"), TypeError, "optimizer must be an optimizer"),
    "no operator": (lambda: top_eigenvalues(None), TypeError, "H must be an operator"),
    "a matrix": (lambda: trace(torch.eye(3)), TypeError, "H must be an operator"),
    "a model": (lambda: density(network()), TypeError, "H must be an operator"),
    "P of none": (lambda: preconditioned(None, optimizer()), TypeError, "H must be an operator"),
    "array": (lambda: H @ np.ones(51), TypeError, "vector must be a tensor, got ndarray"),
    "list": (lambda: H @ [1.0] * 51, TypeError, "vector must be a tensor, got list"),
    "array matvec": (lambda: H.matvec(np.ones(51)), TypeError, "vector must be a tensor"),
    "array matmat": (lambda: H.matmat(np.ones((51, 2))), TypeError, "block must be a tensor"),
    "complex vector": (
        lambda: H @ torch.ones(51, dtype=torch.complex64), TypeError, "of real numbers",
    ),
    "complex block": (
        lambda: H @ torch.ones(51, 2, dtype=torch.complex64), TypeError, "of real numbers",
    ),
    "complex direction": (
        lambda: line(
            network(), F.cross_entropy, DATA, direction=torch.ones(51, dtype=torch.complex64)
        ),
        TypeError, "direction must be a tensor of real numbers",
    ),
    "complex plane": (
        lambda: plane(
            network(), F.cross_entropy, DATA, directions=torch.ones(2, 51, dtype=torch.complex64)
        ),
        TypeError, r"directions\[0\] must be a tensor of real numbers",
    ),
    "complex record": (
        lambda: Trajectory().record([torch.ones(3, dtype=torch.complex64)]),
        TypeError, "some are complex",
    ),
    "directions": (
        lambda: plane(network(), F.cross_entropy, DATA, directions=5), TypeError, "directions must",
    ),
    "which": (lambda: top_eigenvalues(H, which=["LM"]), ValueError, re.escape("which=['LM']")),
    "method": (lambda: trace(H, method=["x"]), ValueError, re.escape("method=['x']")),
    "tol": (lambda: top_eigenvalues(H, tol=None), TypeError, "tol must be a number, got None"),
    "trace tol": (lambda: trace(H, tol="x"), TypeError, "tol must be a number, got 'x'"),
    "bandwidth": (lambda: density(H, bandwidth="x"), TypeError, "bandwidth must be a number"),
    "rho": (
        lambda: sharpness(network(), F.cross_entropy, DATA, rho=None), TypeError, "rho must be",
    ),
    "m": (
        lambda: sharpness(network(), F.cross_entropy, DATA, m=True), ValueError, "m must be a",
    ),
    "reach": (
        lambda: line(network(), F.cross_entropy, DATA, reach="x"), TypeError, "reach must be",
    ),
    "exported": (
        lambda: top_eigenvalues(
            hessian(torch.export.export(network(), (X,)).module(), F.cross_entropy, [(X, Y)]), 1
        ),
        ValueError, "pass the module that it was exported from",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    call, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message):
        call()


def test_a_block_without_columns_has_a_product_without_columns() -> None:
    for operator in (
        hessian(network(), F.cross_entropy, DATA),
        ggn(network(), F.cross_entropy, DATA),
    ):
        assert operator.matmat(torch.ones(51, 0)).shape == (51, 0)
        assert operator.products == 0


class Unknown(IterableDataset[Any]):
    """Does not know its length, and says so by an error of its own."""

    def __len__(self) -> int:
        raise NotImplementedError("unknown")

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


class Batched(Unknown):
    def __iter__(self) -> Iterator[Any]:
        return iter(DATA)


@pytest.mark.parametrize("data", [Batched(), DataLoader(Unknown(), batch_size=7)])
def test_data_need_not_know_their_length(data: Any) -> None:
    found = hessian(network(), F.cross_entropy, data).matvec(torch.ones(51))
    whole = hessian(network(), F.cross_entropy, [(X, Y)]).matvec(torch.ones(51))
    torch.testing.assert_close(found, whole)


class Forces(nn.Module):
    """The gradient of an energy by the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("make", [Forces, network])
@pytest.mark.parametrize("loss_fn", [F.mse_loss, nn.MSELoss(), lambda o, t: F.mse_loss(o, t)])
def test_mean_squares_are_differentiated_in_forward_mode(make: Any, loss_fn: Any) -> None:
    model = make()
    data = [(X, torch.randn(20, 4 if make is Forces else 3))]
    twice, along = (
        hessian(model, loss_fn, data, product=product)
        for product in ("double-backward", "forward-over-reverse")
    )
    vector = torch.ones(twice.size)
    torch.testing.assert_close(along.matvec(vector), twice.matvec(vector))


def test_what_forward_mode_cannot_do_names_the_product_that_can() -> None:
    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, X[: len(outputs), :3])

    product = hessian(network(), loss_fn, DATA, product="forward-over-reverse", weight="samples")
    with pytest.raises(RuntimeError, match=r"take .*product='double-backward'"):
        product.matvec(torch.ones(product.size))


def test_an_empty_batch_weighs_nothing_in_every_product() -> None:
    data = [(X, X[:, :3]), (X[:0], X[:0, :3])]
    vector = torch.ones(51)
    expected = hessian(network(), F.mse_loss, data[:1]).matvec(vector)
    for product in ("double-backward", "forward-over-reverse"):
        found = hessian(network(), F.mse_loss, data, product=product)
        torch.testing.assert_close(found.matvec(vector), expected)
    torch.testing.assert_close(
        ggn(network(), F.mse_loss, data).matvec(vector),
        ggn(network(), F.mse_loss, data[:1]).matvec(vector),
    )


@pytest.mark.parametrize("rho", [1e39, 1e300])
@pytest.mark.parametrize("options", [{}, {"kind": "average", "draws": 3}, {"m": 7}], ids=str)
def test_a_rise_that_overflows_is_infinite(options: dict[str, Any], rho: float) -> None:
    found = sharpness(network(), F.cross_entropy, DATA, rho=rho, **options)
    assert (found.value, found.perturbed_loss) == (np.inf, np.inf)
    assert found.stderr == (None if not options else np.inf)
