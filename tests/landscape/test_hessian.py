"""Products with the Hessian and the Gauss–Newton matrix against dense matrices in float64."""

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from helpers.process_group import join, leave, results_of_two
from helpers.stateful_model import Restless, snapshot
from steppe.bench.memory import peak_extra
from steppe.landscape import Operator, ggn, hessian
from steppe.landscape.objective.objective import Objective

Pairs = list[tuple[Tensor, Tensor]]
Call = Callable[..., Any]

#: By how much products may be off, relative to the largest element.
TOLERANCE = {"double-backward": 1e-12, "forward-over-reverse": 1e-12, "finite-differences": 1e-6}
every_product = pytest.mark.parametrize("product", TOLERANCE)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean() / 2


def matrix(operator: Operator) -> Tensor:
    return operator.matmat(torch.eye(operator.size, dtype=operator.dtype))


def near(found: Tensor, truth: Tensor, tolerance: float) -> bool:
    return bool((found - truth).abs().max() <= tolerance * truth.abs().max())


def dense(
    model: nn.Module,
    function: Callable[[Call], Tensor],
    derivative: Callable[..., Tensor] = torch.autograd.functional.hessian,
    names: list[str] | None = None,
) -> Tensor:
    """Differentiate a function of the model, by default twice, with respect to its parameters."""
    chosen = {name: p for name, p in model.named_parameters() if names is None or name in names}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    start = torch.cat([p.detach().reshape(-1) for p in chosen.values()])

    def at(vector: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in chosen.values()])
        values = {
            name: part.view_as(p) for (name, p), part in zip(chosen.items(), parts, strict=True)
        }
        return function(lambda *args, **kw: functional_call(model, {**buffers, **values}, args, kw))

    with sdpa_kernel(SDPBackend.MATH):
        return derivative(at, start).detach()


def classes(samples: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, *shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (samples,), generator=generator)


def split(pair: tuple[Tensor, Tensor], size: int) -> Pairs:
    return list(zip(pair[0].split(size), pair[1].split(size), strict=True))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def convolutional(dropout: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).double()


class Attentive(nn.Module):
    """A layer whose eval mode has a fast path, and PyTorch's attention called directly."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 2, 3, dropout=0.2, batch_first=True)
        self.qkv = nn.Linear(2, 6)
        self.head = nn.Linear(2, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        query, key, value = self.qkv(self.layer(inputs)).unsqueeze(1).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.head(mixed.mean((1, 2)))


class Tied(nn.Module):
    """The same weights to read tokens and to write them."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Embedding(3, 2)
        self.write = nn.Linear(2, 3, bias=False)
        self.write.weight = self.read.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.write(self.read(tokens).tanh())


def attentive() -> nn.Module:
    torch.manual_seed(0)
    return Attentive().double()


def tied() -> nn.Module:
    torch.manual_seed(0)
    return Tied().double()


TOKENS = torch.tensor([0, 2, 1, 1, 0, 2, 2]), torch.tensor([1, 0, 2, 1, 1, 2, 0])
CASES = {
    "mlp": (mlp, classes(7, 4)),
    "cnn": (convolutional, classes(7, 1, 4, 4)),
    "attention": (attentive, classes(5, 3, 2)),
    "tied": (tied, TOKENS),
}


@every_product
@pytest.mark.parametrize("name", CASES)
def test_hessian_is_the_dense_one_in_eval_mode(name: str, product: Any) -> None:
    build, (x, y) = CASES[name]
    model = build()
    truth = dense(model.eval(), lambda call: F.cross_entropy(call(x), y))
    # It is not the mode the model is in that counts.
    H = hessian(model.train(), F.cross_entropy, split((x, y), 3), product=product)
    assert near(matrix(H), truth, TOLERANCE[product])


@pytest.mark.parametrize("name", CASES)
def test_gauss_newton_is_the_dense_one(name: str) -> None:
    """JᵀBJ, with J and B dense: B is diag(p) − ppᵀ for the cross-entropy."""
    build, (x, y) = CASES[name]
    model = build().eval()
    jacobian = dense(model, lambda call: call(x), torch.autograd.functional.jacobian)
    p = model(x).detach().softmax(1)
    blocks = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    truth = torch.einsum("nci,ncd,ndj->ij", jacobian, blocks, jacobian) / len(x)
    G = ggn(model.train(), F.cross_entropy, split((x, y), 3))
    assert near(matrix(G), truth, 1e-12)


@every_product
def test_of_a_linear_model_is_its_second_moment(product: Any) -> None:
    """The Hessian of ½(w·x − y)², averaged, is XᵀX/N, wherever the model stands."""
    x, _ = classes(6, 4)
    model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    data = split((x, x[:, :1]), 4)
    H = hessian(model, half_square, data, product=product)
    assert near(matrix(H), x.T @ x / 6, TOLERANCE[product])
    assert near(matrix(ggn(model, half_square, data)), x.T @ x / 6, 1e-12)


@every_product
def test_batch_statistics_in_train_mode(product: Any) -> None:
    model = convolutional(dropout=0.0).train()
    data = split(classes(7, 1, 4, 4), 4)

    def loss(call: Call) -> Tensor:
        return sum(F.cross_entropy(call(x), y) * len(x) for x, y in data) / 7

    truth, before = dense(model, loss), [buffer.clone() for buffer in model.buffers()]
    H = hessian(model.eval(), F.cross_entropy, data, train=True, product=product)
    assert near(matrix(H), truth, TOLERANCE[product])
    assert all(map(torch.equal, before, model.buffers()))
    assert not near(matrix(hessian(model, F.cross_entropy, data)), truth, 0.1)


def masked_moment(product: Any, data: Any) -> tuple[Operator, list[Tensor], nn.Module]:
    """Return the operator of a linear model behind dropout, and what dropout lets through."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1, bias=False)).double()
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda *call: seen.append(call[2].detach()))
    make = ggn if product == "gauss-newton" else functools.partial(hessian, product=product)
    return make(model, half_square, data, train=True), seen, model


@pytest.mark.parametrize("product", [*TOLERANCE, "gauss-newton"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_dropout_in_train_mode_has_the_same_masks_each_time(product: Any, shuffled: bool) -> None:
    """The Hessian is the second moment of what dropout lets through, for every vector."""
    x, _ = classes(6, 4)
    pairs = TensorDataset(x, x[:, :1])
    H, seen, _ = masked_moment(product, DataLoader(pairs, batch_size=4, shuffle=shuffled))
    first = matrix(H)
    passed = torch.cat(seen[:1] + [part for part in seen if len(part) == 2][:1])
    assert passed.count_nonzero() < x.numel()
    assert near(first, passed.T @ passed / 6, 1e-6)
    torch.manual_seed(5)
    columns = [H.matvec(unit) for unit in torch.eye(4, dtype=torch.float64)]
    assert torch.equal(torch.stack(columns, dim=1), first)


@pytest.mark.parametrize("size", [1, 3, 6, 7])
@every_product
def test_is_over_samples_whatever_the_batches(product: Any, size: int) -> None:
    whole = classes(7, 4)
    vector = classes(1, 43)[0][0]
    expected = hessian(mlp(), F.cross_entropy, [whole]).matvec(vector)
    loader = DataLoader(TensorDataset(*whole), batch_size=size, shuffle=True)
    for data in (split(whole, size), loader):
        found = hessian(mlp(), F.cross_entropy, data, product=product).matvec(vector)
        assert near(found, expected, TOLERANCE[product])
    assert near(
        ggn(mlp(), F.cross_entropy, loader).matvec(vector),
        ggn(mlp(), F.cross_entropy, [whole]).matvec(vector),
        1e-12,
    )


@every_product
def test_a_block_is_its_vectors_one_by_one(product: Any) -> None:
    H = hessian(mlp(), F.cross_entropy, split(classes(7, 4), 3), product=product)
    block = classes(43, 5)[0]
    columns = [H.matvec(vector) for vector in block.T]
    assert torch.equal(H.matmat(block), torch.stack(columns, dim=1))
    assert torch.equal(H @ block, H.matmat(block))
    assert H.products == 4 * 5


class Sum(nn.Module):
    """Two inputs, and a parameter that plays no part."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.unused = nn.Linear(2, 3), nn.Parameter(torch.ones(2))
        self.right = nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left(left).tanh() * self.right(right)


class WithLoss(Sum):
    """Returns an object, as Hugging Face's models do."""

    def forward(self, left: Tensor, right: Tensor, labels: Tensor) -> SimpleNamespace:
        logits = super().forward(left, right)
        return SimpleNamespace(logits=logits, loss=F.cross_entropy(logits, labels))


def two_inputs() -> tuple[Tensor, Tensor, Tensor]:
    x, y = classes(7, 6)
    return x[:, :2], x[:, 2:], y


def summed(kind: type[Sum]) -> Sum:
    torch.manual_seed(0)
    return kind().double()


def truth_of_two_inputs() -> Tensor:
    left, right, y = two_inputs()
    return dense(summed(Sum), lambda call: F.cross_entropy(call(left, right), y))


@every_product
@pytest.mark.parametrize("kind", [tuple, list])
def test_inputs_may_be_several(product: Any, kind: type) -> None:
    left, right, y = two_inputs()
    data = [(kind((left[i], right[i])), y[i]) for i in (slice(0, 4), slice(4, 7))]
    truth = truth_of_two_inputs()
    H = hessian(summed(Sum), F.cross_entropy, data, product=product)
    assert near(matrix(H), truth, TOLERANCE[product])
    assert not truth[:2].any(), "the parameter that plays no part"


@every_product
def test_batches_may_be_mappings(product: Any) -> None:
    left, right, y = two_inputs()
    data = [
        {"left": left[i], "right": right[i], "labels": y[i]} for i in (slice(0, 4), slice(4, 7))
    ]
    truth, model = truth_of_two_inputs(), summed(WithLoss)

    def of_logits(outputs: Any, batch: Any) -> Tensor:
        return F.cross_entropy(outputs.logits, batch["labels"])

    for loss_fn in (None, of_logits):
        H = hessian(model, loss_fn, data, product=product)
        assert near(matrix(H), truth, TOLERANCE[product])


def test_gauss_newton_takes_logits_of_mappings() -> None:
    left, right, y = two_inputs()
    data = [{"left": left, "right": right, "labels": y}]

    def of_logits(outputs: Any, batch: Any) -> Tensor:
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        return F.cross_entropy(logits, batch["labels"])

    G = ggn(summed(WithLoss), of_logits, data)
    expected = ggn(summed(Sum), F.cross_entropy, [((left, right), y)])
    assert near(matrix(G), matrix(expected), 1e-12)


@every_product
def test_of_some_parameters_is_a_block(product: Any) -> None:
    model, (x, y) = mlp(), classes(7, 4)
    names = ["0.bias", "2.weight"]
    truth = dense(model, lambda call: F.cross_entropy(call(x), y), names=names)
    params = [model.get_parameter(name) for name in names]
    H = hessian(model, F.cross_entropy, [(x, y)], params=params, product=product)
    assert near(matrix(H), truth, TOLERANCE[product])
    # What requires no gradient is left out unasked.
    for name in ("0.weight", "2.bias"):
        model.get_parameter(name).requires_grad_(False)
    assert near(
        matrix(hessian(model, F.cross_entropy, [(x, y)], product=product)),
        truth,
        TOLERANCE[product],
    )


@every_product
def test_of_a_linear_loss_is_zero(product: Any) -> None:
    x, _ = classes(3, 2)
    H = hessian(
        nn.Linear(2, 1).double(), lambda outputs, _: outputs.mean(), [(x, x)], product=product
    )
    assert near(matrix(H) + torch.eye(3), torch.eye(3).double(), 1e-8)


@pytest.mark.parametrize(
    ("product", "tolerance"),
    [("double-backward", 1e-6), ("forward-over-reverse", 1e-6), ("finite-differences", 2e-3)],
)
def test_in_float32_is_near_float64(product: Any, tolerance: float) -> None:
    x, y = classes(7, 4)
    truth = dense(mlp(), lambda call: F.cross_entropy(call(x), y))
    H = hessian(mlp().float(), F.cross_entropy, split((x.float(), y), 3), product=product)
    assert H.dtype == torch.float32
    assert near(matrix(H).double(), truth, tolerance)


@pytest.mark.parametrize("product", ["double-backward", "forward-over-reverse"])
def test_in_bfloat16_has_products_in_float32(product: Any) -> None:
    x, y = classes(7, 4)
    model = mlp().bfloat16()
    truth = dense(model.double(), lambda call: F.cross_entropy(call(x), y))
    data = split((x.bfloat16(), y), 3)
    H = hessian(model.bfloat16(), F.cross_entropy, data, product=product)
    found = matrix(H)
    assert found.dtype == torch.float32
    assert near(found.double(), truth, 0.05)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("product", [*TOLERANCE, "gauss-newton"])
def test_leaves_the_model_as_found(product: Any, train: bool, fails: bool) -> None:
    torch.manual_seed(0)
    model, x = Restless(), torch.randn(6, 3)
    model(x).square().sum().backward()
    model.body[1].eval()
    before, seen = snapshot(model), 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        if fails and seen == 2:
            raise KeyError("no more")
        return outputs.square().mean()

    make = ggn if product == "gauss-newton" else functools.partial(hessian, product=product)
    # Given the weight, the loss is not called to find it.
    H = make(model, loss_fn, split((x, x), 3), train=train, weight="samples")
    vector = torch.ones(H.size)
    if fails:
        with pytest.raises(KeyError, match="no more"):
            H.matvec(vector)
    else:
        H.matvec(vector)
    assert snapshot(model) == before


@pytest.mark.parametrize("own", [False, True])
def test_a_loader_leaves_out_the_same_each_time_and_is_left_as_found(own: bool) -> None:
    """Shuffled, with drop_last: of 7 samples 6 are measured."""
    pairs, generator = TensorDataset(*classes(7, 4)), torch.Generator().manual_seed(5)
    for data in (
        DataLoader(pairs, 3, shuffle=True, drop_last=True, generator=generator if own else None),
        DataLoader(pairs, 3, drop_last=True, sampler=RandomSampler(pairs, generator=generator)),
    ):
        model = mlp()
        states = torch.get_rng_state(), generator.get_state()
        H = hessian(model, F.cross_entropy, data)
        vector = torch.ones(43, dtype=torch.float64)
        assert torch.equal(H.matvec(vector), H.matvec(vector))
        assert torch.equal(states[0], torch.get_rng_state())
        assert torch.equal(states[1], generator.get_state())


def test_a_model_on_the_cpu_leaves_other_devices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr("torch.cuda.manual_seed_all", seeds.append)
    H = hessian(mlp(), F.cross_entropy, [classes(7, 4)], train=True)
    seeds.clear()
    H.matvec(torch.ones(43))
    assert not seeds


@pytest.mark.parametrize("buffer", [torch.ones(1, 3).expand(5, 3), torch.eye(3).to_sparse()])
def test_a_buffer_may_be_expanded_or_sparse(buffer: Tensor) -> None:
    """The one cannot be written to, the other not compared."""
    model = mlp()
    model.register_buffer("mask", buffer)
    hessian(model, F.cross_entropy, [classes(7, 4)]).matvec(torch.ones(43))
    assert model.mask is buffer


# It makes dual numbers by way of what torch has deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_agrees_with_curvlinops() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports what torch deprecates
        import curvlinops
    model, data = mlp(), split(classes(7, 4), 3)
    block = classes(43, 2)[0]
    arguments = model, nn.CrossEntropyLoss(), list(model.parameters()), data
    assert near(
        hessian(model, F.cross_entropy, data) @ block,
        curvlinops.HessianLinearOperator(*arguments) @ block,
        1e-12,
    )
    assert near(
        ggn(model, F.cross_entropy, data) @ block,
        curvlinops.GGNLinearOperator(*arguments) @ block,
        1e-12,
    )


def test_adding_a_batch_takes_no_further_vector() -> None:
    """The sum is in float64, and rows are not: 4e6 elements take 32 MB there."""
    row = torch.ones(1, 4_000_000)
    mean = Objective(nn.Linear(2000, 2000, bias=False), None, []).new_mean(1)
    for _ in range(2):
        mean.add(row, 3.0, 3)
    extra = peak_extra(lambda: mean.add(row, 3.0, 3), torch.device("cpu"))
    assert extra is None or extra < 16e6
    assert torch.equal(mean.result(torch.float32)[0], row)


@pytest.mark.parametrize("size", [7, 3])
def test_held_parameters_change_the_cost_alone(size: int) -> None:
    """One batch is passed through the model once; of several each, every time."""
    model, calls = mlp(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    H = hessian(model, F.cross_entropy, split(classes(7, 4), size))
    block = classes(43, 2)[0]
    free = H @ block
    calls.clear()
    with H.held():
        assert all(torch.equal(H @ block, free) for _ in range(3))
    assert len(calls) == (1 if size == 7 else 9)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    assert not torch.equal(H @ block, free)


@pytest.mark.parametrize("train", [False, True])
def test_what_is_held_outlives_the_restoring_of_statistics(train: bool) -> None:
    """Running statistics are part of the graph: putting them back must not spoil it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3)).double()
    H = hessian(model, F.cross_entropy, [classes(9, 4)], train=train)
    rows = torch.randn(2, H.size, dtype=torch.float64)
    free = H.rows(rows)
    with H.held():
        assert all(torch.equal(H.rows(rows), free) for _ in range(3))


# Bad input.


@every_product
def test_refuses_a_loss_per_sample(product: Any) -> None:
    per_sample = functools.partial(F.cross_entropy, reduction="none")
    H = hessian(mlp(), per_sample, [classes(7, 4)], product=product)
    with pytest.raises(ValueError, match=r"must return a scalar.*got of shape \(7,\)"):
        H.matvec(torch.ones(43))


@every_product
def test_names_the_batch_whose_loss_is_not_finite(product: Any) -> None:
    x, y = classes(7, 4)
    x[5] = torch.nan
    H = hessian(mlp(), F.cross_entropy, split((x, y), 2), product=product)
    with pytest.raises(ValueError, match="the loss of batch 2 is nan"):
        H.matvec(torch.ones(43))


@every_product
def test_refuses_a_loss_without_a_graph(product: Any) -> None:
    x, y = classes(7, 4)
    detached = lambda outputs, targets: F.cross_entropy(outputs.detach(), targets)  # noqa: E731
    with pytest.raises(ValueError, match="does not depend on the parameters"):
        hessian(mlp(), detached, [(x, y)], product=product).matvec(torch.ones(43))


@every_product
def test_refuses_no_data(product: Any) -> None:
    H = hessian(mlp(), F.cross_entropy, [], product=product)
    with pytest.raises(ValueError, match="data is empty"):
        H.matvec(torch.ones(43))


@pytest.mark.parametrize("batch", [torch.ones(2, 4), (torch.ones(2, 4),), (1.0, 2.0), "text"])
def test_refuses_a_batch_that_is_no_pair(batch: Any) -> None:
    with pytest.raises(ValueError, match="batch 0"):
        hessian(mlp(), F.cross_entropy, [batch]).matvec(torch.ones(43))


@pytest.mark.parametrize("make", [hessian, ggn])
def test_refuses_what_it_cannot_use_at_once(make: Callable[..., Operator]) -> None:
    data = [classes(7, 4)]
    for iterator in (iter(data), (pair for pair in data)):
        with pytest.raises(ValueError, match="data is an iterator"):
            make(mlp(), F.cross_entropy, iterator)
    frozen = mlp()
    frozen[0].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'0\.bias' does not require a gradient"):
        make(frozen, F.cross_entropy, data, params=frozen.parameters())
    with pytest.raises(ValueError, match=r"params\[1\] is not a parameter of the model"):
        make(frozen, F.cross_entropy, data, params=[frozen[0].weight, mlp()[0].weight])
    for params in ([], None):
        with pytest.raises(ValueError, match="no parameter"):
            make(frozen.requires_grad_(False), F.cross_entropy, data, params=params)


def test_refuses_what_has_no_batches() -> None:
    x, y = classes(7, 4)
    for data, name in ((TensorDataset(x, y), "TensorDataset"), (lambda: [(x, y)], "function")):
        with pytest.raises(ValueError, match=f"data is a {name}, expected batches"):
            hessian(mlp(), F.cross_entropy, data)  # type: ignore[arg-type]


def test_refuses_parameters_that_make_no_real_vector() -> None:
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"'weight' is torch\.complex64: expected real parameters"):
        hessian(model, F.cross_entropy, [])
    model = mlp()
    with pytest.raises(ValueError, match=r"'0\.bias' is in params twice"):
        hessian(model, F.cross_entropy, [], params=[model[0].bias] * 2)
    with pytest.raises(ValueError, match=r"dtype=torch\.bfloat16 must be torch\.float32 or"):
        Operator(3, lambda rows: rows, dtype=torch.bfloat16)


def test_gauss_newton_refuses_the_models_own_loss() -> None:
    with pytest.raises(ValueError, match="loss_fn=None: ggn needs"):
        ggn(summed(WithLoss), None, [])  # type: ignore[arg-type]


@pytest.mark.parametrize("targets", [{}, [], ["a", "b"], {"names": ["a"], "size": torch.ones(())}])
def test_targets_need_no_samples_of_their_own(targets: Any) -> None:
    x, _ = classes(7, 4)
    loss = lambda outputs, _: outputs.square().mean()  # noqa: E731
    vector = torch.ones(43, dtype=torch.float64)
    found = hessian(mlp(), loss, [(x[:2], targets), (x[2:], targets)]).matvec(vector)
    assert near(found, hessian(mlp(), loss, [(x, x)]).matvec(vector), 1e-12)


@every_product
def test_a_loss_that_reads_parameters_is_right_or_refused(product: Any) -> None:
    """Along dual numbers its penalty was a constant, and its curvature was left out."""
    (x, y), model = classes(7, 4), mlp()
    loss = lambda outputs, targets: (  # noqa: E731
        F.cross_entropy(outputs, targets) + sum(p.square().sum() for p in model.parameters())
    )
    H = hessian(model, loss, [(x, y)], product=product)
    if product == "forward-over-reverse":
        for operator in (H, ggn(model, loss, [(x, y)])):
            with pytest.raises(ValueError, match="loss reads the model's parameters"):
                operator.matvec(torch.ones(43))
        return
    without = matrix(hessian(mlp(), F.cross_entropy, [(x, y)]))
    assert near(matrix(H), without + 2 * torch.eye(43), TOLERANCE[product])


def test_refuses_parameters_that_have_been_exchanged_or_frozen_since() -> None:
    """All derivatives by exchanged ones are zero, and λ_max = 0 was called converged."""
    model = mlp()
    operators = [f(model, F.cross_entropy, [classes(7, 4)]) for f in (hessian, ggn)]
    model.load_state_dict(mlp().state_dict(), assign=True)
    for H in operators:
        with pytest.raises(ValueError, match=r"params\[0\] is not a parameter of the model"):
            H.matvec(torch.ones(43))
    H = hessian(model, F.cross_entropy, [classes(7, 4)])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="does not require a gradient"):
        H.matvec(torch.ones(43))


def test_refuses_an_unknown_product() -> None:
    with pytest.raises(ValueError, match="product='exact' is not one of double-backward"):
        hessian(mlp(), F.cross_entropy, [classes(7, 4)], product="exact")  # type: ignore[arg-type]


def test_refuses_differences_of_narrow_parameters() -> None:
    """A step small enough for the second order is lost when 8 bits are kept."""
    with pytest.raises(ValueError, match=r"'0\.weight' is torch\.bfloat16.*model\.float\(\)"):
        hessian(mlp().bfloat16(), F.cross_entropy, [classes(7, 4)], product="finite-differences")


def test_refuses_vectors_of_another_size() -> None:
    H = hessian(mlp(), F.cross_entropy, [classes(7, 4)])
    with pytest.raises(ValueError, match=r"shape \(42,\), expected \(43,\)"):
        H.matvec(torch.ones(42))
    with pytest.raises(ValueError, match=r"shape \(2, 43\), expected \(43, count\)"):
        H.matmat(torch.ones(2, 43))


class Once(torch.autograd.Function):
    """A square whose derivative is opaque, as those of many kernels are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * slope


class Opaque(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return Once.apply(super().forward(inputs))


def test_says_what_to_do_where_a_second_derivative_is_missing() -> None:
    torch.manual_seed(0)
    (x, y), model = classes(7, 4), Opaque(4, 3).double()
    for product in ("double-backward", "forward-over-reverse"):
        H = hessian(model, F.cross_entropy, [(x, y)], product=product)
        with pytest.raises(RuntimeError, match="product='finite-differences'"):
            H.matvec(torch.ones(15))
    opaque_loss = lambda outputs, targets: Once.apply(outputs).exp().mean()  # noqa: E731
    with pytest.raises(RuntimeError, match="once_differentiable"):
        ggn(mlp(), opaque_loss, [(x, y)]).matvec(torch.ones(43))
    plain = nn.Linear(4, 3).double()
    plain.load_state_dict(model.state_dict())
    truth = dense(plain, lambda call: F.cross_entropy(call(x).square(), y))
    H = hessian(model, F.cross_entropy, [(x, y)], product="finite-differences")
    assert near(matrix(H), truth, 1e-6)


# Several processes.


def shards(rank: int) -> Pairs:
    """Of 7 samples one process has 5, in two batches, the other 2."""
    x, y = classes(7, 4)
    return split((x[:5], y[:5]), 3) if rank == 0 else [(x[5:], y[5:])]


def operators(model: nn.Module, data: Pairs) -> Iterator[Operator]:
    for product in TOLERANCE:
        yield hessian(model, F.cross_entropy, data, product=product)
    yield ggn(model, F.cross_entropy, data)


def work(rank: int, folder: Path) -> None:
    """Run one of the processes."""
    join(rank, folder, 2)
    model = DistributedDataParallel(mlp())
    matrices = [matrix(operator) for operator in operators(model, shards(rank))]
    torch.save(matrices, folder / f"rank{rank}")
    leave()


@pytest.mark.thorough
def test_processes_have_the_mean_over_all_samples(tmp_path: Path) -> None:
    expected = [matrix(operator) for operator in operators(mlp(), [classes(7, 4)])]
    first, second = results_of_two(__file__, tmp_path)
    tolerances = [*TOLERANCE.values(), 1e-12]
    for whole, one, other, tolerance in zip(expected, first, second, tolerances, strict=True):
        assert torch.equal(one, other)
        assert near(one, whole, tolerance)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
