"""What is measured does not depend on how samples are batched."""

import random
import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.landscape import barrier, hessian, line, profile, sharpness
from steppe.landscape.objective.batches import Batch
from steppe.landscape.objective.loss_weight import LossWeight

D = torch.float64
X = torch.randn(16, 4, dtype=D, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3
IGNORING = Y.clone()
IGNORING[1:8] = -100
CLASS_WEIGHT = torch.tensor([1.0, 10.0, 0.1], dtype=D)
FLOATS = torch.rand(16, 3, dtype=D, generator=torch.Generator().manual_seed(1))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(D)


def halves(targets: Tensor, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    return list(zip(X.split(size), targets.split(size), strict=True))


def masked(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, ignore_index=-100)


LOSSES: dict[str, tuple[Any, Tensor]] = {
    "ignore_index": (nn.CrossEntropyLoss(), IGNORING),
    "function": (F.cross_entropy, IGNORING),
    "partial": (partial(F.cross_entropy, ignore_index=1), Y.sort().values),
    "class weights": (nn.CrossEntropyLoss(weight=CLASS_WEIGHT), Y.sort().values),
    "smoothing": (nn.CrossEntropyLoss(CLASS_WEIGHT, label_smoothing=0.1), Y.sort().values),
    "nll": (nn.NLLLoss(weight=CLASS_WEIGHT), Y.sort().values),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), Y),
    "partial sum": (partial(F.mse_loss, reduction="sum"), FLOATS),
    "mse": (nn.MSELoss(), FLOATS),
    "bce": (nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHT), FLOATS),
    "probabilities": (nn.CrossEntropyLoss(), FLOATS.softmax(1)),
    "batchmean": (nn.KLDivLoss(reduction="batchmean"), FLOATS.softmax(1)),
}


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("name", LOSSES)
def test_batches_weigh_what_their_loss_is_divided_by(name: str, size: int) -> None:
    loss_fn, targets = LOSSES[name]
    vector = torch.ones(48 - 5, dtype=D)
    whole = hessian(mlp(), loss_fn, [(X, targets)])
    parts = hessian(mlp(), loss_fn, halves(targets, size))
    torch.testing.assert_close(parts.matvec(vector), whole.matvec(vector), rtol=1e-9, atol=1e-12)
    model = mlp()
    one = sharpness(model, loss_fn, [(X, targets)])
    two = sharpness(model, loss_fn, halves(targets, size))
    assert two.value == pytest.approx(one.value, rel=1e-9)
    assert (one.samples, two.samples) == (16, 16)


@pytest.mark.parametrize("name", ["ignore_index", "sum"])
def test_groups_of_one_batch_and_of_several(name: str) -> None:
    loss_fn, targets = LOSSES[name]
    one = sharpness(mlp(), loss_fn, [(X, targets)], m=4)
    two = sharpness(mlp(), loss_fn, halves(targets, 6), m=4)
    assert two.value == pytest.approx(one.value, rel=1e-9)


def test_a_batch_of_ignored_targets_weighs_nothing() -> None:
    targets = Y.clone()
    targets[:8] = -100
    found = hessian(mlp(), F.cross_entropy, halves(targets)).matvec(torch.ones(43))
    truth = hessian(mlp(), F.cross_entropy, [(X[8:], Y[8:])]).matvec(torch.ones(43))
    torch.testing.assert_close(found, truth)
    with pytest.raises(ValueError, match="all targets are ignored"):
        hessian(mlp(), F.cross_entropy, [(X, Y * 0 - 100)]).matvec(torch.ones(43))


def test_refuses_an_unknown_loss_that_is_no_mean_over_samples_and_takes_its_weight() -> None:
    data = halves(IGNORING)
    with pytest.raises(ValueError, match=r"no mean over samples: of batch 0 it is .* weight="):
        hessian(mlp(), masked, data).matvec(torch.ones(43))
    counted = lambda outputs, targets: (targets != -100).sum().item()  # noqa: E731
    truth = hessian(mlp(), F.cross_entropy, [(X, IGNORING)]).matvec(torch.ones(43))
    found = hessian(mlp(), masked, data, weight=counted).matvec(torch.ones(43))
    torch.testing.assert_close(found, truth)
    assert line(mlp(), masked, data, weight=counted, points=3).loss > 0
    assert barrier(mlp(), mlp(), masked, data, weight=counted, points=3).height == 0
    assert profile(mlp(), masked, data, weight=counted, k=1).loss > 0
    # One batch needs no weight.
    hessian(mlp(), masked, [(X, IGNORING)]).matvec(torch.ones(43))


class LossInATuple(nn.Module):
    """Returns outputs and a loss, as small language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.body(x)
        return outputs, masked(outputs, y)


class LossAlone(LossInATuple):
    """Returns its loss and nothing else."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, y)[1]


class Flattening(nn.Module):
    """Returns all steps of all samples in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).flatten(0, 1)


@pytest.mark.parametrize("kind", ["tuple", "alone", "flattened", "broadcast"])
def test_refuses_means_that_cannot_be_seen_in_cut_outputs(kind: str) -> None:
    steps, labels = X.unsqueeze(1).expand(16, 3, 4), IGNORING.repeat_interleave(3).view(16, 3)
    labels = labels.where(torch.arange(3) < 2, -100)
    cases: dict[str, tuple[nn.Module, Any, list[Any]]] = {
        "tuple": (LossInATuple(), lambda o, _: o[1], [{"x": X, "y": IGNORING}]),
        "alone": (LossAlone(), lambda o, _: o, [{"x": X, "y": IGNORING}]),
        "flattened": (Flattening(), lambda o, y: masked(o, y.flatten()), [(steps, labels)]),
        "broadcast": (
            nn.Sequential(mlp(), nn.Linear(3, 1).to(D)),
            F.smooth_l1_loss,
            [(X, FLOATS[:, 0])],
        ),
    }
    model, loss_fn, whole = cases[kind]
    in_two = [_part(whole[0], begin, end) for begin, end in ((0, 6), (6, 16))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, of the broadcast
        assert sharpness(model, loss_fn, whole).loss > 0
        with pytest.raises(ValueError, match=r"no mean over samples: of batch 0 it is"):
            sharpness(model, loss_fn, in_two)


def _part(batch: Any, begin: int, end: int) -> Any:
    if isinstance(batch, dict):
        return {name: each[begin:end] for name, each in batch.items()}
    return tuple(each[begin:end] for each in batch)


def test_a_loss_that_the_model_returns_is_verified_by_parts_of_the_inputs() -> None:
    one = sharpness(LossAlone(), lambda o, _: o, [{"x": X, "y": Y}])
    two = sharpness(
        LossAlone(), lambda o, _: o, [{"x": X[:6], "y": Y[:6]}, {"x": X[6:], "y": Y[6:]}]
    )
    assert two.value == pytest.approx(one.value, rel=1e-9)


def test_refuses_an_unknown_sum_and_says_so() -> None:
    total = lambda outputs, targets: (outputs - targets).square().sum()  # noqa: E731
    with pytest.raises(ValueError, match='weight="sum" adds the batches up'):
        hessian(mlp(), total, halves(FLOATS)).matvec(torch.ones(43))
    found = hessian(mlp(), total, halves(FLOATS), weight="sum").matvec(torch.ones(43))
    truth = hessian(mlp(), total, [(X, FLOATS)]).matvec(torch.ones(43))
    torch.testing.assert_close(found, truth)


class MeanOverTokens(nn.CrossEntropyLoss):
    """Divides the sum that torch's class returns."""

    def __init__(self) -> None:
        super().__init__(reduction="sum")

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().forward(outputs, targets) / (targets != -100).sum()


class SumOfOwn(nn.Module):
    """A sum, as its attribute says."""

    reduction = "sum"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().pow(3).sum()


def test_a_loss_of_ones_own_that_says_sum_is_verified() -> None:
    with pytest.raises(ValueError, match=r"no sum over samples: of batch 0 it is .* weight="):
        hessian(mlp(), MeanOverTokens(), halves(Y)).matvec(torch.ones(43))
    vector = torch.ones(43, dtype=D)
    found = hessian(mlp(), MeanOverTokens(), halves(Y), weight="samples").matvec(vector)
    truth = hessian(mlp(), nn.CrossEntropyLoss(), halves(Y)).matvec(vector)
    torch.testing.assert_close(found, truth)
    whole = hessian(mlp(), SumOfOwn(), [(X, FLOATS)]).matvec(vector)
    torch.testing.assert_close(hessian(mlp(), SumOfOwn(), halves(FLOATS)).matvec(vector), whole)


def over_tokens(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=0)


def of_words(lengths: list[int], *, padded: bool) -> tuple[nn.Module, list[Any], torch.Tensor]:
    """Give a model of tokens, and batches whose sequences are equally long in each batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7)).double()
    words = torch.randint(1, 7, (len(lengths), 4, 8))
    wanted = torch.randint(1, 7, (len(lengths), 4, 8))
    for targets, length in zip(wanted, lengths, strict=True):
        targets[:, length:] = 0
    ends = [8 if padded else length for length in lengths]
    batches = zip(words, wanted, ends, strict=True)
    cut = [(inputs[:, :end], targets[:, :end]) for inputs, targets, end in batches]
    return model, cut, torch.ones(77, dtype=torch.float64)


@pytest.mark.parametrize(
    ("padded", "said"),
    [
        (True, "of batches 0 and 1 together it is .*, and of each"),
        (False, r"outputs of batches 0 and 1 have shapes \(4, 8, 7\) and \(4, 2, 7\), and of"),
    ],
)
def test_batches_whose_halves_are_alike_are_compared_with_each_other(
    padded: bool, said: str
) -> None:
    """Tokens were weighed as samples: the trace was 4.92 for 4.99."""
    model, data, vector = of_words([8, 2, 2], padded=padded)
    with pytest.raises(ValueError, match=said):
        hessian(model, over_tokens, data).matvec(vector)
    counted = lambda outputs, targets: (targets != 0).sum()  # noqa: E731
    found = hessian(model, over_tokens, data, weight=counted).matvec(vector)
    model, padded_data, _ = of_words([8, 2, 2], padded=True)
    whole = [tuple(map(torch.cat, zip(*padded_data, strict=True)))]
    torch.testing.assert_close(found, hessian(model, over_tokens, whole).matvec(vector))


def test_a_loss_that_differentiates_its_outputs_is_taken_as_it_is() -> None:
    """It cannot be computed of copies of outputs, which have no graph."""

    def slope(outputs: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        (grad,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
        return grad.square().sum(1).mean()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    inputs = torch.randn(12, 3).double()
    data = [(part, part) for part in (each.requires_grad_() for each in inputs.split(4))]
    whole, vector = inputs.clone().requires_grad_(), torch.ones(21).double()
    found = hessian(model, slope, data).matvec(vector)
    torch.testing.assert_close(found, hessian(model, slope, [(whole, whole)]).matvec(vector))


def test_batches_of_one_sample_are_verified_two_by_two() -> None:
    """They have no halves: the trace was off by half, and depended on batching."""
    counts = torch.tensor([1.0, 2.0, 7.0], dtype=torch.float64)
    weighted = lambda outputs, targets: F.cross_entropy(outputs, targets, weight=counts)  # noqa: E731
    inputs = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4)
    targets, vector = torch.arange(6) % 3, torch.ones(43, dtype=torch.float64)
    data = [(inputs[i : i + 1], targets[i : i + 1]) for i in range(6)]
    said = "of batches 0 and 1 together it is .*, and of each .* whose mean is"
    with pytest.raises(ValueError, match=said):
        hessian(mlp(), weighted, data).matvec(vector)
    found = hessian(mlp(), weighted, data, weight=lambda _, y: counts[y].sum()).matvec(vector)
    whole = hessian(mlp(), weighted, [(inputs, targets)]).matvec(vector)
    torch.testing.assert_close(found, whole)
    smooth = lambda outputs, targets: F.cross_entropy(outputs, targets)  # noqa: E731
    found = hessian(mlp(), smooth, data).matvec(vector)
    torch.testing.assert_close(found, hessian(mlp(), smooth, [(inputs, targets)]).matvec(vector))


def test_refuses_an_unknown_weight() -> None:
    with pytest.raises(ValueError, match="weight='tokens' is not one of"):
        hessian(mlp(), masked, halves(Y), weight="tokens")  # type: ignore[arg-type]
    negative = lambda outputs, targets: -1.0  # noqa: E731
    with pytest.raises(ValueError, match="at least 0, got -1"):
        hessian(mlp(), masked, halves(Y), weight=negative).matvec(torch.ones(43))


def test_a_loss_with_noise_of_its_own_is_not_taken_for_a_sum() -> None:
    def noisy(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) * (1 + torch.rand(()).to(D))

    assert hessian(mlp(), noisy, halves(Y)).matvec(torch.ones(43, dtype=D)).isfinite().all()


def boxed(outputs: Tensor, targets: Any) -> Tensor:
    """Return a mean over samples whose targets are objects, as those of detection are."""
    found = (each["boxes"] for each in targets)
    pairs = zip(outputs, found, strict=True)
    return torch.stack([(output - boxes).square().mean() for output, boxes in pairs]).mean()


class RowsOfEach(nn.Module):
    """Takes each sample, of a length of its own, as an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, *samples: Tensor) -> Tensor:
        return torch.stack([self.body(each).mean(0) for each in samples])


@pytest.mark.parametrize("counts", [(1, 3, 2), (6, 2, 1), (2,), (6,)])
@pytest.mark.parametrize("container", [list, tuple])
def test_targets_that_are_lists_of_samples_are_counted_and_cut(
    container: type, counts: tuple[int, ...]
) -> None:
    def objects(begin: int, end: int) -> Any:
        values = torch.arange(begin, end) % 3
        return container(
            {"boxes": FLOATS[at, :3].expand(counts[at % len(counts)], 3) * (1 + value)}
            for at, value in zip(range(begin, end), values, strict=True)
        )

    def lengths(begin: int, end: int) -> list[Tensor]:
        return [X[at : at + 2 + at % 2] for at in range(begin, end)]

    ends = [(0, 6), (6, 8)]
    in_two = [(X[a:b], objects(a, b)) for a, b in ends]
    ragged = [(lengths(a, b), objects(a, b)) for a, b in ends]
    named = [{"objects": objects(a, b), "x": X[a:b]} for a, b in ends]
    one = [(X[:8], objects(0, 8))]
    by_name = lambda outputs, batch: boxed(outputs, batch["objects"])  # noqa: E731

    class Named(RowsOfEach):
        def forward(self, x: Tensor, objects: Any) -> Tensor:  # type: ignore[override]
            return self.body(x)

    for m in (None, 2):
        whole = sharpness(mlp(), boxed, one, m=m)
        assert whole.samples == 8
        assert sharpness(mlp(), boxed, in_two, m=m).value == pytest.approx(whole.value, rel=1e-9)
        model = Named()
        model.body = mlp()
        found = sharpness(model, by_name, named, m=m)
        assert found.value == pytest.approx(whole.value, rel=1e-9)
        whole = sharpness(RowsOfEach(), boxed, [(lengths(0, 8), objects(0, 8))], m=m)
        found = sharpness(RowsOfEach(), boxed, ragged, m=m)
        assert (found.samples, found.value) == (8, pytest.approx(whole.value, rel=1e-9))


def test_lists_of_several_targets_are_no_lists_of_samples() -> None:
    def mixed(outputs: Tensor, targets: list[Tensor]) -> Tensor:
        one, two, share = targets
        return share * F.cross_entropy(outputs, one) + (1 - share) * F.cross_entropy(outputs, two)

    share = torch.tensor(0.3, dtype=D)
    targets = [Y[:3], Y[1:4], share]
    by_one = sharpness(mlp(), mixed, [(X[:3], targets)], m=1)
    in_three = [
        (X[at : at + 1], [*(each[at : at + 1] for each in targets[:2]), share]) for at in range(3)
    ]
    assert by_one.value == pytest.approx(sharpness(mlp(), mixed, in_three, m=1).value, rel=1e-9)


class OwnLoss(nn.Module):
    """Returns its loss, of targets that it calls y."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.body, self.reduction = mlp(), reduction

    def forward(self, x: Tensor, y: Tensor, labels: object = None) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.body(x), y, reduction=self.reduction)}


@pytest.mark.parametrize("labels", [None, 3], ids=["none", "a number"])
def test_a_models_own_loss_without_labels_is_a_mean_over_samples(labels: object) -> None:
    model, vector = OwnLoss(), torch.ones(43, dtype=D)
    whole, split = (
        hessian(model, None, [{"x": x, "y": y, "labels": labels} for x, y in halves(Y, size)])
        for size in (16, 5)
    )
    torch.testing.assert_close(split.matvec(vector), whole.matvec(vector))


def test_a_models_own_sum_is_refused() -> None:
    data = [{"x": x, "y": y} for x, y in halves(Y)]
    with pytest.raises(ValueError, match='weight="sum" adds the batches up'):
        hessian(OwnLoss("sum"), None, data).matvec(torch.ones(43, dtype=D))


class Language(nn.Module):
    """Returns a loss as Hugging Face's models do: over the labels that are not −100."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.write, self.shift = nn.Embedding(7, 3), nn.Linear(3, 7), shift

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.write(self.read(input_ids))
        counted = labels[:, self.shift :].flatten()
        predicted = logits[:, : labels.shape[1] - self.shift].flatten(0, 1)
        return {"loss": F.cross_entropy(predicted, counted), "logits": logits}


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("own", [True, False])
def test_a_models_own_loss_is_over_its_labels(shift: int, own: bool) -> None:
    ids = torch.arange(48).reshape(8, 6) % 7
    labels = ids.clone()
    labels[:3, 2:], labels[5, :4] = -100, -100
    model, data = Language(shift).to(D), {"input_ids": ids, "labels": labels}
    parts = [{name: value[i : i + 3] for name, value in data.items()} for i in (0, 3, 6)]
    loss_fn = None if own else lambda outputs, batch: outputs["loss"]
    whole, split = (hessian(model, loss_fn, each) for each in ([data], parts))
    vector = torch.ones(whole.size, dtype=D)
    torch.testing.assert_close(split.matvec(vector), whole.matvec(vector))


@pytest.mark.parametrize("kept", [[], [0]], ids=["no label", "the first label alone"])
def test_a_first_batch_whose_labels_are_all_ignored_weighs_nothing(kept: list[int]) -> None:
    batches, outputs = [], []
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        labels = torch.arange(6).reshape(2, 3) % 4
        if number == 0:
            ignored = [position for position in range(3) if position not in kept]
            labels[:, ignored] = -100
        logits = torch.randn(2, 3, 4, generator=generator)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        batches.append(Batch(number, (), {"labels": labels}, {"labels": labels}, 2))
        outputs.append({"logits": logits, "loss": loss})
    weight = LossWeight(None)
    found = [weight.of(b, o, o["loss"]) for b, o in zip(batches, outputs, strict=True)]
    assert found == [0.0, 4.0, 4.0]


class Worded(nn.Module):
    """Maps tokens to logits, which it returns in one of several ways."""

    def __init__(self, kind: str, *, zero: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head, self.kind = nn.Embedding(7, 5), nn.Linear(5, 7), kind
        if zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.double()

    def forward(self, words: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(self.table(words))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
        return {
            "dictionary": {"logits": logits},
            "tuple": (logits, None),
            "object": SimpleNamespace(logits=logits, loss=loss),
            "tensor": logits,
        }[self.kind]


def logits_of(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, tuple):
        return outputs[0]
    return outputs["logits"] if isinstance(outputs, dict) else outputs.logits


def over_words(outputs: Any, targets: Any) -> Tensor:
    labels = targets["labels"] if isinstance(targets, dict) else targets
    return F.cross_entropy(logits_of(outputs).flatten(0, 1), labels.flatten())


def words(size: int, lengths: list[int], *, padded: bool, named: bool) -> list[Any]:
    """Give batches whose sequences have one length in each."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for length in lengths:
        inputs = torch.randint(7, (size, 8), generator=generator)
        targets = torch.randint(7, (size, 8), generator=generator)
        targets[:, length:] = -100
        pair = (inputs, targets) if padded else (inputs[:, :length], targets[:, :length])
        batches.append(dict(zip(("words", "labels"), pair, strict=True)) if named else pair)
    return batches


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    ("kind", "named"),
    [("dictionary", False), ("tuple", False), ("object", False), ("object", True)],
)
@pytest.mark.parametrize("padded", [True, False])
def test_outputs_in_containers_are_verified_too(
    size: int, kind: str, named: bool, padded: bool
) -> None:
    """Tokens were weighed as samples: 0.467 for an eigenvalue of 0.366."""
    data, model = words(size, [8, 3, 1], padded=padded, named=named), Worded(kind)
    vector = torch.ones(77, dtype=D)
    said = r"of batches 0 and 1 together it is" if padded else r"outputs of batches 0 and 1 have"
    with pytest.raises(ValueError, match=said):
        hessian(model, over_words, data).matvec(vector)
    if named:
        with pytest.raises(ValueError, match=said):
            hessian(model, None, data).matvec(vector)

    def counted(outputs: Any, targets: Any) -> Tensor:
        labels = targets["labels"] if named else targets
        return (labels != -100).sum()

    found = hessian(model, over_words, data, weight=counted).matvec(vector)
    joined = words(size, [8, 3, 1], padded=True, named=False)
    whole = [tuple(map(torch.cat, zip(*joined, strict=True)))]
    truth = hessian(Worded("tensor"), over_words, whole).matvec(vector)
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("kind", ["dictionary", "tensor", "object"])
def test_a_mean_over_samples_passes_in_every_container(kind: str) -> None:
    data = words(2, [8, 8, 8], padded=True, named=False)
    whole = [tuple(map(torch.cat, zip(*data, strict=True)))]
    vector = torch.ones(77, dtype=D)
    found = hessian(Worded(kind), over_words, data).matvec(vector)
    torch.testing.assert_close(found, hessian(Worded(kind), over_words, whole).matvec(vector))


def test_outputs_that_are_alike_do_not_hide_what_a_loss_is_divided_by() -> None:
    """With a head of zeros every part has the loss log C: the Hessian was 42 % off."""
    data = words(6, [7, 2], padded=True, named=False)
    own = lambda outputs, targets: over_words(outputs, targets)  # noqa: E731
    for zero in (True, False):
        with pytest.raises(ValueError, match="the loss is no mean over samples"):
            hessian(Worded("tensor", zero=zero), own, data).matvec(torch.ones(77, dtype=D))
    # Shares stay shares: a binary cross-entropy of them is a mean over samples.
    shares = nn.Sequential(mlp(), nn.Softmax(1))
    binary = lambda outputs, targets: F.binary_cross_entropy(outputs, targets)  # noqa: E731
    soft = FLOATS[:, :3].softmax(1)
    vector = torch.ones(43, dtype=D)
    found = hessian(shares, binary, [(X[:4], soft[:4]), (X[4:], soft[4:])]).matvec(vector)
    torch.testing.assert_close(found, hessian(shares, binary, [(X, soft)]).matvec(vector))


def test_a_loss_of_whole_batches_only_is_refused() -> None:
    """It was taken for a mean over samples unseen: the Hessian was 21 % off."""

    def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
        if len(outputs) != 8:
            raise ValueError("expected eight samples")
        return (targets[:, :1] * outputs).square().sum() / targets[:, :1].sum()

    with pytest.raises(ValueError, match="it cannot be verified that the loss is a mean"):
        hessian(mlp(), weighted, [(X[:8], FLOATS[:8]), (X[8:], FLOATS[8:])]).matvec(
            torch.ones(43, dtype=D)
        )
    believed = hessian(
        mlp(), weighted, [(X[:8], FLOATS[:8]), (X[8:], FLOATS[8:])], weight="samples"
    )
    assert believed.matvec(torch.ones(43, dtype=D)).isfinite().all()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_loss_that_compares_samples_with_each_other_is_refused(reduction: str) -> None:
    """Outputs (B, 1) and targets (B,) broadcast to (B, B)."""
    model, loss_fn = nn.Linear(4, 1).double(), nn.MSELoss(reduction=reduction)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, of the broadcast
        for sizes in (8, 8), (1,) * 4:
            data = list(zip(X.split(sizes[0]), FLOATS[:, 0].split(sizes[0]), strict=True))
            with pytest.raises(ValueError, match=f"the loss is no {reduction} over samples"):
                hessian(model, loss_fn, data).matvec(torch.ones(5, dtype=D))


def vectors(model: nn.Module) -> Tensor:
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return torch.linspace(-1, 1, size, dtype=D)


class TimeFirst(nn.Module):
    """Reads sequences by sample and returns logits by time, as recurrent networks do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(4, 3, dtype=D)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x.transpose(0, 1))  # type: ignore[no-any-return]


class Leaving(nn.Module):
    """Leaves a penalty for the loss to read, as variational networks do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map, self.penalty = nn.Linear(4, 3, dtype=D), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.tanh(self.map(x))
        self.penalty = outputs.square().sum(1).mean()
        return outputs


def of_time(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.transpose(0, 1).flatten(0, 1), targets.flatten())


def legitimate() -> dict[str, tuple[nn.Module, Any, list[Any]]]:
    steps = X.unsqueeze(1).expand(16, 3, 4) * torch.tensor([1.0, -1.0, 2.0]).to(D)[:, None]
    leaving, plain = Leaving(), mlp()
    advantages = FLOATS[:, :3] - FLOATS[:, :3].view(4, 4, 3).mean((1, 2), keepdim=True).view(
        4, 1, 1
    ).expand(4, 4, 3).reshape(16, 3)
    surrogate = lambda outputs, a: -((outputs - outputs.detach()).exp() * a).mean()  # noqa: E731
    read = lambda outputs, y: F.cross_entropy(outputs, y) + 0.1 * leaving.penalty  # noqa: E731
    return {
        "time first": (TimeFirst(), of_time, [(steps, Y[:, None].expand(16, 3))]),
        "left on the model": (leaving, read, [(X, Y)]),
        "near zero": (plain.float(), surrogate, [(X.float(), advantages.float())]),
        "without targets": (
            PairOfInputs(),
            lambda outputs, _: outputs.square().mean(),
            [((X, X.flip(1)), None)],
        ),
    }


class PairOfInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(4, 3, dtype=D)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return torch.tanh(self.map(x)) - self.map(other)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "name", ["time first", "left on the model", "near zero", "without targets"]
)
def test_legitimate_losses_are_no_suspects(name: str) -> None:
    model, loss_fn, (batch,) = legitimate()[name]
    inputs, targets = batch
    ends = [(0, 4), (4, 8), (8, 12), (12, 16)]

    def part(value: Any, begin: int, end: int) -> Any:
        if isinstance(value, tuple):
            return tuple(each[begin:end] for each in value)
        return None if value is None else value[begin:end]

    data = [(part(inputs, *each), part(targets, *each)) for each in ends]
    vector = vectors(model).to(next(model.parameters()).dtype)
    found = hessian(model, loss_fn, data).matvec(vector)
    torch.testing.assert_close(
        found, hessian(model, loss_fn, [batch]).matvec(vector), rtol=1e-4, atol=1e-6
    )
    assert sharpness(model, loss_fn, data, m=4).samples == 16


@pytest.mark.parametrize("chance", [0.2, 0.5, 0.8])
def test_noise_now_and_then_is_noise(chance: float) -> None:
    def mixed(outputs: Tensor, targets: Tensor) -> Tensor:
        factor = 2.0 if random.random() < chance else 1.0
        return F.cross_entropy(outputs, targets) * factor

    for seed in range(5):
        random.seed(seed)
        assert hessian(mlp(), mixed, halves(Y)).matvec(torch.ones(43, dtype=D)).isfinite().all()


def test_the_remedy_of_a_masked_mean_is_its_weight() -> None:
    """With a batch that is masked whole, the sum of the batches' losses looks like the mean."""
    data = [(X[:8], torch.full((8,), -100)), (X[8:], Y[8:])]

    def of_unmasked(outputs: Tensor, targets: Tensor) -> Tensor:
        kept = targets != -100
        losses = F.cross_entropy(outputs, targets.clamp(min=0), reduction="none")
        return (losses * kept).sum() / kept.sum().clamp(min=1)

    with pytest.raises(ValueError, match="no mean over samples") as raised:
        hessian(mlp(), of_unmasked, data).matvec(torch.ones(43, dtype=D))
    assert 'weight="sum" adds' not in str(raised.value)


class WithPenalty(Worded):
    """A model whose own loss has a term that is no mean over labels."""

    def __init__(self, strength: float) -> None:
        super().__init__("object")
        self.strength = strength

    def forward(self, words: Tensor, labels: Tensor | None = None) -> Any:
        found = super().forward(words, None)
        plain = F.cross_entropy(found.logits.flatten(0, 1), labels.flatten())  # type: ignore[union-attr]
        found.loss = plain + self.strength * found.logits.square().mean()
        return found


def test_a_models_own_losses_have_one_unit() -> None:
    """Some batches were weighed by labels and others by samples, as their values happened to be."""
    data = words(3, [8, 3, 5], padded=True, named=True)
    with pytest.raises(ValueError, match=r"no mean over samples|not the mean over its labels"):
        hessian(WithPenalty(0.1), None, data).matvec(torch.ones(77, dtype=D))
    counted = lambda outputs, batch: (batch["labels"] != -100).sum()  # noqa: E731
    vector = torch.ones(77, dtype=D)
    plain = hessian(WithPenalty(0.0), None, data).matvec(vector)
    told = hessian(WithPenalty(0.0), None, data, weight=counted).matvec(vector)
    torch.testing.assert_close(plain, told)


class OfItsMean(nn.Module):
    """A cross-entropy divided by its own running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones((), dtype=D))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(outputs, targets)
        self.mean.mul_(0.9).add_(0.1 * loss.detach())
        return loss / self.mean


def test_a_loss_that_writes_into_what_it_divides_by_is_told_the_remedy() -> None:
    generator = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(4, 3, dtype=D, generator=generator), torch.arange(4) % 2) for _ in range(3)
    ]
    model, vector = nn.Linear(3, 2, dtype=D), torch.ones(8, dtype=D)
    with pytest.raises(RuntimeError, match=r"write into a tensor that their derivatives.* weight="):
        hessian(model, OfItsMean(), data).matvec(vector)
    found = hessian(model, OfItsMean(), data, weight="samples").matvec(vector)
    assert found.isfinite().all()
