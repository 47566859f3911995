"""Fewer training samples of any data set: nested choices, and nothing else changes."""

from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from steppe.compare.data.datasets import Data, Stream, TensorSamples, subsample
from steppe.compare.data.fewer_samples import fewer_samples


def samples(count: int, start: int = 0) -> TensorSamples:
    """Make samples that tell their number; a fifth is of class 1."""
    numbers = torch.arange(start, start + count)
    return TensorSamples(numbers.float()[:, None], (numbers % 5 == 0).long())


def made(**changes: Any) -> Data:
    parts = {"train": samples(100), "validation": samples(40, 100), "test": samples(30, 200)}
    return Data(**{**parts, **changes}, fingerprint="made")


def numbers(part: Any) -> list[int]:
    return [int(part[row][0]) for row in range(len(part))]


def test_a_larger_choice_contains_every_smaller_one_and_begins_with_it() -> None:
    whole = numbers(fewer_samples(made(), 100).train)
    assert sorted(whole) == list(range(100))
    for count in (2, 3, 50):
        assert numbers(fewer_samples(made(), count).train) == whole[:count]


def test_it_is_the_choice_of_an_amount_of_samples_of_our_own_tasks() -> None:
    assert numbers(fewer_samples(made(), 25).train) == numbers(subsample(made(), 25).train)


def test_classes_keep_their_proportions() -> None:
    few = fewer_samples(made(), 25).train
    assert sum(int(few[row][1]) for row in range(25)) == 5


def test_validation_and_test_stay() -> None:
    data = made()
    few = fewer_samples(data, 10)
    assert (few.validation, few.test) == (data.validation, data.test)


class Read(Dataset[Any]):
    """Read one by one; ``more`` is what augmentation adds."""

    def __init__(self, more: float = 0.0) -> None:
        self.more = more

    def __len__(self) -> int:
        return 60

    def __getitem__(self, row: int) -> Any:
        return torch.tensor(row + self.more), 0.5


def test_of_other_samples_some_are_drawn_the_unaugmented_and_the_weights_too() -> None:
    weights = [float(row) for row in range(60)]
    few = fewer_samples(made(train=Read(0.25), plain=Read(), weights=weights), 20)
    chosen = numbers(few.plain)
    assert len({*chosen}) == 20
    assert chosen != sorted(chosen)
    assert numbers(few.train) == chosen == few.weights
    assert float(few.train[0][0]) == chosen[0] + 0.25
    assert numbers(fewer_samples(made(train=Read()), 9).train) == chosen[:9]


def test_of_a_stream_samples_are_counted_in_each_task() -> None:
    sizes = (30, 8, 50)
    stream = Stream(samples(count) for count in sizes)
    few = fewer_samples(made(train=stream), 20).train
    assert isinstance(few, Stream)
    assert [len(part) for part in few.datasets] == [20, 8, 20]


@pytest.mark.parametrize("count", [1, 101])
def test_more_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"between 2 and the 100 training samples, got {count}"):
        fewer_samples(made(), count)
