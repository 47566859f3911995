"""A run's learning rate by step, and its name."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import torch

from steppe._shared.recipes import find_recipe
from steppe.compare.records.second_task import SecondTask
from steppe.compare.training.run import Run, RunSettings, run_settings_from_dict

STEPS = range(12)


def setup(**changes: object) -> RunSettings:
    content = {"epochs": 3, "steps_per_epoch": 4, "batch_size": 5, **changes}
    return RunSettings("toy", "linear", None, "toy", **content)


def cosine(done: float) -> float:
    return 1e-3 + 0.999 * 0.5 * (1 + math.cos(math.pi * done))


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"schedule": "constant"}, lambda t: 1.0),
        ({"schedule": "cosine"}, lambda t: cosine(t / 12)),
        ({"schedule": "cosine-epochs"}, lambda t: cosine(t // 4 / 3)),
        # A quarter of 12 steps: a third, two thirds, and all of lr from the third on.
        ({"schedule": "constant", "warmup": 0.25}, lambda t: min(1, (t + 1) / 3)),
        ({"schedule": "cosine", "warmup": 0.5}, lambda t: min(1, (t + 1) / 6) * cosine(t / 12)),
        (
            {"schedule": "cosine-epochs", "warmup": 0.25},
            lambda t: min(1, (t + 1) / 3) * cosine(t // 4 / 3),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_lr_follows_its_closed_form(changes, factor: Callable[[int], float]) -> None:
    found = [setup(**changes).lr_factor(step) for step in STEPS]
    assert found == pytest.approx([factor(step) for step in STEPS], rel=1e-12)


def test_the_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12, eta_min=1e-3)
    for step in STEPS:
        assert setup().lr_factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        schedule.step()


# Two passes over each of three tasks, of three steps, one, and two.
UNEVEN = {"epochs": 6, "steps_per_epoch": 3, "stream": (3, 1, 2)}
EPOCH_OF = [0, 0, 0, 1, 1, 1, 2, 3, 4, 4, 5, 5]


def test_a_streams_tasks_have_steps_of_their_own() -> None:
    found = setup(**UNEVEN)
    assert found.steps == len(EPOCH_OF)
    assert [found.steps_of_epoch(epoch) for epoch in range(6)] == [3, 3, 1, 1, 2, 2]
    assert [found.task_index(epoch) for epoch in range(6)] == [0, 0, 1, 1, 2, 2]
    once = replace(found, epochs=3)
    assert [once.task_index(epoch) for epoch in range(3)] == [0, 1, 2]
    assert once.steps == 6
    # What is no stream is one task.
    assert [setup().task_index(epoch) for epoch in range(3)] == [0, 0, 0]
    assert [setup().steps_of_epoch(epoch) for epoch in range(3)] == [4, 4, 4]


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"schedule": "constant"}, lambda t: 1.0),
        ({"schedule": "cosine"}, lambda t: cosine(t / 12)),
        ({"schedule": "cosine-epochs"}, lambda t: cosine(EPOCH_OF[t] / 6)),
        (
            {"schedule": "cosine-epochs", "warmup": 0.5},
            lambda t: min(1, (t + 1) / 6) * cosine(EPOCH_OF[t] / 6),
        ),
    ],
    ids=["constant", "cosine", "epochs", "warmup"],
)
def test_a_streams_lr_follows_its_closed_form(changes, factor: Callable[[int], float]) -> None:
    found = setup(**UNEVEN, **changes)
    assert [found.lr_factor(step) for step in STEPS] == pytest.approx(
        [factor(step) for step in STEPS]
    )


def test_a_setup_is_the_same_after_json_and_without_what_it_had_not_once() -> None:
    for given in (setup(), setup(**UNEVEN, length=35)):
        content = json.loads(json.dumps(asdict(given)))
        assert run_settings_from_dict({**content, "parameters": 10}) == given
    old = {
        name: value for name, value in asdict(setup()).items() if name not in ("length", "stream")
    }
    assert run_settings_from_dict(old) == setup()


def test_a_recipes_own_warm_up_is_adams_share_in_dual_adam() -> None:
    """1 − α = min(1, ξ·t) at step t = 1, 2, …, with 1/ξ a share of the run's steps."""
    constant = setup(schedule="constant")
    run = Run(constant, find_recipe("adam+warmup"), {"switch": 1 / 3}, 0)
    assert [run.lr_factor(step) for step in STEPS] == [0.25, 0.5, 0.75] + [1.0] * 9
    twice = replace(run, run_settings=setup(schedule="cosine", warmup=0.25))
    assert [twice.lr_factor(step) for step in STEPS] == pytest.approx(
        [min(1, (t + 1) / 4) * min(1, (t + 1) / 3) * cosine(t / 12) for t in STEPS]
    )
    without = Run(constant, find_recipe("dualadam"), {"switch": 1 / 3}, 0)
    assert {without.lr_factor(step) for step in STEPS} == {1.0}


def test_twice_the_epochs_stretch_all_that_depends_on_the_length() -> None:
    """24 steps in the place of 12; of a stream, each task has twice its passes."""
    run = Run(setup(warmup=0.25), find_recipe("adam+warmup+2epochs"), {"switch": 1 / 3}, 0)
    assert run.own_settings.steps == 24
    assert [run.lr_factor(step) for step in range(24)] == pytest.approx(
        [min(1, (t + 1) / 8) * min(1, (t + 1) / 6) * cosine(t / 24) for t in range(24)]
    )
    stream = Run(setup(**UNEVEN), find_recipe("adamw+2epochs"), {}, 0).own_settings
    tasks = [stream.task_index(epoch) for epoch in range(stream.epochs)]
    assert tasks == [0] * 4 + [1] * 4 + [2] * 4
    assert stream.steps == 2 * len(EPOCH_OF)


def test_without_such_a_name_a_run_has_the_studys_settings() -> None:
    for name in ("adamw", "adamw+ema+sam", "muon"):
        assert Run(setup(warmup=0.1), find_recipe(name), {}, 0).own_settings == setup(warmup=0.1)


@pytest.mark.parametrize("name", ["schedule-free", "schedulefree:SGDScheduleFree+sam"])
def test_schedule_free_has_no_schedule_on_top(name: str) -> None:
    for schedule in ("cosine", "cosine-epochs", "constant"):
        run = Run(setup(schedule=schedule, warmup=0.5), find_recipe(name), {}, 0)
        assert {run.lr_factor(step) for step in STEPS} == {1.0}
    assert find_recipe(name).arguments({}, 250)["warmup_steps"] == 5
    # A warm-up that is asked for by name is its own.
    warm = Run(setup(), find_recipe("schedule-free+warmup"), {"switch": 1 / 3}, 0)
    assert [warm.lr_factor(step) for step in STEPS] == [0.25, 0.5, 0.75] + [1.0] * 9


def test_runs_that_differ_in_anything_have_different_names(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Run(setup(), find_recipe("adamw"), {"lr": 0.1, "weight_decay": 0.0}, 0)
    others = [
        replace(first, seed=1),
        replace(first, phase="default"),
        replace(first, settings={"lr": 0.2, "weight_decay": 0.0}),
        replace(first, recipe=find_recipe("sgd")),
        *(
            replace(first, recipe=find_recipe(f"adamw+{modifier}"))
            for modifier in ("warmup", "beta1", "2epochs", "ema", "sam")
        ),
        replace(first, recipe=replace(first.recipe, source="edited")),
        replace(first, recipe=replace(first.recipe, preset={"eps": 1e-3})),
        *(
            replace(first, run_settings=replace(first.run_settings, **change))
            for change in (
                {"task": "digits"},
                {"model": "mlp"},
                {"samples": 20},
                {"fingerprint": "other"},
                {"epochs": 4},
                {"steps_per_epoch": 5},
                {"batch_size": 6},
                {"accumulate": 2},
                {"precision": "bf16"},
                {"clip": 1.0},
                {"schedule": "constant"},
                {"warmup": 0.1},
                {"length": 35},
                {"stream": (4, 4, 4)},
                {"options": {"scale": "small"}},
                {"source": "edited"},
                {"early_stopping": True},
                {"robustness": True},
                {"then": SecondTask("digits", "other", batch_size=4, steps=2, lrs=(0.1,))},
            )
        ),
    ]
    labels = {run.label for run in (first, *others)}
    monkeypatch.setattr("steppe.compare.training.run.steppe_source", lambda: "edited")
    labels.add(first.label)
    assert len(labels) == len(others) + 2
    # Each of the setup's fields was changed once.
    assert len(vars(first.run_settings)) == 19


def test_a_name_says_what_it_is_and_fits_any_file_system() -> None:
    run = Run(setup(), find_recipe("torch.optim:SGD"), {"lr": 0.1}, 7, "default")
    assert run.label.startswith("toy-torch.optim.SGD-default-seed7-")
    again = Run(setup(), find_recipe("torch.optim:SGD"), {"lr": 0.1}, 7, "default")
    assert again.label == run.label
