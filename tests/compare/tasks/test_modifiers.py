"""Tasks that are changed by their name or in Python: the same task, and nobody else's."""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.warm_python import run
from steppe.compare.data.datasets import Data, TensorSamples
from steppe.compare.planning.options import StudyOptions
from steppe.compare.planning.presets import PRESETS, USUAL, usual_for
from steppe.compare.planning.setup import plan_setup
from steppe.compare.planning.study import plan_study
from steppe.compare.tasks.makers import TASKS
from steppe.compare.tasks.source import find_task
from steppe.compare.tasks.task import Task
from steppe.compare.training.run import RunContext

OWN = """\
import torch
from torch import nn
from steppe.compare import Task

x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
y = (x.sum(1) > 0).long()


def sized(*, samples=400):
    return Task(
        name="signs", model=lambda: nn.Linear(3, 2), train=(x[:samples], y[:samples]),
        validation=0.2, test=0.2, loss=nn.functional.cross_entropy, epochs=2, batch_size=8,
    )


task = sized()
noisy = task.with_label_noise(0.4)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "c++" / "own_signs.py"
    path.parent.mkdir()
    path.write_text(OWN)
    yield path
    sys.modules.pop("own_signs", None)
    importlib.invalidate_caches()


def labels(samples: Any) -> list[int]:
    return [int(samples[row][1]) for row in range(len(samples))]


def data_of(name: str) -> Data:
    return find_task(name).task().load().data


def toy(**changes: Any) -> Task:
    """Make a task whose samples tell their number."""
    numbers = torch.arange(200)
    given = {"name": "toy", "model": lambda: nn.Linear(1, 3), "loss": nn.functional.cross_entropy}
    samples = (numbers.float()[:, None], numbers % 3)
    return Task(**{**given, "train": samples, "validation": 0.2, "test": 0.2, **changes})


def test_python_and_names_make_the_same_task() -> None:
    named = find_task("digits+few250+noise40+batch16+long3").task()
    task = find_task("digits").task()
    made = task.with_samples(250).with_label_noise(0.4).with_batch_size(16).with_longer_training(3)
    for each in (named, made):
        assert each.name == "digits+few250+noise40+batch16+long3"
        assert (each.epochs, each.batch_size, each.options["samples"]) == (150, 16, 250)
    ours, theirs = made.load().data, named.load().data
    assert ours.fingerprint == theirs.fingerprint
    assert labels(ours.train) == labels(theirs.train)
    assert labels(ours.validation) == labels(theirs.validation)
    assert (task.name, task.epochs, task.modifiers) == ("digits", 50, ())


def test_the_order_in_which_they_are_written_does_not_matter() -> None:
    calls = {
        "few60": lambda task: task.with_samples(60),
        "noise30": lambda task: task.with_label_noise(0.3),
        "long2": lambda task: task.with_longer_training(2),
    }
    found = set()
    for order in permutations(calls):
        task = toy()
        for each in order:
            task = calls[each](task)
        data = task.load().data
        found.add((task.name, data.fingerprint, *labels(data.train)))
    assert len(found) == 1
    assert next(iter(found))[0] == "toy+few60+noise30+long2"


def test_noise_is_of_the_chosen_samples_and_a_larger_choice_keeps_it() -> None:
    clean, few, more = (
        data_of(f"digits+{name}") for name in ("few100", "few100+noise40", "few300+noise40")
    )
    assert labels(few.train) == labels(more.train)[:100]
    assert torch.equal(few.train[7][0], clean.train[7][0])
    assert labels(few.train) != labels(clean.train)
    assert labels(few.validation) == labels(more.validation)


def test_only_training_and_validation_are_changed() -> None:
    clean, noisy, few = (data_of(name) for name in ("digits", "digits+noise40", "digits+few250"))
    assert labels(noisy.test) == labels(clean.test) == labels(few.test)
    assert labels(noisy.train) != labels(clean.train)
    assert labels(noisy.validation) != labels(clean.validation)
    assert labels(few.validation) == labels(clean.validation)
    assert labels(noisy.unaugmented) == labels(noisy.train)


def test_fewer_samples_are_those_of_the_option() -> None:
    few = data_of("digits+few250")
    option = find_task("digits").task({"samples": 250}).load().data
    assert labels(few.train) == labels(option.train)
    assert torch.equal(few.train[3][0], option.train[3][0])
    assert len(few.validation) == 251
    assert len(option.validation) == 125


def test_fewer_blocks_of_a_text_are_the_first_ones(toy_text: Any) -> None:
    whole, few = data_of("toy-text"), data_of("toy-text+few6")
    assert torch.equal(few.train.inputs, whole.train.inputs[:6])
    assert torch.equal(few.test.inputs, whole.test.inputs)
    assert torch.equal(few.validation.inputs, whole.validation.inputs)


def test_a_choice_of_the_users_own_is_taken_for_training_alone() -> None:
    def last(data: Data, samples: int) -> Data:
        rows = range(len(data.train) - samples, len(data.train))
        return Data(torch.utils.data.Subset(data.train, rows), data.validation, data.train)

    whole, few = toy().load().data, toy(subsample=last).with_samples(5).load().data
    assert labels(few.train) == labels(whole.train)[-5:]
    assert labels(few.test) == labels(whole.test)
    with pytest.raises(TypeError, match="subsample must be a function, got int"):
        toy(subsample=5)


def test_another_process_draws_the_same_labels(own: Path, tmp_path: Path) -> None:
    names = ["digits+noise40+few250", "digits+noise40-seed1", f"{own}:task+noise40"]
    script = tmp_path / "draw.py"
    script.write_text(
        "import json, sys\n"
        "from steppe.compare import find_task\n"
        "loaded = [find_task(name).task().load().data for name in sys.argv[1:]]\n"
        "found = [[d.fingerprint, *(int(d.train[i][1]) for i in range(99))] for d in loaded]\n"
        "print(json.dumps(found))\n"
    )
    there = json.loads(run(script, *names))
    for name, found in zip(names, there, strict=True):
        data = data_of(name)
        assert found == [data.fingerprint, *labels(data.train)[:99]], name


def test_whatever_a_modifier_says_is_a_part_of_the_study(own: Path, tmp_path: Path) -> None:
    place = RunContext(tmp_path / "out")
    options = StudyOptions(["sgd"], budget=1, trials=3, lr=0.1)
    endings = ["", "+noise40", "+noise20", "+noise40-seed1", "+few40", "+long2", "+batch16"]
    endings += ["+few40+noise40"]
    for base, called in (("digits", "digits"), (f"{own}:task", "signs")):
        studies = [plan_study(base + each, options, USUAL, place) for each in endings]
        assert [study.setup.task for study in studies] == [called + each for each in endings]
        assert len({study.name for study in studies}) == len(endings)
        prints = {each: s.setup.fingerprint for each, s in zip(endings, studies, strict=True)}
        assert len({*prints.values()}) == len(endings) - 2
        assert prints["+long2"] == prints["+batch16"] == prints[""]
        if base != "digits":
            assert len({study.setup.source for study in studies}) == len(endings)
            assert studies[1].location == f"{own}:task+noise40"


def test_tasks_made_in_python_are_told_apart() -> None:
    task = toy()
    tasks = [
        task,
        task.with_label_noise(0.4),
        task.with_label_noise(0.4, seed=1),
        task.with_label_noise(0.2),
        task.with_samples(40),
        task.with_batch_size(64),
        task.with_longer_training(2),
    ]
    assert len({find_task(each).source for each in tasks}) == len(tasks)
    assert find_task(task.with_samples(40)).source == find_task(tasks[4]).source
    assert len({each.name for each in tasks}) == len(tasks)


def test_a_task_in_a_file_is_changed_by_its_name_or_there(own: Path) -> None:
    by_name = find_task(f"{own}:task+noise40")
    assert (by_name.label, by_name.location) == ("own_signs.py:task+noise40", by_name.name)
    named, there = by_name.task(), find_task(f"{own}:noisy").task()
    assert named.name == there.name == "signs+noise40"
    assert labels(named.load().data.train) == labels(there.load().data.train)
    assert len(find_task(f"{own}:sized+few20").task({"samples": 200}).load().data.train) == 20


def test_augmented_samples_and_those_without_have_the_same_labels() -> None:
    plain = TensorSamples(torch.zeros(300, 1), torch.arange(300) % 5)
    train = [(torch.rand(1), int(label)) for label in plain.targets]
    data = toy(train=train, plain=plain).with_label_noise(0.5).with_samples(90).load().data
    assert labels(data.train) == labels(data.plain)
    assert len(data.plain) == 90


def test_the_streams_tasks_keep_their_classes(toy_stream: Any) -> None:
    clean, noisy = data_of("toy-stream"), data_of("toy-stream+noise45")
    assert noisy.is_stream
    for before, after in zip(clean.train.datasets, noisy.train.datasets, strict=True):
        assert [each // 2 for each in labels(after)] == [each // 2 for each in labels(before)]
    assert labels(noisy.train) != labels(clean.train)


def test_what_is_usual_for_a_task_is_that_of_the_task_itself() -> None:
    for name in TASKS:
        assert usual_for(f"{name}+noise40+long4") is usual_for(name)
    preset = PRESETS["critical-momenta-language"]
    assert preset.model_for("ptb+few9", "full") == "lstm-200"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits+few250", {"samples": 64}, r"--samples 64 and \+few250 of digits\+few250 set the"),
        ("digits+noise40+few250", {"samples": 64}, r"--samples 64 and \+few250 of digits\+few250"),
        ("digits+long4", {"epochs": 3}, r"--epochs 3 and \+long4 .*leave one of them out"),
        (
            "digits+batch9",
            {"batch_size": 8},
            r"--batch-size 8 and \+batch9 .*leave one of them out",
        ),
    ],
)
def test_what_an_option_sets_too_is_refused(
    tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    source = find_task(name)
    for task in (source, find_task(source.task())):
        if task is source or "samples" not in options:
            with pytest.raises(ValueError, match=message):
                plan_setup(task, StudyOptions(**options), USUAL, RunContext(tmp_path))


def test_a_presets_length_and_batches_are_changed_too(toy_task: Any, tmp_path: Path) -> None:
    preset = PRESETS["dualadam"]
    options = StudyOptions(scale="full")

    def setup(name: str) -> tuple[int, int]:
        source = find_task(name)
        _, found, *_ = plan_setup(source, options, preset, RunContext(tmp_path))
        return found.epochs, found.batch_size

    assert setup("toy") == (200, 128)
    assert setup("toy+long4") == (800, 128)
    assert setup("toy+batch9") == (200, 9)


@pytest.mark.parametrize(
    ("call", "value", "message"),
    [
        ("with_label_noise", 0, "probability must be above 0 and below 1, got 0"),
        ("with_label_noise", 1.0, "probability must be above 0 and below 1, got 1.0"),
        ("with_label_noise", 40, "probability must be above 0 and below 1, got 40"),
        ("with_label_noise", float("nan"), "probability must be above 0 and below 1, got nan"),
        ("with_label_noise", "0.4", "probability must be a number, got '0.4'"),
        ("with_samples", 1, "samples must be at least 2, got 1"),
        ("with_samples", 2.5, "samples must be an integer, got 2.5"),
        ("with_batch_size", 0, "batch_size must be at least 1, got 0"),
        ("with_longer_training", 1, "factor must be at least 2, got 1"),
    ],
)
def test_what_is_out_of_range_is_refused(call: str, value: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(toy(), call)(value)


def test_a_seed_that_no_name_has_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match="seed must be at most 999999999, got 1000000000"):
        toy().with_label_noise(0.4, seed=10**9)
    assert toy().with_label_noise(0.4, seed=10**9 - 1).name == "toy+noise40-seed999999999"


def test_a_changed_task_keeps_a_name_that_says_so() -> None:
    noisy = toy().with_label_noise(0.4)
    with pytest.raises(ValueError, match=r"name='b' must end with '\+noise40', as the task is"):
        replace(noisy, name="b")
    assert replace(noisy, name="b+noise40").with_samples(50).name == "b+few50+noise40"


def test_a_modifier_given_twice_is_refused(own: Path) -> None:
    with pytest.raises(ValueError, match=r"noise must be given once, got \+noise40 and \+noise20"):
        toy().with_label_noise(0.4).with_label_noise(0.2)
    with pytest.raises(ValueError, match="noise must be given once"):
        find_task(f"{own}:noisy+noise20").task()


def test_targets_that_are_no_classes_are_refused(toy_text: Any) -> None:
    with pytest.raises(ValueError, match=r"needs classes, .*train has targets of torch\.int64"):
        find_task("toy-text+noise40").task().load()
    x: Tensor = torch.linspace(-1, 1, 50)[:, None]
    with pytest.raises(ValueError, match=r"train has targets of torch.float32 in the shape \(30"):
        toy(train=(x, 2 * x)).with_label_noise(0.4).load()


def test_more_samples_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="samples must be between 2 and the 120 training samples"):
        toy().with_samples(121).load()
