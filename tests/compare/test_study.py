"""A comparison is checked before it starts, and goes on where it stopped."""

import sys

import pytest
import torch

from steppe.compare.results import Results
from steppe.compare.study import execute, plan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": -3}, "batch-size must be at least 1, got -3"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be a finite number above 0, got 0.0"),
        ({"lr": float("nan")}, "lr must be a finite number above 0, got nan"),
        ({"switch_rate": 0.0}, "switch-rate must lie in"),
        ({"switch_rate": 1.5}, "switch-rate must lie in"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"task": "digit"}, "did you mean digits"),
        ({"optimizers": ["adamw", "dualadm"]}, "did you mean dualadam"),
        ({"optimizers": ["adamw", "sparseadam"]}, "sparseadam cannot train digits"),
        ({"optimizers": ["adamw", "muon"]}, "muon cannot train digits"),
        ({"optimizers": ["adamw", "lbfgs+sam"]}, r"lbfgs\+sam cannot train digits: [^\n]+\Z"),
        ({"optimizers": []}, "no optimizer is named"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_anything_is_trained(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**{"task": "digits", "optimizers": ["adamw"], **options})


@pytest.mark.parametrize("module", ["scipy.stats", "matplotlib.figure"])
def test_what_is_needed_at_the_end_is_looked_for_first(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=module):
        plan("digits", ["adamw"])


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ValueError, match="device 'cuda' cannot be used here"):
        plan("digits", ["adamw"], device="cuda")


def test_the_switch_takes_16_percent_of_the_run() -> None:
    study = plan("digits", ["adamw", "dualadam"], epochs=10)
    # 70 % of 1 797 samples in batches of 32
    assert study.steps == 10 * 40
    assert 1 / study.setup.switch_rate == pytest.approx(0.16 * 400)
    assert plan("digits", ["dualadam"], switch_rate=0.01).setup.switch_rate == 0.01


def test_defaults_are_the_tasks() -> None:
    setup = plan("digits", ["adamw"]).setup
    assert (setup.epochs, setup.batch_size, setup.threads) == (50, 32, 1)
    assert setup.lr is None


def test_planning_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    plan("digits", ["adamw"])
    assert torch.equal(torch.get_rng_state(), before)


def test_runs_go_seed_by_seed(make_study) -> None:
    runs = make_study("adamw", "sgd", seeds=2).runs()
    assert [(run.recipe.name, run.seed) for run in runs] == [
        ("adamw", 0),
        ("sgd", 0),
        ("adamw", 1),
        ("sgd", 1),
    ]


def test_finished_runs_are_not_run_again(make_study, tmp_path) -> None:
    results = Results(tmp_path)
    first = list(execute(make_study("adamw", "sgd", seeds=2), results))
    assert [known for _, _, known in first] == [False] * 4

    trained = []
    study = make_study("adamw", "nadam", "sgd", seeds=3)
    second = list(execute(study, results, on_epoch=trained.append))
    known = {(run.recipe.name, run.seed) for run, _, known in second if known}
    assert known == {("adamw", 0), ("sgd", 0), ("adamw", 1), ("sgd", 1)}
    # two epochs for each of the five new runs
    assert len(trained) == 10
    again = {(run.recipe.name, run.seed): outcome for run, outcome, _ in second}
    assert all(again[run.recipe.name, run.seed] == outcome for run, outcome, _ in first)
    results.close()


def test_a_diverged_run_does_not_stop_the_others(make_study, tmp_path) -> None:
    results = Results(tmp_path)
    study = make_study("sgd", "sgd-momentum", seeds=1, lr=1e38)
    outcomes = {run.recipe.name: outcome for run, outcome, _ in execute(study, results)}
    results.close()
    assert {name: outcome.diverged for name, outcome in outcomes.items()} == {
        "sgd": True,
        "sgd-momentum": True,
    }
