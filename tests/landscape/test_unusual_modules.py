"""Modules that stand in several places, merge weights with their mode, or keep them elsewhere.

The truth is dense, from torch.autograd.functional, of losses that are written out.
"""

import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
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


class Following(nn.Module):
    """A frozen teacher that follows the student in every pass, as MoCo's and BYOL's."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(4, 3, dtype=D)
        self.teacher = nn.Linear(4, 3, dtype=D).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for own, other in zip(
                self.teacher.parameters(), self.student.parameters(), strict=True
            ):
                own.mul_(0.9).add_(other, alpha=0.1)
        return self.student(x) * self.teacher(x).tanh()  # type: ignore[no-any-return]


def test_a_teacher_that_follows_is_the_same_in_every_pass() -> None:
    """With several batches the first product was 32 % off."""
    torch.manual_seed(0)
    model = Following()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    truth, losses = torch.zeros(15, 15, dtype=D), []
    data = [(X[:3], Y[:3]), (X[3:5], Y[3:5]), (X[5:], Y[5:])]
    for inputs, labels in data:
        model.load_state_dict(start)
        params = [*model.student.parameters()]
        loss = F.cross_entropy(model(inputs), labels)
        grads = torch.autograd.grad(loss, params, create_graph=True)
        flat = torch.cat([each.reshape(-1) for each in grads])
        rows = [torch.autograd.grad(each, params, retain_graph=True) for each in flat]
        dense_batch = torch.stack([torch.cat([p.reshape(-1) for p in row]) for row in rows])
        truth += dense_batch * len(labels) / 8
        losses.append(loss.item() * len(labels) / 8)
    model.load_state_dict(start)
    H = hessian(model, F.cross_entropy, data)
    for _ in range(2):
        torch.testing.assert_close(whole(H), truth)
    found = line(model, F.cross_entropy, data, points=3)
    assert found.losses[1] == pytest.approx(sum(losses), rel=1e-12)
    flat_barrier = barrier(model, model, F.cross_entropy, data, points=4)
    assert flat_barrier.losses == pytest.approx(np.full(4, sum(losses)), rel=1e-12)
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name])


class Fused(nn.Module):
    """Two branches that eval() makes one layer of, as RepVGG's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.stem = (nn.Linear(4, n, dtype=D) for n in (3, 3, 4))
        self.fused: nn.Module | None = None

    def train(self, mode: bool = True) -> "Fused":
        super().train(mode)
        self.fused = None if mode else nn.Linear(4, 3, dtype=D)
        if self.fused is not None:
            self.fused.weight.data = self.a.weight.data + self.b.weight.data
            self.fused.bias.data = self.a.bias.data + self.b.bias.data
        return self

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.stem(x))
        if self.fused is not None:
            return self.fused(hidden)  # type: ignore[no-any-return]
        return self.a(hidden) + self.b(hidden)  # type: ignore[no-any-return]


@pytest.mark.parametrize("found_in", [True, False])
def test_parts_that_a_mode_exchanges_are_put_back(found_in: bool) -> None:
    torch.manual_seed(0)
    model = Fused().train(found_in)
    names, fused = list(model.state_dict()), model.fused
    line(model, F.cross_entropy, DATA, points=3, train=not found_in)
    hessian(model, F.cross_entropy, DATA, params=[*model.stem.parameters()]).matvec(
        torch.ones(20, dtype=D)
    )
    assert list(model.state_dict()) == names
    assert model.fused is fused


class Refusing(list[int]):
    """A list that can be neither copied nor extended in the usual way."""

    def __copy__(self) -> "Refusing":
        raise RuntimeError("no copies")

    def extend(self, values: Any) -> None:
        raise RuntimeError("no extensions")


class Holding(nn.Module):
    """State in objects within objects, and what cannot be asked for anything."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 3, dtype=D)
        self.held = SimpleNamespace(layers=[SimpleNamespace(passes=0)])
        self.refusing = Refusing([1, 2])
        self.cache, gone = Cache(), Cache()
        self.lock, self.alive, self.dead = (
            threading.Lock(), weakref.proxy(self.cache), weakref.proxy(gone)
        )  # fmt: skip
        del gone

    def forward(self, x: Tensor) -> Tensor:
        self.held.layers[0].passes += 1
        self.refusing.append(3)
        return self.map(x) * self.held.layers[0].passes * len(self.refusing)  # type: ignore[no-any-return]


def test_state_within_objects_is_put_back_and_what_refuses_is_left() -> None:
    torch.manual_seed(0)
    model = Holding()
    found = line(model, F.cross_entropy, DATA, points=3)
    assert found.losses[1] == pytest.approx(F.cross_entropy(3 * model.map(X), Y).item())
    assert barrier(model, model, F.cross_entropy, DATA, points=4).height == 0
    assert model.held.layers[0].passes == 0
    assert [*model.refusing] == [1, 2]


class Undifferentiable(torch.autograd.Function):
    """Softplus, whose derivative is computed in NumPy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.logaddexp(0, x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return torch.from_numpy(grad.detach().numpy() / (1 + np.exp(-x.detach().numpy())))


class OfNumPy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 3, dtype=D)

    def forward(self, x: Tensor) -> Tensor:
        return Undifferentiable.apply(self.map(x))  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.parametrize("operator", [hessian, ggn])
def test_a_backward_pass_without_derivative_is_refused(operator: Callable[..., Operator]) -> None:
    """It was taken for a constant: the matrix was 0, or half of it, and symmetric."""
    H = operator(OfNumPy(), nn.PoissonNLLLoss(log_input=False), [(X, X[:, :3].abs())])
    with pytest.raises(RuntimeError, match=r"no derivative of its own .* product='finite-differ"):
        H.matvec(torch.ones(15, dtype=D))


def test_a_loss_may_differentiate_by_parameters() -> None:
    """As a penalty on gradients, or a model that is adapted in its forward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, dtype=D), nn.Tanh())

    def penalised(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(outputs, targets)
        grads = torch.autograd.grad(loss, [*model.parameters()], create_graph=True)
        return loss + 0.1 * sum(grad.square().sum() for grad in grads)

    truth = penalised(model(X), Y).item()
    assert line(model, penalised, DATA, points=3).losses[1] == pytest.approx(truth)
    assert sharpness(model, penalised, DATA, rho=1e-9).loss == pytest.approx(truth)
    assert barrier(model, model, penalised, DATA, points=3).losses == pytest.approx(truth)


class Unseeded(nn.Module):
    """Noise of an iterator that nobody can set back."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 3, dtype=D)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x + float(next(noise)))  # type: ignore[no-any-return]


noise = iter(np.random.default_rng(0).normal(size=1000))


def test_a_barrier_of_losses_that_change_by_themselves_is_refused() -> None:
    model = Unseeded()
    with pytest.raises(ValueError, match="and computed again"):
        barrier(model, model, F.cross_entropy, DATA, points=3)


class Views(nn.Module):
    """Weights that are views of one parameter, made once."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Parameter(torch.linspace(-1, 1, 15, dtype=D).cos())
        self.parts = [self.flat[:12].view(3, 4), self.flat[12:]]

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, *self.parts))


def test_views_of_a_parameter_move_and_keep_their_gradients() -> None:
    """They had gradients of 0 after a write and a pass without gradients: sharpness was 0."""
    model = Views()
    with torch.no_grad():
        model.flat.mul_(0.5)  # as an optimizer's step
    rho = 1e-3
    grad = torch.autograd.grad(F.cross_entropy(model(X), Y), model.flat)[0]
    with torch.no_grad():
        own = model.flat.clone()
        model.flat.add_(rho * grad / grad.norm())
        higher = F.cross_entropy(model(X), Y).item()
        model.flat.copy_(own)
    assert sharpness(model, F.cross_entropy, DATA, rho=rho).perturbed_loss == pytest.approx(higher)
    H = hessian(model, F.cross_entropy, DATA, product="finite-differences")
    torch.testing.assert_close(H.matmat(torch.eye(15, dtype=D)), dense(model), rtol=0, atol=1e-6)
    F.cross_entropy(model(X), Y).backward()
    assert model.flat.grad is not None
    torch.testing.assert_close(model.flat.grad, grad)


class Lazy:
    """An object that cannot say yet what it holds, as one that is loaded on demand."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            raise RuntimeError("not loaded")
        return super().__getattribute__(name)


def test_an_object_that_cannot_say_what_it_holds_is_left_alone() -> None:
    model = nn.Linear(4, 3, dtype=D)
    model.lazy = Lazy()  # type: ignore[assignment]
    H = hessian(model, F.cross_entropy, DATA).matmat(torch.eye(15, dtype=D))
    torch.testing.assert_close(H, dense(model))
