"""The match: equal tries for everybody, the same starts, and what is kept."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from steppe.play import descend
from steppe.play.results import Play
from steppe.play.sweep import plan

GIVEN = {"optimizers": ["adam", "sgd"], "rates": [0.01, 0.1], "steps": 30}
GIVEN |= {"switch": 0.2, "rho": 0.1, "drawn": 4}


def match(function: str = "beale", **changes: Any) -> Any:
    return plan(function, **(GIVEN | changes))


def test_everybody_runs_all_rates_and_is_kept_at_the_best_median() -> None:
    planned = match()
    played = planned.play()
    for player, recipe in zip(played.players, planned.recipes, strict=True):
        finals = {
            lr: descend(planned.function, recipe, {"lr": lr}, planned.starts, 30).losses[:, -1]
            for lr in (0.01, 0.1)
        }
        medians = {
            lr: np.median(np.where(np.isfinite(each), each, np.inf)) for lr, each in finals.items()
        }
        assert dict(player.tried) == medians
        assert player.lr == min(medians, key=medians.__getitem__)
        assert player.loss == min(medians.values())
        np.testing.assert_array_equal(player.descent.losses[:, -1], finals[player.lr])


def test_progress_is_told_of_every_descent() -> None:
    told: list[int] = []
    match(rates=[0.1, 0.01, 0.1]).play(told.append)
    # A rate that was named twice is tried once.
    assert told == [1] * 4


def test_starts_are_drawn_evenly_from_the_domain_and_by_the_seed() -> None:
    starts = match("six-hump-camel", drawn=4000).starts
    low, high = torch.tensor([[-3.0, 3.0], [-2.0, 2.0]], dtype=torch.float64).T
    shares = (starts - low) / (high - low)
    assert ((shares >= 0) & (shares <= 1)).all()
    torch.testing.assert_close(shares.mean(0), torch.full((2,), 0.5).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(shares.var(0), torch.full((2,), 1 / 12).double(), atol=3e-3, rtol=0)
    assert (match().starts == match().starts).all()
    assert (match().starts != match(seed=1).starts).all()


def test_own_starts_stand_in_their_place() -> None:
    assert match(starts=[[1.0, 2.0], [0.0, -3.0]]).starts.tolist() == [[1.0, 2.0], [0.0, -3.0]]


def test_settings_hold_what_an_optimizer_takes() -> None:
    names = ["adam", "dualadam", "adam+sam", "adam+warmup"]
    played = match(optimizers=names, rates=[0.1]).play()
    assert [player.descent.settings for player in played.players] == [
        {"lr": 0.1},
        {"lr": 0.1, "switch": 0.2},
        {"lr": 0.1, "rho": 0.1},
        {"lr": 0.1, "switch": 0.2},
    ]


def test_who_diverges_everywhere_is_shown_as_that() -> None:
    played = match("goldstein-price", optimizers=["sgd"], rates=[1.0, 10.0]).play()
    (player,) = played.players
    assert player.loss == math.inf
    assert player.count("diverged") == 4
    assert math.isnan(player.arrival)


def read(played: Play, tmp_path: Any) -> dict[str, Any]:
    played.save(tmp_path / "play.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "play.json").read_text()
    loaded: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return loaded


def test_the_data_hold_all_that_pictures_need(tmp_path: Any) -> None:
    played = match("goldstein-price", rates=[0.01, 1.0]).play()
    content = read(played, tmp_path)
    assert content["bounds"] == [[-2, 2], [-2, 2]]
    assert content["minima"][0] == {"point": [0, -1], "value": 3, "is_global": True}
    adam, sgd = content["optimizers"]
    assert adam["tried"][0]["lr"] == 0.01
    assert adam["tried"][0]["loss"] == pytest.approx(played.players[0].tried[0.01], rel=1e-7)
    np.testing.assert_allclose(adam["points"], played.players[0].descent.points, rtol=1e-7)
    np.testing.assert_allclose(adam["losses"], played.players[0].descent.losses, rtol=1e-7)
    assert sgd["counts"]["diverged"] == 4
    assert sgd["losses"][0][-1] is None
    assert sgd["points"][0][-1] == [None, None]


def test_what_was_written_is_read_back(tmp_path: Any) -> None:
    """Players who arrive, who end at other minima, and who are lost; drawn from the file alone."""
    names = ["adam", "sgd", "dualadam"]
    given = {"optimizers": names, "rates": [1.0], "steps": 100, "schedule": "cosine"}
    played = match("six-hump-camel", **given, drawn=8).play()
    kinds = {end.kind for player in played.players for end in player.ends}
    assert kinds >= {"global", "another", "diverged"}
    content = read(played, tmp_path)
    again = Play.from_dict(content)
    assert json.loads(json.dumps(again.to_dict())) == content
    assert again.to_dict() == played.to_dict()
    assert content["schedule"] == again.schedule == "cosine"
    for ours, theirs in zip(again.players, played.players, strict=True):
        assert (ours.ends, ours.lr) == (theirs.ends, theirs.lr)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-7)
        np.testing.assert_allclose(ours.descent.points, theirs.descent.points, rtol=1e-7)


def test_the_mean_arrival_is_of_those_who_arrived() -> None:
    played = match("quadratic", rates=[0.3], steps=200, parameters={"condition_number": 2}).play()
    for player in played.players:
        arrivals = [end.arrival for end in player.ends if end.kind == "global"]
        assert len(arrivals) == 4
        assert player.arrival == pytest.approx(np.mean(arrivals))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"function": "rosenbrok"}, "did you mean rosenbrock"),
        ({"parameters": {"dimension": 3}}, "beale takes no parameter, got dimension"),
        ({"optimizers": ["adm"]}, "did you mean adam"),
        ({"optimizers": ["adafactor", "adam+2lr"]}, "without \\+2lr"),
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
        ({"starts": [[1.0, math.inf]]}, "a start must be finite, got 1,inf"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match(**changes)
