"""A study is checked before it starts, and is the same wherever it is read."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD

from steppe._shared.recipes import find_recipe
from steppe.compare.planning.presets import USUAL, find_preset
from steppe.compare.planning.search_spaces import find_space
from steppe.compare.planning.study import (
    PlannedStudy,
    StudyOptions,
    check_place,
    plan_study,
    versions,
)
from steppe.compare.records.json_format import from_json
from steppe.compare.records.results import DEFAULT, PHASES, POOL, RECOMMENDED, StudyPlan
from steppe.compare.tasks import makers
from steppe.compare.tasks.makers import TaskMaker
from steppe.compare.training.run import RunContext

Planned = Callable[..., PlannedStudy]


@pytest.fixture
def planned(toy_task: TaskMaker, context: RunContext) -> Planned:
    """Plan a study of the toy task."""

    def make(*optimizers: str, **options: Any) -> PlannedStudy:
        return plan_study("toy", StudyOptions(optimizers or ["adamw"], **options), USUAL, context)

    return make


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"trials": 10**9}, "trials must be at most 10000, got 1000000000"),
        ({"study_seed": 2**63}, "study-seed must be from 0 to 2⁶³ − 1, got 9223372036854775808"),
        ({"lr_decades": 0.0}, r"lr-decades must be in \(0, 10\], got 0.0"),
        ({"lr_decades": 2.0, "lr": 0.1}, "lr-decades is for an lr that is searched, and here it"),
        ({"trials": 11}, "trials must be at least 12, 3 times the budget of 4, got 11"),
        ({"trials": 26, "budget": 9}, "trials must be at least 27, 3 times the budget of 9, got"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": -3}, "batch-size must be at least 1, got -3"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"grad_accumulation": 0}, "grad-accumulation must be at least 1, got 0"),
        ({"budget": 0}, "budget must be at least 1, got 0"),
        ({"study_seed": -1}, "study-seed must be from 0 to 2⁶³ − 1, got -1"),
        ({"primary": "luck"}, "primary must be one of score, loss, got 'luck'"),
        ({"lr": 0.0}, "lr must be a finite number above 0, got 0.0"),
        ({"lr": NAN}, "lr must be a finite number above 0, got nan"),
        ({"max_grad_norm": 0.0}, "max-grad-norm must be a finite number above 0, got 0.0"),
        ({"max_grad_norm": INF}, "max-grad-norm must be a finite number above 0, got inf"),
        ({"weight_decay": -0.1}, "weight-decay must be a finite number, at least 0, got -0.1"),
        ({"weight_decay": NAN}, "weight-decay must be a finite number, at least 0, got nan"),
        ({"switch_rate": 0.0}, r"switch-rate must be in \(0, 1\], got 0.0"),
        ({"switch_rate": 1.5}, r"switch-rate must be in \(0, 1\], got 1.5"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\), got 1.0"),
        ({"warmup": NAN}, r"warmup must be in \[0, 1\), got nan"),
        ({"scale": "medium"}, "scale must be one of full, small, got 'medium'"),
        ({"schedule": "step"}, "schedule must be one of constant, cosine, cosine-epochs, got"),
        ({"precision": "fp8"}, "precision must be one of no, bf16, fp16, got 'fp8'"),
        ({"precision": "fp16"}, "fp16 needs an accelerator: use bf16 or no on a CPU"),
        ({"model": "liner"}, "did you mean linear"),
        ({"samples": 22}, "between 2 and the 21"),
        ({"optimizers": ["adamw", "dualadm"]}, "did you mean dualadam"),
        ({"optimizers": ["adamw", ""]}, "no optimizer is called ''"),
        ({"optimizers": ["adamw+2lr"]}, "no modifier of adamw is called '2lr'"),
        ({"optimizers": ["adamw", "sparseadam"]}, "sparseadam cannot train toy: [^\n]+"),
        ({"optimizers": ["adamw", "lbfgs+sam"]}, r"lbfgs\+sam cannot train toy: [^\n]+\Z"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    toy_task: TaskMaker, context: RunContext, monkeypatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("steppe.compare.training.train.Training.resume", None)
    with pytest.raises(ValueError, match=message):
        plan_study("toy", StudyOptions(**{"optimizers": ["adamw"], **options}), USUAL, context)
    assert not context.out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threads": 0}, "threads must be from 1 to 1024, got 0"),
        ({"threads": 100_000}, "threads must be from 1 to 1024, got 100000"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"device": "meta"}, "which Accelerate uses here, got meta"),
        ({"track": "paper"}, "track must be one of tensorboard, mlflow, wandb, got 'paper'"),
    ],
    ids=str,
)
def test_a_place_where_nothing_can_be_trained_is_refused(
    toy_task: TaskMaker, context: RunContext, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_study("toy", StudyOptions(["adamw"]), USUAL, replace(context, **changes))
    if changes != {"device": "meta"}:
        with pytest.raises(ValueError, match=message):
            check_place(replace(context, **changes))


def test_an_unknown_task_gets_the_nearest_name(context: RunContext) -> None:
    with pytest.raises(ValueError, match="did you mean digits"):
        plan_study("digit", StudyOptions(), USUAL, context)


@pytest.mark.parametrize(
    "module",
    ["scipy.special", "plotly.offline", "jinja2", "optuna", "accelerate"],
)
def test_what_is_needed_at_the_end_is_looked_for_first(
    planned: Planned, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=module):
        planned()


def test_a_tracker_that_is_not_installed_is_missed_too(
    toy_task: TaskMaker, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match="wandb"):
        plan_study("toy", StudyOptions(["adamw"]), USUAL, replace(context, track="wandb"))


def test_a_device_that_is_not_there_is_refused(context: RunContext) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ValueError, match="device 'cuda' cannot be used here"):
        plan_study("digits", StudyOptions(["adamw"]), USUAL, replace(context, device="cuda"))


def test_planning_leaves_no_trace(planned: Planned, context: RunContext) -> None:
    """It draws no random numbers, and leaves torch's settings and the disk as they were."""

    def state() -> tuple[object, ...]:
        return (
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
        )

    before = state()
    planned("adamw", "dualadam+sam", model="noisy")
    assert state() == before
    assert not context.out.exists()


def test_every_optimizer_takes_a_trial_step(planned: Planned, monkeypatch) -> None:
    taken = []
    step = SGD.step

    def counted(self: SGD, closure: Any = None) -> Any:
        taken.append(self.param_groups[0]["lr"])
        return step(self, closure)

    monkeypatch.setattr(SGD, "step", counted)
    planned("sgd", "sgdcm", "adamw", schedule="constant")
    # The second is the control of sgdcm.
    assert taken == [1e-3, 1e-3]


def test_defaults_are_the_tasks_and_what_is_usual(context: RunContext) -> None:
    study = plan_study("digits", StudyOptions(["adamw"]), USUAL, context)
    setup = study.setup
    assert (setup.model, setup.epochs, setup.batch_size, setup.samples) == ("mlp", 50, 32, None)
    assert (setup.schedule, setup.warmup, setup.precision) == ("cosine", 0.0, "no")
    assert (setup.clip, setup.accumulate) == (None, 1)
    assert replace(study.plan, searched="") == StudyPlan(budget=4, trials=24)
    assert date.fromisoformat(study.created)
    assert (study.author, study.note, study.earlier_plans) == ("", "", ())
    assert setup.steps_per_epoch == -(-1006 // 32)
    # 64·64 + 64, 64·64 + 64, 64·10 + 10
    assert study.facts["parameters"] == 8970
    counts = [study.facts[f"{part}_samples"] for part in ("train", "validation", "test")]
    assert counts == [1006, 251, 540]
    assert sum(counts) == 1797


def test_options_come_before_defaults(planned: Planned) -> None:
    asked: dict[str, Any] = {
        "model": "noisy",
        "epochs": 3,
        "batch_size": 4,
        "samples": 14,
        "grad_accumulation": 2,
        "precision": "bf16",
        "max_grad_norm": 0.5,
        "schedule": "constant",
        "warmup": 0.25,
    }
    plan = {"budget": 3, "trials": 10, "primary": "loss", "study_seed": 7}
    said = {"author": "Ada", "note": "before lunch"}
    study = planned("sgd", **plan, **said, **asked)
    # Results of before the options were renamed have these names, and are read still.
    kept = {"grad_accumulation": "accumulate", "max_grad_norm": "clip"}
    assert {name: getattr(study.setup, kept.get(name, name)) for name in asked} == asked
    assert study.setup.steps == 3 * 4
    assert replace(study.plan, searched="") == StudyPlan(**plan)
    assert (study.author, study.note) == ("Ada", "before lunch")


def test_the_size_is_that_of_the_scale(
    toy_task: TaskMaker, context: RunContext, monkeypatch
) -> None:
    small = replace(toy_task.small, epochs=1, samples=10)
    monkeypatch.setitem(makers.TASKS, "toy", replace(toy_task, small=small))
    for scale, size in (("small", (1, 10, 2)), ("full", (2, None, 5))):
        setup = plan_study("toy", StudyOptions(["sgd"], scale), USUAL, context).setup
        assert (setup.epochs, setup.samples, setup.steps_per_epoch) == size


@pytest.mark.parametrize(
    ("budget", "trials"), [(1, 24), (4, 24), (5, 48), (8, 48), (9, 72), (24, 144)]
)
def test_a_larger_budget_gets_more_trials(planned: Planned, budget: int, trials: int) -> None:
    plan = planned("sgd", budget=budget).plan
    assert (plan.budget, plan.trials) == (budget, trials)
    assert planned("sgd", budget=budget, trials=3 * budget).plan.trials == 3 * budget


def test_controls_come_along_but_get_no_verdict(planned: Planned) -> None:
    study = planned("adamw", "adamcm", "dualadam")
    assert [each.name for each in study.contenders] == [
        "adamw",
        "adamw+beta1",
        "adamcm",
        "adam+warmup",
        "dualadam",
    ]
    assert study.plan.family == ("adamcm", "dualadam")
    by_name = {each.name: each for each in study.contenders}
    beta1, warm = by_name["adamw+beta1"], by_name["adam+warmup"]
    assert (beta1.control_for, warm.control_for) == (("adamcm",), ("dualadam",))
    assert all(each.epochs == 1 for each in study.contenders)
    # Who is named is in the family, control or not.
    named = planned("AdamW", "dualadam", "adam+warmup", "adamw", "dualadam")
    assert named.plan.family == ("adam+warmup", "dualadam")


def test_what_has_twice_the_gradients_has_the_baseline_for_twice_as_long(planned: Planned) -> None:
    study = planned("adamw", "adamw+sam")
    assert [(each.name, each.epochs) for each in study.contenders] == [
        ("adamw", 1),
        ("adamw+2epochs", 2),
        ("adamw+sam", 1),
    ]
    assert study.plan.family == ("adamw+sam",)


def test_trials_are_paired_over_contenders_and_prefixes_of_larger_pools(planned: Planned) -> None:
    small, large = (planned("adamw", "dualadam", trials=trials) for trials in (12, 36))
    adamw, control, dualadam = large.contenders
    for number in range(36):
        one, warm, dual = (
            large.settings(each, POOL, number) for each in (adamw, control, dualadam)
        )
        assert warm == dual
        assert one.items() <= dual.items()
        if number < 12:
            assert small.settings(small.contenders[0], POOL, number) == one
    for phase in (DEFAULT, RECOMMENDED):
        assert large.settings(dualadam, phase, 0) == dualadam.defaults
    other = planned("adamw", study_seed=1)
    assert other.settings(other.contenders[0], POOL, 0) != large.settings(adamw, POOL, 0)


def test_what_is_fixed_is_not_searched(planned: Planned) -> None:
    study = planned("dualadam", "sgd", lr=0.3, weight_decay=0.0, switch_rate=0.25)
    dualadam, control, sgd = study.contenders
    assert not dualadam.space
    assert sgd.defaults == {"lr": 0.3, "weight_decay": 0.0}
    # 1/ξ = 4 of the 10 steps
    assert dualadam.defaults == control.defaults == {**sgd.defaults, "switch": 0.4}
    built = find_recipe("dualadam").arguments(dualadam.defaults, study.setup.steps)
    assert built["switch_rate"] == 0.25
    # The pool is all there is: its trials are the defaults', and differ by their seeds.
    assert [study.plan.planned(sgd, phase) for phase in PHASES] == [24, 0, 0]
    assert study.settings(sgd, POOL, 5) == sgd.defaults


def test_lr_may_be_searched_in_fewer_decades_about_the_middle_of_its_range(
    planned: Planned,
) -> None:
    whole, narrow = planned("adamw", "sgd"), planned("adamw", "sgd", lr_decades=1.0)
    pairs = zip((1e-3, 10**-1.5), whole.contenders, narrow.contenders, strict=True)
    for middle, before, after in pairs:
        assert after.space["weight_decay"] == before.space["weight_decay"]
        assert after.space["lr"]["low"] == pytest.approx(middle / 10**0.5, rel=1e-3)
        assert after.space["lr"]["high"] == pytest.approx(middle * 10**0.5, rel=1e-3)
        assert narrow.key(after) != whole.key(before)


def test_what_is_searched_has_runs_at_the_default_and_the_recommended_settings_too(
    planned: Planned,
) -> None:
    study = planned("adamw", trials=15)
    assert [study.plan.planned(study.contenders[0], phase) for phase in PHASES] == [15, 3, 3]


def test_curvature_is_measured_of_a_stated_sample(planned: Planned) -> None:
    """In full at recommended settings; quickly of the first four of a pool; of nothing else."""
    study = planned("adamw", "sgd")
    extents = {
        phase: [study.curvature(study.contenders[0], phase, number) for number in range(6)]
        for phase in PHASES
    }
    assert extents == {
        POOL: ["quick"] * 4 + ["none"] * 2,
        DEFAULT: ["none"] * 6,
        RECOMMENDED: ["full"] * 3 + ["none"] * 3,
    }
    # Where nothing is searched, all are at the recommended settings.
    fixed = planned("sgd", lr=0.1, weight_decay=0.0)
    found = [fixed.curvature(fixed.contenders[0], POOL, number) for number in range(6)]
    assert found == ["full"] * 3 + ["quick"] + ["none"] * 2


def test_an_lr_is_not_for_who_takes_none(planned: Planned, monkeypatch) -> None:
    class NoLr(SGD):
        def __init__(self, params: Any) -> None:
            super().__init__(params, lr=0.1)

    monkeypatch.setattr(torch.optim, "NoLr", NoLr, raising=False)
    assert planned("torch.optim:NoLr").contenders[0].space == {}
    with pytest.raises(ValueError, match=r"torch\.optim:NoLr takes no lr: leave --lr out"):
        planned("torch.optim:NoLr", lr=0.1)


def through_json(study: PlannedStudy) -> PlannedStudy:
    # In another order: in an object of JSON there is none.
    return from_json(PlannedStudy, json.loads(json.dumps(study.to_dict(), sort_keys=True)))


@pytest.mark.parametrize("preset", [None, "dualadam", "critical-momenta"])
def test_a_study_is_the_same_after_json(
    toy_task: TaskMaker, context: RunContext, preset: str | None
) -> None:
    study = plan_study(
        "toy",
        StudyOptions(epochs=2),
        find_preset(preset) if preset else USUAL,
        context,
        "steppe compare toy",
    )
    again = through_json(study)
    assert again == study
    assert again.name == study.name
    for one, other in zip(again.contenders, study.contenders, strict=True):
        assert again.key(one) == study.key(other)
        for phase, number in ((POOL, 0), (POOL, 23), (DEFAULT, 0)):
            settings = again.settings(one, phase, number)
            assert settings == study.settings(other, phase, number)


def test_studies_that_share_trials_have_one_name(planned: Planned, monkeypatch) -> None:
    """Contenders, numbers and what is concluded from them are free; nothing else is."""
    study = planned("adamw", "sgd")
    sgd = planned("sgd", trials=12).contenders[0]
    assert study.key(study.contenders[1]) == planned("sgd").key(sgd)
    shared: tuple[dict[str, Any], ...] = (
        {"trials": 12},
        {"budget": 8},
        {"primary": "loss"},
        {"author": "Ada", "note": "again"},
    )
    assert {planned("sgd", **change).name for change in shared} == {study.name}
    others = {
        planned("adamw", **change).name
        for change in (
            {"study_seed": 1},
            {"epochs": 3},
            {"max_grad_norm": 1.0},
            {"precision": "bf16"},
        )
    }
    assert len(others | {study.name}) == 5
    # Settings are the contender's.
    fixed = planned("adamw", lr=0.1)
    assert fixed.name == study.name
    assert fixed.key(fixed.contenders[0]) != study.key(study.contenders[0])
    monkeypatch.setattr("steppe.compare.planning.study.steppe_source", lambda: "edited")
    assert planned("adamw", "sgd").name != study.name


def test_whole_numbers_are_floats_where_these_belong(planned: Planned) -> None:
    whole = planned(lr=1, max_grad_norm=1, warmup=0)
    assert whole == planned(lr=1.0, max_grad_norm=1.0, warmup=0.0)
    assert whole.name == planned(lr=1.0, max_grad_norm=1.0, warmup=0.0).name
    assert StudyOptions(then="digits", then_loss=1).then_loss.hex() == (1.0).hex()
    assert [type(StudyOptions(budget=1, lr=1).budget), type(StudyOptions(lr=1).lr)] == [int, float]


def test_a_plan_is_remembered_by_the_next_only_if_its_results_were_seen(planned: Planned) -> None:
    first = replace(planned("adamw", "sgd"), created="2026-01-02")
    second = planned("adamw", "sgd", trials=48, author="Ada", note="more")
    unseen, seen = (second.continues(first, seen=each) for each in (False, True))
    assert unseen.earlier_plans == ()
    assert seen.earlier_plans == (first.plan,)
    for each in (unseen, seen):
        # A study is as old as its first plan; what is said of it is the latest.
        assert (each.plan, each.created) == (second.plan, "2026-01-02")
        assert (each.author, each.note) == ("Ada", "more")
    # The same again is no other plan, and what was seen before stays.
    assert second.continues(seen, seen=True).earlier_plans == (first.plan,)
    third = planned("adamw", "sgd", primary="loss")
    assert third.continues(seen, seen=False).earlier_plans == (first.plan,)
    assert third.continues(seen, seen=True).earlier_plans == (first.plan, second.plan)
    # Who goes back to the first has seen the second.
    assert first.continues(seen, seen=True).earlier_plans == (second.plan,)
    # What a file brings is not lost beside what was here.
    brought = replace(third, earlier_plans=(second.plan,))
    assert brought.continues(first, seen=True).earlier_plans == (second.plan, first.plan)


@pytest.mark.parametrize(
    "options",
    [{"lr_decades": 1.0}, {"lr": 0.1}, {"weight_decay": 0.0}, {"switch_rate": 0.5}],
    ids=str,
)
def test_who_searches_elsewhere_after_results_were_seen_has_changed_the_plan(
    planned: Planned, options: dict[str, float]
) -> None:
    first, second = planned("adamw", "dualadam"), planned("adamw", "dualadam", **options)
    assert first.name == second.name
    assert second.continues(first, seen=True).earlier_plans == (first.plan,)


def test_the_order_of_optimizers_is_no_part_of_the_plan_but_the_baseline_is(
    planned: Planned,
) -> None:
    first = planned("adamw", "sgd", "adamcm")
    again = planned("adamw", "adamcm", "sgd").continues(first, seen=True)
    assert (again.plan, again.earlier_plans) == (first.plan, ())
    other = planned("sgd", "adamw", "adamcm").continues(first, seen=True)
    assert other.earlier_plans == (first.plan,)


def test_an_optimizer_whose_source_was_edited_is_another(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    plans = []
    for factor in (1, 10):
        (tmp_path / "edited_optimizer.py").write_text(
            "import torch\n\n\nclass Mine(torch.optim.SGD):\n"
            "    def __init__(self, params, lr=1e-3):\n"
            f"        super().__init__(params, {factor} * lr)\n"
        )
        monkeypatch.delitem(sys.modules, "edited_optimizer", raising=False)
        importlib.invalidate_caches()
        plans.append(planned("adamw", "edited_optimizer:Mine").plan)
    assert plans[0] != plans[1]


def test_state_that_cannot_be_saved_is_refused_before_anything_is_trained(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "holds_a_function.py").write_text(
        "import torch\n\n\nclass Mine(torch.optim.SGD):\n"
        "    def __init__(self, params, lr=1e-3):\n        super().__init__(params, lr)\n"
        "        self.param_groups[0]['rule'] = lambda x: x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="Mine cannot train toy: its state cannot be saved"):
        planned("adamw", "holds_a_function:Mine")


def test_what_a_user_says_is_shown_as_it_can_be_printed(planned: Planned) -> None:
    study = planned("sgd", author="A\x1b[31m", note="1\n2\x00")
    assert study.author.isprintable()
    assert "\x1b" not in study.author
    assert "\x00" not in study.note


def test_versions_are_of_what_computes() -> None:
    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found.keys() == {"python", "torch", "steppe", "source"}


def test_what_is_searched_is_written_down(planned: Planned) -> None:
    contender, _ = planned("adamw+sam", weight_decay=0.0).contenders
    assert contender.space == {
        "lr": {"low": 3.162e-5, "high": 0.03162, "log": True},
        "rho": {"low": 0.01, "high": 0.5, "log": True},
    }
    assert contender.title == "torch.AdamW"
    assert find_space(find_recipe("adamw+sam")).keys() == {"lr", "weight_decay", "rho"}
