"""benchmarks/large_gradients.py, on curves whose windows are known, and on runs of few steps."""

import json
import math
from pathlib import Path

import large_gradient_runs
import large_gradients
import numpy as np
import pytest
import torch
from cells import measured
from scipy import stats

SPACING = 1 / large_gradients.PER_DECADE


@pytest.mark.parametrize("width", [0.0, 0.4, 1.0, 3.3])
def test_a_window_is_as_wide_as_it_was_made(width: float) -> None:
    """A valley whose logarithm rises in straight lines on both sides of a flat bottom."""
    decades = np.arange(-4, 4 + SPACING / 2, SPACING)
    slope = 1.7
    rise = np.maximum(np.abs(decades - 0.25) - 1.0, 0.0)
    losses = np.exp(slope * rise)[None]
    threshold = np.array([math.exp(slope * width / 2)])
    assert large_gradients.window(losses, threshold) == pytest.approx([2.0 + width])


def test_windows_of_each_seed_have_their_own_threshold() -> None:
    losses = np.array([[9.0, 1.0, 1.0, 9.0], [9.0, 3.0, 1.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
    found = large_gradients.window(losses, np.array([1.0, 1.0, 2.0]))
    assert found == pytest.approx([SPACING, 0.0, 0.0], abs=1e-12)


def test_what_diverged_is_outside() -> None:
    losses = np.array([[math.inf, 1.0, 1.0, math.inf]])
    found = large_gradients.window(losses, np.array([2.0]))
    beyond = math.log(2) / (math.log(2) + math.log(1e3))
    assert found == pytest.approx([SPACING * (1 + 2 * beyond)])


def test_a_window_that_reaches_the_end_is_named() -> None:
    best = {"anybody's best": np.ones(2)}
    whole = np.array([[5.0, 1.0, 5.0], [5.0, 1.0, 1.5]])
    assert list(large_gradients.cut_off(whole, best)) == [
        "at the highest lr, by anybody's best, 1 of 2 seeds"
    ]
    assert list(large_gradients.cut_off(whole[:1], {"its own": np.ones(1)})) == []


def test_shares_are_those_of_the_seeds_that_did_not_diverge() -> None:
    count = large_gradients.DECADES * large_gradients.PER_DECADE + 1
    usual = {
        "loss": [9.0] * (count - 2) + [1.0, 9.0],
        "inverse_share": [0.5] * count,
        "second_moments_above_1": [0.5] * count,
    }
    # It trains at the lowest learning rate alone.
    broken = {name: [9.0] + [None] * (count - 1) for name in usual}
    sgd = {**usual, "inverse_share": [None] * count}
    cells = {
        f"raw targets/{name}/{seed}": sgd if name == "sgd" else usual
        for name in large_gradients.CONTENDERS
        for seed in range(3)
    }
    cells["raw targets/dualadam/1"] = broken
    shares = {
        one.contender: one.inverse_share for one in large_gradients.read(cells, "raw targets")
    }
    assert shares["dualadam"] == 0.5
    assert math.isnan(shares["sgd"])


def test_signs_are_flipped_in_all_ways() -> None:
    values = np.array([0.3, -0.1, 0.8, 0.5, 0.2, 0.9, -0.4])
    found = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert large_gradients.sign_flip_p(values) == pytest.approx(found.pvalue)
    assert large_gradients.sign_flip_p(np.ones(12)) == 2 / 2**12


def test_learning_rates_are_as_wide_for_all() -> None:
    for problem in large_gradients.PROBLEMS:
        for contender in large_gradients.CONTENDERS:
            lrs = np.log10(large_gradients.learning_rates(problem, contender))
            assert np.diff(lrs) == pytest.approx(SPACING)
            assert lrs[-1] - lrs[0] == pytest.approx(large_gradients.DECADES)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave two optimizers on one problem, for few steps at few learning rates."""
    contenders = {name: large_gradients.CONTENDERS[name] for name in ("adamw", "adamw+warmup")}
    for module in (large_gradients, large_gradient_runs):
        monkeypatch.setattr(module, "CONTENDERS", contenders)
        monkeypatch.setattr(module, "STEPS", 20)
    monkeypatch.setattr(large_gradients, "PROBLEMS", ["summed loss"])
    monkeypatch.setattr(large_gradients, "CENTRES", {"summed loss": (-2.0, -2.0)})
    monkeypatch.setattr(large_gradients, "PER_DECADE", 1)


def test_a_rerun_goes_on_to_the_same_file(few, tmp_path: Path, monkeypatch, capsys) -> None:
    whole, killed = tmp_path / "whole.json", tmp_path / "killed.json"
    large_gradients.main(seeds=2, workers=1, out=whole, pilot=True, figure=tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000
    printed = capsys.readouterr().out

    calls = 0

    def dying(*cell: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return large_gradient_runs.runs(*cell)

    stands_for = large_gradients.runs
    monkeypatch.setattr(
        "cells.function_source", lambda _: json.loads(whole.read_text())["settings"]["script"]
    )
    monkeypatch.setattr(large_gradients, "runs", dying)
    with pytest.raises(KeyboardInterrupt):
        large_gradients.main(seeds=2, workers=1, out=killed, pilot=True)
    assert len(json.loads(killed.read_text())["cells"]) == 2
    monkeypatch.setattr(large_gradients, "runs", stands_for)
    large_gradients.main(seeds=2, workers=1, out=killed, pilot=True)
    assert killed.read_text() == whole.read_text()
    assert capsys.readouterr().out.endswith(printed)


def test_pilots_never_see_the_studys_seeds(few, tmp_path: Path) -> None:
    large_gradients.main(seeds=2, workers=1, out=tmp_path / "pilot.json", pilot=True)
    seeds = json.loads((tmp_path / "pilot.json").read_text())["settings"]["seeds"]
    assert not set(seeds) & set(range(large_gradients._MOST_SEEDS))


def double(value: float) -> float:
    return 2 * value


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    assert measured(path, {"steps": 1}, {"a": (1.5,)}, double, 1)["cells"] == {"a": 3.0}
    with pytest.raises(ValueError, match=r"steps 1 there, 2 now\. Name another --out"):
        measured(path, {"steps": 2}, {"a": (1.5,)}, double, 1)


def test_a_run_that_diverges_has_no_loss() -> None:
    problem, contenders = (
        large_gradient_runs.PROBLEMS["raw targets"],
        large_gradient_runs.CONTENDERS,
    )
    assert large_gradient_runs.run(problem, contenders["dualadam"], 10.0, 0)["loss"] == math.inf


def test_second_moments_are_bias_corrected() -> None:
    p = torch.ones(4, requires_grad=True)
    optimizer = large_gradient_runs.CONTENDERS["adamw"].make([p], lr=0.0)
    (p * torch.tensor([0.5, 0.99, 1.01, 30.0])).sum().backward()
    optimizer.step()
    assert large_gradient_runs.above_one(optimizer) == 0.5
    assert math.isnan(large_gradient_runs.above_one(torch.optim.SGD([p])))
