"""Label noise: as many labels as it says, never the same class, and always the same ones."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from steppe.compare.data.datasets import Data, Stream, TensorSamples
from steppe.compare.data.label_noise import Relabelled, with_label_noise
from steppe.compare.data.loading import loader

CLASSES = 7


def samples(count: int, seed: int = 0, start: int = 0) -> TensorSamples:
    """Make samples that tell their number, with classes of ``CLASSES`` in any order."""
    generator = torch.Generator().manual_seed(seed)
    targets = start + torch.randint(0, CLASSES, (count,), generator=generator)
    return TensorSamples(torch.arange(float(count))[:, None], targets)


def made(count: int = 20_000, **changes: Any) -> Data:
    parts = {"train": samples(count, 1), "validation": samples(500, 2), "test": samples(300, 3)}
    return Data(**{**parts, **changes}, fingerprint="made")


def labels(part: Dataset[Any]) -> Tensor:
    """Read labels as training does, by batches."""
    return torch.cat([batch[1] for ((batch, _),) in loader(part, 64)])


@pytest.mark.parametrize("probability", [0.05, 0.4, 0.9])
def test_the_share_of_changed_labels_is_the_probability(probability: float) -> None:
    clean = made()
    noisy = with_label_noise(clean, probability)
    for part in ("train", "validation"):
        before, after = labels(getattr(clean, part)), labels(getattr(noisy, part))
        low, high = binom.interval(0.9999, len(before), probability)
        assert low <= (before != after).sum() <= high, part


def test_a_changed_label_is_each_of_the_other_classes_equally_often() -> None:
    clean = made(60_000)
    before, after = labels(clean.train), labels(with_label_noise(clean, 0.5).train)
    changed = before != after
    pairs = torch.stack((before, after))[:, changed]
    counts = torch.zeros(CLASSES, CLASSES).index_put_(
        tuple(pairs), torch.ones(pairs.shape[1]), accumulate=True
    )
    assert not counts.diagonal().any()
    expected = counts.sum(1, keepdim=True) / (CLASSES - 1)
    off = ~torch.eye(CLASSES, dtype=torch.bool)
    statistic = ((counts - expected).square() / expected)[off].sum()
    assert statistic < chi2.ppf(0.9999, CLASSES * (CLASSES - 2))


def test_the_test_set_and_all_inputs_stay() -> None:
    clean = made()
    noisy = with_label_noise(clean, 0.9)
    assert noisy.test is clean.test
    for ((batch, _),), ((other, _),) in zip(
        loader(clean.train, 64), loader(noisy.train, 64), strict=True
    ):
        assert torch.equal(batch[0], other[0])


def test_the_labels_are_the_same_each_time_and_others_by_the_seed() -> None:
    found = [labels(with_label_noise(made(), 0.4, seed).train) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_they_depend_on_the_position_alone() -> None:
    """Of fewer samples those that are left have the same labels; more noise keeps what is noisy."""
    whole = labels(with_label_noise(made(), 0.4).train)
    for count in (1, 5, 17, 4_001):
        few = made(train=made().train.take(torch.arange(count)))
        assert torch.equal(labels(with_label_noise(few, 0.4).train), whole[:count])
    clean, more = labels(made().train), labels(with_label_noise(made(), 0.6).train)
    changed = whole != clean
    assert torch.equal(more[changed], whole[changed])


def test_training_and_validation_are_not_changed_alike() -> None:
    same = samples(1000)
    noisy = with_label_noise(made(train=same, validation=same), 0.4)
    assert not torch.equal(labels(noisy.train), labels(noisy.validation))


class Augmented(Dataset[Any]):
    """Gives another input each time."""

    def __init__(self, samples: TensorSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        inputs, target = self.samples[row]
        return inputs + torch.rand(()), target


def test_samples_without_augmentation_have_the_labels_of_training() -> None:
    plain = samples(2_000)
    noisy = with_label_noise(made(train=Augmented(plain), plain=plain), 0.4)
    assert noisy.plain is not None
    assert torch.equal(labels(noisy.train), labels(noisy.plain))
    assert not torch.equal(labels(noisy.plain), plain.targets)
    assert (noisy.train[0][0] != noisy.train[0][0]).all()


class Pairs(Dataset[Any]):
    """Samples that are read one by one, with labels of some type."""

    def __init__(self, samples: TensorSamples, kind: Any) -> None:
        self.samples, self.kind = samples, kind

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        inputs, target = self.samples[row]
        return inputs, self.kind(target.item())


def test_labels_are_the_same_in_whatever_form_and_keep_their_type() -> None:
    train = samples(700)
    expected = labels(with_label_noise(made(train=train), 0.4).train)
    forms: list[tuple[Any, type]] = [
        (TensorDataset(train.inputs, train.targets), Tensor),
        (TensorDataset(train.inputs, train.targets.int()), Tensor),
        (Subset(train, list(range(700))), Tensor),
        (Pairs(train, int), int),
        (Pairs(train, np.uint8), np.uint8),
        (Pairs(train, torch.tensor), Tensor),
        ([*Pairs(train, int)], int),
        ([[*sample] for sample in Pairs(train, int)], int),
    ]
    for form, kind in forms:
        noisy = with_label_noise(made(train=form), 0.4).train
        assert torch.equal(labels(noisy).long(), expected), form
        for row in (0, 1, 699):
            before, after = form[row], noisy[row]
            assert type(before) is type(after)
            assert isinstance(after[1], kind)
            assert type(before[1]) is type(after[1])
            assert getattr(before[1], "dtype", None) == getattr(after[1], "dtype", None)


def test_labels_of_a_part_of_the_samples_are_those_of_the_part() -> None:
    train = samples(900)
    rows = torch.randperm(900)[:300]
    expected = labels(with_label_noise(made(train=train.take(rows)), 0.4).train)
    found = labels(with_label_noise(made(train=Subset(train, rows.tolist())), 0.4).train)
    assert torch.equal(found, expected)


def test_batches_are_asked_for_at_once_where_the_samples_give_them() -> None:
    class Asked(TensorDataset):
        def __getitems__(self, rows: list[int]) -> Any:
            asked.append(rows)
            return [self[row] for row in rows]

    asked: list[list[int]] = []
    whole = Asked(torch.eye(3), torch.tensor([0, 1, 2]))
    assert labels(Relabelled(whole, torch.tensor([1, 1, 0]))).tolist() == [1, 1, 0]
    assert asked == [[0, 1, 2]]


def test_the_tasks_of_a_stream_keep_their_classes() -> None:
    def stream(count: int, seed: int) -> Stream:
        return Stream(samples(count, seed + task, start=CLASSES * task) for task in range(3))

    clean = Data(stream(2_000, 1), stream(500, 4), stream(300, 7), fingerprint="stream")
    noisy = with_label_noise(clean, 0.4)
    for before, after in ((clean.train, noisy.train), (clean.validation, noisy.validation)):
        assert isinstance(after, Stream)
        assert len(after.datasets) == 3
        changes = []
        for task, (old, new) in enumerate(zip(before.datasets, after.datasets, strict=True)):
            assert torch.equal(labels(new) // CLASSES, torch.full((len(new),), task))
            changed = labels(old) != labels(new)
            low, high = binom.interval(0.9999, len(new), 0.4)
            assert low <= changed.sum() <= high
            changes.append(changed.tolist())
        assert changes[0] != changes[1] != changes[2]


def test_only_classes_that_occur_are_drawn() -> None:
    odd = TensorSamples(torch.zeros(600, 1), torch.tensor([3, 90, 7]).repeat(200))
    noisy = with_label_noise(made(train=odd, validation=odd), 0.4)
    assert labels(noisy.train).unique().tolist() == [3, 7, 90]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (TensorSamples(torch.zeros(4, 1), torch.zeros(4)), r"train has targets of torch.float32"),
        (TensorSamples(torch.zeros(4, 1), torch.zeros(4, 5).long()), r"in the shape \(4, 5\)"),
        (
            TensorSamples(torch.zeros(2, 1), torch.tensor([1, -1])),
            "integer of at least 0 .*least -1",
        ),
        (TensorSamples(torch.zeros(2, 1), torch.tensor([True, False])), "targets of torch.bool"),
        ([(0.0, 0.5)] * 4, "a target of train is a float"),
        ([(0.0, "cat")] * 4, "a target of train is a str"),
        ([(0.0, True)] * 4, "a target of train is a bool"),
        ([(0.0, torch.tensor([1]))] * 4, "a target of train is a Tensor"),
        (
            [{"x": 0.0, "labels": 1}] * 4,
            r"pairs \(inputs, label\), and a sample of train is a dict",
        ),
        ([(0.0, 1, 2)] * 4, r"a sample of train is a tuple"),
    ],
)
def test_what_has_no_classes_is_refused(train: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_label_noise(made(train=train), 0.4)


def test_a_single_class_is_refused() -> None:
    one = TensorSamples(torch.zeros(4, 1), torch.full((4,), 3))
    with pytest.raises(ValueError, match=r"label noise needs two classes or more, got \[3\]"):
        with_label_noise(made(train=one, validation=one), 0.4)
