"""Loss, scores and layout of streams, on samples that tell where they come from."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset

from helpers.training_runs import train_on
from steppe.compare.data.datasets import Data, Stream, TensorSamples
from steppe.compare.data.loading import loader
from steppe.compare.data.streams import (
    arrange_stream,
    hits,
    join,
    stream_loss,
    subsample,
)
from steppe.compare.records.summary import forgetting
from steppe.compare.tasks import makers
from steppe.compare.tasks.makers import Size

CLASSES, TASKS = 3, 4


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(20, CLASSES * TASKS, dtype=torch.float64, generator=generator)
    # The third task has no sample.
    targets = torch.tensor([0, 1, 2, 3, 4, 5, 9, 10, 11, 11, 0, 1, 0, 4, 4, 4, 9, 9, 10, 2])
    return outputs, targets


def test_the_loss_is_the_surprise_among_the_task_s_own_classes(batch) -> None:
    outputs, targets = batch
    surprises = []
    for row, target in zip(outputs.numpy(), targets.tolist(), strict=True):
        start = target - target % CLASSES
        own = np.exp(row[start : start + CLASSES])
        surprises.append(-math.log(own[target - start] / own.sum()))
    loss = stream_loss(outputs, targets, classes=CLASSES)
    assert float(loss) == pytest.approx(sum(surprises) / len(surprises), rel=1e-12)


def test_in_a_shared_head_all_tasks_have_the_same_outputs(batch) -> None:
    outputs, targets = batch
    shared = outputs[:, :CLASSES]
    loss = stream_loss(shared, targets, classes=CLASSES)
    expected = nn.functional.cross_entropy(shared, targets % CLASSES)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    right = [row.index(max(row)) for row in shared.tolist()] == (targets % CLASSES).numpy()
    assert hits(shared, targets, classes=CLASSES).tolist() == right.tolist()


def test_other_tasks_places_get_no_gradient_and_curvature_is_right(batch) -> None:
    outputs, targets = batch
    outputs.requires_grad_()
    stream_loss(outputs, targets, classes=CLASSES).backward()
    own = torch.arange(CLASSES * TASKS) // CLASSES == targets[:, None] // CLASSES
    assert (outputs.grad[~own] == 0).all()
    assert (outputs.grad[own] != 0).all()
    few = outputs.detach()[:3].requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda values: stream_loss(values, targets[:3], classes=CLASSES), few
    )


def test_a_sample_is_a_hit_among_its_own_task_s_classes(batch) -> None:
    outputs, targets = batch
    expected = []
    for row, target in zip(outputs.tolist(), targets.tolist(), strict=True):
        task, label = divmod(target, CLASSES)
        own = row[task * CLASSES : (task + 1) * CLASSES]
        expected.append(own.index(max(own)) == label)
    assert hits(outputs, targets, classes=CLASSES).tolist() == expected
    assert 0 < sum(expected) < len(targets)


def test_forgetting_is_the_fall_from_each_task_s_best() -> None:
    curve = [
        [0.9],
        [0.95, 0.8],
        [0.5, 0.7, 0.9],
        [0.6, 0.85, 0.4, 1.0],
    ]
    falls = [0.95 - 0.6, 0.8 - 0.85, 0.9 - 0.4]
    assert forgetting(curve) == pytest.approx(sum(falls) / 3)
    # What is known of a task before it is trained does not count.
    padded = [[*row, 1.0, 1.0, 1.0][:4] for row in curve]
    assert forgetting(padded) == forgetting(curve)


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        ([], "at least 2 tasks, got 0"),
        ([[1.0]], "at least 2 tasks, got 1"),
        ([[1.0], [1.0]], r"curve\[1\] must hold at least 2 accuracies, got 1"),
    ],
)
def test_a_curve_too_short_is_refused(curve, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        forgetting(curve)


def samples(counts: list[int], part: int) -> TensorSamples:
    """Make samples, so many of each task, shuffled; an input is its part, target and number."""
    targets = torch.cat(
        [CLASSES * task + torch.arange(count) % CLASSES for task, count in enumerate(counts)]
    )
    inputs = torch.stack(
        [torch.full_like(targets, part), targets, torch.arange(len(targets))], dim=1
    )
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(part))
    return TensorSamples(inputs.float()[order], targets[order])


@pytest.fixture
def laid_out() -> Data:
    parts = [
        samples(counts, part) for part, counts in enumerate([[30, 9, 60], [9, 6, 30], [6] * 3])
    ]
    return arrange_stream(*parts, classes=CLASSES, fingerprint="toy")


def targets_of(stream: Stream) -> torch.Tensor:
    return torch.cat([task.targets for task in stream.datasets])


def numbers(stream: Stream) -> list[int]:
    inputs = torch.stack([stream[row][0] for row in range(len(stream))])
    assert torch.equal(inputs[:, 1], targets_of(stream).float())
    return inputs[:, 2].int().tolist()


def test_every_part_of_a_stream_has_its_tasks_in_turn(laid_out: Data) -> None:
    """The parts have samples of their own, all of them once."""
    assert laid_out.is_stream
    assert laid_out.unaugmented is laid_out.train
    sizes = {"train": [30, 9, 60], "validation": [9, 6, 30], "test": [6, 6, 6]}
    for number, (part, counts) in enumerate(sizes.items()):
        stream = getattr(laid_out, part)
        assert [len(task) for task in stream.datasets] == counts
        for index, task in enumerate(stream.datasets):
            assert (task.targets // CLASSES == index).all()
            assert (task.inputs[:, 0] == number).all()
        assert sorted(numbers(stream)) == list(range(sum(counts)))


def test_fewer_are_balanced_and_nested_in_each_task(laid_out: Data) -> None:
    some, more = subsample(laid_out, 12), subsample(laid_out, 30)
    assert [len(task) for task in some.train.datasets] == [12, 9, 12]
    assert [len(task) for task in more.train.datasets] == [30, 9, 30]
    assert torch.bincount(targets_of(some.train)).tolist() == [4, 4, 4, 3, 3, 3, 4, 4, 4]
    assert torch.bincount(targets_of(some.validation)).tolist() == [2] * 9
    assert torch.bincount(targets_of(more.validation)).tolist() == [3] * 3 + [2] * 3 + [5] * 3
    for smaller, larger in ((some, more), (more, laid_out)):
        for part in ("train", "validation"):
            assert set(numbers(getattr(smaller, part))) < set(numbers(getattr(larger, part)))
        assert smaller.unaugmented is smaller.train
    assert some.test is laid_out.test
    assert len({data.fingerprint for data in (laid_out, some, more)}) == 3
    assert numbers(subsample(more, 12).train) != numbers(more.train)


def test_tasks_count_though_a_class_was_never_trained_on(
    laid_out: Data, make_run, context, monkeypatch
) -> None:
    """Two samples leave the last of three classes out, and validation may be on that one alone."""
    last = Stream(
        task.take((task.targets % CLASSES == 2).nonzero().flatten())
        for task in laid_out.validation.datasets
    )
    size = Size("linear", epochs=3, batch_size=2)
    task = makers._stream(
        "few",
        lambda: replace(laid_out, validation=last),
        classes=CLASSES,
        make=lambda name: nn.Linear(3, 3 * CLASSES),
        full=size,
        small=size,
    )
    monkeypatch.setitem(makers.TASKS, "few", task)
    data = task(samples=2).load().data
    assert not torch.isin(targets_of(data.validation), targets_of(data.train)).any()
    run = make_run("sgd", task="few", model="linear", epochs=3, batch_size=2, stream=(1, 1, 1))
    outcome = train_on(run, data, context)
    assert [len(epoch.tasks) for epoch in outcome.curve] == [1, 2, 3]


@pytest.mark.parametrize("count", [-1, 0, 1, 61])
def test_more_than_the_largest_task_has_are_refused(laid_out: Data, count: int) -> None:
    with pytest.raises(ValueError, match=f"between 2 and the 60 .* got {count}"):
        subsample(laid_out, count)


def test_joined_sets_are_read_as_one(laid_out: Data) -> None:
    # Each set counts its own classes from 0.
    parts = [
        TensorSamples(task.inputs, task.targets - CLASSES * index)
        for index, task in enumerate(laid_out.train.datasets)
    ]
    order = torch.randperm(99, generator=torch.Generator().manual_seed(1))
    joined, whole = join(parts, CLASSES).take(order), Subset(laid_out.train, order.tolist())
    assert len(joined) == 99
    for (read,), (expected,) in zip(loader(joined, 32), loader(whole, 32), strict=True):
        assert all(map(torch.equal, read.batch, expected.batch))
        assert read.size == expected.size == len(read.batch[1])
