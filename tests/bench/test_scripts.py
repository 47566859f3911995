"""The scripts in benchmarks: what they judge, on numbers made up; and that they measure."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from steppe._shared.statistics import Ratio
from steppe.bench import MODELS, Failure, MeasuredOptimizer, Model, find_measured, uniform

FOLDER = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_targets_are_for_optimizers_and_models_that_there_are(script) -> None:
    for name, targets in script("targets").TARGETS.items():
        assert find_measured(name).name == name
        assert targets.keys() <= MODELS.keys()


def test_targets_that_are_missed_are_listed(script, found, monkeypatch, capsys) -> None:
    targets = script("targets")

    def try_measure(model: str, optimizer: MeasuredOptimizer, *_: object):
        name = optimizer.name
        if name == "adamcm-keeping":
            return Failure(model, name, "no memory")
        ratio = Ratio(0.45 if name == "invadam" else 0.4, 0.3, 0.5)
        held_up = 0.4 if name == "dualadam-switched" else 0.004
        return found(model=model, optimizer=name, ratio=ratio, baseline_seconds=held_up)

    monkeypatch.setattr(targets, "try_measure", try_measure)
    with pytest.raises(SystemExit) as caught:
        targets.main(["small"])
    assert caught.value.code == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "3 missed: small dualadam-switched, small invadam, small adamcm-keeping"
    endings = {line.split()[1]: line.split(": ")[1] for line in lines}
    assert endings == {
        "dualadam": "met",
        "dualadam-switched": "disturbed by other work, measure again",
        "invadam": "missed",
        "dualadam-scale-free": "met",
        "adamcm-keeping": "no memory",
        "adamcm-replacing": "met",
    }


def test_targets_are_measured(script, monkeypatch, capsys) -> None:
    targets = script("targets")
    monkeypatch.setitem(MODELS, "small", Model(lambda: uniform(3, 10)))
    monkeypatch.setattr(targets, "TARGETS", {"dualadam": {"small": 1e9}})
    targets.main(["small"], steps=2)
    assert capsys.readouterr().out.endswith("All met.\n")


@pytest.mark.parametrize(
    ("power", "extra", "status"),
    [(1.0, 0.0, 0), (1.0, None, 0), (1.2, 0.0, 1), (1.0, 0.02, 1)],
)
def test_scaling_judges_growth_and_memory(
    script, monkeypatch, tmp_path: Path, power: float, extra: float | None, status: int
) -> None:
    scaling = script("scaling")

    def measure(optimizer: MeasuredOptimizer, millions: int, *_: object):
        return scaling.Point(millions, 0.001 * millions**power, extra)

    monkeypatch.setattr(scaling, "measure", measure)
    if status:
        with pytest.raises(SystemExit):
            scaling.main(out_dir=tmp_path)
    else:
        scaling.main(out_dir=tmp_path)
    content = json.loads((tmp_path / "scaling.json").read_text())
    assert content["growth"] == pytest.approx(power)
    assert [point["millions"] for point in content["points"]][-1] == 500
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_scaling_measures(script, monkeypatch) -> None:
    scaling = script("scaling")
    monkeypatch.setattr(scaling, "_MILLION", 1000)
    point = scaling.measure(find_measured("dualadam"), 2, 2, CPU)
    assert point.millions == 2
    assert point.seconds > 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("targets", {"models": ["gpt3"]}, "did you mean gpt2"),
        ("scaling", {"largest": 1}, "largest must be at least 2, got 1"),
        ("scaling", {"optimizer": "dualadm"}, "did you mean dualadam"),
    ],
)
def test_mistakes_are_named(
    script, capsys, tmp_path: Path, monkeypatch, name: str, options: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        script(name).main(**options)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_optimizers_train_in_adamws_place(script) -> None:
    drop_in = script("drop_in")
    for family in drop_in.FAMILIES:
        scores = {
            name: [drop_in.train(make, family.lr, seed, options)[1] for seed in range(2)]
            for name, (make, options) in family.members.items()
        }
        assert drop_in.too_low(family, scores) == []
        assert np.mean(scores[family.baseline]) > 80


def test_who_ends_too_far_below_adamw_is_named(script) -> None:
    drop_in = script("drop_in")
    family = drop_in.Family("a", 0.1, {}, frozenset({"d"}))
    scores = {"a": [90.0, 92.0], "b": [89.1, 89.0], "c": [88.0, 89.9], "d": [0.0, 0.0]}
    assert drop_in.too_low(family, scores) == ["c"]
