"""Batches weigh what their loss is divided by, whatever their mappings and models are like."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.landscape import Operator, hessian, sharpness

D = torch.float64
G = torch.Generator().manual_seed(0)
X = torch.randn(16, 3, dtype=D, generator=G)
Y = torch.arange(16) % 2
FLOATS = torch.randn(16, 2, dtype=D, generator=G)


def dense(H: Operator) -> Tensor:
    return H.matmat(torch.eye(H.size, dtype=H.dtype))


class Reading(nn.Module):
    """Reads x alone, whatever else the batch has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(3, 2).to(D)

    def forward(self, x: Tensor, **others: Any) -> Tensor:
        return self.body(x)


SHARED = {
    "edge_index": torch.zeros(2, 9, dtype=torch.long),
    "position_ids": torch.arange(4)[None],
    "t": torch.ones(1),
    "table": torch.zeros(77, 3),
}


def batches(first: dict[str, Tensor], target: str, sizes: tuple[int, ...]) -> list[Any]:
    parts = zip(X.split(sizes), Y.split(sizes), strict=True)
    return [{**first, "x": x, target: y} for x, y in parts]


@pytest.mark.parametrize("target", ["labels", "label", "targets", "target", "y", "classes"])
@pytest.mark.parametrize("name", SHARED)
def test_a_tensor_that_samples_share_does_not_tell_their_number(name: str, target: str) -> None:
    loss_fn = lambda outputs, batch: F.cross_entropy(outputs, batch[target])  # noqa: E731
    first = {name: SHARED[name]}
    one, two = (batches(first, target, sizes) for sizes in ((16,), (14, 2)))
    whole, split = (hessian(Reading(), loss_fn, data) for data in (one, two))
    torch.testing.assert_close(dense(split), dense(whole))
    found = sharpness(Reading(), loss_fn, two, m=4)
    assert found.samples == 16
    assert found.value == pytest.approx(sharpness(Reading(), loss_fn, one, m=4).value, rel=1e-9)


def test_tuples_of_targets_with_a_shared_one_first_are_counted() -> None:
    prior = torch.ones(5, dtype=D)
    loss_fn = lambda outputs, targets: F.cross_entropy(outputs, targets[1])  # noqa: E731
    one, two = (
        [(x, (prior, y)) for x, y in zip(X.split(sizes), Y.split(sizes), strict=True)]
        for sizes in ([16], [14, 2])
    )
    whole, split = (hessian(Reading(), loss_fn, data) for data in (one, two))
    torch.testing.assert_close(dense(split), dense(whole))


@pytest.mark.parametrize("weight", [None, "samples"])
def test_refuses_batches_whose_number_of_samples_cannot_be_told(weight: Any) -> None:
    loss_fn = lambda outputs, batch: outputs.square().mean()  # noqa: E731
    data = [{"edge_index": SHARED["edge_index"], "x": x} for x in X.split([14, 2])]
    with pytest.raises(ValueError, match=r"how many samples batch 0 .*edge_index: 2, x: 14"):
        dense(hessian(Reading(), loss_fn, data, weight=weight))
    with pytest.raises(ValueError, match="how many samples batch 0"):
        sharpness(Reading(), loss_fn, data, m=2)
    # One batch needs no weight, and a function gives it.
    whole = dense(hessian(Reading(), loss_fn, [{**data[0], "x": X}]))
    given = hessian(Reading(), loss_fn, data, weight=lambda outputs, batch: len(batch["x"]))
    torch.testing.assert_close(dense(given), whole)


class Regressing(nn.Module):
    """Computes the loss of labels that are no classes, in one of several ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.kind = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.0)).to(D), kind

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.body(x)
        squares, mask = (logits - labels).square(), labels[:, :1] > 0
        loss = {
            "mean": squares.mean(),
            "mean over samples": squares.sum(1).clamp(max=3).mean(),
            "bce": F.binary_cross_entropy_with_logits(logits, labels.clamp(0, 1)),
            "sum": squares.sum(),
            "masked": (squares * mask).sum() / mask.sum(),
        }[self.kind]
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", ["mean", "mean over samples", "bce", "sum", "masked"])
def test_a_models_own_loss_of_labels_that_are_no_classes_is_verified(
    kind: str, train: bool
) -> None:
    one, two = (
        [{"x": x, "labels": y} for x, y in zip(X.split(n), FLOATS.split(n), strict=True)]
        for n in ([16], [13, 3])
    )
    model = Regressing(kind)
    if kind in ("sum", "masked"):
        with pytest.raises(ValueError, match="the loss is no mean over samples"):
            dense(hessian(model, None, two, train=train))
        return
    whole, split = (hessian(model, None, data, train=train) for data in (one, two))
    torch.testing.assert_close(dense(split), dense(whole))


@pytest.mark.parametrize(
    "options",
    [{"size_average": False}, {"reduce": True, "size_average": False}, {"reduction": "sum"}],
    ids=str,
)
def test_the_older_names_of_a_sum_are_known(options: dict[str, Any]) -> None:
    loss_fn = partial(F.cross_entropy, **options)
    one, two = ([*zip(X.split(n), Y.split(n), strict=True)] for n in ([16], [14, 2]))
    is_old = "reduction" not in options
    with pytest.warns(UserWarning, match="deprecated") if is_old else nullcontext():
        whole, split = (dense(hessian(Reading(), loss_fn, data)) for data in (one, two))
    torch.testing.assert_close(split, whole)


@pytest.mark.parametrize("name", ["size_average", "reduce"])
def test_the_older_name_of_a_mean_is_known(name: str) -> None:
    loss_fn = partial(F.cross_entropy, **{name: True})
    ignoring = Y.clone()
    ignoring[3:9] = -100
    one, two = ([*zip(X.split(n), ignoring.split(n), strict=True)] for n in ([16], [10, 6]))
    with pytest.warns(UserWarning, match="deprecated"):
        whole, split = (dense(hessian(Reading(), loss_fn, data)) for data in (one, two))
    torch.testing.assert_close(split, whole)


class Language(nn.Module):
    """A language model whose head may be zero: all its logits are then alike."""

    def __init__(self, shift: int, head: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.mix = nn.Embedding(20, 6), nn.GRU(6, 6, batch_first=True)
        self.head = nn.Linear(6, 20, bias=False)
        nn.init.normal_(self.head.weight, std=head)
        self.shift = shift

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.mix(self.read(input_ids))[0])
        counted = labels[:, self.shift :].flatten()
        predicted = logits[:, : labels.shape[1] - self.shift].flatten(0, 1)
        return {"loss": F.cross_entropy(predicted, counted), "logits": logits}


def texts(masked: bool) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in ((8, 3), (2, 40)):
        ids = torch.randint(20, shape, generator=generator)
        labels = ids.clone()
        if masked and not found:
            labels[:, 0] = -100
        found.append({"input_ids": ids, "labels": labels})
    return found


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("head", [0.0, 1e-4, 1.0])
@pytest.mark.parametrize("shift", [0, 1])
def test_labels_count_right_where_all_logits_are_alike(
    shift: int, head: float, masked: bool, train: bool
) -> None:
    model, data = Language(shift, head).to(D), texts(masked)

    def count(outputs: Any, batch: Any) -> float:
        return float((batch["labels"][:, shift:] != -100).sum())

    params = [model.head.weight]
    found = hessian(model, None, data, params=params, train=train)
    true = hessian(model, None, data, params=params, train=train, weight=count)
    torch.testing.assert_close(dense(found), dense(true))


def test_labels_beside_the_inputs_count_right_where_all_logits_are_alike() -> None:
    class Bound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Language(1, 0.0).to(D)

        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            return self.inner(input_ids, input_ids)

    data = [({"input_ids": text["input_ids"]}, {"labels": text["labels"]}) for text in texts(False)]
    model, vector = Bound(), torch.ones(492, dtype=D)
    found = hessian(model, None, data).matvec(vector)
    true = hessian(model, None, data, weight=lambda _, batch: batch["labels"][:, 1:].numel())
    torch.testing.assert_close(found, true.matvec(vector))


def test_refuses_logits_that_are_alike_everywhere() -> None:
    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.zeros((), dtype=D))

        def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.level * torch.ones(*labels.shape, 20, dtype=D)
            loss = F.cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, 1:].flatten())
            return {"loss": loss, "logits": logits}

    with pytest.raises(ValueError, match="all labels have nearly the same loss"):
        hessian(Alike(), None, texts(False)).matvec(torch.ones(1, dtype=D))


def classified(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), labels.flatten().long(), ignore_index=-1)


def binary(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs[..., 0], labels.to(outputs))


def ordinal(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(
        outputs, (labels[:, None] > torch.arange(outputs.shape[1])).to(outputs)
    )


ROWS, WORDS = torch.arange(10), torch.arange(60).reshape(10, 6)
OWN_LOSSES: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "two classes in one output": (1, binary, ROWS % 2),
    "two classes in one output for each word": (1, binary, WORDS % 2),
    "truth values": (1, binary, ROWS % 3 > 0),
    "whole numbers": (1, lambda o, y: F.mse_loss(o[:, 0], y.to(o)), 20 + ROWS * 7 % 30),
    "counts": (1, lambda o, y: F.poisson_nll_loss(o[:, 0], y), ROWS * 7 % 5),
    "short integers": (3, classified, (ROWS % 3).int()),
    "classes from 1": (3, lambda o, y: classified(o, y - 1), ROWS % 3 + 1),
    "nothing is -1": (3, classified, ROWS % 4 - 1),
    "nothing is -1 for some words": (3, classified, WORDS * WORDS % 5 % 4 - 1),
    "nothing is 255": (
        3,
        lambda o, y: classified(o, torch.where(y > 3, -1, y)),
        torch.where(ROWS < 7, ROWS % 3, 255),
    ),
    "order": (2, ordinal, ROWS % 3),
    "half of one output": (1, lambda o, y: F.mse_loss(o[:, 0], y.to(o)), ROWS.to(D) / 10),
}


@pytest.mark.parametrize("name", OWN_LOSSES)
def test_own_losses_of_labels_that_are_no_usual_classes(name: str) -> None:
    """They ended in an IndexError of a cross-entropy that was tried on them."""
    width, loss_fn, labels = OWN_LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(*labels.shape, 4, dtype=D, generator=generator)

    class Own(nn.Linear):
        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            outputs = super().forward(x).tanh()
            return {"loss": loss_fn(outputs, labels), "logits": outputs}

    torch.manual_seed(0)
    model, sizes = Own(4, width, dtype=D), [4, 4, 2]
    data = [
        {"x": x, "labels": y} for x, y in zip(inputs.split(sizes), labels.split(sizes), strict=True)
    ]
    whole = hessian(model, None, [{"x": inputs, "labels": labels}], weight="samples")
    torch.testing.assert_close(dense(hessian(model, None, data)), dense(whole))


WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=D)
CLASSES = torch.cat([torch.zeros(10), torch.ones(5), torch.arange(15) % 2 + 2]).long()


def weighted(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, weight=WEIGHTS.to(outputs))


def hardest(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none").topk(len(labels) // 2)[0].mean()


class Fresh(nn.Module):
    """A new network: its outputs, and so the losses of all samples, are nearly alike."""

    def __init__(self, loss_fn: Callable[[Tensor, Tensor], Tensor], deviation: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.loss_fn = nn.Linear(6, 5), nn.Linear(5, 4), loss_fn
        nn.init.normal_(self.head.weight, std=deviation)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = self.head(self.body(x).tanh())
        return {"loss": self.loss_fn(outputs, labels), "logits": outputs}


def classes_by(size: int, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    inputs = torch.randn(30, 6, dtype=dtype, generator=torch.Generator().manual_seed(0))
    parts = zip(inputs.split(size), CLASSES.split(size), strict=True)
    return [{"x": x, "labels": y} for x, y in parts]


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("deviation", [0.0, 1e-3, 0.02, 1.0])
@pytest.mark.parametrize("loss_fn", [weighted, hardest])
def test_own_losses_of_new_networks_are_not_taken_for_means(
    loss_fn: Callable[[Tensor, Tensor], Tensor], deviation: float, dtype: torch.dtype
) -> None:
    """All means of nearly equal losses are the same: .506 was said to be the eigenvalue .730."""
    model, data = Fresh(loss_fn, deviation).to(dtype), classes_by(10, dtype)
    vector = torch.ones(59, dtype=dtype)
    with pytest.raises(ValueError, match="pass weight="):
        hessian(model, None, data).matvec(vector)
    if loss_fn is weighted:
        found = hessian(model, None, data, weight=lambda _, batch: WEIGHTS[batch["labels"]].sum())
        whole = hessian(model, None, classes_by(30, dtype))
        torch.testing.assert_close(found.matvec(vector), whole.matvec(vector))


@pytest.mark.parametrize("deviation", [0.0, 0.02, 1.0])
def test_own_means_of_new_networks_are_taken_and_the_model_stays(deviation: float) -> None:
    model, data = Fresh(F.cross_entropy, deviation).to(D), classes_by(10, D)
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    found, whole = (hessian(model, None, each) for each in (data, classes_by(30, D)))
    torch.testing.assert_close(dense(found), dense(whole))
    for name, param in model.named_parameters():
        assert (param.data_ptr(), True) == (before[name][0], torch.equal(param, before[name][1]))


def of_variance(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum() / (targets - targets.mean(0)).square().sum()


def of_variance_with_eps(outputs: Tensor, targets: Tensor) -> Tensor:
    variance = (targets - targets.mean(0)).square().sum() + 1e-8
    return (outputs - targets).square().sum() / variance


def of_positives(outputs: Tensor, targets: Tensor) -> Tensor:
    total = F.binary_cross_entropy_with_logits(outputs, targets.sigmoid(), reduction="sum")
    return total / ((targets > 0.8).sum() + 1e-6)


@pytest.mark.parametrize("loss_fn", [of_variance, of_variance_with_eps, of_positives])
@pytest.mark.parametrize("size", [5, 8])
def test_losses_divided_by_what_one_sample_has_not_are_refused(
    loss_fn: Callable[[Tensor, Tensor], Tensor], size: int
) -> None:
    """Of one sample they are infinite, or so large that every difference looked like rounding."""
    data = list(zip(X.split(size), FLOATS.split(size), strict=True))
    with pytest.raises(ValueError, match="no mean over samples"):
        hessian(nn.Linear(3, 2, dtype=D), loss_fn, data).matvec(torch.ones(8, dtype=D))
