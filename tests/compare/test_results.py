"""What is kept, and that it is kept whole or not at all."""

import dataclasses
import math
import sqlite3
from pathlib import Path

import pytest

from steppe.compare.curvature import Curvature
from steppe.compare.results import FILE, Results
from steppe.compare.run import Epoch


@pytest.fixture
def results(tmp_path: Path):
    opened = Results(tmp_path / "deep" / "out")
    yield opened
    opened.close()


def test_an_outcome_comes_back_as_it_was(results, make_run, outcome) -> None:
    kept = outcome(accuracy=0.123456789012345, test_loss=1 / 3)
    results.add(make_run(), kept)
    assert results.get(make_run()) == kept


def test_it_is_there_after_reopening(tmp_path: Path, make_run, outcome) -> None:
    first = Results(tmp_path)
    first.add(make_run(), outcome())
    first.close()
    second = Results(tmp_path)
    assert second.get(make_run()) == outcome()
    second.close()


@pytest.mark.parametrize("curve", [(), (Epoch(1.0, 2.0, 0.5),)])
def test_a_diverged_run_is_kept_as_one(results, make_run, outcome, curve) -> None:
    results.add(make_run(), outcome(curve=curve, diverged=True, curvature=Curvature()))
    back = results.get(make_run())
    assert back is not None
    assert back.diverged
    assert back.curve == curve
    assert math.isnan(back.curvature.sharpness)


def test_a_diverged_run_has_no_final_numbers_to_average(
    tmp_path: Path, results, make_run, outcome
) -> None:
    results.add(make_run(), outcome(diverged=True))
    with sqlite3.connect(tmp_path / "deep" / "out" / FILE) as connection:
        row = connection.execute("SELECT test_accuracy, test_loss FROM runs").fetchone()
    connection.close()
    assert row == (None, None)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"name": "sgd"},
        {"name": "adamw+warmup"},
        {"name": "adamw+sam"},
        {"epochs": 3},
        {"batch_size": 6},
        {"lr": 0.5},
        {"threads": 2},
        {"fingerprint": "other data"},
    ],
    ids=str,
)
def test_any_setting_that_changes_numbers_makes_another_run(
    results, make_run, outcome, change
) -> None:
    results.add(make_run(), outcome())
    assert results.get(make_run(**change)) is None


def test_versions_are_part_of_a_run(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_run().settings
    monkeypatch.setattr("torch.__version__", "99")
    with_torch = make_run().settings
    monkeypatch.setattr("steppe.__version__", "99")
    assert len({before, with_torch, make_run().settings}) == 3


def test_a_switch_rate_that_is_not_used_is_no_setting(make_run) -> None:
    def changes(name: str) -> bool:
        return make_run(name, switch_rate=0.1).settings != make_run(name, switch_rate=0.2).settings

    assert [changes(name) for name in ("adamw", "dualadam", "adam+warmup")] == [False, True, True]


def test_a_run_that_another_process_finished_first_stays(results, make_run, outcome) -> None:
    results.add(make_run(), outcome(accuracy=0.5))
    results.add(make_run(), outcome(accuracy=0.6))
    assert results.get(make_run()) == outcome(accuracy=0.5)


def test_a_run_is_never_there_in_part(results, make_run, outcome) -> None:
    """The curve cannot be written, so neither is the run."""
    broken = outcome(curve=(Epoch(1.0, 1.0, 0.5), Epoch(1.0, None, 0.5)))  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        results.add(make_run(), broken)
    assert results.get(make_run()) is None


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("just text, long enough to be no empty database at all\n" * 20)
    with pytest.raises(ValueError, match=f"{FILE} is not usable as a results file"):
        Results(tmp_path)


def test_a_database_of_another_version_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / FILE)
    connection.executescript("CREATE TABLE other (x); PRAGMA user_version = 7;")
    connection.close()
    with pytest.raises(ValueError, match="version is 7, not 2"):
        Results(tmp_path)


def test_another_programs_file_of_the_same_version_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / FILE)
    connection.executescript("CREATE TABLE runs (id, speed); PRAGMA user_version = 2;")
    connection.close()
    with pytest.raises(ValueError, match=f"{FILE} is not usable as a results file: no such column"):
        Results(tmp_path)


def test_an_empty_database_of_another_program_is_not_taken_over(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(ValueError, match="version is 7, not 2"):
        Results(tmp_path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(ValueError, match=f"{FILE} cannot be opened: unable to open"):
        Results(tmp_path)


@pytest.mark.parametrize(
    ("start", "stop"),
    [(200, None), (7, 8)],
    ids=["pages that cannot be read", "a page whose count of free bytes is wrong"],
)
def test_a_damaged_file_is_refused(tmp_path: Path, make_run, outcome, start, stop) -> None:
    results = Results(tmp_path)
    for seed in range(50):
        results.add(make_run(seed=seed), outcome())
    results.close()
    content = bytearray((tmp_path / FILE).read_bytes())
    # The first page, with the list of tables, stays whole.
    damaged = content[-4096:]
    damaged[start:stop] = b"\x63" * len(damaged[start:stop])
    content[-4096:] = damaged
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=f"{FILE} is not usable as a results file: .*") as caught:
        Results(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_locked_file_is_named_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steppe.compare.results._TIMEOUT_S", 0.05)
    Results(tmp_path).close()
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ValueError, match=f"{FILE} is not usable as a results file: .*locked"):
        Results(tmp_path)
    other.close()


def test_a_short_lock_is_waited_for(results) -> None:
    patience = results._connection.execute("PRAGMA busy_timeout").fetchone()[0]
    assert patience == 60_000


def test_the_final_numbers_are_there_for_sql(tmp_path: Path, results, make_run, outcome) -> None:
    results.add(make_run("adamw+sam", seed=2), dataclasses.replace(outcome(), state_bytes=12.0))
    connection = sqlite3.connect(tmp_path / "deep" / "out" / FILE)
    row = connection.execute(
        "SELECT task, optimizer, seed, test_accuracy, test_loss, train_loss, state_bytes FROM runs"
    ).fetchone()
    curve = connection.execute("SELECT epoch, test_loss FROM curves ORDER BY epoch").fetchall()
    connection.close()
    assert row == ("toy", "adamw+sam", 2, 0.9, 0.3, 0.1, 12.0)
    assert curve == [(1, 2.0), (2, 0.3)]
