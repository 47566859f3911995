"""The report card of what a run has left."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from helpers.command_line import Result, run_steppe
from helpers.training_runs import train_on
from steppe.compare.cli.saved_robustness import saved_robustness
from steppe.compare.metrics.robustness import RobustnessSettings
from steppe.compare.tasks.source import find_task
from steppe.compare.tasks.task import Task
from steppe.compare.training import checkpoint
from steppe.compare.training.run import RunContext
from steppe.compare.training.train import train
from steppe.landscape import Rounding, WeightNoise, robustness

pytestmark = pytest.mark.thorough


def profile(*arguments: object) -> Result:
    return run_steppe("profile", *arguments)


@pytest.fixture
def saved(make_run, toy_data, context: RunContext):
    """Train a run of the toy task; return its outcome and its checkpoint."""

    def make(name: str, **options):
        run = make_run(name, **options)
        return train_on(run, toy_data, context), checkpoint.checkpoint_path(context.out, run)

    return make


@pytest.mark.parametrize("name", ["adamw", "dualadam+sam", "adam+warmup", "adamcm-int8"])
@pytest.mark.usefixtures("toy_curvature")
def test_the_card_of_a_saved_run(saved, tmp_path: Path, name: str) -> None:
    outcome, path = saved(name, schedule="cosine")
    picture = tmp_path / "c.png"
    result = profile(path, "--task", "toy", "--samples", 21, "--figure", picture)
    assert result.exit_code == 0, result.output
    for word in ("loss", "21 samples", "λ_max", "trace", "threshold", "sharpness, SAM"):
        assert word in result.output
    assert picture.stat().st_size > 10_000
    # The lr of the threshold is the one that was trained with: the schedule's last is a thousandth.
    assert f"{outcome.curvature.threshold:.3g}" in result.output


def test_the_network_is_the_checkpoints(saved) -> None:
    _, path = saved("sgd", model="noisy")
    result = profile(path, "--task", "toy", "--samples", 20)
    assert result.exit_code == 0, result.output
    assert path.with_suffix(".png").is_file()
    wrong = profile(path, "--task", "toy", "--model", "linear")
    assert wrong.exit_code == 2
    assert "does not fit toy" in wrong.stderr


@pytest.mark.usefixtures("toy_curvature")
def test_samples_are_those_that_the_run_was_trained_on(saved) -> None:
    _, path = saved("adamw", samples=8)
    result = profile(path, "--task", "toy")
    assert result.exit_code == 0, result.output
    assert "8 samples" in result.output


def test_it_does_without_an_optimizer_that_has_no_preconditioner(saved) -> None:
    _, path = saved("rprop")
    result = profile(path, "--task", "toy", "--samples", 20)
    assert result.exit_code == 0, result.output
    assert "Without its optimizer: Rprop has no diagonal preconditioner" in result.output
    assert "λ_max" in result.output
    assert "threshold" not in result.output


def test_a_bare_state_dict_will_do(toy_task, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(toy_task.make("linear").state_dict(), path)
    result = profile(path, "--task", "toy", "--samples", 20)
    assert result.exit_code == 0, result.output
    assert "λ_max" in result.output


def test_what_is_wrong_is_said(saved, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    _, trained = saved("sgd")
    for arguments, message in [
        ((tmp_path / "none.pt", "--task", "digits"), "No such file"),
        ((path, "--task", "digits"), "does not fit digits"),
        ((path, "--task", "nothing"), "no task"),
        ((trained, "--task", "digits"), "was trained on toy, not on digits"),
        ((path, "--task", "digits", "--model", "mpl"), "did you mean mlp"),
        ((path, "--task", "digits", "--samples", 0), "samples must be at least 1, got 0"),
        ((path, "--task", "digits", "--threads", 0), "threads must be from 1 to 1024, got 0"),
        ((path, "--task", "digits", "--threads", 10**5), "from 1 to 1024, got 100000"),
    ]:
        result = profile(*arguments)
        assert result.exit_code == 2, result.output
        assert message in result.output


def rows(result: Result) -> dict[str, str]:
    """Return what stands in each line of a table, by the line's name."""
    found = (line.strip().partition("  ") for line in result.output.splitlines())
    return {name: rest for name, _, rest in found}


@pytest.mark.parametrize("name", ["adamw", "adamw+ema"])
def test_robustness_of_a_saved_run_is_what_the_study_measured(
    saved, tmp_path: Path, name: str
) -> None:
    outcome, path = saved(name, robustness=True)
    picture = tmp_path / "c.png"
    result = profile(path, "--task", "toy", "--samples", 21, "--robustness", "--figure", picture)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "c-robustness.png").stat().st_size > 10_000
    assert "Robustness on 9 test samples" in result.output
    lines = rows(result)
    for each, scores in outcome.robustness.items():
        if each in ("kurtosis", "outliers"):
            continue
        assert lines[each].split()[0] == f"{scores.test_score:.4g}", each
    change = outcome.robustness["blur 5"].test_score - outcome.robustness["clean"].test_score
    assert f" {change:+.4g}" in lines["blur 5"]


@pytest.mark.parametrize("task", ["toy-text", "toy-stream"])
def test_robustness_of_texts_and_streams(
    task: str, toy_text, toy_stream, context: RunContext, make_run
) -> None:
    makers = {"toy-text": toy_text, "toy-stream": toy_stream}
    loaded = find_task(task).task({}).load()
    setup = {"task": task, "model": makers[task].full.model, "batch_size": 4, "epochs": 3}
    setup |= {"length": 50} if task == "toy-text" else {"stream": (3, 2, 2)}
    run = make_run("adamw", **setup, robustness=True)
    outcome = train(run, loaded, context)
    path = checkpoint.checkpoint_path(context.out, run)
    result = profile(path, "--task", task, "--samples", 5, "--robustness")
    assert result.exit_code == 0, result.output
    lines = rows(result)
    for each in ("clean", "2 bits absmax", "weight noise 0.5"):
        shown = float(lines[each].split()[0])
        assert shown == pytest.approx(outcome.robustness[each].test_score, rel=1e-3)
    if task == "toy-text":
        assert "of loss" in lines["swaps 5"]


def test_errors_are_over_samples_and_draws() -> None:
    """Those of the same model on the same samples, as robustness() measures any model."""
    torch.manual_seed(0)
    inputs = torch.randn(90, 6)
    labels = inputs[:, :3].argmax(1)
    model = nn.Sequential(nn.Linear(6, 3))
    chosen = [WeightNoise(0.5, draws=3), Rounding(2)]
    task = Task(
        name="own", model=lambda: model, train=(inputs, labels), validation=(inputs, labels),
        test=(inputs, labels), loss=cross_entropy,
        metrics={"accuracy": lambda outputs, targets: outputs.argmax(1) == targets},
        robustness=RobustnessSettings(perturbations=tuple(chosen)),
    )  # fmt: skip
    found = saved_robustness(task.load(), model, torch.device("cpu"), 1)
    expected = robustness(model, [(inputs, labels)], perturbations=chosen)
    assert [each.name for each in found.results] == [each.name for each in expected.results]
    for own, other in zip(found.results, expected.results, strict=True):
        for name in (
            "score",
            "score_error",
            "loss",
            "loss_error",
            "change",
            "change_error",
            "draws",
        ):
            known = pytest.approx(getattr(other, name), rel=1e-4)
            assert getattr(own, name) == known, (own.name, name)
