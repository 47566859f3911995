"""Modules that stand in several places, merge weights with their mode, or keep them elsewhere.

The truth is dense, from torch.autograd.functional, of losses that are written out.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from steppe.landscape import Operator, barrier, ggn, hessian, line, sharpness, trace

D = torch.float64
X = torch.linspace(-1, 1, 32, dtype=D).reshape(8, 4).sin()
Y = torch.arange(8) % 3
DATA = [(X, Y)]

PRODUCTS = ("double-backward", "forward-over-reverse", "finite-differences")


def dense(model: nn.Module) -> Tensor:
    """Return the Hessian by differentiating the model's gradient element by element."""
    params = [p for p in model.parameters() if p.requires_grad]
    loss = F.cross_entropy(model(X), Y)
    grads = torch.autograd.grad(
        loss, params, create_graph=True, allow_unused=True, materialize_grads=True
    )
    flat = torch.cat([g.reshape(-1) for g in grads])
    rows = [
        torch.autograd.grad(
            each, params, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        if each.requires_grad
        else [torch.zeros_like(p) for p in params]
        for each in flat
    ]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def dense_ggn(model: nn.Module) -> Tensor:
    """Return JᵀHJ with J row by row, and the Hessian of cross-entropy by its formula."""
    params = [p for p in model.parameters() if p.requires_grad]
    outputs = model(X)
    jacobian = torch.stack(
        [
            torch.cat(
                [
                    part.reshape(-1)
                    for part in torch.autograd.grad(
                        each, params, retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                ]
            )
            for each in outputs.reshape(-1)
        ]
    ).reshape(8, 3, -1)
    p = outputs.detach().softmax(1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nip,nij,njq->pq", jacobian, curvature, jacobian) / 8


def whole(operator: Operator) -> Tensor:
    return operator.matmat(torch.eye(operator.size, dtype=D))


class Shared(nn.Module):
    """One layer that is applied three times, as ALBERT's."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(4, 4)
        self.layers = nn.ModuleList([layer, layer, layer])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)  # type: ignore[no-any-return]


class Listed(nn.Module):
    """Registered parameters that forward reads from a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(5, 4, dtype=D))
        self.second = nn.Parameter(torch.randn(3, 5, dtype=D))
        self.weights = [self.first, self.second]

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weights[0].T) @ self.weights[1].T


class Centred(nn.Module):
    """Outputs less a mean that is computed without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            centre = torch.tanh(self.map(x)).mean(0)
        return torch.tanh(self.map(x)) - centre  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [Shared, Listed, Centred])
def test_all_products_are_the_dense_ones(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().to(D)
    if isinstance(model, Listed):
        model.weights = [model.first, model.second]
    own = [*model.parameters()]
    torch.testing.assert_close(whole(ggn(model, F.cross_entropy, DATA)), dense_ggn(model))
    truth = dense(model)
    torch.testing.assert_close(whole(hessian(model, F.cross_entropy, DATA)), truth)
    forward = hessian(model, F.cross_entropy, DATA, product="forward-over-reverse")
    if isinstance(model, Listed):
        with pytest.raises(ValueError, match="product='double-backward'"):
            whole(forward)
    else:
        torch.testing.assert_close(whole(forward), truth)
    assert all(now is then for now, then in zip(model.parameters(), own, strict=True))
    before = [p.detach().clone() for p in own]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    assert not any(torch.equal(p, then) for p, then in zip(own, before, strict=True))


class Merging(nn.Linear):
    """A low-rank addition that eval() merges into the weight, and train() takes out again."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.a = nn.Parameter(torch.randn(2, 4))
        self.b = nn.Parameter(torch.randn(4, 2))
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode: bool = True) -> "Merging":
        super().train(mode)
        if mode == self.merged:
            sign = -1 if mode else 1
            self.weight.data += sign * self.b @ self.a
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        added = 0 if self.merged else x @ self.a.T @ self.b.T
        return F.linear(x, self.weight, self.bias) + added


class OwnEval(nn.Module):
    """A switch that only eval() sets, as a user calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.doubled = nn.Linear(4, 3), True

    def train(self, mode: bool = True) -> "OwnEval":
        self.doubled = self.doubled or mode
        return super().train(mode)

    def eval(self) -> "OwnEval":
        super().eval()
        self.doubled = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x) * (2 if self.doubled else 1)  # type: ignore[no-any-return]


def merging() -> nn.Module:
    return nn.Sequential(Merging(), nn.Tanh(), nn.Linear(4, 3))


@pytest.mark.parametrize("make", [merging, OwnEval])
@pytest.mark.parametrize("found_in", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("train", [True, False], ids=["train=True", "train=False"])
def test_a_class_may_change_itself_with_its_mode(
    make: Callable[[], nn.Module], found_in: bool, train: bool
) -> None:
    torch.manual_seed(0)
    model = make().to(D)

    def switch(mode: bool) -> None:
        model.train() if mode else model.eval()

    switch(train)
    loss, truth = F.cross_entropy(model(X), Y).item(), dense(model)
    switch(found_in)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [vars(each).get("merged") for each in model.modules()]
    found = line(model, F.cross_entropy, DATA, points=3, train=train)
    assert found.loss == found.losses[1] == pytest.approx(loss, rel=1e-12)
    H = hessian(model, F.cross_entropy, DATA, train=train)
    torch.testing.assert_close(whole(H), truth)
    pairs = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    own_loss = lambda outputs, targets: F.cross_entropy(outputs, targets)  # noqa: E731
    checked = hessian(model, own_loss, pairs, train=train)
    torch.testing.assert_close(whole(checked), truth)
    flat = barrier(model, model, F.cross_entropy, DATA, points=4, train=train)
    assert flat.losses == pytest.approx(np.full(4, loss), rel=1e-12)
    assert [vars(each).get("merged") for each in model.modules()] == flags
    assert model.training is found_in
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-15)


class Cache:
    """Where a flow keeps the inverse of its weight."""

    inverse: Tensor | None = None


class Cached(nn.Module):
    def __init__(self, cache: Cache | None) -> None:
        super().__init__()
        self.weight, self.cache = nn.Parameter(torch.randn(4, 4, dtype=D)), cache
        self.head = nn.Linear(4, 3, dtype=D)

    def train(self, mode: bool = True) -> "Cached":
        if mode and self.cache is not None:
            self.cache.inverse = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.cache is None:
            return self.head(x @ torch.linalg.inv(self.weight))  # type: ignore[no-any-return]
        if self.cache.inverse is None:
            self.cache.inverse = torch.linalg.inv(self.weight)
        return self.head(x @ self.cache.inverse)  # type: ignore[no-any-return]


INSTRUMENTS: dict[str, Callable[[nn.Module, nn.Module], Any]] = {
    "line": lambda model, _: line(model, F.cross_entropy, DATA, points=3).losses,
    "sharpness": lambda model, _: sharpness(model, F.cross_entropy, DATA, rho=0.3).value,
    "barrier": lambda model, other: barrier(model, other, F.cross_entropy, DATA, points=3).losses,
    "trace": lambda model, _: (
        trace(
            hessian(model, F.cross_entropy, DATA, product="finite-differences"), products=30
        ).value
    ),
    "product": lambda model, _: hessian(model, F.cross_entropy, DATA).matvec(
        torch.ones(31, dtype=D)
    ),
}


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_weights_cached_in_an_object_are_computed_anew(name: str) -> None:
    measured = []
    for cache in (None, Cache()):
        torch.manual_seed(0)
        other, model = Cached(None), Cached(cache)
        measured.append(INSTRUMENTS[name](model, other))
        assert cache is None or cache.inverse is None
    assert measured[0] == pytest.approx(measured[1], rel=1e-12)


@pytest.mark.parametrize("name", ["line", "sharpness", "product"])
@pytest.mark.parametrize("is_warm", [False, True])
def test_an_outer_cache_of_parametrizations_is_off(name: str, is_warm: bool) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        first = parametrizations.orthogonal(nn.Linear(4, 4))
        return nn.Sequential(first, nn.Tanh(), nn.Linear(4, 3, bias=False)).to(D)

    def measured(own: nn.Module) -> Any:
        if name != "product":
            return INSTRUMENTS[name](own, own)
        H = hessian(own, F.cross_entropy, DATA)
        return H.matvec(torch.ones(H.size, dtype=D))

    truth = measured(model())
    with parametrize.cached():
        own = model()
        if is_warm:
            own(X)
        assert measured(own) == pytest.approx(truth, rel=1e-12)
        assert measured(own) == pytest.approx(truth, rel=1e-12)
        assert torch.equal(own(X), own(X))


class Attacked(nn.Module):
    """A network that moves its inputs along the sign of their gradient, by a backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 3, dtype=D)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            moved = x.detach().requires_grad_()
            self.map(moved).logsumexp(1).sum().backward()
        return self.map(x + 0.1 * moved.grad.sign())  # type: ignore[no-any-return, union-attr]


@pytest.mark.parametrize("has_gradients", [False, True])
def test_gradients_stay_as_they_were(has_gradients: bool) -> None:
    model = Attacked()
    if has_gradients:
        F.cross_entropy(model(X), Y).backward()
    grads = [p.grad for p in model.parameters()]
    values = [None if g is None else g.clone() for g in grads]
    hessian(model, F.cross_entropy, DATA).matvec(torch.ones(15, dtype=D))
    line(model, F.cross_entropy, DATA, points=3)
    for p, grad, value in zip(model.parameters(), grads, values, strict=True):
        assert p.grad is grad
        assert grad is None or torch.equal(grad, value)
