"""Batches weigh what their loss is divided by, whatever their mappings and models are like."""

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


def test_refuses_logits_that_are_alike_where_labels_cannot_be_changed() -> None:
    class Bound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Language(1, 0.0).to(D)

        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            return self.inner(input_ids, input_ids)

    data = [({"input_ids": text["input_ids"]}, {"labels": text["labels"]}) for text in texts(False)]
    with pytest.raises(ValueError, match="whether the first label of each sequence counts"):
        hessian(Bound(), None, data).matvec(torch.ones(492, dtype=D))
