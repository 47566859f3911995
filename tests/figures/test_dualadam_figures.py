"""DualAdam's figures say what its formulas, the theory and stored studies say."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from figures import (
    dualadam_accuracy,
    dualadam_convergence,
    dualadam_idea,
    dualadam_mechanism,
    dualadam_spectrum,
    dualadam_trajectories,
    inverse_share,
)
from steppe._shared.json_values import json_ready
from steppe.compare.records.results import StudyResults, load

pytestmark = pytest.mark.thorough

STUDIES = Path(__file__).parents[2] / "docs" / "results"


def measured(module: ModuleType, **sizes: Any) -> Mapping[str, Any]:
    """Measure, go through JSON, and draw."""
    data = json.loads(json.dumps(json_ready(module.measure(**sizes)), allow_nan=False))
    module.draw(data).canvas.draw()
    return data


@pytest.fixture(scope="module")
def digits() -> StudyResults:
    return load(STUDIES / "digits.json")


def test_steps_are_as_long_as_the_formula_says() -> None:
    data = measured(dualadam_mechanism, alphas=(0.9, 0.01), points=13)
    root = np.array(data["root"])
    assert root == pytest.approx(np.logspace(-3, 3, 13), rel=1e-5)
    for momentum, panel in ((np.ones(13), "given"), (root, "steady")):
        expected = {"Adam": momentum / root, "InvAdam": momentum * root}
        for alpha in (0.9, 0.01):
            mixed = (1 - alpha) * momentum / root + alpha * momentum * root
            expected[f"DualAdam, α = {alpha:g}"] = mixed
        assert data[panel].keys() == expected.keys()
        for name, lengths in data[panel].items():
            assert lengths == pytest.approx(expected[name], rel=2e-5), (panel, name)


def test_the_inverse_share_is_the_formulas_and_scale_free_has_no_scale() -> None:
    data = measured(inverse_share, points=5, parameters=32, epochs=1)
    squares = np.array(data["scales"]) ** 2
    assert data["share"] == pytest.approx(0.5 * squares / (0.5 + 0.5 * squares), rel=0.03)
    assert data["scale_free"] == pytest.approx([0.5] * 5, rel=1e-3)
    digits = data["digits"]
    assert len(digits["share"]) == len(digits["rms"]) == len(digits["alpha"])
    assert max(digits["rms"]) < 0.1
    assert max(digits["share"]) < 0.02
    assert digits["alpha"][-1] == 0.0


def test_temperatures_and_exponents_go_with_the_powers_of_the_theory() -> None:
    data = measured(dualadam_idea, sharpness=4.0, saddle=2.0, points=60)
    # From the flat minimum, of curvature 1, to the sharp one: T grows as |h|^(1+q).
    for name, power in {"Adam": 0.5, "SGD": 1.0, "InvAdam": 1.5}.items():
        heat = data["temperature"][name]
        assert heat[-1] / heat[0] == pytest.approx(4.0**power, rel=1e-4)
        for saddle, ratio in zip(data["saddles"], data["exponents"][name], strict=True):
            ends = {}
            for curvature in (1.0, 4.0):
                s = saddle / (curvature + saddle)
                ends[curvature] = s / curvature**power + (1 - s) / saddle**power
            assert ratio == pytest.approx(ends[4.0] / ends[1.0], rel=1e-4)


def test_invadam_does_not_settle_where_dualadam_does() -> None:
    data = measured(dualadam_convergence, steps=400, starts=4, rates=(1e-2, 1e-1), shown=1e-2)
    final = data["final"]["0"]
    assert final["dualadam"][0] < 1e-8 < 1e-4 < final["invadam"][0]
    assert final["adam"][0] < 1e-8
    # lr·g² beyond what a step can bear.
    assert final["invadam"][1] is None
    assert final["dualadam"][1] is None
    assert final["adam"][1] is not None
    for curve in data["curves"].values():
        assert curve["distance"][0] == pytest.approx(1.0)
    # With noise nobody gets so low.
    assert min(losses[0] for losses in data["final"]["0.1"].values()) > 1e-9


def test_trajectories_are_those_of_each_ones_best_rate() -> None:
    data = measured(
        dualadam_trajectories,
        steps=20,
        starts=10,
        rates=(1e-3, 1e-2),
        reach={"beale": 1.0},
    )
    assert list(data) == ["beale"]
    for optimizer in data["beale"]["play"]["optimizers"]:
        tried = {each["lr"]: each["loss"] for each in optimizer["tried"]}
        assert len(tried) == 2
        # Eight paths are drawn, and the losses are all starts'.
        assert (len(optimizer["points"]), len(optimizer["losses"])) == (8, 10)
        lasts = np.array([losses[-1] for losses in optimizer["losses"]], dtype=float)
        assert np.median(np.nan_to_num(lasts, nan=np.inf)) == pytest.approx(
            min(tried.values()), rel=1e-4
        )
        assert optimizer["settings"]["lr"] == min(tried, key=lambda lr: tried[lr])
        assert np.abs([points[0] for points in optimizer["points"]]).max() <= 1.0
        assert len(data["beale"]["reached"][optimizer["name"]]) == 2


def test_accuracy_is_that_of_the_stored_study(digits: StudyResults) -> None:
    data = measured(dualadam_accuracy, study=digits)
    assert list(data["score"]) == ["adamw", "adam+warmup", "dualadam"]
    file = json.loads((STUDIES / "digits.json").read_text())
    by_name = {
        name: np.array(
            [
                trial["outcome"]["curve"]["validation_score"]
                for trial in file["trials"]
                if (trial["optimizer"], trial["phase"]) == (name, "recommended")
            ]
        )
        for name in ("adamw", "dualadam")
    }
    means = 100 * by_name["dualadam"].mean(0)
    assert data["score"]["dualadam"]["mean"] == pytest.approx(means, rel=1e-5)
    apart = 100 * (by_name["dualadam"] - by_name["adamw"]).mean(0)
    assert data["difference"]["dualadam"]["mean"] == pytest.approx(apart, abs=1e-4)


def test_a_study_without_dualadam_is_refused(digits: StudyResults) -> None:
    contenders = tuple(each for each in digits.contenders if each.name == "adamw")
    with pytest.raises(ValueError, match="no finished runs of DualAdam and of its baseline adamw"):
        dualadam_accuracy.measure(study=replace(digits, contenders=contenders))


def test_spectra_are_of_models_trained_as_the_study_says(digits: StudyResults) -> None:
    two = tuple(each for each in digits.contenders if each.name in ("adam+warmup", "dualadam"))
    # Both with the settings that are recommended for one of them.
    trials = [trial for trial in digits.trials if trial.optimizer == "dualadam"]
    trials += [replace(trial, optimizer="adam+warmup") for trial in trials]
    study = replace(digits, contenders=two, trials=tuple(trials))
    data = measured(dualadam_spectrum, study=study, seeds=1, eigenvalues=3, samples=100, epochs=2)
    warm, dual = (data["optimizers"][each.name][0] for each in two)
    for found in (warm, dual):
        assert found["top"] == sorted(found["top"], reverse=True)
        # To 1 % of the values, vectors are right to √(0.01/10).
        assert max(found["residuals"]) <= math.sqrt(0.01 / 10) * max(found["top"])
        spread = np.trapezoid(found["density"], found["grid"])
        assert spread == pytest.approx(1.0, abs=0.05)
    # Gradients on digits are small, so DualAdam is its control, from weights to curvature.
    assert dual["top"] == pytest.approx(warm["top"], rel=0.05)
    assert dual["trace"] == pytest.approx(warm["trace"], rel=0.05)


def test_spectra_of_other_data_are_refused(digits: StudyResults) -> None:
    other = replace(digits, setup={**digits.setup, "fingerprint": "0"})
    with pytest.raises(ValueError, match="was made with other data of digits than are here"):
        dualadam_spectrum.measure(study=other)
    with pytest.raises(ValueError, match="no pool of trials that have ended"):
        dualadam_spectrum.measure(study=replace(digits, trials=()))
