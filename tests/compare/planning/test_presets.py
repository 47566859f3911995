"""What the papers ran, down to the arguments that optimizers are given."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from steppe._shared.recipes import find_recipe
from steppe.compare.models.language_models import find_language_model
from steppe.compare.planning.presets import PRESETS, USUAL, find_preset, usual_for
from steppe.compare.planning.study import PlannedStudy, StudyOptions, plan_study
from steppe.compare.records.results import POOL, ContenderRecord, StudyPlan
from steppe.compare.tasks.makers import TASKS
from steppe.compare.training.run import Run, RunContext

Planned = Callable[..., PlannedStudy]


@pytest.fixture
def planned(toy_task, context: RunContext) -> Planned:
    """Plan a study of the toy task by a preset."""

    def make(preset: str | None, **options: object) -> PlannedStudy:
        return plan_study(
            "toy", StudyOptions(**options), find_preset(preset) if preset else USUAL, context
        )

    return make


def trials(study: PlannedStudy, contender: ContenderRecord) -> list[dict[str, float]]:
    """Give the settings of a contender's pool."""
    return [study.settings(contender, POOL, number) for number in range(study.plan.trials)]


def arguments(study: PlannedStudy) -> dict[str, dict[str, float]]:
    """Give what each contender's class gets where nothing is tuned."""
    return {
        each.name: find_recipe(each.name).arguments(each.defaults, study.setup.steps)
        for each in study.contenders
    }


@pytest.mark.parametrize("name", ["dualadam", "dualadam-authors"])
def test_dual_adams_runs(planned: Planned, name: str) -> None:
    study = planned(name)
    setup = study.setup
    assert (setup.epochs, setup.batch_size, setup.schedule) == (200, 128, "cosine-epochs")
    # Nothing is searched: five runs of each, which differ by their seeds.
    family = ("adam", "radam", "nadam", "dualadam")
    assert replace(study.plan, searched="") == StudyPlan(
        budget=1, trials=5, family=tuple(sorted(family))
    )
    assert not any(each.space for each in study.contenders)
    given = arguments(study)
    assert list(given) == ["adamw", "adam", "radam", "nadam", "adam+warmup", "dualadam"]
    assert all(each["lr"] == 1e-2 for each in given.values())
    assert given["dualadam"]["switch_rate"] == pytest.approx(8e-5, rel=1e-12)
    assert given["nadam"]["momentum_decay"] == 4e-3
    assert all(given[name]["decoupled_weight_decay"] for name in ("adam", "radam", "nadam"))
    decays = {name: each["weight_decay"] for name, each in given.items()}
    authors = {"adamw": 1e-2, "radam": 1e-2} if name == "dualadam-authors" else {}
    assert decays == {**dict.fromkeys(given, 0.0), **authors}


def test_dual_adams_control_ends_its_warm_up_at_the_same_step(planned: Planned) -> None:
    study = planned("dualadam")
    control = next(each for each in study.contenders if each.name == "adam+warmup")
    run = Run(study.setup, find_recipe("adam+warmup"), control.defaults, 0)
    # Within the first epoch the cosine is 1, and Adam's share after t steps is ξ·t.
    assert run.lr_factor(0) == pytest.approx(8e-5)


def test_at_small_scale_the_switch_takes_16_percent(planned: Planned) -> None:
    study = planned("dualadam", scale="small")
    assert (study.setup.epochs, study.setup.steps) == (2, 10)
    assert study.setup.schedule == "cosine-epochs"
    assert arguments(study)["dualadam"]["switch_rate"] == pytest.approx(1 / (0.16 * 10))


def test_what_the_user_says_comes_before_the_preset(planned: Planned) -> None:
    study = planned("dualadam-authors", lr=0.5, weight_decay=0.1, switch_rate=0.02, epochs=3)
    given = arguments(study)
    assert study.setup.epochs == 3
    assert {each["lr"] for each in given.values()} == {0.5}
    assert {each["weight_decay"] for each in given.values()} == {0.1}
    assert given["dualadam"]["switch_rate"] == pytest.approx(0.02)


def test_half_precision_is_for_accelerators() -> None:
    preset = find_preset("dualadam")
    assert (preset.precision_on("cuda"), preset.precision_on("cpu")) == ("fp16", "no")
    assert USUAL.precision_on("cuda") == "no"
    assert find_preset("dualadam-finetune").precision_on("cpu") == "bf16"


def test_critical_momentas_search(planned: Planned) -> None:
    study = planned("critical-momenta")
    assert study.setup.schedule == "constant"
    spaces = {each.name: dict(each.space) for each in study.contenders}
    lr = {"lr": {"low": 3.162e-5, "high": 0.03162, "log": True}}
    buffers = {"capacity": {"choices": [5, 10, 20]}, "priority_decay": {"choices": [0.7, 0.99]}}
    rho = {"rho": {"low": 0.01, "high": 0.5, "log": True}}
    beta1 = {"beta1": {"low": 0.8, "high": 0.98, "log": False}}
    assert spaces == {
        "adam": lr,
        "adamcg": {**lr, **buffers},
        "adam+2epochs": lr,
        "adam+sam": {**lr, **rho},
        "adamw+beta1": {**lr, **beta1},
        "adamcm": {**lr, **buffers},
        "adamw+beta1+sam": {**lr, **beta1, **rho},
        "adamcm+sam": {**lr, **buffers, **rho},
    }
    # Its controls get no verdicts.
    assert replace(study.plan, searched="") == StudyPlan(
        4, 24, family=("adam+sam", "adamcg", "adamcm", "adamcm+sam")
    )
    tried = {each.name: trials(study, each) for each in study.contenders}
    for name, points in tried.items():
        for point in points:
            assert point["weight_decay"] == 0.0
            assert find_recipe(name).arguments(point, 10)["lr"] == point["lr"]
    assert {point["capacity"] for point in tried["adamcm"]} == {5, 10, 20}
    assert {point["priority_decay"] for point in tried["adamcm"]} == {0.7, 0.99}


def test_fine_tunings_runs_search_one_lr_and_nothing_else(toy_text, context: RunContext) -> None:
    study = plan_study("toy-text", StudyOptions(), find_preset("dualadam-finetune"), context)
    assert (study.plan.budget, study.plan.trials, study.setup.precision) == (4, 24, "bf16")
    assert (study.setup.schedule, study.setup.epochs, study.setup.length) == ("cosine", 3, 50)
    assert [each.name for each in study.contenders] == ["adamw", "adam+warmup", "dualadam"]
    for each in study.contenders:
        # The switch is at its published share, and nobody searches it.
        own = {} if each.name == "adamw" else {"switch": 0.16}
        assert each.defaults == {"lr": 1e-3, "weight_decay": 0.01, **own}
        assert each.space == {"lr": {"low": 1e-5, "high": 1e-2, "log": True}}
        for point in trials(study, each):
            assert 1e-5 <= point["lr"] <= 1e-2
            assert {**point, "lr": 1e-3} == each.defaults
    tried = [[point["lr"] for point in trials(study, each)] for each in study.contenders]
    assert tried[0] == tried[1] == tried[2]
    assert len(set(tried[0])) == 24


def test_what_is_fixed_is_not_searched_either(toy_text, context: RunContext) -> None:
    asked = StudyOptions(lr=1e-3, switch_rate=0.25)
    study = plan_study("toy-text", asked, find_preset("dualadam-finetune"), context)
    for each in study.contenders:
        assert each.space == {}
        assert each.defaults["lr"] == 1e-3
    # 18 steps: the switch takes 1/ξ = 4 of them.
    assert study.contenders[-1].defaults["switch"] == pytest.approx(4 / 18)


@pytest.mark.parametrize(
    ("name", "task", "model"),
    [
        ("critical-momenta-language", "ptb", "lstm-200"),
        ("critical-momenta-online", "toy-stream", "net"),
    ],
)
def test_critical_momentas_search_on_language_and_streams(
    toy_text, toy_stream, context: RunContext, monkeypatch: pytest.MonkeyPatch,
    name: str, task: str, model: str,
) -> None:  # fmt: skip
    language = replace(toy_text, name="ptb", make=lambda name: find_language_model(name, 11))
    monkeypatch.setitem(TASKS, "ptb", language)
    study = plan_study(task, StudyOptions(), find_preset(name), context)
    assert (study.setup.model, study.setup.schedule) == (model, "constant")
    asked = {"adam", *study.plan.family}
    spaces = {each.name: set(each.space) for each in study.contenders if each.name in asked}
    buffers = {"lr", "capacity", "priority_decay"}
    assert spaces == {
        "adam": {"lr"},
        "adamcg": buffers,
        "adam+sam": {"lr", "rho"},
        "adamcm": buffers,
        "adamcm+sam": {*buffers, "rho"},
    }
    assert {each.name for each in study.contenders} - asked == {
        "adam+2epochs",
        "adamw+beta1",
        "adamw+beta1+sam",
    }


def test_the_model_that_is_published_for_a_task_is_for_that_task() -> None:
    preset = find_preset("critical-momenta-language")
    assert preset.model_for("ptb", "full") == "lstm-200"
    assert preset.model_for("finetune", "full") is None


def test_the_tasks_of_the_presets_are_those_of_both_scales() -> None:
    scales = {
        "dualadam-finetune": ("finetune", "finetune"),
        "critical-momenta-language": ("ptb", "shakespeare"),
        "critical-momenta-online": ("5-dataset", "split-mnist"),
    }
    for name, (full, small) in scales.items():
        preset = find_preset(name)
        assert (preset.task_at("full"), preset.task_at("small")) == (full, small)
    # A preset's own model is that of the full scale.
    assert find_preset("critical-momenta-language").model_for("ptb", "small") is None
    # So are epochs and batch size.
    for name, published in {"dualadam": (200, 128), "critical-momenta": (None, None)}.items():
        assert find_preset(name).training_at("full") == published
        assert find_preset(name).training_at("small") == (None, None)


def test_what_is_usual_differs_by_task(toy_stream, context: RunContext) -> None:
    usual = {name: usual_for(name) for name in TASKS}
    online = {name for name, each in usual.items() if each.schedule == "constant"}
    assert online == {
        "split-mnist",
        "permuted-mnist",
        "rotated-mnist",
        "5-dataset",
        "tiny-imagenet-stream",
    }
    assert usual["finetune"] is find_preset("dualadam-finetune")
    assert usual["digits"] is usual["imagenet"] is USUAL
    for name in online:
        study = plan_study("toy-stream", StudyOptions(["adamw"]), usual[name], context)
        assert study.setup.schedule == "constant"
        assert [usual[name].task_at(scale) for scale in ("full", "small")] == [
            "5-dataset",
            "split-mnist",
        ]


@pytest.mark.parametrize("name", ["shakespeare", "ptb", "wikitext2"])
def test_language_is_searched_at_larger_learning_rates(
    toy_text, context: RunContext, name: str
) -> None:
    study = plan_study("toy-text", StudyOptions(["adamw", "dualadam"]), usual_for(name), context)
    assert (study.plan.budget, study.plan.trials, study.setup.schedule) == (4, 24, "cosine")
    for each in study.contenders:
        assert each.space["lr"] == {"low": 1e-4, "high": 1e-1, "log": True}
        # All else is searched as it is everywhere.
        assert "weight_decay" in each.space
    assert "switch" in study.contenders[-1].space


def test_who_tunes_nothing_has_the_classes_own_decay(planned: Planned) -> None:
    study = planned(None, optimizers=["adamw", "sgd"])
    assert [each.defaults["weight_decay"] for each in study.contenders] == [1e-2, 0]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_three_trials_for_each_of_its_budget(name: str) -> None:
    preset = find_preset(name)
    assert preset.trials >= 3 * preset.budget


def test_tasks_and_names_of_presets_are_there() -> None:
    for name, preset in PRESETS.items():
        assert find_preset(name) is preset
        assert preset.task_at("full") in TASKS
        assert preset.task_at("small") in TASKS
    assert usual_for("digits") is USUAL
    with pytest.raises(ValueError, match="did you mean dualadam"):
        find_preset("dual-adam")
