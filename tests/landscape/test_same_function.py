"""Every pass computes one function, of the same data, and leaves all as found."""

# ruff: noqa: NPY002 (users' data draw from NumPy's global generator)

import os
import random
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable, Iterator
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from helpers.instruments import INSTRUMENTS
from steppe.landscape import density, ggn, hessian, line, profile, sharpness, top_eigenvalues, trace
from steppe.landscape.objective.objective import Objective
from steppe.landscape.objective.same_data import SameData

PRODUCTS = ("double-backward", "forward-over-reverse", "finite-differences")
D = torch.float64


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(D)


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(1))


LABELS = torch.arange(12) % 3


def matrix(H: Any) -> Tensor:
    return H.matmat(torch.eye(H.size, dtype=H.dtype))


def dense(loss: Callable[..., Tensor], params: list[Tensor]) -> Tensor:
    """Differentiate a function of tensors twice."""
    start = tuple(param.detach().clone() for param in params)
    blocks = torch.autograd.functional.hessian(loss, start)
    sizes = [param.numel() for param in params]
    rows = [
        torch.cat([blocks[i][j].reshape(sizes[i], sizes[j]) for j in range(len(sizes))], dim=1)
        for i in range(len(sizes))
    ]
    return torch.cat(rows)


def near(found: Tensor, truth: Tensor, tolerance: float = 1e-10) -> bool:
    return bool((found - truth).abs().max() <= tolerance * truth.abs().max())


# Data.


class Augmented(Dataset):
    def __init__(self, draw: Callable[[], Any]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        fixed = torch.randn(4, dtype=D, generator=torch.Generator().manual_seed(index))
        return fixed + torch.as_tensor(self.draw(), dtype=D), index % 3


class Stream(IterableDataset):
    def __init__(self) -> None:
        self.numpy = np.random.default_rng(5)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for index in range(12):
            yield torch.as_tensor(self.numpy.normal(size=4)), index % 3


def loaders() -> dict[str, Any]:
    pairs = TensorDataset(inputs(14, 4), torch.arange(14) % 3)
    generator, numpy = torch.Generator().manual_seed(3), np.random.default_rng(3)
    workers = {"num_workers": 1, "persistent_workers": True}
    sampler = RandomSampler(pairs, generator=generator)
    return {
        "workers": DataLoader(Augmented(lambda: torch.randn(4)), 5, **workers),
        "numpy": DataLoader(Augmented(lambda: np.random.randn(4)), 5),
        "python": DataLoader(Augmented(lambda: [random.random()] * 4), 5, shuffle=True),
        "own numpy": DataLoader(Augmented(lambda: numpy.normal(size=4)), 5),
        "own torch": DataLoader(Augmented(lambda: torch.randn(4, generator=generator)), 5),
        "stream": DataLoader(Stream(), 5),
        "batch sampler": DataLoader(pairs, batch_sampler=BatchSampler(sampler, 4, True)),
        "replacement": DataLoader(
            pairs, 4, sampler=RandomSampler(pairs, replacement=True, generator=generator)
        ),
    }


@pytest.mark.parametrize("name", loaders())
def test_data_are_the_same_in_every_pass(name: str) -> None:
    H = hessian(mlp(), nn.CrossEntropyLoss(), loaders()[name])
    vector = inputs(43)
    before = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    first = H.matvec(vector)
    after = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    assert after == before
    for draw in (np.random.rand, random.random, lambda: torch.rand(2)):
        draw()
    assert torch.equal(H.matvec(vector), first)
    found = matrix(H)
    assert near(found, found.T)


def test_a_sampler_that_counts_epochs_counts_none_of_ours() -> None:
    class Counting(RandomSampler):
        epoch = 0

        def __iter__(self) -> Iterator[int]:
            self.epoch += 1
            return iter(np.random.RandomState(self.epoch).permutation(14).tolist())

    pairs = TensorDataset(inputs(14, 4), torch.arange(14) % 3)
    sampler = Counting(pairs)
    sampler.epoch = 2
    H = hessian(mlp(), nn.CrossEntropyLoss(), DataLoader(pairs, 4, sampler=sampler, drop_last=True))
    first = H.matvec(torch.ones(43))
    assert torch.equal(H.matvec(torch.ones(43)), first)
    assert sampler.epoch == 2
    # Nor does it forget those of training between two measurements.
    sampler.epoch = 7
    assert torch.equal(H.matvec(torch.ones(43)), first)
    assert sampler.epoch == 7


class Unrepeatable:
    """Data whose randomness nothing can set back."""

    def __init__(self, grows: bool = False) -> None:
        self.passes, self.grows = 0, grows

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        for _ in range(self.passes if self.grows else 1):
            yield inputs(12, 4) * (1 if self.grows else self.passes), LABELS


@pytest.mark.parametrize("grows", [False, True])
def test_refuses_data_that_differ_and_the_remedy_works(grows: bool) -> None:
    data = Unrepeatable(grows)
    with pytest.raises(ValueError, match=r"data = list\(loader\)"):
        sharpness(mlp(), nn.CrossEntropyLoss(), data)
    assert sharpness(mlp(), nn.CrossEntropyLoss(), list(data)).value > 0


class Batch:
    """One of a user's own, with other numbers beside its data's."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.made_at, self.me = x, random.random(), self


@pytest.mark.parametrize(
    "kind",
    [
        Tensor.to_sparse,
        Tensor.to_sparse_csr,
        Batch,
        lambda x: torch.nested.nested_tensor([*x.unbind()], layout=torch.jagged),
        lambda x: {"x": x.numpy(), "name": "a"},
        lambda x: ("a", float(x[0, 0])),
    ],
    ids=["sparse", "csr", "object", "nested", "mapping of arrays", "numbers"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested")
def test_data_of_any_kind_are_compared_with_those_of_the_first_pass(kind: Any) -> None:
    class Growing:
        count = 0

        def __iter__(self) -> Iterator[Any]:
            self.count += 1
            yield kind(torch.full((4, 4), float(self.count))), LABELS[:4]

    check = SameData(Growing())
    batches = [next(iter(Growing())) for _ in range(2)]
    for batch in batches:  # two objects with the same numbers
        check.batch(0, batch)
        check.end(1)
    growing = Growing()
    check = SameData(growing)
    check.batch(0, next(iter(growing)))
    check.end(1)
    with pytest.raises(ValueError, match="batch 0 is not the same in every pass"):
        check.batch(0, next(iter(growing)))


def test_refuses_data_that_end_after_one_pass() -> None:
    class Once:
        def __init__(self) -> None:
            self.left = [(inputs(12, 4), LABELS)]

        def __iter__(self) -> Iterator[Any]:
            while self.left:
                yield self.left.pop()

    with pytest.raises(ValueError, match="0 batches in this pass, and had 1 before"):
        sharpness(mlp(), nn.CrossEntropyLoss(), Once())


# Noise and state of the model.


class Noisy(nn.Module):
    """Draws from a generator of its own, NumPy's, Python's and torch's, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.calls = mlp(), 0
        self.generator = torch.Generator().manual_seed(4)
        self.register_buffer("drift", torch.zeros(1, dtype=D))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.drift += 0.1
        noise = torch.randn(x.shape, generator=self.generator, dtype=D) + np.random.randn()
        h = F.dropout(self.body[0](x + noise * random.random()), 0.5)
        return self.body[2](torch.tanh(h) * (1 + self.drift + self.calls))


@pytest.mark.parametrize("product", [*PRODUCTS, "gauss-newton"])
def test_noise_is_the_same_in_every_pass_and_row(product: str) -> None:
    model = Noisy()
    data = list(zip(inputs(12, 4).split(5), LABELS.split(5), strict=True))
    if product == "gauss-newton":
        H = ggn(model, nn.CrossEntropyLoss(), data)
    else:
        H = hessian(model, nn.CrossEntropyLoss(), data, product=product)
    found = matrix(H)
    assert near(found, found.T, 1e-6 if product == "finite-differences" else 1e-12)
    assert (model.calls, model.drift.item()) == (0, 0.0)
    assert near(matrix(hessian(model, nn.CrossEntropyLoss(), data)), found, 1e-6) or (
        product == "gauss-newton"
    )


@pytest.mark.parametrize("held", ["method", "partial", "default"])
def test_generators_are_found_wherever_a_model_holds_them(held: str) -> None:
    class Source:
        def __init__(self) -> None:
            self.generator = np.random.default_rng(0)

        def draw(self, scale: float = 1.0) -> float:
            return scale * self.generator.standard_normal()

    source = Source()

    def drawn(own: Source = source) -> float:
        return own.draw()

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()
            kinds = {"method": source.draw, "partial": partial(source.draw, scale=2.0)}
            self.noise = kinds.get(held, drawn)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x * (1 + self.noise()))

    H = hessian(Noisy(), nn.CrossEntropyLoss(), [(inputs(6, 4), LABELS[:6])] * 2)
    assert torch.equal(H.matvec(torch.ones(H.size)), H.matvec(torch.ones(H.size)))
    assert top_eigenvalues(H, 1).converged.all()


def test_what_modules_collect_is_put_back() -> None:
    class Collecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()
            self.calls, self.kept = {"n": 0}, [torch.ones(())]

        def forward(self, x: Tensor) -> Tensor:
            self.calls["n"] += 1
            self.kept.append(self.kept[-1] * 1.1)
            return self.body(x) * self.calls["n"] * self.kept[-1]

    model, data = Collecting(), [(inputs(12, 4), LABELS)] * 2
    found = matrix(hessian(model, nn.CrossEntropyLoss(), data))
    parts = [param.detach().clone() for param in model.parameters()]

    def loss(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return F.cross_entropy(1.1 * (torch.tanh(data[0][0] @ a.T + b) @ c.T + d), LABELS)

    assert near(found, dense(loss, parts), 1e-6)
    assert model.calls == {"n": 0}
    assert model.kept == [torch.ones(())]


class Changing(nn.Module):
    """Multiplies its inputs by what it counts in an attribute, of the kind that is named."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.kind = mlp(), kind
        self.alias = self.body[0].weight.detach()  # moved with the parameter
        states = {
            "tuple": (1.0, "text"),
            "tensor": torch.ones(()),
            "array": np.ones(1),
            "deque": deque([1.0], maxlen=2),
            "nested": {"a": [{"n": 1.0}]},
            "tensors in a list": [(torch.ones(()),)],
        }
        if kind in states:
            self.state: Any = states[kind]

    def count(self) -> float:
        if self.kind == "tuple":
            self.state = (self.state[0] * 1.1, "text")
            return self.state[0]
        if self.kind in ("tensor", "array"):
            self.state *= 1.1
            return float(self.state.item())
        if self.kind == "deque":
            self.state.append(self.state[-1] * 1.1)
            return self.state[-1]
        if self.kind == "nested":
            self.state["a"][0]["n"] *= 1.1
            return self.state["a"][0]["n"]
        if self.kind == "tensors in a list":
            self.state[0][0].mul_(1.1)
            return float(self.state[0][0])
        self.new = getattr(self, "new", 1.0) * 1.1
        return self.new

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x * self.count())


@pytest.mark.parametrize(
    "kind", ["tuple", "tensor", "array", "deque", "nested", "tensors in a list", "new"]
)
def test_state_of_any_kind_is_put_back_before_each_pass(kind: str) -> None:
    model, data = Changing(kind), [(inputs(12, 4), LABELS)] * 2
    found = matrix(hessian(model, nn.CrossEntropyLoss(), data))
    whole = [(1.1 * data[0][0], LABELS)]
    truth = matrix(hessian(mlp(), nn.CrossEntropyLoss(), whole))
    assert near(found, truth, 1e-6)
    moved = sharpness(model, nn.CrossEntropyLoss(), data, rho=0.5)
    assert moved.value == pytest.approx(
        sharpness(mlp(), nn.CrossEntropyLoss(), whole, rho=0.5).value, rel=1e-5
    )
    assert model.alias.data_ptr() == model.body[0].weight.data_ptr()
    assert vars(model).keys() == vars(Changing(kind)).keys()
    assert repr(vars(model).get("state")) == repr(vars(Changing(kind)).get("state"))


class Unseeded(nn.Module):
    """Noise from a source that cannot be set back."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        # Of one byte, two draws are equal once in 256 times.
        return self.body(x * (1 + int.from_bytes(os.urandom(7)) / 2**58))


@pytest.mark.parametrize("name", ["sharpness of groups", "average sharpness", "line", "plane"])
def test_losses_that_differ_by_themselves_are_not_compared(name: str) -> None:
    with pytest.raises(ValueError, match=r"the loss of batch 0 is .*, and computed again .* noise"):
        INSTRUMENTS[name](Unseeded(), nn.CrossEntropyLoss(), [(inputs(12, 4), LABELS)])


def test_what_cannot_be_set_back_is_marked() -> None:
    data = [(inputs(6, 4), LABELS[:6])] * 2
    H = hessian(Unseeded(), nn.CrossEntropyLoss(), data)
    found = top_eigenvalues(H, 3)
    assert not found.converged.any()
    assert not found.is_done
    assert "forward pass draws noise" in found.reason
    spectrum = density(H, probes=2, steps=8)
    assert not spectrum.converged
    assert "noise" in spectrum.reason
    assert not trace(H, products=12).converged


class Halved(torch.autograd.Function):
    """A square whose second derivative is wrong by half, and not symmetric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return slope * y, slope * x.detach()


def test_a_wrong_second_derivative_is_marked() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3).to(D), nn.Linear(4, 3).to(D)

        def forward(self, x: Tensor) -> Tensor:
            return Halved.apply(self.a(x), self.b(x))

    torch.manual_seed(0)
    model, data = Wrong(), [(inputs(12, 4), LABELS)]
    found = top_eigenvalues(hessian(model, nn.CrossEntropyLoss(), data), 3)
    assert not found.converged.any()
    assert "derivative of the model is wrong" in found.reason
    H = hessian(model, nn.CrossEntropyLoss(), data, product="finite-differences")
    assert top_eigenvalues(H, 3).converged.all()
    report = profile(model, nn.CrossEntropyLoss(), data, k=2)
    assert not report.complete
    assert report.preconditioned is None
    assert report.steepest is not None
    assert "derivative of the model is wrong" in str(report)


class DetachedTanh(torch.autograd.Function):
    """A tanh whose second derivative is lost, and leaves a symmetric matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return slope * (1 - x.detach().tanh().square())


@pytest.mark.parametrize(
    ("tanh", "least", "most"), [(torch.tanh, 0.0, 1e-7), (DetachedTanh.apply, 0.01, 1.0)]
)
def test_differences_show_a_second_derivative_that_is_lost_symmetrically(
    tanh: Callable[[Tensor], Tensor], least: float, most: float
) -> None:
    """As docs/landscape.md advises: products alone do not show it."""

    class Squashed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return tanh(super().forward(x))

    torch.manual_seed(0)
    model, data = Squashed(4, 3).to(D), [(inputs(12, 4), LABELS)]
    v = torch.randn(15, dtype=D)
    taken, expected = (
        hessian(model, nn.CrossEntropyLoss(), data, product=product).matvec(v)
        for product in ("double-backward", "finite-differences")
    )
    assert least <= float((taken - expected).norm() / expected.norm()) <= most
    found = top_eigenvalues(hessian(model, nn.CrossEntropyLoss(), data), 2)
    assert found.asymmetry < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_formats_explain_their_own_rounding(dtype: torch.dtype) -> None:
    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp().float()

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=dtype):
                return self.body(x).float()

    H = hessian(Autocast(), nn.CrossEntropyLoss(), [(inputs(12, 4).float(), LABELS)])
    found = top_eigenvalues(H, 3, tol=0.02)
    assert found.reason == ""
    assert 1e-6 < found.asymmetry < H.rounding


# Surroundings.


def test_an_outer_autocast_or_inference_mode_changes_nothing() -> None:
    model, loss_fn = mlp().float(), nn.CrossEntropyLoss()
    data = [(inputs(12, 4).float(), LABELS)]

    def measured() -> list[Any]:
        H = hessian(model, loss_fn, data, product="finite-differences")
        rise = sharpness(model, loss_fn, data, rho=0.5).value
        return [rise, line(model, loss_fn, data, points=5).losses.tolist(), matrix(H).tolist()]

    truth = measured()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert measured() == truth
    with torch.inference_mode():
        assert measured() == truth
    with torch.no_grad():
        assert measured() == truth


class Padded(nn.Module):
    def __init__(self, nested: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.read = nn.Embedding(9, 4)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.read(ids), src_key_padding_mask=ids == 0).mean(1))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_padded_transformers_are_one_function_with_and_without_gradients(nested: bool) -> None:
    ids = torch.arange(24).reshape(4, 6) % 8 + 1
    ids[0, 3:] = ids[2, 4:] = 0
    model = Padded(nested).to(D)
    objective = Objective(model, nn.CrossEntropyLoss(), [(ids, torch.arange(4) % 3)])
    with objective.evaluation_mode():
        assert objective.gradient().loss == pytest.approx(objective.loss().loss, abs=1e-12)
    assert torch.backends.mha.get_fastpath_enabled()


def test_losses_of_a_model_that_differentiates_by_its_inputs() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor) -> Tensor:
            x = x.requires_grad_()
            (slope,) = torch.autograd.grad(self.body(x).sum(), x, create_graph=True)
            return slope

    x = inputs(12, 4)
    assert line(Slope(), F.mse_loss, [(x, x)], points=3).loss > 0
    assert not x.requires_grad


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("make", [parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.parametrize("product", PRODUCTS)
def test_weight_norm_is_the_formula(product: str, make: Any, dim: int | None) -> None:
    model, x = mlp(), inputs(12, 4)
    make(model[0], dim=dim)

    def by_hand(*params: Tensor) -> Tensor:
        named = dict(zip(dict(model.named_parameters()), params, strict=True))
        g, v = (
            value for name, value in named.items() if name.startswith("0.") and "bias" not in name
        )
        norm = v.norm() if dim is None else v.norm(dim=1 - dim, keepdim=True)
        h = torch.tanh(x @ (g * v / norm).T + named["0.bias"])
        return F.cross_entropy(h @ named["2.weight"].T + named["2.bias"], LABELS)

    truth = dense(by_hand, list(model.parameters()))
    found = matrix(hessian(model, nn.CrossEntropyLoss(), [(x, LABELS)], product=product))
    assert near(found, truth, 1e-6 if product == "finite-differences" else 1e-10)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("is_reentrant", [True, False])
def test_checkpointing_changes_nothing(product: str, is_reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor) -> Tensor:
            h = checkpoint(self.body[0], x.requires_grad_(), use_reentrant=is_reentrant)
            return self.body[2](torch.tanh(h))

    model, data = Checkpointed(), [(inputs(12, 4), LABELS)]
    found = matrix(hessian(model, nn.CrossEntropyLoss(), data, product=product))
    assert near(found, matrix(hessian(mlp(), nn.CrossEntropyLoss(), data)), 1e-6)
    found = matrix(ggn(model, nn.CrossEntropyLoss(), data))
    assert near(found, matrix(ggn(mlp(), nn.CrossEntropyLoss(), data)), 1e-10)
    plain = sharpness(mlp(), nn.CrossEntropyLoss(), data).value
    assert sharpness(model, nn.CrossEntropyLoss(), data).value == pytest.approx(plain)
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    "options", [{"max_norm": 0.5}, {"sparse": True}, {"scale_grad_by_freq": True}]
)
def test_embeddings(product: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 2, **options), nn.Flatten(), nn.Linear(6, 3)).to(D)
    ids = torch.arange(36).reshape(12, 3) % 6
    before = [param.detach().clone() for param in model.parameters()]
    H = hessian(model, nn.CrossEntropyLoss(), [(ids, LABELS)], product=product)
    found = matrix(H)
    assert top_eigenvalues(H, 2).converged.all()
    sharpness(model, nn.CrossEntropyLoss(), [(ids, LABELS)])
    assert all(map(torch.equal, before, model.parameters()))
    plain = {"max_norm": None, "sparse": False, "scale_grad_by_freq": False}
    assert {name: getattr(model[0], name) for name in plain} == plain | options
    table, weight, bias = before
    if "max_norm" in options:
        # The derivative is at the weights that a forward pass leaves behind.
        table = table * (0.5 / (table.norm(dim=1, keepdim=True) + 1e-7)).clamp(max=1.0)

    def loss(table: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.cross_entropy(table[ids].flatten(1) @ weight.T + bias, LABELS)

    assert near(found, dense(loss, [table, weight, bias]), 1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_by_torchscript_is_what_was_written() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).to(D)
    data = [(inputs(12, 4), LABELS)]
    for made in (torch.jit.script(model), torch.jit.trace(model.eval(), data[0][0])):
        found, truth = (
            matrix(hessian(each, nn.CrossEntropyLoss(), data)) for each in (made, model)
        )
        assert near(found, truth, 1e-10)
        before = [buffer.clone() for buffer in made.buffers()]
        sharpness(made, nn.CrossEntropyLoss(), data, train=True)
        assert all(map(torch.equal, before, made.buffers()))


def test_a_sparse_gradient_is_that_of_a_dense_one() -> None:
    class Model(nn.Module):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            self.table, self.sparse = nn.Parameter(inputs(6, 3)), sparse

        def forward(self, ids: Tensor) -> Tensor:
            return torch.tanh(F.embedding(ids, self.table, sparse=self.sparse)).sum(1)

    data = [(torch.arange(36).reshape(12, 3) % 6, LABELS)]
    found, truth = (
        sharpness(Model(sparse), nn.CrossEntropyLoss(), data) for sparse in (True, False)
    )
    assert found.value == pytest.approx(truth.value, rel=1e-12)
    for product, tolerance in (("double-backward", 1e-12), ("finite-differences", 1e-6)):
        found, truth = (
            matrix(hessian(Model(sparse), nn.CrossEntropyLoss(), data, product=product))
            for sparse in (True, False)
        )
        assert near(found, truth, tolerance)


@pytest.mark.parametrize("is_tied", [False, True])
def test_padding_has_neither_gradient_nor_tangent(is_tied: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(6, 2, padding_idx=0), nn.Linear(2, 6)
            if is_tied:
                self.out.weight = self.table.weight
            nn.init.normal_(self.table.weight)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(torch.tanh(self.table(input=ids).sum(1)))

    torch.manual_seed(0)
    model, ids = Model().to(D), torch.arange(36).reshape(12, 3) % 6
    weights = dict(model.named_parameters())

    def loss(*tensors: Tensor) -> Tensor:
        named = dict(zip(weights, tensors, strict=True))
        table = named["table.weight"]
        padded = torch.cat([weights["table.weight"][:1].detach(), table[1:]])
        out = table if is_tied else named["out.weight"]
        return F.cross_entropy(torch.tanh(padded[ids].sum(1)) @ out.T + named["out.bias"], LABELS)

    truth = dense(loss, list(weights.values()))
    for product in ("double-backward", "forward-over-reverse"):
        H = hessian(model, nn.CrossEntropyLoss(), [(ids, LABELS)], product=product)
        assert near(matrix(H), truth, 1e-10)
    G = matrix(ggn(model, nn.CrossEntropyLoss(), [(ids, LABELS)]))
    assert near(G, G.T, 1e-12)
    assert not model.table._forward_hooks


def scaled(_: nn.Module, slopes: tuple[Tensor, ...], *__: Any) -> tuple[Tensor, ...]:
    return tuple(3 * slope for slope in slopes)


HOOKS: dict[str, Callable[[nn.Sequential], object]] = {
    "scaled": lambda model: [p.register_hook(lambda slope: 2 * slope) for p in model.parameters()],
    "clipped": lambda model: model[0].weight.register_hook(lambda slope: slope.clamp(-0.01, 0.01)),
    "module": lambda model: model[2].register_full_backward_hook(scaled),
    "before a module": lambda model: model[2].register_full_backward_pre_hook(scaled),
}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_that_change_gradients_change_no_derivative(product: str, name: str) -> None:
    model, data = mlp(), [(inputs(12, 4), LABELS)]
    HOOKS[name](model)
    found = matrix(hessian(model, nn.CrossEntropyLoss(), data, product=product))
    parts = [param.detach().clone() for param in model.parameters()]

    def loss(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return F.cross_entropy(torch.tanh(data[0][0] @ a.T + b) @ c.T + d, LABELS)

    assert near(found, dense(loss, parts), 1e-6)
    plain = sharpness(mlp(), nn.CrossEntropyLoss(), data).value
    assert sharpness(model, nn.CrossEntropyLoss(), data).value == pytest.approx(plain)
    # In training they are called as before.
    slopes = []
    for each in (model, mlp()):
        F.cross_entropy(each(data[0][0]), LABELS).backward()
        slopes.append(each[0].weight.grad)
    assert not near(*slopes, 1e-3)


def shared(model: nn.Sequential) -> None:
    model[2].weight.data = model[0].weight.data[:3]


def expanded(model: nn.Sequential) -> None:
    model[2].bias.data = torch.zeros(1, dtype=D).expand(3)


@pytest.mark.parametrize(
    ("change", "names"), [(shared, r"'0.weight' and '2.weight'"), (expanded, "'2.bias'")]
)
def test_parameters_that_share_memory_are_not_moved(change: Any, names: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).to(D)
    change(model)
    data, parts = [(inputs(12, 4), LABELS)], [p.detach().clone() for p in model.parameters()]

    def loss(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return F.cross_entropy(torch.tanh(data[0][0] @ a.T + b) @ c.T + d, LABELS)

    # Derivatives are those by each parameter.
    found = matrix(hessian(model, nn.CrossEntropyLoss(), data))
    assert near(found, dense(loss, parts), 1e-6)
    moving = hessian(model, nn.CrossEntropyLoss(), data, product="finite-differences")
    for measure in (
        lambda: top_eigenvalues(moving, 1),
        lambda: sharpness(model, nn.CrossEntropyLoss(), data),
    ):
        with pytest.raises(ValueError, match=f"{names} share memory"):
            measure()
    assert all(map(torch.equal, parts, model.parameters()))


def test_parameters_that_the_forward_pass_changes_are_put_back() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor) -> Tensor:
            self.body[0].weight.data *= torch.arange(20).reshape(5, 4) % 2
            return self.body(x)

    model, data = Masked(), [(inputs(12, 4), LABELS)]
    before = model.body[0].weight.detach().clone()
    H = hessian(model, nn.CrossEntropyLoss(), data)
    for _ in range(2):
        assert top_eigenvalues(H, 2).converged.all()
        assert torch.equal(model.body[0].weight, before)


def test_wrapped_and_compiled_models_are_what_is_inside() -> None:
    data, truth = [(inputs(12, 4), LABELS)], None
    inner_compiled = mlp()
    inner_compiled[0] = torch.compile(inner_compiled[0], backend="aot_eager")
    in_place = mlp()
    in_place.compile(backend="aot_eager")
    models = [
        mlp(),
        nn.DataParallel(mlp()),
        torch.compile(mlp(), backend="aot_eager"),
        inner_compiled,
        in_place,
    ]
    for model in models:
        for make in (hessian, ggn):
            found = matrix(make(model, nn.CrossEntropyLoss(), data))
            if make is hessian:
                truth = found if truth is None else truth
                assert near(found, truth)


# Types of batches.

Pair = namedtuple("Pair", "left right")


def test_batches_may_be_mappings_that_cannot_be_changed() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.body(x) * scale[:, None]

    model, x = Named(), inputs(12, 4)
    scale = torch.ones(12, dtype=D)
    whole = matrix(hessian(model.body, nn.CrossEntropyLoss(), [(x, LABELS)]))
    named = [(MappingProxyType({"x": x, "scale": scale}), LABELS)]
    assert near(matrix(hessian(model, nn.CrossEntropyLoss(), named)), whole)
    batch = MappingProxyType({"x": x, "scale": scale})

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        assert set(batch) == {"x", "scale"}
        return F.cross_entropy(outputs, LABELS)

    assert near(matrix(hessian(model, loss, [batch], weight="samples")), whole)


@pytest.mark.thorough
def test_tuples_that_are_types_are_one_input() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head = nn.LSTM(4, 2, batch_first=True), nn.Linear(2, 3)

        def forward(self, packed: Any) -> Tensor:
            return self.head(self.body(packed)[1][0][-1])

    model, x, lengths = Recurrent().to(D), inputs(12, 5, 4), torch.arange(12).flip(0) % 5 + 1
    data = [(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False), LABELS)]
    singles = [
        (
            pack_padded_sequence(x[i : i + 1], lengths[i : i + 1], batch_first=True),
            LABELS[i : i + 1],
        )
        for i in range(12)
    ]
    for product in PRODUCTS:
        found = matrix(hessian(model, nn.CrossEntropyLoss(), data, product=product))
        assert near(found, matrix(hessian(model, nn.CrossEntropyLoss(), singles)), 1e-6)
    grouped = sharpness(model, nn.CrossEntropyLoss(), data, m=1).value
    assert grouped == pytest.approx(sharpness(model, nn.CrossEntropyLoss(), singles, m=1).value)


def test_named_tuples_and_outputs_keep_their_type() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, pair: Any) -> Tensor:
            return self.body(pair.left) + pair.right

    x = inputs(12, 4)
    data = [(Pair(x, torch.ones(12, 3).to(D)), OrderedDict(y=LABELS))]
    loss_fn = lambda outputs, targets: F.cross_entropy(outputs, targets["y"])  # noqa: E731
    assert near(
        matrix(hessian(Named(), loss_fn, data)),
        matrix(hessian(mlp(), nn.CrossEntropyLoss(), [(x, LABELS)])),
    )
    assert sharpness(Named(), loss_fn, data, m=5).value > 0


class Checkpointed(nn.Module):
    """Computes a part again in its backward pass, in the mode that it is then in."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
        self.dropout, self.last = nn.Dropout(0.5), nn.Linear(6, 3)
        self.reentrant = reentrant

    def part(self, x: Tensor) -> Tensor:
        return self.dropout(torch.tanh(self.first(x)))

    def forward(self, x: Tensor) -> Tensor:
        recomputed = checkpoint(self.part, x, use_reentrant=self.reentrant)
        return self.last(recomputed)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_graph_is_not_kept_where_a_part_is_computed_again(reentrant: bool) -> None:
    """In a search later products would be of the model in train() mode, with dropout."""
    model = Checkpointed(reentrant).double().train()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    H = hessian(model, F.cross_entropy, [(x, y)])
    vectors = torch.eye(H.size, dtype=torch.float64)
    alone = torch.stack([H.matvec(vector) for vector in vectors])
    with H.held():
        held = torch.stack([H.matvec(vector) for vector in vectors])
    assert torch.equal(held, alone)
    torch.testing.assert_close(alone, alone.T)
