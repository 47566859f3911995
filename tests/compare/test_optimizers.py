"""Names become the optimizers they promise."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import steppe
from steppe.compare.optimizers import Recipe, find_recipe


class NoDefault(Optimizer):
    def __init__(self, params, lr) -> None:
        super().__init__(params, {"lr": lr})


class NoLr(Optimizer):
    def __init__(self, params) -> None:
        super().__init__(params, {})


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2, 3))]


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("adamw", torch.optim.AdamW),
        ("SGD", torch.optim.SGD),
        ("nadam", torch.optim.NAdam),
        ("RAdam", torch.optim.RAdam),
        ("dualadam", steppe.DualAdam),
        ("InvAdam", steppe.InvAdam),
        ("adamcm", steppe.AdamCM),
        ("sgdcm", steppe.SGDCM),
        ("dualadamcm", steppe.DualAdamCM),
        ("sgdcg", steppe.SGDCG),
        ("adamcg", steppe.AdamCG),
        ("rmspropcg", steppe.RMSpropCG),
        ("torch.optim:Adagrad", torch.optim.Adagrad),
        ("adamcm-authors", steppe.AdamCM),
        ("adamcm-int8", steppe.AdamCM),
        ("dualadam-bf16", steppe.DualAdam),
        ("dualadam-scale-free", steppe.DualAdam),
        ("sgd-momentum", torch.optim.SGD),
    ],
)
def test_a_name_builds_its_class(name: str, cls: type[Optimizer]) -> None:
    recipe = find_recipe(name)
    optimizer = recipe.build(parameters(), lr=None, switch_rate=0.1)
    assert type(optimizer) is cls
    assert recipe.name == (name if ":" in name else name.lower())


def test_presets_set_what_they_are_called_after() -> None:
    def group(name: str) -> dict[str, object]:
        return find_recipe(name).build(parameters(), lr=None, switch_rate=0.1).param_groups[0]

    assert group("dualadam-scale-free")["scale_free"] is True
    assert group("adamcm-authors")["variant"] == "authors"
    for name in ("adamcm", "dualadam"):
        assert group(f"{name}-bf16")["state_dtype"] == torch.bfloat16
        assert group(f"{name}-int8")["state_dtype"] == "int8"
    assert group("sgd-momentum")["momentum"] == 0.9


def test_everybody_has_no_weight_decay_and_its_own_lr() -> None:
    for name in ("adamw", "rmspropcg", "dualadam"):
        recipe = find_recipe(name)
        own = recipe.build(parameters(), lr=None, switch_rate=0.1).param_groups[0]
        assert own["weight_decay"] == 0.0
        assert own["lr"] == recipe.cls(parameters()).defaults["lr"]
        asked = recipe.build(parameters(), lr=0.5, switch_rate=0.1).param_groups[0]
        assert asked["lr"] == 0.5


def test_only_switching_optimizers_take_the_switch_rate() -> None:
    assert find_recipe("dualadam").arguments(None, 0.02)["switch_rate"] == 0.02
    assert find_recipe("dualadamcm").arguments(None, 0.02)["switch_rate"] == 0.02
    assert "switch_rate" not in find_recipe("adamcm").arguments(None, 0.02)


def test_warm_up_is_the_share_of_adam_in_dual_adam() -> None:
    """Factor min(1, ξ·t) for step t = 1, 2, …, and 1 from step 1/ξ on."""
    recipe = find_recipe("adam+warmup")
    optimizer = recipe.build(parameters(), lr=1.0, switch_rate=0.25)
    schedule = recipe.schedule(optimizer, switch_rate=0.25)
    assert schedule is not None
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_sam_goes_around_the_base() -> None:
    optimizer = find_recipe("dualadam+sam").build(parameters(), lr=None, switch_rate=0.1)
    assert type(optimizer) is steppe.SAM
    assert optimizer.param_groups[0]["switch_rate"] == 0.1
    with pytest.raises(ValueError, match="write adamw\\+sam"):
        find_recipe("sam")


def test_modifiers_have_one_spelling() -> None:
    assert find_recipe(" AdamW+SAM+Warmup ").name == "adamw+warmup+sam"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dualadm", "did you mean dualadam"),
        ("adamq", "There are adadelta.*adamw.*dualadam-scale-free.*package.module:Class"),
        ("adamw+sma", "did you mean sam"),
        ("nowhere.at.all:Thing", "cannot be imported"),
        ("torch.optim:Thing", "cannot be imported"),
        (":Thing", "cannot be imported"),
        ("torch.nn:Linear", "not a subclass"),
        ("optimizer", "no optimizer is called"),
    ],
)
def test_a_wrong_name_is_refused_with_help(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_recipe(name)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("raise RuntimeError('no device\\nno run')", "RuntimeError: no device$"),
        ("def broken(:", "SyntaxError: "),
        ("{}['key']", "KeyError: 'key'$"),
        ("raise SystemExit(3)", "SystemExit: 3$"),
    ],
)
def test_a_module_that_fails_is_named_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, cause: str
) -> None:
    (tmp_path / "fails_on_import.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="fails_on_import:It cannot be imported: " + cause):
        find_recipe("fails_on_import:It")


def test_a_class_without_default_lr_needs_one() -> None:
    recipe = Recipe("nodefault", NoDefault)
    with pytest.raises(ValueError, match="no default lr: give one with --lr"):
        recipe.arguments(None, 0.1)
    assert recipe.arguments(0.3, 0.1) == {"lr": 0.3}


def test_a_class_that_takes_no_lr_is_given_none() -> None:
    recipe = Recipe("nolr", NoLr)
    assert recipe.arguments(None, 0.1) == {}
    with pytest.raises(ValueError, match="leave --lr out"):
        recipe.arguments(0.1, 0.1)
