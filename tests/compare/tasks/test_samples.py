"""Samples in whatever form a user has them: the same ones are read, held out, and told apart."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from steppe.compare.data.datasets import Data, Stream, TensorSamples
from steppe.compare.data.loading import loader
from steppe.compare.tasks.samples import as_dataset
from steppe.compare.tasks.task import Task


def pairs(count: int, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Make samples that tell their number, from one on."""
    numbers = torch.arange(start, start + count)
    return numbers.float()[:, None].repeat(1, 2), numbers


def task(**samples: Any) -> Task:
    return Task(name="toy", model=lambda: nn.Linear(2, 1), loss=nn.functional.mse_loss, **samples)


def read(**samples: Any) -> Data:
    return task(**samples).load().data


def numbers(samples: Any) -> list[int]:
    """Return the samples' numbers, by batches as training reads them."""
    found = []
    for (part,) in loader(samples, 4):
        inputs, targets = part.batch
        assert torch.equal(inputs[:, 0], targets.float())
        found += targets.tolist()
    return found


class Counting(Dataset[Any]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        return torch.full((2,), float(row)), row


class Streamed(IterableDataset[Any]):
    """Iterates, and may say how many there are."""

    passes = 0

    def __iter__(self) -> Iterator[Any]:
        Streamed.passes += 1
        return iter(Counting(9)[row] for row in range(9))


class Sized(Streamed):
    said = 9

    def __len__(self) -> int:
        return self.said


@pytest.mark.parametrize(
    "given",
    [
        pairs(9),
        tuple(each.numpy() for each in pairs(9)),
        TensorDataset(*pairs(9)),
        Counting(9),
        [Counting(9)[row] for row in range(9)],
        Sized(),
        lambda: pairs(9),
        lambda: Counting(9),
        lambda: Sized(),
    ],
    ids=[
        *("tensors", "arrays", "TensorDataset", "data set", "list", "iterable"),
        *("function of tensors", "function of a data set", "function of an iterable"),
    ],
)
def test_samples_are_the_same_in_every_form(given: Any) -> None:
    assert numbers(as_dataset("train", given)) == list(range(9))


@pytest.mark.parametrize(
    "given",
    [pairs(9), Counting(9), [Counting(9)[row] for row in range(9)], Sized()],
    ids=["tensors", "data set", "list", "iterable"],
)
def test_every_form_can_be_trained_on(given: Any) -> None:
    data = read(train=given, validation=pairs(4, 10), test=pairs(3, 20))
    assert numbers(data.train) == list(range(9))
    assert numbers(data.validation) == [10, 11, 12, 13]
    assert numbers(data.test) == [20, 21, 22]
    assert data.unaugmented is data.train
    assert not data.is_stream


def test_a_tuple_of_one_or_three_tensors_has_a_row_of_each_for_a_sample() -> None:
    one, three = (as_dataset("train", (torch.eye(5),) * count) for count in (1, 3))
    assert len(one) == len(three) == 5
    assert [len(each[2]) for each in (one, three)] == [1, 3]
    assert all(torch.equal(row, torch.eye(5)[2]) for row in three[2])


def test_an_iterable_is_read_once() -> None:
    Streamed.passes = 0
    data = read(train=Sized(), validation=pairs(2), test=pairs(2))
    for _ in range(3):
        assert numbers(data.train) == list(range(9))
    assert Streamed.passes == 1


@pytest.mark.parametrize("said", [5, 0])
def test_of_an_iterable_as_many_are_read_as_it_says(
    said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sized, "said", said)
    assert len(as_dataset("train", Sized())) == said


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (3, TypeError, "train must be a data set, a tuple of tensors, or a function .*, got int"),
        ("images/", TypeError, "train must be a data set, .*, got str"),
        (lambda: None, TypeError, "train must be a data set, .*, got NoneType"),
        (
            (torch.zeros(3, 2), torch.zeros(4)),
            ValueError,
            r"train must have a row for each sample in all tensors, got \[3, 4\]",
        ),
        (
            (torch.zeros(3), torch.tensor(1.0)),
            ValueError,
            r"train must have a row for each sample in all tensors, got \[3, 0\]",
        ),
        (Streamed(), ValueError, "train is iterable, and does not say how many samples it has"),
        (
            (row for row in range(3)),
            ValueError,
            "train is iterable, and does not say how many samples it has: give it __len__",
        ),
    ],
    ids=["number", "text", "nothing", "lengths", "no rows", "no length", "generator"],
)
def test_what_is_no_samples_is_refused_by_the_arguments_name(given, error, message: str) -> None:
    with pytest.raises(error, match=message):
        as_dataset("train", given)
    with pytest.raises(error, match=message):
        read(train=given, validation=0.5, test=0.5)


def test_an_iterable_that_has_fewer_than_it_says_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sized, "said", 12)
    with pytest.raises(ValueError, match="validation says that it has 12 samples, and has 9"):
        as_dataset("validation", Sized())


@pytest.mark.parametrize(
    ("shares", "sizes"),
    [
        ({"validation": 0.2, "test": 0.3}, (50, 20, 30)),
        ({"validation": 0.25, "test": pairs(7, 200)}, (75, 25, 7)),
        ({"validation": pairs(8, 200), "test": 0.1}, (90, 8, 10)),
    ],
    ids=["both", "validation", "test"],
)
def test_a_share_of_the_training_samples_is_held_out(shares, sizes: tuple[int, ...]) -> None:
    data = read(train=pairs(100), **shares)
    parts = [numbers(part) for part in (data.train, data.validation, data.test)]
    assert tuple(map(len, parts)) == sizes
    held = [number for part in parts for number in part if number < 200]
    assert sorted(held) == list(range(100)), "each sample is in one part"
    # Neither the beginning nor the end, as data sets may be sorted.
    for name, part in zip(("validation", "test"), parts[1:], strict=True):
        if isinstance(shares[name], float):
            assert 0.2 * len(part) < sum(number < 50 for number in part) < 0.8 * len(part)


def test_the_same_samples_are_held_out_whatever_the_seed_and_the_other_share() -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # the global state that a user may have seeded
        before = torch.get_rng_state()
        found.append(read(train=pairs(100), validation=0.2, test=0.3))
        assert torch.equal(torch.get_rng_state(), before)
    for part in ("train", "validation", "test"):
        assert numbers(getattr(found[0], part)) == numbers(getattr(found[1], part))
    assert found[0].fingerprint == found[1].fingerprint
    # The test samples are those whatever the size of the validation set.
    other = read(train=pairs(100), validation=0.5, test=0.3)
    assert numbers(other.test) == numbers(found[0].test)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2, float("nan")])
@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_share_outside_of_0_and_1_is_refused(name: str, share: float) -> None:
    shares = {"validation": 0.2, "test": 0.2, name: share}
    with pytest.raises(ValueError, match=f"{name}={share} must be a share of train between 0 and"):
        read(train=pairs(100), **shares)


@pytest.mark.parametrize(
    ("shares", "name"),
    [
        ({"validation": 0.01, "test": 0.5}, "validation"),
        ({"validation": 0.5, "test": 0.01}, "test"),
        ({"validation": 0.5, "test": 0.5}, "train"),
        ({"validation": 0.7, "test": 0.7}, "train"),
    ],
    ids=str,
)
def test_a_part_without_samples_is_refused(shares, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no samples"):
        read(train=pairs(10), **shares)


class Augmented(Counting):
    """Adds noise to its samples' second number."""

    def __getitem__(self, row: int) -> Any:
        inputs, target = super().__getitem__(row)
        inputs[1] += torch.rand(())
        return inputs, target


def test_of_augmented_samples_plain_ones_are_evaluated_and_held_out() -> None:
    data = read(train=Augmented(50), plain=Counting(50), validation=0.2, test=0.2)
    assert sorted(numbers(data.train)) == numbers(data.unaugmented)
    for part in (data.unaugmented, data.validation, data.test):
        for inputs, target in part:
            assert inputs.tolist() == [target, target]
    assert any(inputs[1] != target for inputs, target in data.train)
    together = numbers(data.train) + numbers(data.validation) + numbers(data.test)
    assert sorted(together) == list(range(50))


def test_plain_samples_must_be_as_many() -> None:
    with pytest.raises(ValueError, match=r"plain must be the samples of train .*: 50, got 49"):
        read(train=Augmented(50), plain=Counting(49), validation=0.2, test=0.2)


def stream(*sizes: int) -> Stream:
    return Stream(TensorSamples(*pairs(size)) for size in sizes)


def test_a_stream_keeps_its_tasks() -> None:
    data = read(train=stream(5, 3), validation=lambda: stream(2, 2), test=stream(4, 1))
    assert data.is_stream
    sizes = [[len(each) for each in part.datasets] for part in (data.train, data.validation)]
    assert sizes == [[5, 3], [2, 2]]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (
            {"train": stream(5, 3), "validation": 0.2, "test": stream(2, 2)},
            "of a stream no share can be held out: give validation and test",
        ),
        (
            {"train": stream(5, 3), "validation": pairs(4), "test": stream(2, 2)},
            "train, validation and test must all be streams of equally many tasks",
        ),
        (
            {"train": stream(5, 3), "validation": stream(4, 4), "test": stream(2, 2, 2)},
            "train, validation and test must all be streams of equally many tasks",
        ),
        (
            {"train": stream(5, 3), "validation": stream(4, 0), "test": stream(2, 2)},
            "validation has no samples",
        ),
    ],
    ids=["share", "mixed", "counts", "empty"],
)
def test_a_stream_that_does_not_fit_is_refused(samples, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**samples)


def test_data_gives_all_at_once() -> None:
    parts = [TensorSamples(*pairs(size)) for size in (5, 4, 3)]
    given = Data(*parts, fingerprint="mine")
    assert read(data=lambda: given) is given
    hashed = read(data=lambda: Data(*parts))
    assert len(hashed.fingerprint) == 16
    assert (hashed.train, hashed.validation, hashed.test) == tuple(parts)
    with pytest.raises(TypeError, match="data must return Data, got tuple"):
        read(data=lambda: tuple(parts))


def test_the_hash_is_that_of_the_samples_and_of_nothing_else() -> None:
    def hashed(**changes: Any) -> str:
        samples = {"train": pairs(9), "validation": pairs(3, 9), "test": pairs(3, 12)}
        return read(**{**samples, **changes}).fingerprint

    same = {hashed(), hashed(train=lambda: pairs(9)), hashed(train=tuple(pairs(9)))}
    assert len(same) == 1
    inputs, targets = pairs(9)
    inputs[4, 1] += 1e-6
    others = [
        hashed(train=(inputs, targets)),
        hashed(validation=pairs(3, 10)),
        hashed(test=pairs(4, 12)),
        hashed(validation=pairs(3, 12), test=pairs(3, 9)),
    ]
    assert len({*same, *others}) == 5


def test_a_dictionary_of_tensors_has_a_dictionary_for_each_sample() -> None:
    columns = {"x": torch.arange(6.0).reshape(3, 2), "labels": [0, 1, 2]}
    columns["labels"] = torch.tensor(columns["labels"])
    found = as_dataset("train", columns)
    assert len(found) == 3
    assert found[1]["x"].tolist() == [2.0, 3.0]
    assert found[2]["labels"].item() == 2
    with pytest.raises(ValueError, match=r"in all tensors, got .*2"):
        as_dataset("train", {"x": torch.zeros(3), "y": torch.zeros(2)})
