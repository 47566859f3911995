"""Tables as CSV and LaTeX: every number, whole and escaped, written whole or not at all."""

import csv
import io
from pathlib import Path

import pytest

from helpers.realistic_study import realistic
from steppe._shared.page.parts import HtmlCell, HtmlTable
from steppe.compare.records.summary import summarise
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.exports import to_csv, to_latex, write_tables
from steppe.compare.report.tables import all_tables

TABLE = HtmlTable(
    "A table of\nnasty names",
    {"score, %": "", "what": ""},
    [
        ('a,"b"', [HtmlCell("1.50", 1.5, "[1.00, 2.00]", bounds=(1.0, 2.0)), HtmlCell("–", "")]),
        ("x_y & z", [HtmlCell("–", None), HtmlCell("5 % of $10 {#1} ~^\\ λ", "5 %")]),
    ],
)


def test_csv_has_the_numbers_and_their_intervals() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert rows == [
        ["optimizer", "score, %", "score, % low", "score, % high", "what"],
        ['a,"b"', "1.5", "1", "2", ""],
        ["x_y & z", "", "", "", "5 % of $10 {#1} ~^\\ λ"],
    ]


def test_latex_escapes_what_it_reads() -> None:
    lines = to_latex(TABLE).splitlines()
    assert lines[:4] == [
        "% A table of nasty names",
        r"\begin{tabular}{lrl}",
        r"\toprule",
        r"optimizer & score, \% & what \\",
    ]
    assert lines[5] == r'a,"b" & 1.50 {[}1.00, 2.00{]} & -- \\'
    assert lines[6] == (
        r"x\_y \& z & -- & 5 \% of \$10 \{\#1\} \textasciitilde{}\textasciicircum{}"
        r"\textbackslash{} $\lambda$ \\"
    )
    assert lines[7:] == [r"\bottomrule", r"\end{tabular}"]


@pytest.fixture(scope="module")
def tables() -> dict[str, HtmlTable]:
    readings = Readings(realistic())
    return all_tables(readings, summarise(realistic(), readings))


def test_every_table_of_a_study_is_written_both_ways(
    tables: dict[str, HtmlTable], tmp_path: Path
) -> None:
    directory = tmp_path / "new" / "tables"
    written = write_tables(tables, directory)
    assert sorted(directory.iterdir()) == sorted(written)
    assert {each.stem for each in written} == {
        "leaderboard",
        "budgets",
        "budgets-loss",
        "trials",
        "curvature",
        "recommended",
        "differences",
        "controls",
        "gaps",
        "costs",
    }
    assert {each.suffix for each in written} == {".csv", ".tex"}
    trials = list(csv.DictReader(io.StringIO((directory / "trials.csv").read_text())))
    assert len(trials) == len(realistic().trials)


def test_the_leaderboard_as_csv_has_the_estimates(tables: dict[str, HtmlTable]) -> None:
    text = io.StringIO(to_csv(tables["leaderboard"]))
    rows = {row["optimizer"]: row for row in csv.DictReader(text)}
    readings = Readings(realistic())
    expected = readings.expected("adamcm", "score", 4)
    assert float(rows["adamcm"]["test accuracy, %"]) == pytest.approx(expected.mean)
    assert float(rows["adamcm"]["test accuracy, % low"]) == pytest.approx(expected.low)
    assert rows["adamw"]["role"] == "baseline"
    assert rows["adamw"]["p"] == ""
    assert rows["adamw+2epochs"]["role"] == "control for adamw+sam, added"
    assert rows["adamw+sam"]["role"] == "asked for"


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").mkdir()
    with pytest.raises(OSError, match=r"scores\.csv"):
        write_tables({"scores": TABLE}, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["scores.csv"]
