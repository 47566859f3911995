"""Batches, as PyTorch's own pieces or Accelerate would give them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from steppe.compare.data.datasets import TensorSamples
from steppe.compare.data.loading import head, loader

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


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    for got, wanted in zip(found, expected, strict=True):
        assert type(got) in (tuple, list)
        for tensor, other in zip(got, wanted, strict=True):
            assert torch.equal(tensor, other)


def test_in_sequence_every_sample_comes_once(samples: TensorSamples) -> None:
    assert_equal(
        list(loader(samples, 4)),
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
            assert_equal(list(found), list(expected))


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
        batches = list(found)
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
        return [torch.cat([targets for _, targets in batches]).tolist() for _ in range(3)]

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
    second = list(batches)

    resumed = loader(OneByOne(), 4, order=torch.Generator(), workers=workers)
    assert resumed.generator is not None
    resumed.generator.set_state(state)
    torch.manual_seed(5)
    assert_equal(list(resumed), second)


def test_workers_draw_different_numbers() -> None:
    inputs = torch.cat([inputs for inputs, _ in loader(OneByOne(), 1, order=seeded(), workers=2)])
    assert len(set(inputs[:, 1].tolist())) == 11


def test_samples_that_are_no_tensors_are_stacked() -> None:
    (inputs, targets), *_ = loader(OneByOne(), 4)
    assert inputs[:, 0].tolist() == targets.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("order", [None, seeded()])
@pytest.mark.parametrize("workers", [0, 1])
def test_no_pass_draws_from_torchs_generator(
    samples: TensorSamples, order: Any, workers: int
) -> None:
    before = torch.get_rng_state()
    list(loader(samples, 4, order=order, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_head_is_the_first_samples_or_all(samples: TensorSamples) -> None:
    for count in (6, 11, 50):
        inputs, targets = (torch.cat(parts) for parts in zip(*head(samples, count, 4), strict=True))
        assert torch.equal(inputs, samples.inputs[:count])
        assert torch.equal(targets, samples.targets[:count])
    assert [len(targets) for _, targets in head(samples, 6, 4)] == [4, 2]
    assert [targets.tolist() for _, targets in head(OneByOne(), 3, 2)] == [[0, 1], [2]]
    assert [targets.tolist() for _, targets in head(Subset(samples, [9, 2, 4]), 2, 2)] == [[9, 2]]


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
                passes.append(list(batches))
            assert_equal(*passes)
        in_sequence = accelerator.prepare(loader(samples, 4))
        assert_equal(list(in_sequence), list(loader(samples, 4)))
        given = {"batches": [[3, 9, 0], [10], [9, 4]]}
        chosen = accelerator.prepare(loader(samples, 3, **given))
        for _ in range(2):
            assert_equal(list(chosen), list(loader(samples, 3, **given)))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
