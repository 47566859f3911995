"""Every task's model fits its data."""

import pytest
import torch

from steppe.compare.models import mlp, small_cnn
from steppe.compare.tasks import TASKS, find_task


def test_a_new_model_is_about_as_good_as_guessing_among_ten() -> None:
    task = find_task("digits")
    data = task.data()
    loss = task.loss(task.model()(data.test_inputs), data.test_targets)
    assert loss.item() == pytest.approx(2.3, abs=0.3)


def test_the_tasks_are_the_three_promised() -> None:
    assert list(TASKS) == ["digits", "mnist-5k", "fashion-mnist"]
    assert small_cnn()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert sum(p.numel() for p in mlp().parameters()) == 8970


def test_an_unknown_task_gets_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean fashion-mnist"):
        find_task("fashion_mnist")


def test_a_task_without_files_takes_no_directory(tmp_path) -> None:
    with pytest.raises(ValueError, match="--data is not for it"):
        find_task("digits").data(tmp_path)


def test_a_task_with_files_reads_them_from_the_directory(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        find_task("fashion-mnist").data(tmp_path)
