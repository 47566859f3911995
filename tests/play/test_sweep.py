"""A sweep tries all optimizers at the same rates from the same starts, and keeps the best."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from helpers.torch_defaults import DEFAULTS, torch_default
from steppe.play import descend
from steppe.play.results import SweepResult
from steppe.play.sweep import plan_sweep

GIVEN = {"optimizers": ["adam", "sgd"], "rates": [0.01, 0.1], "steps": 30}
GIVEN |= {"switch": 0.2, "rho": 0.1, "drawn": 4}


def make_sweep(function: str = "beale", **changes: Any) -> Any:
    return plan_sweep(function, **(GIVEN | changes))


def test_everybody_runs_all_rates_and_is_kept_at_the_best_median() -> None:
    planned = make_sweep()
    played = planned.run()
    for optimizer, recipe in zip(played.optimizers, planned.recipes, strict=True):
        finals = {
            lr: descend(planned.function, recipe, {"lr": lr}, planned.starts, 30).losses[:, -1]
            for lr in (0.01, 0.1)
        }
        medians = {
            lr: np.median(np.where(np.isfinite(each), each, np.inf)) for lr, each in finals.items()
        }
        assert dict(optimizer.tried) == medians
        assert optimizer.lr == min(medians, key=medians.__getitem__)
        assert optimizer.loss == min(medians.values())
        np.testing.assert_array_equal(optimizer.descent.losses[:, -1], finals[optimizer.lr])


def test_progress_is_told_of_every_descent() -> None:
    told: list[int] = []
    make_sweep(rates=[0.1, 0.01, 0.1]).run(told.append)
    # A rate that was named twice is tried once.
    assert told == [1] * 4


def test_starts_are_drawn_evenly_from_the_domain_and_by_the_seed() -> None:
    starts = make_sweep("six-hump-camel", drawn=4000).starts
    low, high = torch.tensor([[-3.0, 3.0], [-2.0, 2.0]], dtype=torch.float64).T
    shares = (starts - low) / (high - low)
    assert ((shares >= 0) & (shares <= 1)).all()
    torch.testing.assert_close(shares.mean(0), torch.full((2,), 0.5).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(shares.var(0), torch.full((2,), 1 / 12).double(), atol=3e-3, rtol=0)
    assert (make_sweep().starts == make_sweep().starts).all()
    assert (make_sweep().starts != make_sweep(seed=1).starts).all()


def test_own_starts_stand_in_their_place() -> None:
    assert make_sweep(starts=[[1.0, 2.0], [0.0, -3.0]]).starts.tolist() == [[1.0, 2.0], [0.0, -3.0]]


def test_settings_hold_what_an_optimizer_takes() -> None:
    names = ["adam", "dualadam", "adam+sam", "adam+warmup"]
    played = make_sweep(optimizers=names, rates=[0.1]).run()
    assert [optimizer.descent.settings for optimizer in played.optimizers] == [
        {"lr": 0.1},
        {"lr": 0.1, "switch": 0.2},
        {"lr": 0.1, "rho": 0.1},
        {"lr": 0.1, "switch": 0.2},
    ]


def test_who_diverges_everywhere_is_shown_as_that() -> None:
    played = make_sweep("goldstein-price", optimizers=["sgd"], rates=[1.0, 10.0]).run()
    (optimizer,) = played.optimizers
    assert optimizer.loss == math.inf
    assert optimizer.count("diverged") == 4
    assert math.isnan(optimizer.arrival)


def read(played: SweepResult, tmp_path: Any) -> dict[str, Any]:
    played.save(tmp_path / "play.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "play.json").read_text()
    loaded: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return loaded


def test_the_data_hold_all_that_pictures_need(tmp_path: Any) -> None:
    played = make_sweep("goldstein-price", rates=[0.01, 1.0]).run()
    content = read(played, tmp_path)
    assert content["bounds"] == [[-2, 2], [-2, 2]]
    assert content["minima"][0] == {"point": [0, -1], "value": 3, "is_global": True}
    adam, sgd = content["optimizers"]
    assert adam["tried"][0]["lr"] == 0.01
    assert adam["tried"][0]["loss"] == pytest.approx(played.optimizers[0].tried[0.01], rel=1e-7)
    np.testing.assert_allclose(adam["points"], played.optimizers[0].descent.points, rtol=1e-7)
    np.testing.assert_allclose(adam["losses"], played.optimizers[0].descent.losses, rtol=1e-7)
    assert sgd["counts"]["diverged"] == 4
    assert sgd["losses"][0][-1] is None
    assert sgd["points"][0][-1] == [None, None]


def test_what_was_written_is_read_back(tmp_path: Any) -> None:
    """Players who arrive, who end at other minima, and who are lost; drawn from the file alone."""
    names = ["adam", "sgd", "dualadam"]
    given = {"optimizers": names, "rates": [1.0], "steps": 100, "schedule": "cosine"}
    played = make_sweep("six-hump-camel", **given, drawn=8).run()
    kinds = {end.kind for optimizer in played.optimizers for end in optimizer.end_points}
    assert kinds >= {"global", "another", "diverged"}
    content = read(played, tmp_path)
    again = SweepResult.from_dict(content)
    assert json.loads(json.dumps(again.to_dict())) == content
    assert again.to_dict() == played.to_dict()
    assert content["schedule"] == again.schedule == "cosine"
    for ours, theirs in zip(again.optimizers, played.optimizers, strict=True):
        assert (ours.end_points, ours.lr) == (theirs.end_points, theirs.lr)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-7)
        np.testing.assert_allclose(ours.descent.points, theirs.descent.points, rtol=1e-7)


def test_the_mean_arrival_is_of_those_who_arrived() -> None:
    played = make_sweep(
        "quadratic", rates=[0.3], steps=200, parameters={"condition_number": 2}
    ).run()
    for optimizer in played.optimizers:
        arrivals = [end.arrival for end in optimizer.end_points if end.kind == "global"]
        assert len(arrivals) == 4
        assert optimizer.arrival == pytest.approx(np.mean(arrivals))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"function": "rosenbrok"}, "did you mean rosenbrock"),
        ({"parameters": {"dimension": 3}}, "beale takes no parameter, got dimension"),
        ({"optimizers": ["adm"]}, "did you mean adam"),
        (
            {"optimizers": ["adafactor", "adam+2epochs"]},
            r"2epochs: .* are for steppe compare",
        ),
        (
            {"optimizers": ["adam+ema"]},
            r"modifiers other than \+warmup and \+sam are for",
        ),
        (
            {"optimizers": ["schedule-free"]},
            r"without train\(\) and eval",
        ),
        ({"rates": [0.1, 0.0]}, "lr must be a finite number > 0, got 0.0"),
        ({"rates": [math.nan]}, "lr must be .* got nan"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"drawn": 0}, "starts must be at least 1, got 0"),
        ({"switch": 0.0}, r"switch must be in \(0, 1\], got 0.0"),
        ({"rho": -1.0}, "rho must be a finite number ≥ 0, got -1.0"),
        ({"noise": math.inf}, "noise must be a finite number ≥ 0, got inf"),
        ({"schedule": "linear"}, "schedule.*'linear'"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"starts": [[1.0, 2.0], [1.0]]}, "a start on beale has 2 coordinates, got 1"),
        ({"starts": [[1.0, math.inf]]}, "a start must have coordinates up to 1e.15, got 1,inf"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sweep(**changes)


@pytest.mark.parametrize("default", DEFAULTS, ids=str)
def test_torchs_defaults_change_nothing(default: Any) -> None:
    def losses() -> list[Any]:
        played = make_sweep("ackley", optimizers=["adamcm", "sgd"], noise=0.1).run()
        return [[each.descent.losses.tolist(), str(each.end_points)] for each in played.optimizers]

    usual = losses()
    with torch_default(default):
        assert losses() == usual
