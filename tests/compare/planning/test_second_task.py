"""A second task is checked before anything is trained, and found again by workers."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compare.conftest import make_known
from steppe.compare.data.datasets import Data, TensorSamples
from steppe.compare.planning.options import StudyOptions
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.second_task import LRS, STEPS, load_second_task
from steppe.compare.planning.setup import plan_setup
from steppe.compare.planning.study import plan_study
from steppe.compare.records.json_format import from_json, to_json
from steppe.compare.tasks.makers import Size, TaskMaker
from steppe.compare.tasks.source import find_task
from steppe.compare.training.run import RunContext, RunSettings


@pytest.fixture
def others(toy_task: TaskMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tasks known that fit the toy's model ("flipped"), and that do not."""

    def known(name: str, inputs: torch.Tensor, classes: int) -> None:
        targets = torch.arange(len(inputs)) % classes
        parts = [TensorSamples(inputs[some], targets[some]) for some in (slice(6), slice(6, 12))]
        data = Data(*parts, parts[1], fingerprint=name)
        size = Size("linear", epochs=2, batch_size=3)
        make_known(monkeypatch, TaskMaker(name, lambda: data, lambda _: nn.Identity(), size, size))

    known("flipped", torch.randn(12, 1, 2, 2), 2)
    known("large", torch.randn(12, 1, 3, 3), 2)
    known("many", torch.randn(12, 1, 2, 2), 3)


OWN = """\
import torch
from torch import nn
from steppe.compare import Task

x = torch.randn(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
b = Task(
    name="own", model=lambda: nn.Flatten(), train=(x, (x.sum((1, 2, 3)) > 0).long()),
    validation=0.2, test=0.2, loss=nn.functional.cross_entropy, batch_size=4,
)
bad = Task(
    name="bad", model=lambda: nn.Flatten(), train=(x, x.sum((1, 2, 3))), validation=0.2, test=0.2,
    loss=lambda outputs, targets: (outputs[:, 5] - targets).square().mean(),
)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "own_second.py").write_text(OWN)
    yield f"{tmp_path}/own_second.py"
    sys.modules.pop("own_second", None)


def planned(context: RunContext, task: str = "toy", **options: Any) -> RunSettings:
    _, settings, *_ = plan_setup(find_task(task), StudyOptions(**options), USUAL, context)
    return settings


@pytest.mark.usefixtures("others")
def test_what_is_planned(context: RunContext) -> None:
    settings = planned(context, then="flipped+batch5", then_loss=0.5)
    found = settings.then
    assert found is not None
    assert (found.task, found.batch_size, found.loss) == ("flipped+batch5", 5, 0.5)
    assert (found.steps, found.lrs, found.source) == (STEPS, LRS, "")
    assert from_json(RunSettings, to_json(settings)) == settings
    assert planned(context).then is None


@pytest.mark.usefixtures("toy_task")
def test_the_same_samples_with_other_labels_are_another_task(context: RunContext) -> None:
    found = planned(context, then="toy+noise40").then
    assert found is not None
    assert found.task == "toy+noise40"


@pytest.mark.usefixtures("others", "toy_stream")
@pytest.mark.parametrize(
    ("task", "then", "message"),
    [
        ("toy", "flippd", "did you mean flipped"),
        ("toy", "large", r"have the shape \(1, 2, 2\) of toy, got \(1, 3, 3\) of large"),
        (
            "toy",
            "many",
            "many does not fit the model of toy: its classes must be below the 2 outputs, got 2",
        ),
        ("toy", "toy", "then must be a task of other samples than toy, got toy"),
        ("toy", "toy+batch3", "then must be a task of other samples than toy, got toy[+]batch3"),
        ("toy", "toy+few9", "then must be a task of other samples than toy, got toy[+]few9"),
        ("toy+few9", "toy+shift2", "of other samples than toy[+]few9, got toy[+]shift2"),
        ("toy+noise40", "toy+batch3+noise40", "other samples than toy[+]noise40, got toy"),
        ("toy", "toy-stream", "are no streams, got the stream toy-stream"),
        ("toy-stream", "toy", "are no streams, got the stream toy-stream"),
        ("toy", "digits", r"have the shape \(1, 2, 2\) of toy, got \(1, 8, 8\) of digits"),
        ("toy", "flipped+long2", r"without \+long2, got flipped\+long2: fine-tuning has 200 steps"),
        ("toy", "flipped+few9", "samples must be between 2 and the 6 training samples, got 9"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    context: RunContext, task: str, then: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steppe.compare.training.train.Training.resume", None)
    with pytest.raises(ValueError, match=message):
        plan_study(task, StudyOptions(["adamw"], then=then), USUAL, context)
    assert not context.out.exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"then_loss": 0.5}, ValueError, "then-loss must come with then, got 0.5 alone"),
        ({"then": "digits", "then_loss": 0.0}, ValueError, "then-loss must be a finite number abo"),
        ({"then": "digits+nosie4"}, ValueError, "did you mean noise40"),
        ({"then": "a.py"}, ValueError, "a.py may have several tasks: name one, as a.py:task"),
        ({"then": nn.Flatten()}, TypeError, "then must be a task's name, got Flatten: put a task"),
    ],
)
def test_options_are_checked(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        StudyOptions(**options).check()


@pytest.mark.usefixtures("toy_task")
def test_an_own_task_is_found_again_where_its_file_is(
    own: str, context: RunContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = plan_study("toy", StudyOptions(["sgd"], then=f"{own}:b+noise40"), USUAL, context)
    second = study.setup.then
    assert second is not None
    assert second.task == "own_second.py:b+noise40"
    assert second.source
    toy = find_task("toy").task().load()
    for location in (study.then_location, ""):
        # Elsewhere it is looked for in the working directory.
        monkeypatch.chdir(tmp_path)
        found = load_second_task(second, location, toy)
        assert found is not None
        assert found.task.name == "own+noise40"
    for changes in ({"source": "another"}, {"fingerprint": "another"}):
        with pytest.raises(ValueError, match=r"second task own_second.py:b\+noise40 must be what"):
            load_second_task(replace(second, **changes), study.then_location, toy)
    assert load_second_task(None, "", toy) is None


@pytest.mark.usefixtures("toy_task")
def test_an_own_loss_that_cannot_be_taken_of_the_model_is_shown(
    own: str, context: RunContext
) -> None:
    with pytest.raises(ValueError, match=r"own_second.py:bad does not fit the model of toy: ") as e:
        planned(context, then=f"{own}:bad")
    assert any("outputs[:, 5]" in note for note in e.value.__notes__)


def test_a_continued_study_finds_it_beside_the_first_tasks_file(
    toy_task: TaskMaker, own: str, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = plan_study("toy", StudyOptions(["adamw"], then=f"{own}:b"), USUAL, context)
    first, second = find_task("toy").task({}).load(), study.setup.then
    with pytest.raises(ValueError, match=r"own_second.py must be in .* the second task"):
        load_second_task(second, "", first)
    beside = f"{Path(own).parent}/first.py:task"
    found = load_second_task(second, "", first, beside)
    assert found is not None
    assert found.data.fingerprint == second.fingerprint
