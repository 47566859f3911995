"""Hashes tell samples apart, and samples that change from one reading to the next are refused."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from steppe.compare.data.datasets import Stream, TensorSamples
from steppe.compare.data.sample_hash import hash_samples


class Made(Dataset[Any]):
    """Makes each sample by a function of its number, and notes which are read."""

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self.count, self.make = count, make
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        assert type(row) is int
        self.read.append(row)
        return self.make(row)


def hashed(*datasets: Any, names: tuple[str, ...] = ("train", "validation", "test")) -> str:
    return hash_samples(list(zip(names, datasets, strict=False)))


def hash_of(sample: Any) -> str:
    return hashed([sample])


@dataclass
class Record:
    image: torch.Tensor
    label: int


T = torch.arange(6.0).reshape(2, 3)

# In each group all are different, though much of them is the same.
DIFFERENT: dict[str, list[Any]] = {
    "values": [T, T + 1, -T, T.flip(0)],
    "shapes": [T, T.reshape(3, 2), T.flatten(), T[None]],
    "types": [T, T.double(), T.int(), T.bfloat16(), T.numpy(), T.tolist()],
    "bits": [T, T.view(torch.int32)],
    "numbers": [1, 1.0, True, 2, None, "1", b"1", np.int64(1), np.float32(1), 1j],
    "nesting": [[1, 2, 3], [[1, 2], 3], [1, [2, 3]], [[1], [2, 3]], [1, 2], [1, 2, 3, []]],
    "text": ["ab", "a", ["a", "b"], ["ab"], ["", "ab"]],
    "mappings": [{"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": 1}, {"b": 1}, {"a": {"b": 1}}],
    "pairs": [(T, 0), (T, 1), (T + 1, 0), {"x": T, "y": 0}, (T, (0,))],
    "records": [Record(T, 1), Record(T, 2), Record(T + 1, 1)],
    "arrays": [np.arange(4), np.arange(4).reshape(2, 2), np.arange(4.0), np.array(["a", "b"])],
}


@pytest.mark.parametrize("group", DIFFERENT)
def test_what_differs_in_anything_has_another_hash(group: str) -> None:
    samples = DIFFERENT[group]
    assert len({hash_of(sample) for sample in samples}) == len(samples)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (T, T.clone()),
        (T, T.t().contiguous().t()),
        (T, T.repeat(1, 2)[:, :3]),
        (T, T.clone().requires_grad_()),
        (np.arange(6).reshape(2, 3).T, np.arange(6).reshape(2, 3).T.copy()),
        ((T, 1), [T, 1]),
        ({"a": T}, OrderedDict(a=T)),
        (Record(T, 1), Record(T.clone(), 1)),
        (T.to_sparse(), T),
    ],
    ids=[
        *("copy", "strides", "view", "gradient", "array", "list", "mapping", "record", "sparse"),
    ],
)
def test_the_same_content_has_the_same_hash(one: Any, other: Any) -> None:
    assert hash_of(one) == hash_of(other)


def test_images_of_pillow_are_hashed_by_their_pixels() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    pictures = [
        image.fromarray(pixels),
        image.fromarray(pixels + 1),
        image.fromarray(pixels.reshape(2, 8, 3)),
        image.fromarray(pixels[:, :, 0]),
        image.fromarray(pixels[:, :, 0]).convert("P"),
    ]
    assert len({hash_of((picture, 3)) for picture in pictures}) == 5
    assert hash_of((pictures[0], 3)) == hash_of((image.fromarray(pixels), 3))


def test_what_cannot_be_hashed_is_named() -> None:
    message = "a sample of train holds a object, which cannot be hashed .* fingerprint="
    with pytest.raises(TypeError, match=message):
        hash_of((T, {"a": [object()]}))
    with pytest.raises(TypeError, match="a sample of test holds a object"):
        hashed([T], [T], [np.array([None, object()], dtype=object)])


def test_arrays_of_objects_are_hashed_by_what_they_hold() -> None:
    """Not by addresses, which are others in each process."""

    def words(*texts: str) -> list[np.ndarray]:
        return [np.array(["".join(text) for text in texts], dtype=object)]

    assert hashed([T], [T], words("a", "bc")) == hashed([T], [T], words("a", "bc"))
    assert hashed([T], [T], words("a", "bc")) != hashed([T], [T], words("ab", "c"))


def test_the_hash_sees_which_part_samples_are_in_and_their_order() -> None:
    a, b, c = ([(T + k, k), (T - k, -k)] for k in (1, 2, 3))
    found = [
        hashed(a, b, c),
        hashed(a, c, b),
        hashed(b, a, c),
        hashed(a[::-1], b, c),
        hashed(a[:1], b, c),
        hashed(a + b, b, c),
    ]
    assert len(set(found)) == len(found)
    assert hashed(list(a), b, c) == found[0]
    # One data set may stand in several places.
    assert hashed(a, a, a) != hashed(a, a, b)


def test_tensors_in_memory_are_hashed_to_the_last_row() -> None:
    inputs, targets = torch.zeros(5_000, 2), torch.zeros(5_000)
    whole = hashed(TensorSamples(inputs, targets))
    for row in (0, 1, 2_501, 4_998):
        changed = inputs.clone()
        changed[row, 1] = 1e-3
        assert hashed(TensorSamples(changed, targets)) != whole


def test_of_large_data_sets_a_thousand_are_read_evenly_and_their_number_counts() -> None:
    large = Made(100_000, lambda row: row)
    found = hashed(large)
    rows = sorted(set(large.read))
    assert len(rows) == 1_000
    assert (rows[0], rows[-1]) == (0, 99_999)
    assert set(np.diff(rows)) == {100, 101}
    assert len(large.read) < 1_040
    assert hashed(Made(100_000, lambda row: row if row != 99_999 else -1)) != found
    constant = [hashed(Made(count, lambda row: 0)) for count in (50_000, 50_001)]
    assert constant[0] != constant[1]
    small = Made(999, lambda row: row)
    hashed(small)
    assert sorted(set(small.read)) == list(range(999))


def test_a_stream_is_hashed_task_by_task() -> None:
    one, other = ([(T + row, row) for row in range(count)] for count in (3, 4))
    assert len({hashed(Stream(parts)) for parts in ([one, other], [other, one], [one])}) == 3
    assert hashed(Stream([one, other])) == hashed(Stream([list(one), list(other)]))


def noisy(row: int) -> Any:
    return T + torch.rand(()), row


def still(row: int) -> Any:
    return T + row, row


NAMES = ("train", "validation", "test", "plain")


def test_what_augments_needs_plain_samples() -> None:
    train, test = Made(9, noisy), Made(4, still)
    with pytest.raises(ValueError, match=r"train gives another sample each time .* as plain="):
        hashed(train, test, test, train, names=NAMES)
    plain = Made(9, still)
    found = hashed(train, test, test, plain, names=NAMES)
    # What augmentation draws is no part of it.
    torch.manual_seed(5)
    assert hashed(Made(9, noisy), test, test, Made(9, still), names=NAMES) == found
    assert hashed(train, test, test, Made(9, lambda row: still(row + 1)), names=NAMES) != found


def test_what_does_not_augment_needs_none() -> None:
    train, test = Made(9, still), Made(4, still)
    assert hashed(train, test, test, train, names=NAMES)


@pytest.mark.parametrize("name", ["validation", "test", "plain"])
def test_what_is_evaluated_on_must_stay_the_same(name: str) -> None:
    parts: dict[str, Any] = {each: Made(9, still) for each in NAMES}
    parts[name] = Made(9, noisy)
    message = rf"{name}\[0\] is another sample each time that it is read: {name} must not augment"
    with pytest.raises(ValueError, match=message):
        hash_samples(parts.items())


def test_one_sample_of_many_that_changes_is_found_where_it_is_read_again() -> None:
    """Samples are read again over the whole data set, not at its beginning alone."""
    half = Made(300, lambda row: noisy(row) if row >= 100 else still(row))
    with pytest.raises(ValueError, match=r"test\[\d+\] is another sample"):
        hashed(Made(3, still), Made(3, still), half)


def test_a_stream_that_augments_needs_plain_samples_too() -> None:
    train = Stream([Made(3, still), Made(3, noisy)])
    still_ones = Stream([Made(3, still), Made(3, still)])
    with pytest.raises(ValueError, match="train gives another sample each time"):
        hashed(train, still_ones, still_ones, train, names=NAMES)
    assert hashed(train, still_ones, still_ones, still_ones, names=NAMES)


def test_hashing_draws_no_random_numbers_of_its_own() -> None:
    before = torch.get_rng_state()
    hashed([T], TensorSamples(T, T[:, 0]), Made(9, still))
    assert torch.equal(torch.get_rng_state(), before)
