"""What a model keeps of its score, against plain loops over a changed copy of it."""

import io
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helpers import torchvision_shim  # noqa: F401  before torchmetrics
from helpers.changed_models import changed_copy
from steppe.landscape import (
    Corruption,
    Robustness,
    Rounding,
    WeightNoise,
    reference_of,
    robustness,
    weight_tails,
)
from steppe.landscape.perturbations.confidence import Confidences, calibration_error
from steppe.landscape.perturbations.perturbation import generator_of
from steppe.landscape.perturbations.rounding import round_to_bits

CLASSES = 4


def points(count: int = 90) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 6, generator=generator)
    labels = (inputs[:, :CLASSES] + 0.5 * torch.randn(count, 4, generator=generator)).argmax(1)
    return inputs, labels


def images(count: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(count, 2, 9, 8, generator=generator),
        torch.randint(CLASSES, (count,), generator=generator),
    )


def network() -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    inputs, labels = points()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


def convolutions() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 72, CLASSES)
    )


def cut(pair: tuple[Tensor, Tensor], *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(each.split(list(sizes)) for each in pair), strict=True))


def rounded(bits: int, kind: Any) -> Callable[[Tensor], Tensor]:
    return lambda w: round_to_bits(w.flatten(1), bits, kind).reshape(w.shape)


def scored(model: nn.Module, pair: tuple[Tensor, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each sample is right, and its loss."""
    with torch.no_grad():
        outputs = model(pair[0])
    losses = F.cross_entropy(outputs.double(), pair[1], reduction="none")
    return (outputs.argmax(1) == pair[1]).double().numpy(), losses.numpy()


def error_of(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def crossed_error(table: np.ndarray) -> float:
    """Return the error of a mean over draws and samples, from an analysis of variance by hand."""
    draws, samples = table.shape
    middle = table.mean()
    of_samples = draws * sum((table[:, s].mean() - middle) ** 2 for s in range(samples))
    of_draws = samples * sum((table[d].mean() - middle) ** 2 for d in range(draws))
    left = ((table - middle) ** 2).sum() - of_samples - of_draws
    squares = of_samples / (samples - 1), of_draws / (draws - 1)
    residual = left / ((samples - 1) * (draws - 1))
    return math.sqrt(max(sum(squares) - residual, *squares) / (draws * samples))


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("kind", ["absmax", "least error"])
def test_scores_losses_and_paired_changes_are_those_of_a_rounded_copy(bits: int, kind: Any) -> None:
    model, data = network(), cut(points(), 50, 37, 3)
    found = robustness(model, data, perturbations=[Rounding(bits, kind)])
    clean, own = found["clean"], found[f"{bits} bits {kind}"]
    before, after = (
        scored(model, points()),
        scored(changed_copy(model, rounded(bits, kind)), points()),
    )
    for each, (hits, losses) in ((clean, before), (own, after)):
        assert each.score == hits.mean()
        assert each.score_error == pytest.approx(error_of(hits))
        assert each.loss == pytest.approx(losses.mean(), rel=1e-5)
        assert each.loss_error == pytest.approx(error_of(losses), rel=1e-5)
    assert own.change == pytest.approx((after[0] - before[0]).mean())
    assert own.change_error == pytest.approx(error_of(after[0] - before[0]))
    assert (found.metric, found.samples, found.complete) == ("accuracy", 90, True)
    assert (clean.change, clean.change_error) == (0, 0)


def test_a_metric_of_ones_own_and_a_loss_that_is_no_cross_entropy() -> None:
    def margin(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.gather(1, targets[:, None])[:, 0]

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, F.one_hot(targets, CLASSES).float())

    model, data = network(), cut(points(), 50, 37, 3)
    found = robustness(model, data, loss_fn, metric=margin, perturbations=[Rounding(3, "absmax")])
    copied = changed_copy(model, rounded(3, "absmax"))
    with torch.no_grad():
        own, clean = (margin(m(points()[0]), points()[1]).double() for m in (copied, model))
        loss = float(loss_fn(copied(points()[0]), points()[1]))
    each = found["3 bits absmax"]
    assert found.metric == "margin"
    assert each.score == pytest.approx(float(own.mean()))
    assert each.change == pytest.approx(float((own - clean).mean()), abs=1e-6)
    assert each.change_error == pytest.approx(error_of((own - clean).numpy()))
    assert each.loss == pytest.approx(loss, rel=1e-5)


def noisy(model: nn.Module, share: float, seed: int, draw: int) -> nn.Module:
    generator = generator_of(seed, f"weight noise {share:g}", draw)
    return changed_copy(
        model,
        lambda w: (
            w + share * float(w.std(correction=0)) * torch.randn(w.shape, generator=generator)
        ),
    )


def test_noise_on_weights_is_the_mean_over_its_draws() -> None:
    model = network()
    found = robustness(model, [points()], perturbations=[WeightNoise(0.4, draws=5)], seed=3)
    each = found["weight noise 0.4"]
    clean = scored(model, points())[0]
    hits = np.array([scored(noisy(model, 0.4, 3, draw), points())[0] for draw in range(5)])
    assert each.draws == 5
    assert each.score == pytest.approx(hits.mean())
    assert each.change == pytest.approx((hits - clean).mean())
    assert each.score_error == pytest.approx(crossed_error(hits))
    assert each.change_error == pytest.approx(crossed_error(hits - clean))


def test_errors_over_draws_are_those_of_repetitions() -> None:
    """The change of a model on all samples that there are varies by its draws alone."""
    model, pair = network(), points(400)
    data = [pair]
    found = [
        robustness(model, data, perturbations=[WeightNoise(0.5, draws=6)], seed=seed)
        for seed in range(40)
    ]
    means = np.array([each["weight noise 0.5"].score for each in found])
    errors = np.array([each["weight noise 0.5"].score_error for each in found])
    by_sample = np.array([each["clean"].score_error for each in found])
    claimed = np.sqrt(np.mean(errors**2 - by_sample**2 / 2))
    # The share of the samples cannot be told apart exactly; it is small beside that of draws.
    assert 0.6 < means.std(ddof=1) / claimed < 1.3


def test_errors_over_samples_are_those_of_other_samples() -> None:
    model = network()
    torch.manual_seed(0)
    parts = cut(points(9000), *[90] * 100)
    found = [robustness(model, [each], perturbations=[Rounding(2, "absmax")]) for each in parts]
    for field in ("score", "loss", "change"):
        values = np.array([getattr(each["2 bits absmax"], field) for each in found])
        errors = np.array([getattr(each["2 bits absmax"], f"{field}_error") for each in found])
        assert values.std(ddof=1) == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.2)


def same(one: Robustness, other: Robustness) -> None:
    for mine, theirs in zip(one.results, other.results, strict=True):
        assert mine.name == theirs.name
        for name, value in mine.to_dict().items():
            if name != "name":
                assert value == pytest.approx(getattr(theirs, name), rel=1e-4, abs=1e-6), mine.name
    for name in ("kurtosis", "outliers", "calibration_error", "brier", "brier_stderr", "samples"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-5)


def test_all_is_the_same_however_images_are_batched() -> None:
    """With noise and shifts, too, which every image meets by its position in the data."""
    model = convolutions()
    whole = robustness(model, [images()])
    assert len(whole.results) == 1 + 9 + 3 + 15
    same(whole, robustness(model, cut(images(), 20, 1, 39)))
    same(whole, robustness(model, DataLoader(TensorDataset(*images()), 7)))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_shuffled_loader_gives_what_its_samples_give(seed: int) -> None:
    pair = points()
    perturbations = [Rounding(2, "absmax"), WeightNoise(0.3), Rounding(2, "compensated")]
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(*pair), 13, shuffle=True, generator=generator)
    state = generator.get_state()
    found = robustness(network(), loader, perturbations=perturbations)
    same(found, robustness(network(), [pair], perturbations=perturbations))
    assert torch.equal(generator.get_state(), state)


class Words(nn.Module):
    """A classifier of padded texts, which sees real tokens alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 8), nn.Linear(8, CLASSES)
        self.seen: list[Tensor] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        embedded = self.embedding(input_ids) * attention_mask[..., None]
        output: Tensor = self.head(embedded.sum(1) / attention_mask.sum(1, keepdim=True))
        return output


def texts(count: int = 40, length: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(length) < torch.randint(3, 9, (count, 1), generator=generator)
    tokens = torch.randint(1, 50, (count, length), generator=generator) * mask
    return tokens, mask.long(), torch.randint(CLASSES, (count,), generator=generator)


def padded_to_the_longest(*sizes: int, as_tuple: bool) -> list[Any]:
    batches = []
    for tokens, mask, labels in zip(*(each.split(list(sizes)) for each in texts()), strict=True):
        longest = int(mask.sum(1).max())
        tokens, mask = tokens[:, :longest], mask[:, :longest]
        inputs: Any = (tokens, mask)
        if not as_tuple:
            inputs = {"input_ids": tokens, "attention_mask": mask}
        batches.append((inputs, labels))
    return batches


@pytest.mark.parametrize("as_tuple", [False, True], ids=["mapping", "tuple"])
def test_all_is_the_same_however_texts_are_batched_and_padded(as_tuple: bool) -> None:
    torch.manual_seed(3)
    model = Words()
    whole = robustness(model, padded_to_the_longest(40, as_tuple=as_tuple))
    assert len(whole.results) == 1 + 9 + 3 + 6
    assert any(abs(each.change) > 0 for each in whole.results[-6:])
    same(whole, robustness(model, padded_to_the_longest(7, 1, 20, 12, as_tuple=as_tuple)))


@pytest.mark.parametrize("as_tuple", [False, True], ids=["mapping", "tuple"])
@pytest.mark.parametrize("kind", ["dropout", "swaps"])
def test_masks_and_padding_are_not_corrupted(kind: str, as_tuple: bool) -> None:
    (inputs, _), *_ = padded_to_the_longest(40, as_tuple=as_tuple)
    reference = reference_of([inputs])
    found = Corruption(kind, 5).corrupted(inputs, reference, torch.Generator().manual_seed(0))
    names: Any = (0, 1) if as_tuple else ("input_ids", "attention_mask")
    tokens, mask = (inputs[name] for name in names)
    assert torch.equal(found[names[1]], mask)
    assert not torch.equal(found[names[0]], tokens)
    assert torch.equal(found[names[0]][mask == 0], tokens[mask == 0])
    assert (found[names[0]][mask == 1] > 0).all()


def test_a_corruption_is_that_of_plain_torch() -> None:
    model, pair = convolutions(), images()
    chosen = [Corruption("noise", 3), Corruption("brightness", 5, draws=2)]
    found = robustness(model, cut(pair, 25, 35), perturbations=chosen, seed=5)
    generator = generator_of(5, "noise 3", 0)
    noise = torch.stack([torch.randn(2, 9, 8, generator=generator) for _ in range(60)])
    changed = pair[0] + 0.7 * float(pair[0].double().std(correction=0)) * noise
    assert found["noise 3"].loss == pytest.approx(scored(model, (changed, pair[1]))[1].mean(), 1e-5)
    low, high = float(pair[0].min()), float(pair[0].max())
    brighter = (pair[0] + 0.5 * (high - low)).clamp(max=high)
    each = found["brightness 5"]
    assert each.draws == 2
    assert each.loss == pytest.approx(scored(model, (brighter, pair[1]))[1].mean(), 1e-5)


def test_compensated_rounding_is_fitted_on_other_data_if_there_are_any() -> None:
    model, chosen = network(), [Rounding(2, "compensated")]
    inputs, labels = points()
    narrow = (inputs * torch.tensor([5.0, 5, 0.1, 0.1, 0.1, 0.1]), labels)
    own = robustness(model, [points()], perturbations=chosen)
    other = robustness(model, [points()], perturbations=chosen, fitting_data=[narrow])
    assert own["clean"] == other["clean"]
    assert own["2 bits compensated"].loss != other["2 bits compensated"].loss
    # Of the batches the first ones, until they have 256 samples.
    many = [narrow, narrow, narrow, (100 * inputs, labels)]
    again = robustness(model, [points()], perturbations=chosen, fitting_data=many)
    assert again["2 bits compensated"].loss == pytest.approx(other["2 bits compensated"].loss)


def test_calibration_is_torchmetrics_and_brier_its_formula() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    model, (inputs, labels) = network(), points()
    found = robustness(model, cut(points(), 50, 40), perturbations=[])
    with torch.no_grad():
        shares = model(inputs).double().softmax(1)
    expected = multiclass_calibration_error(shares, labels, CLASSES, n_bins=15, norm="l1")
    assert found.calibration_error == pytest.approx(float(expected), abs=1e-6)
    brier = (shares - F.one_hot(labels, CLASSES)).square().sum(1).numpy()
    assert found.brier == pytest.approx(brier.mean())
    assert found.brier_stderr == pytest.approx(error_of(brier))
    groups = np.arange(90) % 20
    without = []
    for group in range(20):
        kept = torch.from_numpy(groups != group)
        without.append(
            float(multiclass_calibration_error(shares[kept], labels[kept], CLASSES, n_bins=15))
        )
    jackknife = math.sqrt(19 / 20 * np.sum((np.array(without) - np.mean(without)) ** 2))
    assert found.calibration_error_stderr == pytest.approx(jackknife, rel=1e-4)


def test_calibration_of_random_confidences_is_torchmetrics() -> None:
    from torchmetrics.functional.classification import binary_calibration_error

    generator = torch.Generator().manual_seed(0)
    for size in (1, 7, 400):
        top = 0.5 + 0.5 * torch.rand(size, generator=generator, dtype=torch.float64)
        right = (torch.rand(size, generator=generator) < 0.7).double()
        expected = binary_calibration_error(top, right.long(), n_bins=15)
        assert calibration_error(top, right) == pytest.approx(float(expected), abs=1e-6)


def test_outputs_that_are_probabilities_are_taken_as_they_are() -> None:
    logits, labels = torch.randn(30, CLASSES), torch.randint(CLASSES, (30,))
    found = []
    for rows in (logits, logits.softmax(1)):
        known = Confidences()
        known.add(rows, labels)
        found.append(known.joined())
    one, other = found
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)


def test_tails_are_scipys() -> None:
    model = nn.Sequential(nn.Linear(40, 50), nn.Conv2d(3, 5, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.distributions.StudentT(3.0).sample((50, 40)))
    weights = [model[0].weight.detach().double().numpy(), model[1].weight.detach().double().numpy()]
    sizes = [each.size for each in weights]
    kurtosis = [scipy.stats.kurtosis(each, axis=None, fisher=False) for each in weights]
    beyond = [(np.abs(scipy.stats.zscore(each, axis=None)) > 3).mean() for each in weights]
    found = weight_tails(model)
    assert found.kurtosis == pytest.approx(np.average(kurtosis, weights=sizes))
    assert found.outliers == pytest.approx(np.average(beyond, weights=sizes))


@pytest.mark.thorough
def test_another_process_gives_the_same_numbers() -> None:
    code = (
        "import sys; sys.path[:0] = ['tests']; "
        "import importlib.util as u; "
        f"spec = u.spec_from_file_location('t', {__file__!r}); t = u.module_from_spec(spec); "
        "spec.loader.exec_module(t); "
        "import torch; torch.manual_seed(99); "
        "print(t.robustness(t.convolutions(), [t.images()], seed=4).to_dict())"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == str(robustness(convolutions(), [images()], seed=4).to_dict())


def test_seeds_give_other_noise_and_torchs_default_format_does_not() -> None:
    chosen = [WeightNoise(0.5), Corruption("noise", 5), Corruption("shift", 5)]
    one, other = (
        robustness(convolutions(), [images()], perturbations=chosen, seed=seed) for seed in (0, 1)
    )
    for mine, theirs in zip(one.results[1:], other.results[1:], strict=True):
        assert mine.loss != theirs.loss
    model, data = convolutions(), [images()]
    torch.set_default_dtype(torch.float64)
    try:
        again = robustness(model, data, perturbations=chosen, seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    same(one, again)


def test_the_table_has_all_of_it() -> None:
    def depth(model: nn.Module, data: Any) -> float:
        return len(list(model.modules()))

    found = robustness(
        network(), cut(points(), 45, 45), perturbations=[Rounding(2)], measures={"[b]depth": depth}
    )
    text = str(found)
    for word in (
        "clean",
        "2 bits least error",
        "kurtosis",
        "3σ",
        "calibration",
        "Brier",
        "[b]depth",
    ):
        assert word in text
    assert found.own == {"[b]depth": 4.0}
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(found.table())
    assert "[b]depth" in console.export_text()
    assert "2 bits least error" in found._repr_html_()
    labels = [each.get_text() for each in found.plot().get_yticklabels()]
    assert labels == ["clean", "2 bits least error"]
    with pytest.raises(KeyError, match="'3 bits absmax' was not measured: clean, 2 bits least"):
        found["3 bits absmax"]
