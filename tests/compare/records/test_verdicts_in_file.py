"""A saved study has its verdicts, for other programs; whoever loads it computes them anew."""

import json
import math
from dataclasses import replace
from pathlib import Path

from helpers import synthetic_studies as studies
from helpers.realistic_study import realistic
from steppe.compare.records.results import load
from steppe.compare.records.verdicts import Readings


def test_verdicts_are_written_with_all_their_fields(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    realistic().save(path)
    written = json.loads(path.read_text())["verdicts"]
    assert written == [vars(each) for each in Readings(realistic()).verdicts]
    assert list(written[0]) == [
        "optimizer",
        "baseline",
        "metric",
        "k",
        "trials",
        "estimate",
        "low",
        "high",
        "p",
        "verdict",
    ]
    assert written[0] | {"k": 4, "trials": 24, "baseline": "adamw"} == written[0]


def test_written_verdicts_are_never_trusted(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    realistic().save(path)
    content = json.loads(path.read_text())
    for each in content["verdicts"]:
        each["verdict"] = "better"
    path.write_text(json.dumps(content))
    loaded = load(path)
    assert Readings(loaded).verdicts == Readings(realistic()).verdicts
    del content["verdicts"]
    path.write_text(json.dumps(content))
    assert load(path).to_dict() == loaded.to_dict()


def test_an_unfinished_study_has_none(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    unfinished = replace(realistic(), trials=realistic().trials[:-1])
    unfinished.save(path)
    assert json.loads(path.read_text())["verdicts"] == []
    assert len(load(path).trials) == len(unfinished.trials)


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    results = studies.study(
        {"adamw": [studies.outcome(math.nan)] * 3, "sgd": studies.scores(1, 1, 1)}
    )
    path = tmp_path / "study.json"
    results.save(path)
    assert "NaN" not in path.read_text()
    assert load(path).to_dict() == results.to_dict()
