"""Records come back from JSON as they were, and damaged files are refused with the field."""

import gzip
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from helpers import synthetic_studies as studies
from helpers.committed_studies import STUDIES, committed
from helpers.synthetic_studies import diverged, outcome, scores
from steppe.compare.records.json_format import from_json, to_json
from steppe.compare.records.results import Outcome, load


@dataclass(frozen=True)
class Record:
    value: float
    clip: float | None = None
    count: int = 0
    values: tuple[float, ...] = ()
    named: dict[str, float] = field(default_factory=dict)


def through(record: Any) -> Any:
    return from_json(type(record), json.loads(json.dumps(to_json(record), allow_nan=False)))


def test_what_is_not_finite_is_null_and_comes_back_as_nan() -> None:
    content = to_json(Record(math.inf, values=(1.0, math.nan), named={"lr": math.nan}))
    assert content == {
        "value": None, "clip": None, "count": 0, "values": [1.0, None], "named": {"lr": None},
    }  # fmt: skip
    again = from_json(Record, content)
    assert math.isnan(again.value)
    assert again.clip is None
    assert again.values[0] == 1.0
    assert math.isnan(again.values[1])
    assert math.isnan(again.named["lr"])


def test_integers_stay_integers() -> None:
    """A study's name hashes them: 5.0 would be another study."""
    assert repr(through(Record(5, named={"capacity": 5}))) == repr(Record(5, named={"capacity": 5}))


def test_a_curve_is_kept_by_columns() -> None:
    content = to_json(outcome(0.5))
    assert {type(column) for column in content["curve"].values()} == {list}
    # Only streams have a score for each task.
    assert "tasks" not in content["curve"]
    assert through(outcome(0.5)) == outcome(0.5)
    assert repr(through(diverged())) == repr(diverged())


@pytest.mark.thorough
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_committed_studies_are_written_as_they_were_read(path: Path, tmp_path: Path) -> None:
    """But for the last digits of what verdicts are computed from, which processors round."""
    committed(path).save(tmp_path / "again.json")
    unpacked = gzip.decompress if path.suffix == ".gz" else bytes
    again, kept = (tmp_path / "again.json").read_bytes(), unpacked(path.read_bytes())
    verdicts = re.compile(rb'"verdicts":\[.*?\],"trials":', re.DOTALL)
    assert verdicts.sub(b"", again) == verdicts.sub(b"", kept) != kept
    pairs = zip(*(json.loads(whole)["verdicts"] for whole in (again, kept)), strict=True)
    for found, expected in pairs:
        assert found == {
            name: pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
            for name, value in expected.items()
        }


def test_a_study_is_compressed_by_its_name(tmp_path: Path) -> None:
    made = studies.study({"adamw": [outcome(0.9)] * 3, "adamcm": [outcome(0.8)] * 3})
    for name in ("one.json", "one.json.gz", "again.json.gz"):
        made.save(tmp_path / name)
    plain, packed, again = (
        (tmp_path / n).read_bytes() for n in ("one.json", "one.json.gz", "again.json.gz")
    )
    assert gzip.decompress(packed) == plain
    assert packed == again
    assert load(tmp_path / "one.json.gz") == load(tmp_path / "one.json")


@pytest.mark.parametrize("damage", [b"", b"{}", None], ids=["empty", "plain", "cut"])
def test_a_damaged_compressed_file_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "one.json.gz"
    studies.study({"adamw": [outcome(0.9)] * 3}).save(path)
    path.write_bytes(path.read_bytes()[:-20] if damage is None else damage)
    with pytest.raises(ValueError, match=r"one.json.gz is no study saved by steppe report --json"):
        load(path)


@pytest.mark.parametrize(
    "scores",
    [[math.inf, 0.5, 0.5, 0.5, "", ""], [True, 0.5, 0.5, 0.5, "", ""], [0.5] * 6, [0.5] * 4],
    ids=["infinite", "bool", "no texts", "short"],
)
def test_scores_after_a_perturbation_that_are_none_are_refused(scores: list[Any]) -> None:
    content = {**to_json(outcome(0.5)), "robustness": {"blur 1": scores}}
    with pytest.raises(ValueError, match=r"robustness\['blur 1'\] must be"):
        from_json(Outcome, content)


def trial(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["trials"][3]
    return found


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda study: study.pop("plan"), "plan is missing"),
        (lambda study: study.update(colour=1), "the content has an unknown field: colour"),
        (lambda study: study.update(trials=4), "trials invalid value for type, expected tuple"),
        (lambda study: trial(study).update(seed="x"), "trials[3].seed must be an integer, got 'x'"),
        (lambda study: trial(study).update(seed=1.5), "trials[3].seed must be an integer, got 1.5"),
        (lambda study: trial(study).update(colour=1), "trials[3] has an unknown field: colour"),
        (
            lambda study: trial(study).update(settings=4),
            "trials[3].settings must be an object with fields",
        ),
        (lambda study: trial(study).update(error=None), "trials[3].error must be a string"),
        (
            lambda study: study["metric"].update(factor=True),
            "metric.factor must be a number or null, got True",
        ),
        (
            lambda study: study["metric"].update(higher_is_better=1),
            "metric.higher_is_better must be true or false, got 1",
        ),
        (
            lambda study: trial(study)["outcome"]["curve"].update(lr=[1.0]),
            "trials[3].outcome.curve must be lists of equal length",
        ),
        (
            lambda study: trial(study)["outcome"]["curve"]["lr"].__setitem__(1, "x"),
            "trials[3].outcome.curve[1].lr must be a number or null, got 'x'",
        ),
        (
            lambda study: trial(study)["outcome"].update(curve=3),
            "trials[3].outcome.curve must be a list for each field of an epoch, got 3",
        ),
    ],
)
def test_a_damaged_file_is_refused_with_the_field(
    tmp_path: Path, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = tmp_path / "damaged.json"
    studies.study({"adamw": scores(0.7, 0.8), "sgd": scores(0.6, 0.7)}).save(path)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    expected = f"{path} is no study saved by steppe report --json: {message}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        load(path)


@pytest.mark.parametrize("content", ["", "[]", "3", "null", '"study"', "{"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match=r"other\.json is no study saved by steppe report --json"):
        load(tmp_path / "other.json")


def test_an_outcome_is_an_object() -> None:
    with pytest.raises(ValueError, match="the content must be an object with fields"):
        from_json(Outcome, [])
