"""A comparison from Python: run, opened again, and shown; optimizers of one's own."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from torch import nn

from steppe.compare import (
    Contender,
    LogUniform,
    Metric,
    Study,
    Task,
    Uniform,
    load,
    run,
)
from steppe.compare.cli.compare import compare
from steppe.compare.planning.options import StudyOptions
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import plan_study
from steppe.compare.records.results import StudyResults
from steppe.compare.training.run import RunContext

SIZES = {"budget": 1, "trials": 3}

FILE = """
import torch
from torch import nn
from steppe.compare import Contender, LogUniform, Metric, Task

x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))


def model():
    return nn.Linear(4, 1)


def errors(outputs, targets):
    return (outputs - targets).abs().mean(1)


def slow_bias(model, lr=1e-3):
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": lr / 10}]
    return torch.optim.AdamW(groups, lr=lr)


task = Task(name="sums", model=model, train=(x, x.sum(1, keepdim=True)), validation=0.3, test=0.3,
            loss=nn.functional.mse_loss, metrics={"error": Metric(errors, False)}, epochs=2)
mine = Contender("slow bias", slow_bias, {"lr": LogUniform(1e-3, 1e-1)})
"""


def slow_bias(model: nn.Linear, lr: float = 1e-3) -> torch.optim.Optimizer:
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": lr / 10}]
    return torch.optim.AdamW(groups, lr=lr)


MINE = Contender("slow bias", slow_bias, {"lr": LogUniform(1e-3, 1e-1)})


TOO_FEW = "With 3 trials p is never below 0.25"


def sums(**changes: object) -> Task:
    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    parts: dict[str, object] = {
        "name": "sums",
        "model": lambda: nn.Linear(4, 1),
        "train": (x, x.sum(1, keepdim=True)),
        "validation": 0.3,
        "test": 0.3,
        "loss": nn.functional.mse_loss,
        "metrics": {
            "error": Metric(lambda outputs, targets: (outputs - targets).abs().mean(1), False)
        },
        "epochs": 2,
    }
    return Task(**{**parts, **changes})


def numbers(results: StudyResults) -> list[tuple[object, ...]]:
    """Return what must be the same wherever a study ran."""
    return sorted(
        (
            each.phase,
            each.number,
            each.seed,
            dict(each.settings)["lr"],
            each.outcome.final.test_loss,
        )
        for each in results.trials
        if each.outcome and each.optimizer == "adamw"
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    with pytest.warns(UserWarning, match=TOO_FEW):
        return run(sums(), ["adamw", MINE], out_dir=tmp_path_factory.mktemp("study"), **SIZES)


def test_a_study_has_verdicts_tables_and_figures(study: Study, tmp_path: Path) -> None:
    assert study.complete
    (verdict,) = study.verdicts()
    assert (verdict.optimizer, verdict.baseline, verdict.metric) == ("slow bias", "adamw", "error")
    text = study.to_csv(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == text
    frame = study.to_pandas()
    assert frame.equals(pandas.read_csv(io.StringIO(text), index_col=0))
    assert frame.loc["slow bias", "difference, test error"] == pytest.approx(verdict.estimate)
    assert r"\toprule" in study.to_latex(table="costs")
    assert list(study.to_pandas("trials").columns)
    for figure in (study.plot_budget(), study.plot_curves(), study.plot_differences()):
        assert figure is not None
        assert figure._repr_png_().startswith(b"\x89PNG")
    assert study.report(tmp_path / "page.html").read_text().lstrip().startswith("<!DOCTYPE")
    with pytest.raises(ValueError, match="no table is called 'bord'"):
        study.table("bord")


def test_a_study_shows_itself(study: Study) -> None:
    assert "slow bias: " in repr(study)
    shown = study._repr_html_()
    assert "<table>" in shown
    assert shown.count("<tr>") == 3


def test_a_study_is_opened_from_its_file_and_its_directory(study: Study, tmp_path: Path) -> None:
    saved = load(study.save(tmp_path / "study.json"))
    assert numbers(saved.results) == numbers(study.results)
    assert saved.verdicts() == study.verdicts()


def test_the_parameter_groups_are_the_contenders(study: Study) -> None:
    """The bias moves a tenth as fast as under AdamW, at the same settings."""
    model = nn.Linear(4, 1)
    groups = MINE.build(model, {"lr": 0.01}, steps=8).param_groups
    assert [group["lr"] for group in groups] == [0.01, 0.001]
    tried = {each.settings["lr"] for each in study.results.trials if each.optimizer == "slow bias"}
    assert all(1e-3 <= lr <= 1e-1 for lr in tried)
    assert len(tried) >= 3


def test_python_and_the_command_give_the_same_numbers(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sums_task.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    options = StudyOptions(["adamw", "sums_task.py:mine"], **SIZES)
    compare("sums_task.py:task", options=options, workers=1, out_dir=tmp_path / "out")
    typed = load(tmp_path / "out")
    assert numbers(typed.results) == numbers(study.results)
    assert typed.verdicts()[0].estimate == study.verdicts()[0].estimate
    named = ["adamw", "sums_task.py:mine"]
    with pytest.warns(UserWarning, match=TOO_FEW):
        again = run("sums_task.py:task", named, out_dir=tmp_path / "again", workers=1, **SIZES)
    assert numbers(again.results) == numbers(study.results)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": ""}, ValueError, "name='' must be 1 to 60 characters"),
        ({"make": 3}, TypeError, "make must be a function, got int"),
        ({"space": {"lr": (1e-4, 1e-1)}}, TypeError, "must be LogUniform, Uniform or Choice"),
        ({"space": {"rho": Uniform(0, 1)}}, TypeError, "make takes no setting 'rho'"),
        (
            {"make": lambda model, lr: None, "space": {"lr": Uniform(0, 1)}},
            ValueError,
            "lr has no default",
        ),
    ],
)
def test_contenders_that_cannot_be_are_refused(
    arguments: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Contender(**{"name": "mine", "make": slow_bias, **arguments})


@pytest.mark.parametrize(
    ("optimizers", "options", "error", "message"),
    [
        (
            [Contender("adamw", slow_bias)],
            {},
            ValueError,
            "'adamw' is that of another optimizer",
        ),
        ([Contender("a+b", slow_bias)], {}, ValueError, "must have neither"),
        ([torch.optim.AdamW], {}, TypeError, "must be names or Contender, got <class"),
        (["adamw"], {"workers": 2}, TypeError, "put it into a file"),
        (["adamw"], {"workers": 0}, ValueError, "workers=0 must be an integer of at least 1"),
        (["adamw"], {"budgit": 3}, TypeError, "budgit"),
        (["adamw"], {"trials": 1}, ValueError, "trials must be at least 12"),
        (
            ["adamw", Contender("none", lambda model: None)],
            SIZES,
            ValueError,
            "none cannot train sums: .*must return a torch.optim.Optimizer",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(
    optimizers: list,
    options: dict,
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        run(sums(), optimizers, out_dir=tmp_path, **options)


def test_planning_makes_the_model_twice_and_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    """Two are compared; each optimizer takes a step with one more. Pretrained ones take time."""
    made: list[nn.Module] = []

    def model() -> nn.Module:
        made.append(nn.Linear(4, 1))
        return made[-1]

    task = sums(model=model)
    plan_study(
        task, StudyOptions(["adamw", "sgd"], **SIZES), USUAL, RunContext(tmp_path, task=task)
    )
    assert len(made) == 2 + 2
    with pytest.raises(ValueError, match=r"model\(\) must return a torch.nn.Module, got int"):
        run(sums(model=lambda: 3), ["adamw"], out_dir=tmp_path)


UNGUARDED = """
import torch
from steppe.compare import Task, run
x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
task = Task(name="unguarded", model=lambda: torch.nn.Linear(2, 1), train=(x, x[:, :1]),
            validation=.2, test=.2, loss=torch.nn.functional.mse_loss, epochs=1)
run(__file__ + ":task", ["sgd"], budget=1, trials=3, workers=2, out_dir={out!r})
"""


def test_a_file_that_runs_itself_when_it_is_imported_is_refused(tmp_path: Path) -> None:
    """Its workers waited for each other for ever."""
    path = tmp_path / "unguarded.py"
    path.write_text(UNGUARDED.format(out=str(tmp_path / "out")))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is called while unguarded.py is imported" in done.stderr
    assert not (tmp_path / "out").exists()


OWN_CLASS = """
import torch
from steppe.compare import Contender, LogUniform, Task
x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
task = Task(name="own", model=lambda: torch.nn.Linear(2, 1), train=(x, x[:, :1]),
            validation=.2, test=.2, loss=torch.nn.functional.mse_loss, epochs=1)
seen = []

class Own(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad
        seen.append(float(group["lr"]))
        return loss

def make(model, lr=0.1):
    seen.append(lr)
    return Own(model.parameters(), lr=lr)

mine = Contender("own-class", make, {"lr": LogUniform(1e-3, 1e-1)})
"""


@pytest.mark.parametrize("workers", [None, 1])
def test_a_contender_may_be_a_class_of_ones_own_that_notes_what_it_does(
    tmp_path: Path, workers: int | None
) -> None:
    """Torch wraps its step at the first instance: it was taken for another version of itself."""
    path = tmp_path / f"own_class_{workers}.py"
    path.write_text(OWN_CLASS)
    named = [f"{path}:mine"]

    def once() -> Study:
        return run(f"{path}:task", named, budget=1, trials=3, out_dir=tmp_path, workers=workers)

    first, again = once(), once()
    assert first.complete
    assert again.results.name == first.results.name
    assert again.to_csv() == first.to_csv()


def test_so_may_one_that_is_made_here(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "a_notebook"}
    exec(OWN_CLASS, names)

    def once() -> Study:
        return run(names["task"], [names["mine"]], budget=1, trials=3, out_dir=tmp_path)

    first, again = once(), once()
    assert first.complete
    assert again.results.name == first.results.name
    assert again.to_csv() == first.to_csv()


def test_a_modified_task_has_a_study_of_its_own_by_its_name_and_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    signs = {"train": (x, (x.sum(1) > 0).long()), "loss": nn.functional.cross_entropy}
    task = sums(model=lambda: nn.Linear(4, 2), metrics={}, **signs)
    options = {**SIZES, "lr": 0.1, "weight_decay": 0.0}
    clean = run(task, ["sgd"], **options)
    noisy = run(task.with_label_noise(0.4), ["sgd"], **options)
    assert (clean.complete, noisy.complete) == (True, True)
    assert noisy.results.task == "sums+noise40"
    assert noisy.results.setup["source"] != clean.results.setup["source"]
    run("digits+batch20+few20", ["sgd"], epochs=1, **options)
    found = {path.name for path in (tmp_path / "results").iterdir()}
    assert found == {"sums", "sums+noise40", "digits+few20+batch20"}
