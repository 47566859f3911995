"""Fisher matrices against sums over labels and samples in float64, each gradient by itself."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.stateful_model import snapshot
from steppe.landscape import diagonal, empirical_fisher, fisher, ggn, top_eigenvalues


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def inputs(samples: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 4, generator=generator, dtype=torch.float64)


def labels(samples: int = 7) -> Tensor:
    return torch.arange(samples) % 3


def batches(x: Tensor, y: Tensor, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    return torch.cat([grad.flatten() for grad in grads])


def gradients(model: nn.Module, loss, x: Tensor, y: Tensor) -> Tensor:
    """Return each sample's gradient as a row."""
    pairs = zip(x.split(1), y.split(1), strict=True)
    return torch.stack([gradient(model, loss(model(a), b)) for a, b in pairs])


def matrix(operator) -> Tensor:
    return operator.matmat(torch.eye(operator.size, dtype=operator.dtype))


def test_empirical_is_the_mean_of_outer_products(model) -> None:
    x, y = inputs(), labels()
    rows = torch.stack(
        [gradient(model, F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])) for i in range(7)]
    )
    found = empirical_fisher(model, F.cross_entropy, batches(x, y))
    torch.testing.assert_close(matrix(found), rows.T @ rows / 7, rtol=1e-12, atol=1e-14)
    summed = functools.partial(F.cross_entropy, reduction="sum")
    found = empirical_fisher(model, summed, batches(x, y))
    torch.testing.assert_close(matrix(found), rows.T @ rows, rtol=1e-12, atol=1e-13)
    # A loss of one's own, which is verified to be a mean over samples.
    found = empirical_fisher(model, lambda out, y: F.cross_entropy(out, y), batches(x, y))
    torch.testing.assert_close(matrix(found), rows.T @ rows / 7, rtol=1e-12, atol=1e-14)


def test_its_diagonal_is_the_mean_of_squared_gradients(model) -> None:
    """Which is what Adam's second moments are a mean of, where batches are single samples."""
    x, y = inputs(), labels()
    H = empirical_fisher(model, F.cross_entropy, [(x, y)])
    found = diagonal(H, products=2 * H.size)
    torch.testing.assert_close(
        found.values, gradients(model, F.cross_entropy, x, y).square().mean(0)
    )


def test_of_a_language_model_a_sample_is_a_sequence() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5)).double()
    tokens = torch.arange(12).reshape(3, 4) % 5
    targets = (tokens + 1) % 5

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    rows = torch.stack(
        [
            gradient(model, loss(model(t[None]), y[None]))
            for t, y in zip(tokens, targets, strict=True)
        ]
    )
    found = empirical_fisher(model, loss, batches(tokens, targets, 2))
    torch.testing.assert_close(matrix(found), rows.T @ rows / 3, rtol=1e-12, atol=1e-14)


def test_of_the_models_own_labels(model) -> None:
    """The expectation over labels, one by one; those of the data do not matter."""
    x = inputs()
    truth = torch.zeros(27, 27, dtype=torch.float64)
    for row in x:
        logits = model(row[None])
        for label, p in enumerate(logits.softmax(1)[0].detach()):
            g = gradient(model, F.cross_entropy(logits, torch.tensor([label])))
            truth += p * torch.outer(g, g) / 7
    for y in (labels(), labels().flip(0)):
        for loss in (F.cross_entropy, nn.CrossEntropyLoss(), functools.partial(F.cross_entropy)):
            found = fisher(model, loss, batches(x, y))
            torch.testing.assert_close(
                matrix(found), truth[: found.size, : found.size], rtol=1e-10, atol=1e-13
            )


LIKELIHOODS = {
    "bce": F.binary_cross_entropy_with_logits,
    "poisson": F.poisson_nll_loss,
    "mse": F.mse_loss,
}


def predicted(name: str, out: float) -> list[tuple[float, float]]:
    """Return labels and their probabilities, of a Gaussian two that have its variance, ½."""
    if name == "bce":
        p = 1 / (1 + math.exp(-out))
        return [(0.0, 1 - p), (1.0, p)]
    if name == "mse":
        return [(out - 0.5**0.5, 0.5), (out + 0.5**0.5, 0.5)]
    return [(float(n), math.exp(n * out - math.exp(out) - math.lgamma(n + 1))) for n in range(80)]


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_of_other_likelihoods(model, name: str) -> None:
    """The expectation over each output's labels: the mean of three samples' three predictions."""
    x, loss = inputs(3), LIKELIHOODS[name]
    truth = torch.zeros(27, 27, dtype=torch.float64)
    for out in model(x).flatten():
        for label, p in predicted(name, out.item()):
            g = gradient(model, loss(out, torch.tensor(label, dtype=torch.float64)))
            truth += p * torch.outer(g, g) / 9
    found = fisher(model, loss, [(x, torch.ones(3, 3, dtype=torch.float64))])
    torch.testing.assert_close(matrix(found), truth, rtol=1e-9, atol=1e-13)


def test_it_is_ggn_and_leaves_the_model_as_it_was(model) -> None:
    x, y = inputs(), labels()
    before = snapshot(model)
    H, G = fisher(model, F.cross_entropy, [(x, y)]), ggn(model, F.cross_entropy, [(x, y)])
    assert torch.equal(matrix(H), matrix(G))
    assert top_eigenvalues(empirical_fisher(model, F.cross_entropy, [(x, y)]), 1).is_done
    assert empirical_fisher(model, F.cross_entropy, [(x, y)], params="2").shape == (12, 12)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, targets: F.cross_entropy(outputs, targets),
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        functools.partial(F.cross_entropy, weight=torch.ones(3)),
        nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)),
        nn.PoissonNLLLoss(log_input=False),
        functools.partial(F.cross_entropy, torch.zeros(2, 3)),
        F.nll_loss,
        nn.L1Loss(),
    ],
)
def test_losses_of_no_known_likelihood_are_refused(model, loss) -> None:
    with pytest.raises(ValueError, match="is not known as minus the logarithm"):
        fisher(model, loss, [(inputs(), labels())])


def test_mistakes_are_named(model) -> None:
    x, y = inputs(), labels()
    with pytest.raises(ValueError, match="loss_fn=None: empirical_fisher needs"):
        empirical_fisher(model, None, [(x, y)])
    pooled = nn.Sequential(model, nn.Flatten(0))
    with pytest.raises(ValueError, match=r"batch 0 has 7 samples, and outputs of shape \(21,\)"):
        empirical_fisher(pooled, lambda o, t: o.mean(), [(x, y)]).matvec(torch.zeros(27).double())
