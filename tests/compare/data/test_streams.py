"""Loss, scores and layout of streams, on samples that tell where they come from."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from steppe.compare import tasks
from steppe.compare.data.datasets import Data, TensorSamples
from steppe.compare.data.loading import loader
from steppe.compare.data.streams import (
    accuracies,
    arrange_stream,
    average_accuracy,
    hits_and_counts,
    join,
    stream_loss,
    subsample,
)
from steppe.compare.records.summary import forgetting
from steppe.compare.tasks import Size
from steppe.compare.training.train import train

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
    # The tasks differ in their scores only: they add up to what one task of all samples has.
    by_task = hits_and_counts(shared, targets, classes=CLASSES, tasks=TASKS)
    hits = (shared.argmax(dim=1) == targets % CLASSES).sum().item()
    assert by_task.sum(dim=0).tolist() == [hits, len(targets)]
    assert by_task[:, 1].tolist() == torch.bincount(targets // CLASSES, minlength=TASKS).tolist()


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


def test_hits_are_counted_by_task_among_its_own_classes(batch) -> None:
    outputs, targets = batch
    expected = np.zeros((TASKS, 2), dtype=int)
    for row, target in zip(outputs.tolist(), targets.tolist(), strict=True):
        task, label = divmod(target, CLASSES)
        own = row[task * CLASSES : (task + 1) * CLASSES]
        expected[task] += own.index(max(own)) == label, 1
    whole = hits_and_counts(outputs, targets, classes=CLASSES, tasks=TASKS)
    np.testing.assert_array_equal(whole.numpy(), expected)
    assert 0 < expected[:, 0].sum() < len(targets)

    halves = (slice(0, 7), slice(7, 20))
    added = sum(
        hits_and_counts(outputs[half], targets[half], classes=CLASSES, tasks=TASKS)
        for half in halves
    )
    assert torch.equal(added, whole)
    shares = [hits / count for hits, count in expected if count]
    assert accuracies(whole) == pytest.approx(shares)
    assert average_accuracy(whole) == pytest.approx(sum(shares) / 3)


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


def numbers(part: TensorSamples) -> list[int]:
    assert torch.equal(part.inputs[:, 1], part.targets.float())
    return part.inputs[:, 2].int().tolist()


def test_a_stream_has_its_tasks_in_turn_and_plain_has_them_mixed(laid_out: Data) -> None:
    assert [len(task) for task in laid_out.stream] == [30, 9, 60]
    for index, task in enumerate(laid_out.stream):
        assert (task.targets // CLASSES == index).all()
    in_turn = [number for task in laid_out.stream for number in numbers(task)]
    assert numbers(laid_out.train) == in_turn
    assert sorted(in_turn) == sorted(numbers(laid_out.plain)) == list(range(99))
    # Every stretch of a third holds a third of each class.
    for start in range(0, 99, 33):
        counts = torch.bincount(laid_out.plain.targets[start : start + 33])
        expected = torch.tensor([10, 10, 10, 3, 3, 3, 20, 20, 20]) / 3
        torch.testing.assert_close(counts.float(), expected, rtol=0, atol=1)


def test_fewer_are_balanced_and_nested_in_each_task(laid_out: Data) -> None:
    some, more = subsample(laid_out, 12), subsample(laid_out, 30)
    assert [len(task) for task in some.stream] == [12, 9, 12]
    assert [len(task) for task in more.stream] == [30, 9, 30]
    assert torch.bincount(some.train.targets).tolist() == [4, 4, 4, 3, 3, 3, 4, 4, 4]
    assert torch.bincount(some.validation.targets).tolist() == [2] * 9
    assert torch.bincount(more.validation.targets).tolist() == [3] * 3 + [2] * 3 + [5] * 3
    for smaller, larger in ((some, more), (more, laid_out)):
        for part in ("train", "validation"):
            assert set(numbers(getattr(smaller, part))) < set(numbers(getattr(larger, part)))
        assert sorted(numbers(smaller.plain)) == sorted(numbers(smaller.train))
    assert some.test is laid_out.test
    assert len({data.fingerprint for data in (laid_out, some, more)}) == 3
    assert numbers(subsample(more, 12).train) != numbers(more.train)


def test_tasks_count_though_a_class_was_never_trained_on(
    laid_out: Data, make_run, context, monkeypatch
) -> None:
    """Two samples leave the last of three classes out, and validation may be on that one alone."""
    last = laid_out.validation.take(
        (laid_out.validation.targets % CLASSES == 2).nonzero().flatten()
    )
    size = Size("linear", epochs=3, batch_size=2)
    task = tasks._stream(
        "few",
        lambda: replace(laid_out, validation=last),
        tasks=3,
        classes=CLASSES,
        make=lambda name: nn.Linear(3, 3 * CLASSES),
        full=size,
        small=size,
    )
    monkeypatch.setitem(tasks.TASKS, "few", task)
    data = task.data(samples=2)
    assert not torch.isin(data.validation.targets, data.train.targets).any()
    run = make_run("sgd", task="few", model="linear", epochs=3, batch_size=2, stream=(1, 1, 1))
    outcome = train(run, data, context)
    assert [len(epoch.tasks) for epoch in outcome.curve] == [1, 2, 3]


@pytest.mark.parametrize("count", [-1, 0, 1, 61])
def test_more_than_the_largest_task_has_are_refused(laid_out: Data, count: int) -> None:
    with pytest.raises(ValueError, match=f"between 2 and the 60 .* got {count}"):
        subsample(laid_out, count)


def test_joined_sets_are_read_as_one(laid_out: Data) -> None:
    # Each set counts its own classes from 0.
    parts = [
        TensorSamples(task.inputs, task.targets - CLASSES * index)
        for index, task in enumerate(laid_out.stream)
    ]
    order = torch.randperm(99, generator=torch.Generator().manual_seed(1))
    joined, whole = join(parts, CLASSES).take(order), laid_out.train.take(order)
    assert len(joined) == 99
    for read, expected in zip(loader(joined, 32), loader(whole, 32), strict=True):
        assert all(map(torch.equal, read, expected))
