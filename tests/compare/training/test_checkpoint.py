"""What a run leaves behind, and that it can be trusted."""

from pathlib import Path

import pytest
import torch

from helpers.training_runs import train_on
from steppe._shared.files import write_whole
from steppe._shared.recipes import find_recipe
from steppe.compare.training import checkpoint
from steppe.compare.training.run import RunContext

CPU = torch.device("cpu")


def test_a_run_leaves_its_model_and_its_optimizer(
    make_run, toy_task, toy_data, context: RunContext
) -> None:
    run = make_run("adamcm", seed=3)
    outcome = train_on(run, toy_data, context)
    path = checkpoint.checkpoint_path(context.out, run)
    assert path.name.startswith("toy-adamcm-pool-seed3-")
    content = checkpoint.load(path, CPU)
    said = {name: content[name] for name in ("task", "network", "optimizer", "seed", "steps")}
    expected = {"task": "toy", "network": "linear", "optimizer": "adamcm", "seed": 3, "steps": 10}
    assert said == expected
    assert content["settings"] == run.settings
    model = toy_task.make(content["network"])
    model.load_state_dict(content["model"])
    with torch.no_grad():
        outputs = model(toy_data.test.inputs)
    hit = (outputs.argmax(1) == toy_data.test.targets).double().mean().item()
    assert outcome.final.test_score == pytest.approx(hit)
    recipe = find_recipe("adamcm")
    optimizer = recipe.build(model.parameters(), content["settings"], content["steps"])
    optimizer.load_state_dict(content["optimizer_state"])
    assert optimizer.state[model[1].weight]["step"] == 10


def test_nothing_unfinished_is_left(make_run, toy_data, context: RunContext) -> None:
    run = make_run()
    unfinished = checkpoint.progress_path(context.out, run)
    seen = []
    train_on(run, toy_data, context, lambda number, epoch: seen.append(unfinished.is_file()))
    assert seen == [True, True]
    assert not list(unfinished.parent.iterdir())
    assert len(list((context.out / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("curvature", ["none", "quick", "full"])
def test_only_a_run_that_is_measured_in_full_leaves_its_model(
    make_run, toy_data, context: RunContext, curvature: str
) -> None:
    """Of hundreds of trials nobody wants to keep the weights."""
    run = make_run(curvature=curvature)
    train_on(run, toy_data, context)
    left = [path for path in context.out.rglob("*") if path.is_file()]
    kept = [checkpoint.checkpoint_path(context.out, run)] if curvature == "full" else []
    assert left == kept


def test_a_run_that_diverged_leaves_none(make_run, toy_data, context: RunContext) -> None:
    run = make_run("sgd", settings={"lr": 1e38}, epochs=5)
    assert train_on(run, toy_data, context).diverged
    assert not [path for path in context.out.rglob("*") if path.is_file()]


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
        ({}, "neither a run"),
        ([], "no checkpoint: it holds a list"),
    ],
    ids=["code", "other", "empty", "list"],
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


def test_a_file_that_is_cut_short_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(torch.nn.Linear(30, 30).state_dict(), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="no checkpoint"):
            checkpoint.read(path, CPU)


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
