"""Names become the optimizers they promise."""

import sys
from pathlib import Path

import pytest
import schedulefree
import torch
from torch import nn
from torch.optim import Optimizer

import steppe
from steppe._shared.muon import MuonWithAdamW
from steppe._shared.recipes import SAMS, Recipe, find_recipe
from steppe.compare.planning.search_spaces import find_defaults, find_space


class OldStyle(Optimizer):
    """Leaves the choice of weight decay as packages of optimizers do."""

    def __init__(self, params, lr=0.1, weight_decay=0.0, weight_decouple=False) -> None:
        super().__init__(params, {"lr": lr, "weight_decouple": weight_decouple})


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2, 3))]


def built(name: str, steps: int = 100, **settings: float) -> Optimizer:
    recipe = find_recipe(name)
    defaults = find_defaults(recipe, find_space(recipe))
    return recipe.build(parameters(), {**defaults, **settings}, steps)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("adamw", torch.optim.AdamW),
        ("SGD", torch.optim.SGD),
        ("nadam", torch.optim.NAdam),
        ("RAdam", torch.optim.RAdam),
        ("dualadam", steppe.DualAdam),
        ("InvAdam", steppe.InvAdam),
        ("MIAdam", steppe.MIAdam),
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
        ("adam+2epochs", torch.optim.Adam),
        ("adam+ema", torch.optim.Adam),
        ("muon", MuonWithAdamW),
        ("schedule-free", schedulefree.AdamWScheduleFree),
        ("lbfgs", torch.optim.LBFGS),
    ],
)
def test_a_name_builds_its_class(name: str, cls: type[Optimizer]) -> None:
    assert type(built(name)) is cls
    assert find_recipe(name).name == (name if ":" in name else name.lower())


def test_presets_set_what_they_are_called_after() -> None:
    def group(name: str) -> dict[str, object]:
        return built(name).param_groups[0]

    assert group("dualadam-scale-free")["scale_free"] is True
    assert group("adamcm-authors")["variant"] == "authors"
    for name in ("adamcm", "dualadam"):
        assert group(f"{name}-bf16")["state_dtype"] == "bfloat16"
        assert group(f"{name}-int8")["state_dtype"] == "int8"
    assert group("sgd-momentum")["momentum"] == 0.9


def test_settings_arrive_where_they_belong() -> None:
    group = built("adamcm+sam", lr=0.3, weight_decay=0.02, priority_decay=0.8, rho=0.07)
    found = {name: group.param_groups[0][name] for name in ("lr", "weight_decay", "rho")}
    assert found == {"lr": 0.3, "weight_decay": 0.02, "rho": 0.07}
    assert group.param_groups[0]["priority_decay"] == 0.8
    # What is not its own is nobody's: a control is given what it follows has.
    assert find_recipe("sgd").arguments({"lr": 0.3, "rho": 0.1, "switch": 0.2}, 10) == {"lr": 0.3}


@pytest.mark.parametrize(
    "name", ["dualadam", "dualadamcm", "dualadam-scale-free", "dualadam+sam", "miadam"]
)
def test_the_switch_is_a_share_of_the_run(name: str) -> None:
    """After 1/ξ steps it is Adam: an eighth of 400 steps is 50."""
    assert built(name, steps=400, switch=0.125).param_groups[0]["switch_rate"] == 1 / 50
    assert built(name, steps=4, switch=0.1).param_groups[0]["switch_rate"] == 1.0


def test_who_does_not_switch_has_no_switch() -> None:
    takes = {name: find_recipe(name).takes("switch") for name in ("adamcm", "dualadam", "adam")}
    assert takes == {"adamcm": False, "dualadam": True, "adam": False}
    assert find_recipe("adam+warmup").takes("switch")
    assert "switch_rate" not in find_recipe("adam+warmup").arguments({"switch": 0.1}, 10)


@pytest.mark.parametrize(
    "name", ["adam", "adamw", "nadam", "radam", "dualadam", "adabelief", "adan", "lion"]
)
def test_weight_decay_is_decoupled_wherever_there_is_a_choice(name: str) -> None:
    """From p = 1 with a gradient of 0, decoupled decay alone makes p ← p·(1 − lr·λ)."""
    recipe = find_recipe(name)
    parameter = nn.Parameter(torch.ones(2, 3))
    settings = {"lr": 0.1, "weight_decay": 0.5, "switch": 0.1}
    optimizer = recipe.build([parameter], settings, 100)
    parameter.grad = torch.zeros(2, 3)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((2, 3), 0.95))


def test_both_names_of_that_choice_are_known() -> None:
    assert Recipe("old", OldStyle).arguments({}, 1) == {"weight_decouple": True}
    assert find_recipe("sgd").arguments({"weight_decay": 0.5}, 1) == {"weight_decay": 0.5}


def test_sam_goes_around_the_base() -> None:
    optimizer = built("dualadam+sam")
    assert type(optimizer) is steppe.SAM
    assert type(optimizer.base_optimizer) is steppe.DualAdam
    with pytest.raises(ValueError, match="write adamw\\+sam"):
        find_recipe("sam")


@pytest.mark.parametrize(
    ("name", "direction", "metric", "first_step", "rho"),
    [
        ("adamw+sam", "gradient", "euclidean", 0, 0.05),
        ("adamw+asam", "gradient", "adaptive", 0, 0.5),
        ("adamw+psam", "gradient", "preconditioned", 0, 0.005),
        ("adamw+msam", "momentum", "euclidean", 0, 0.2),
        ("adamw+random", "random", "euclidean", 0, 0.1),
        ("adamw+latesam", "gradient", "euclidean", 80, 0.05),
    ],
)
def test_names_of_sams_family(
    name: str, direction: str, metric: str, first_step: int, rho: float
) -> None:
    recipe = find_recipe(name)
    assert recipe.default("rho") == rho
    optimizer = built(name, steps=100, rho=rho)
    assert (optimizer.direction, optimizer.first_step) == (direction, first_step)
    assert optimizer.param_groups[0]["metric"] == metric
    assert optimizer.param_groups[0]["rho"] == rho


def test_one_of_sams_family_is_enough() -> None:
    with pytest.raises(ValueError, match=r"has 2 of SAM's family: expected one of sam, msam"):
        find_recipe("adamw+msam+sam")
    with pytest.raises(ValueError, match=r"write adamw\+msam"):
        find_recipe("msam")


def test_modifiers_have_one_spelling() -> None:
    def modified(recipe: Recipe) -> tuple[object, ...]:
        return recipe.warmup, recipe.beta1, recipe.epochs, recipe.ema, recipe.sam

    recipe = find_recipe(" AdamW+SAM+ema+2Epochs+Beta1+Warmup ")
    assert recipe.name == "adamw+warmup+beta1+2epochs+ema+sam"
    assert modified(recipe) == (True, True, 2, True, "sam")
    assert modified(find_recipe("adamw")) == (False, False, 1, False, "")


def test_runs_of_different_modifiers_are_never_taken_for_each_other() -> None:
    kinds = ("", *(f"+{each}" for each in ("warmup", "beta1", "2epochs", "ema", *SAMS)))
    names = [f"adam{kind}" for kind in kinds]
    identities = [find_recipe(name).identity() for name in names]
    assert all(identities.count(each) == 1 for each in identities)


@pytest.mark.parametrize(
    ("name", "default", "argument", "value"),
    [
        ("adamw+beta1", 0.9, "betas", (0.8, 0.999)),
        ("dualadam+beta1+sam", 0.9, "betas", (0.8, 0.999)),
        ("lion+beta1", 0.9, "betas", (0.8, 0.99)),
        ("sgd+beta1", 0, "momentum", 0.8),
        ("sgd-momentum+beta1", 0.9, "momentum", 0.8),
        ("muon+beta1", 0.95, "momentum", 0.8),
        ("schedule-free+beta1", 0.9, "betas", (0.8, 0.999)),
    ],
)
def test_the_first_moments_decay_is_a_hyperparameter_if_asked_for(
    name: str, default: float, argument: str, value: object
) -> None:
    recipe, plain = find_recipe(name), find_recipe(name.replace("+beta1", ""))
    assert recipe.takes("beta1")
    assert recipe.default("beta1") == default
    settings = {"beta1": 0.8, "switch": 0.1, "rho": 0.05, "lr": 0.1}
    assert recipe.arguments(settings, 100)[argument] == value
    assert recipe.build(parameters(), settings, 100).param_groups
    assert recipe.arguments({"switch": 0.1}, 100).get(argument) == recipe.preset.get(argument)
    assert not plain.takes("beta1")
    assert plain.arguments(settings, 100).get(argument) != value


def test_without_a_first_moment_its_decay_cannot_be_searched() -> None:
    message = r"adagrad\+beta1: Adagrad has neither betas nor momentum"
    with pytest.raises(ValueError, match=message):
        find_recipe("adagrad+beta1")
    with pytest.raises(ValueError, match="OldStyle has neither"):
        find_recipe(f"{__name__}:OldStyle+beta1")


def test_names_of_other_packages_have_the_usual_lr() -> None:
    assert find_recipe("muon").default("lr") == 1e-3
    assert find_recipe("schedule-free").default("lr") == 2.5e-3
    free = {name: find_recipe(name).schedule_free for name in ("schedule-free+sam", "adamw")}
    assert free == {"schedule-free+sam": True, "adamw": False}
    assert find_recipe("schedulefree:RAdamScheduleFree").arguments({}, 1000) == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dualadm", "did you mean dualadam"),
        ("adamq", r"There are adabelief.*adamw.*dualadam-scale-free.*package\.module:Class"),
        ("adamw+sma", "did you mean sam"),
        ("nowhere.at.all:Thing", "cannot be imported"),
        ("torch.optim:Thing", "cannot be imported"),
        (":Thing", "cannot be imported"),
        ("torch.nn:Linear", "not a subclass"),
        ("optimizer", "no optimizer is called"),
        ("", "no optimizer is called ''"),
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


@pytest.mark.parametrize("name", ["AdaBelief", "AdaBound", "Adan", "Lion"])
def test_usual_baselines_come_from_another_package(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = find_recipe(name)
    assert recipe.name == name.lower()
    assert recipe.cls is getattr(sys.modules["pytorch_optimizer"], name)
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    missing = rf"pytorch_optimizer:{name} cannot be imported: ModuleNotFoundError"
    with pytest.raises(ValueError, match=missing):
        find_recipe(name)


def test_a_default_is_the_names_or_else_the_signatures() -> None:
    assert find_recipe("sgd").default("momentum") == 0
    assert find_recipe("sgd-momentum").default("momentum") == 0.9
    assert find_recipe("adamw").default("weight_decay") == 1e-2
    assert find_recipe("sgd").default("params") is None
