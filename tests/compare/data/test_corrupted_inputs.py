"""Test sets with corrupted inputs: only they change, always alike, in memory or not."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from steppe.compare.data.corrupted_inputs import with_corrupted_test
from steppe.compare.data.datasets import Data, Stream, TensorSamples
from steppe.compare.records.task_modifiers import parse_task
from steppe.compare.tasks.modifiers import modified
from steppe.compare.tasks.source import find_task
from steppe.compare.tasks.task import Task


def images(count: int, seed: int) -> TensorSamples:
    generator = torch.Generator().manual_seed(seed)
    return TensorSamples(torch.randn(count, 1, 12, 12, generator=generator), torch.arange(count))


def tokens(count: int, seed: int) -> TensorSamples:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(100, (count, 30), generator=generator)
    return TensorSamples(rows, rows.roll(-1, 1))


class Lazy(Dataset[Any]):
    """Samples that are made when they are asked for, as from files."""

    def __init__(self, samples: TensorSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.samples[row][0], int(row)


@pytest.mark.parametrize("kind", [images, tokens], ids=["images", "tokens"])
@pytest.mark.parametrize("lazy", [False, True], ids=["memory", "lazy"])
def test_only_test_inputs_change_and_always_alike(kind: Any, lazy: bool) -> None:
    test = Lazy(kind(60, 2)) if lazy else kind(60, 2)
    data = Data(kind(40, 0), kind(20, 1), test)
    found, again = with_corrupted_test(data, 4), with_corrupted_test(data, 4)
    assert found.train is data.train
    assert found.validation is data.validation
    changed = [not torch.equal(found.test[row][0], data.test[row][0]) for row in range(60)]
    # A short text may lose no token.
    assert sum(changed) > 55
    for row in range(60):
        assert torch.equal(found.test[row][0], again.test[row][0])
        assert torch.equal(torch.as_tensor(found.test[row][1]), torch.as_tensor(data.test[row][1]))
        assert found.test[row][0].shape == data.test[row][0].shape
    milder = with_corrupted_test(data, 1)
    assert any(not torch.equal(milder.test[row][0], found.test[row][0]) for row in range(60))


def test_all_kinds_of_corruption_occur() -> None:
    """Of a constant image noise changes each pixel, brightness all alike, and others none."""
    flat = TensorSamples(torch.zeros(200, 1, 12, 12), torch.zeros(200))
    found = with_corrupted_test(Data(images(40, 0), images(20, 1), flat), 3)
    spread = found.test.inputs.flatten(1).std(dim=1)
    noisy, brighter = spread > 0.1, (spread < 1e-6) & (found.test.inputs[:, 0, 0, 0] > 0.5)
    assert 20 < int(noisy.sum()) < 65
    assert 20 < int(brighter.sum()) < 65
    assert 90 < int((~noisy & ~brighter).sum()) < 150


def test_each_task_of_a_stream_is_corrupted() -> None:
    parts = [Stream([images(20, 2 * part), images(20, 2 * part + 1)]) for part in range(3)]
    found = with_corrupted_test(Data(*parts), 5)
    assert isinstance(found.test, Stream)
    assert all(not torch.equal(found.test[row][0], parts[2][row][0]) for row in (0, 30))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (TensorSamples(torch.randn(9, 4), torch.arange(9)), r"needs images .* got .*shape \(4,\)"),
        ([{"x": 1}] * 9, "pairs \\(inputs, target\\) with inputs in a tensor, got a dict"),
    ],
    ids=["table", "mapping"],
)
def test_other_inputs_are_refused(samples: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_corrupted_test(Data(samples, samples, samples), 3)


def test_a_name_says_it_and_the_severity_has_a_default() -> None:
    source = find_task("digits+shift")
    assert source.task().name == "digits+shift3"
    assert find_task("digits").task().with_corrupted_test().name == "digits+shift3"
    clean, shifted = find_task("digits").task().load(), source.task().load()
    assert shifted.data.fingerprint == f"{clean.data.fingerprint}+shift3"
    assert not torch.equal(shifted.data.test.inputs, clean.data.test.inputs)
    with pytest.raises(ValueError, match="shift must be a severity, a whole number from 1 to 5"):
        find_task("digits+shift6")


@pytest.mark.parametrize("kind", [images, tokens], ids=["images", "tokens"])
def test_fewer_samples_and_noisy_labels_leave_the_test_set_as_it_is(kind: Any) -> None:
    def shifted(name: str) -> Tensor:
        task = Task(
            name="own", model=lambda: torch.nn.Linear(1, 1), loss=torch.nn.functional.mse_loss,
            data=lambda: Data(kind(40, 0), kind(20, 1), kind(60, 2)),
        )  # fmt: skip
        modifiers = parse_task(f"own{name}")[1]
        inputs: Tensor = modified(task, modifiers).load().data.test.inputs
        return inputs

    names = ["+few2", "+few30"] + (["+noise40"] if kind is images else [])
    for name in names:
        assert torch.equal(shifted(f"{name}+shift5"), shifted("+shift5"))
