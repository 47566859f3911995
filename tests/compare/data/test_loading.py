"""Batches, as PyTorch's own pieces or Accelerate would give them."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from steppe.compare.data.datasets import TensorSamples
from steppe.compare.data.loading import Part, head, loader

# From Python 3.12 on, for any process that has threads, which torch's has.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


class OneByOne(Dataset[Any]):
    """Samples that change at random each time, and are no tensors."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return np.array([row, torch.rand(()).item()]), row


@pytest.fixture
def samples() -> TensorSamples:
    return TensorSamples(
        torch.randn(11, 3, generator=torch.Generator().manual_seed(0)), torch.arange(11)
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches_of(passed: Iterable[list[Part]]) -> list[Any]:
    """Return the batches of a pass, of which each is whole, a pair, and as large as it says."""
    found = []
    for (part,) in passed:
        assert type(part.batch) in (tuple, list)
        assert part.size == len(part.batch[1])
        found.append(part.batch)
    return found


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    for got, wanted in zip(found, expected, strict=True):
        for tensor, other in zip(got, wanted, strict=True):
            assert torch.equal(tensor, other)


def test_in_sequence_every_sample_comes_once(samples: TensorSamples) -> None:
    assert_equal(
        batches_of(loader(samples, 4)),
        list(zip(samples.inputs.split(4), samples.targets.split(4), strict=True)),
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_batches_are_what_stacked_samples_are(samples: TensorSamples, workers: int) -> None:
    stacked = TensorDataset(samples.inputs, samples.targets)
    for order in (None, seeded()):
        twin = order and seeded()
        found = loader(samples, 4, order=order, workers=workers)
        expected = loader(stacked, 4, order=twin)
        for _ in range(2):
            assert_equal(batches_of(found), batches_of(expected))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["tensors", "one by one"])
def test_batches_that_are_given_come_as_they_are(
    samples: TensorSamples, kind: str, workers: int
) -> None:
    """In every pass, samples twice or not at all, and none from torch's generator."""
    dataset = samples if kind == "tensors" else OneByOne()
    given = [[3, 9, 0], [10], [9, 4]]
    found = loader(dataset, 3, workers=workers, batches=given)
    assert len(found) == 3
    before = torch.get_rng_state()
    for _ in range(2):
        batches = batches_of(found)
        assert [targets.tolist() for _, targets in batches] == given
        if kind == "tensors":
            for (inputs, _), rows in zip(batches, given, strict=True):
                assert torch.equal(inputs, samples.inputs[rows])
    if kind == "tensors" or workers:
        assert torch.equal(torch.get_rng_state(), before)
    assert given == [[3, 9, 0], [10], [9, 4]]


def test_each_pass_has_another_order_that_the_seed_decides(samples: TensorSamples) -> None:
    def passes(seed: int) -> list[list[int]]:
        batches = loader(samples, 4, order=seeded(seed))
        return [
            torch.cat([targets for _, targets in batches_of(batches)]).tolist() for _ in range(3)
        ]

    found = passes(1)
    assert passes(1) == found
    assert passes(2) != found
    assert all(sorted(order) == list(range(11)) for order in found)
    assert len(set(map(tuple, found))) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_follows_from_the_state_of_its_order(workers: int) -> None:
    order = seeded(3)
    batches = loader(OneByOne(), 4, order=order, workers=workers)
    list(batches)
    state = order.get_state()
    torch.manual_seed(5)
    second = batches_of(batches)

    resumed = loader(OneByOne(), 4, order=torch.Generator(), workers=workers)
    assert resumed.generator is not None
    resumed.generator.set_state(state)
    torch.manual_seed(5)
    assert_equal(batches_of(resumed), second)


def test_workers_draw_different_numbers() -> None:
    read = batches_of(loader(OneByOne(), 1, order=seeded(), workers=2))
    inputs = torch.cat([inputs for inputs, _ in read])
    assert len(set(inputs[:, 1].tolist())) == 11


def test_samples_that_are_no_tensors_are_stacked() -> None:
    (inputs, targets), *_ = batches_of(loader(OneByOne(), 4))
    assert inputs[:, 0].tolist() == targets.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("order", [None, seeded()])
@pytest.mark.parametrize("workers", [0, 1])
def test_no_pass_draws_from_torchs_generator(
    samples: TensorSamples, order: Any, workers: int
) -> None:
    before = torch.get_rng_state()
    list(loader(samples, 4, order=order, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def drawn(dataset: Dataset[Any], count: int) -> list[int]:
    return [target for part in head(dataset, count, 4) for target in part.batch[1].tolist()]


def test_the_head_is_always_the_same_choice_or_all(samples: TensorSamples) -> None:
    found = {count: drawn(samples, count) for count in (2, 6, 11, 50)}
    assert sorted(found[11]) == sorted(found[50]) == list(range(11))
    # A larger choice contains every smaller one, and a choice is not the beginning.
    assert found[2] == found[6][:2]
    assert found[6] == found[11][:6]
    assert found[6] != sorted(found[6])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert drawn(samples, 6) == found[6]
    assert torch.equal(torch.get_rng_state(), before)
    for part in head(samples, 6, 4):
        assert torch.equal(part.batch[0], samples.inputs[part.batch[1]])
    assert [part.size for part in head(samples, 6, 4)] == [4, 2]
    # Of other types of data sets it is the same choice.
    assert drawn(OneByOne(), 6) == found[6]
    assert sorted(drawn(Subset(samples, [9, 2, 4]), 5)) == [2, 4, 9]


def as_mapping(samples: list[Any]) -> dict[str, Any]:
    inputs, targets = zip(*samples, strict=True)
    return {"rows": torch.as_tensor(targets), "count": len(inputs)}


@pytest.mark.parametrize("kind", ["tensors", "one by one"])
def test_a_batch_is_what_the_users_function_makes_of_samples(
    samples: TensorSamples, kind: str
) -> None:
    dataset = samples if kind == "tensors" else OneByOne()
    found = [part for (part,) in loader(dataset, 4, collate=as_mapping)]
    assert [part.size for part in found] == [part.batch["count"] for part in found] == [4, 4, 3]
    assert torch.cat([part.batch["rows"] for part in found]).tolist() == list(range(11))
    of_head = head(dataset, 3, 2, as_mapping)
    assert [(part.size, part.batch["count"]) for part in of_head] == [(2, 2), (1, 1)]


@pytest.mark.parametrize("collate", [None, as_mapping])
@pytest.mark.parametrize("kind", ["tensors", "one by one"])
@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        (1, [[5], [5], [1]]),
        (2, [[3, 2], [3, 2], [1]]),
        (3, [[2, 2, 1], [2, 2, 1], [1]]),
        (4, [[2, 2, 1], [2, 2, 1], [1]]),
        (9, [[1] * 5, [1] * 5, [1]]),
    ],
)
def test_a_batch_in_parts_has_each_sample_once(
    samples: TensorSamples, kind: str, collate: Any, parts: int, sizes: list[list[int]]
) -> None:
    dataset = samples if kind == "tensors" else OneByOne()
    found = list(loader(dataset, 5, collate=collate, parts=parts))
    assert [[part.size for part in batch] for batch in found] == sizes
    batches = [part.batch for batch in found for part in batch]
    rows = [batch["rows"] if collate else batch[1] for batch in batches]
    assert torch.cat(rows).tolist() == list(range(11))
    assert [len(each) for each in rows] == list(chain(*sizes))


def test_samples_are_drawn_in_proportion_to_their_weights(samples: TensorSamples) -> None:
    """With replacement, as many as there are; what has no weight is never drawn."""
    weights = [0.0, 3.0, 1.0] + [0.0] * 8
    batches = loader(samples, 4, order=seeded(), weights=weights)
    passes = [
        torch.cat([targets for _, targets in batches_of(batches)]).tolist() for _ in range(200)
    ]
    assert {len(each) for each in passes} == {11}
    assert passes[0] != passes[1]
    counts = np.bincount(np.concatenate(passes), minlength=11)
    assert counts[[0, *range(3, 11)]].sum() == 0
    # Of 2 200 draws three quarters; the standard deviation is 20.
    assert abs(counts[1] - 1650) < 100
    again = loader(samples, 4, order=seeded(), weights=weights)
    assert torch.cat([targets for _, targets in batches_of(again)]).tolist() == passes[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["tensors", "one by one"])
def test_accelerate_leaves_the_batches_as_they_are(
    samples: TensorSamples, kind: str, workers: int
) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DataLoaderConfiguration

    dataset = samples if kind == "tensors" else OneByOne()
    try:
        accelerator = Accelerator(
            cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True)
        )
        prepared = accelerator.prepare(loader(dataset, 4, order=seeded(), workers=workers))
        plain = loader(dataset, 4, order=seeded(), workers=workers)
        for epoch in range(2):
            passes = []
            for batches in (prepared, plain):
                torch.manual_seed(epoch)
                passes.append(batches_of(batches))
            assert_equal(*passes)
        in_sequence = accelerator.prepare(loader(samples, 4))
        assert_equal(batches_of(in_sequence), batches_of(loader(samples, 4)))
        given = {"batches": [[3, 9, 0], [10], [9, 4]]}
        chosen = accelerator.prepare(loader(samples, 3, **given))
        for _ in range(2):
            assert_equal(batches_of(chosen), batches_of(loader(samples, 3, **given)))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
