"""Losses that models compute themselves: what they are means over is found out, or refused."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.landscape import Operator, hessian, line, sharpness

D = torch.float64
LossFunction = Callable[[Tensor, Tensor], Tensor]


class Own(nn.Module):
    """Computes its loss, as Hugging Face's models do."""

    def __init__(self, loss_fn: LossFunction, width: int, inputs: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.loss_fn = nn.Linear(inputs, width), loss_fn

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = self.body(x)
        return {"loss": self.loss_fn(outputs, labels), "logits": outputs}


def batches(inputs: Tensor, labels: Tensor, size: int) -> list[dict[str, Tensor]]:
    parts = zip(inputs.split(size), labels.split(size), strict=True)
    return [{"x": x, "labels": y} for x, y in parts]


def product(H: Operator) -> Tensor:
    return H.matvec(torch.linspace(-1, 1, H.size).to(H.dtype))


G = torch.Generator().manual_seed(0)
X = torch.randn(32, 6, dtype=D, generator=G)
WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=D)
SORTED = torch.arange(32) // 8


def weighted(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, weight=WEIGHTS.to(outputs))


@pytest.mark.parametrize("size", [1, 4, 8])
@pytest.mark.parametrize("deviation", [0.0, 1.0])
def test_weights_that_cancel_within_each_batch_are_seen_in_two(size: int, deviation: float) -> None:
    """In batches of one class each, or one sample: 1.449 was said to be the eigenvalue 0.717."""
    model = Own(weighted, 4).to(D)
    nn.init.normal_(model.body.weight, std=deviation)
    data = batches(X, SORTED, size)
    with pytest.raises(ValueError, match=r"together is not the mean over their labels.*weight="):
        product(hessian(model, None, data))
    found = hessian(model, None, data, weight=lambda _, batch: WEIGHTS[batch["labels"]].sum())
    whole = hessian(model, None, batches(X, SORTED, 32))
    torch.testing.assert_close(product(found), product(whole))


RARE = (torch.arange(32) % 16 == 15).long()


def of_rare_classes(outputs: Tensor, labels: Tensor) -> Tensor:
    return (F.cross_entropy(outputs, labels, reduction="none") * (1 + 19 * labels)).mean()


def of_rare_positives(outputs: Tensor, labels: Tensor) -> Tensor:
    weight = torch.tensor(20.0, dtype=outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs[:, 0], labels.to(outputs), pos_weight=weight)


@pytest.mark.parametrize(("loss_fn", "width"), [(of_rare_classes, 2), (of_rare_positives, 1)])
def test_a_mean_over_samples_may_look_like_that_over_labels_at_first(
    loss_fn: LossFunction, width: int
) -> None:
    """In batches without the rare class it is the plain mean: the next batch was refused."""
    model = Own(loss_fn, width).to(D)
    whole = hessian(model, None, batches(X, RARE, 32))
    torch.testing.assert_close(product(hessian(model, None, batches(X, RARE, 6))), product(whole))


def clamped(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.nll_loss((outputs.softmax(-1) + 1e-8).log(), labels)


@pytest.mark.parametrize("size", [8, 32])
def test_losses_with_a_clamp_can_be_followed_far_away(size: int) -> None:
    """Far away they are not the mean of cross-entropies any more, which was refused midway."""
    model, data = Own(clamped, 4).to(D), batches(X, SORTED, size)
    direction = torch.linspace(-1, 1, 28, dtype=D).sin()
    own = line(model, None, data, direction=direction, reach=60.0, points=5)
    pairs = [(each["x"], each["labels"]) for each in data]
    plain = line(model.body, clamped, pairs, direction=direction, reach=60.0, points=5)
    torch.testing.assert_close(torch.tensor(own.losses), torch.tensor(plain.losses))
    assert sharpness(model, None, data, rho=5.0).value == pytest.approx(
        sharpness(model.body, clamped, pairs, rho=5.0).value
    )


def test_a_loss_that_is_no_number_in_a_later_batch_is_named() -> None:
    inputs = X.clone()
    inputs[20] = float("nan")
    with pytest.raises(ValueError, match="the loss of batch 2 is nan"):
        product(hessian(Own(F.cross_entropy, 4).to(D), None, batches(inputs, SORTED, 8)))


class Positive(Own):
    """A parameter that no other one may stand for."""

    def __init__(self) -> None:
        super().__init__(F.cross_entropy, 4)
        nn.init.zeros_(self.body.weight)
        nn.init.zeros_(self.body.bias)
        self.scale = nn.Parameter(torch.tensor(1e-3))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if not 0 < self.scale < 0.01:
            raise FloatingPointError("scale must be positive, and small")
        return super().forward(x * self.scale, labels)


@pytest.mark.parametrize("size", [8, 32])
def test_a_model_that_runs_with_few_parameters_only_is_measured(size: int) -> None:
    model = Positive().to(D)
    found = product(hessian(model, None, batches(X, SORTED, size)))
    torch.testing.assert_close(found, product(hessian(model, None, batches(X, SORTED, 32))))


WORDS = torch.randn(12, 10, 6, dtype=D, generator=G)
# Padded at the ends: 10, 3 and 1 words of each sentence count.
LENGTHS = torch.tensor([10, 3, 1]).repeat_interleave(4)
TAGS = torch.where(torch.arange(10) < LENGTHS[:, None], torch.arange(10) % 4, -100)


def of_words(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), labels.flatten())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, D])
def test_labels_count_in_half_precision_too(dtype: torch.dtype) -> None:
    """Torch's cross-entropy is 1 % off there: words were weighed as sentences, 50 % off."""
    model, words = Own(of_words, 4).to(dtype), WORDS.to(dtype)
    found = product(hessian(model, None, batches(words, TAGS, 4)))
    counted = hessian(
        model, None, batches(words, TAGS, 4), weight=lambda _, batch: (batch["labels"] >= 0).sum()
    )
    torch.testing.assert_close(found, product(counted), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_losses_of_half_precision_are_verified_in_full(dtype: torch.dtype) -> None:
    """A difference of 5 % passed as rounding."""
    model = nn.Linear(6, 4).to(dtype)
    data = [(x["x"], x["labels"]) for x in batches(WORDS.to(dtype), TAGS, 4)]
    with pytest.raises(ValueError, match="no mean over samples"):
        product(hessian(model, lambda outputs, labels: of_words(outputs, labels), data))


def focal(outputs: Tensor, labels: Tensor) -> Tensor:
    losses = F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none")
    weights = (1 - (-losses).exp()) ** 2
    return (weights * losses).sum() / (labels >= 0).sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_own_losses_of_half_precision_are_verified_in_full(dtype: torch.dtype) -> None:
    """A difference of 5 % passed as rounding: words were weighed as sentences."""
    with pytest.raises(ValueError, match=r"no mean over samples.*pass weight="):
        product(hessian(Own(focal, 4).to(dtype), None, batches(WORDS.to(dtype), TAGS, 4)))


def new(loss_fn: LossFunction) -> nn.Module:
    model = Own(loss_fn, 4).to(D)
    nn.init.zeros_(model.body.weight)
    nn.init.zeros_(model.body.bias)
    return model


DIRECTION = torch.linspace(-1, 1, 28, dtype=D).sin()


def test_new_networks_are_followed_along_lines() -> None:
    """In passes without gradients no parameter was another one, so that nothing told."""
    data, whole = batches(WORDS, TAGS, 4), batches(WORDS, TAGS, 12)
    found, true = (
        line(new(of_words), None, each, direction=DIRECTION, points=3) for each in (data, whole)
    )
    torch.testing.assert_close(torch.tensor(found.losses), torch.tensor(true.losses))
    mean, all_at_once = (
        sharpness(new(of_words), None, each, kind="average", rho=0.5, seed=0)
        for each in (data, whole)
    )
    assert mean.value == pytest.approx(all_at_once.value)
    mixed = batches(X, torch.arange(32) % 4, 6)
    with pytest.raises(ValueError, match="pass weight="):
        line(new(weighted), None, mixed, direction=DIRECTION, points=3)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_groups_weigh_their_labels(m: int) -> None:
    """Groups of one were weighed as samples, and others refused."""
    model, data = Own(of_words, 4).to(D), batches(WORDS, TAGS, 4)
    own = sharpness(model, None, data, rho=0.1, m=m)
    counted = sharpness(
        model, None, data, rho=0.1, m=m, weight=lambda _, batch: (batch["labels"] >= 0).sum()
    )
    assert own.value == pytest.approx(counted.value, rel=1e-12)
