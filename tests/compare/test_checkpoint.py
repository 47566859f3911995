"""What a run leaves behind, and that it can be trusted."""

from pathlib import Path

import pytest
import torch

from steppe.commands.files import write_whole
from steppe.compare import checkpoint
from steppe.compare.optimizers import find_recipe
from steppe.compare.train import train

CPU = torch.device("cpu")


def test_a_run_leaves_its_model_and_its_optimizer(make_run, toy_data, tmp_path: Path) -> None:
    run = make_run("adamcm", seed=3)
    train(run, toy_data, directory=tmp_path)
    path = checkpoint.checkpoint_path(tmp_path, run)
    assert path.name.startswith("toy-adamcm-seed3-")
    content = checkpoint.load(path, CPU)
    assert (content["task"], content["optimizer"], content["seed"]) == ("toy", "adamcm", 3)
    model = run.setup.task.model()
    model.load_state_dict(content["model"])
    optimizer = find_recipe("adamcm").build(model.parameters(), content["lr"], 0.25)
    optimizer.load_state_dict(content["optimizer_state"])
    assert optimizer.state[model.weight]["step"] == 10
    # The same run again ends in the same place.
    again = tmp_path / "again"
    train(run, toy_data, directory=again)
    other = checkpoint.load(checkpoint.checkpoint_path(again, run), CPU)
    assert torch.equal(other["model"]["weight"], content["model"]["weight"])


def test_runs_with_other_settings_have_other_names(make_run, tmp_path: Path) -> None:
    runs = [make_run(), make_run(lr=0.5), make_run(seed=1), make_run("sgd"), make_run(epochs=9)]
    assert len({checkpoint.checkpoint_path(tmp_path, run) for run in runs}) == 5


def test_a_run_that_diverged_leaves_none(make_run, toy_data, tmp_path: Path) -> None:
    train(make_run("sgd", lr=1e38, epochs=5), toy_data, directory=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_models_state_dict_is_taken_too(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 1).state_dict(), path)
    assert checkpoint.load(path, CPU).keys() == {"model"}


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(), "no checkpoint that can be loaded safely"),
        ({"epoch": 3}, "neither a run of steppe compare nor a model's state_dict"),
        ([], "neither a run"),
    ],
)
def test_what_is_not_one_is_refused(tmp_path: Path, content, message: str, capsys) -> None:
    path = tmp_path / "file.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(path, CPU)
    assert capsys.readouterr().out == ""


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoint.load(path, CPU)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "other.pt", CPU)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_whole(path, lambda file: file.write(b"old"))

    def broken(file) -> None:
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, broken)
    assert path.read_bytes() == b"old"
    assert [each.name for each in path.parent.iterdir()] == ["file"]
