"""Before a study is complete no test result shows, wherever one looks."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from helpers.realistic_study import realistic
from helpers.synthetic_studies import with_tests
from steppe.compare.records.results import StudyResults
from steppe.compare.records.summary import summarise
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.exports import write_tables
from steppe.compare.report.page import page
from steppe.compare.report.pictures import draw_budgets, draw_differences, draw_flatness
from steppe.compare.report.tables import all_tables
from steppe.compare.report.terminal import print_report
from steppe.compare.report.two_studies import compare

# No other number of the study has these digits.
LOSS, SCORE = 7.6543219, 0.1234567


@pytest.fixture(scope="module")
def unfinished() -> StudyResults:
    whole = realistic()
    return with_tests(replace(whole, trials=whole.trials[:-1]), LOSS, SCORE)


def holds_a_test_result(text: str) -> bool:
    """Search for the test results as they are, in per cent, and rounded to three digits or more."""
    return any(each in text for each in ("7.65", "0.1234", "12.34", "12.35", "0.123,"))


def printed(results: StudyResults, **options: bool) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_report(console, results, **options)
    return console.file.getvalue()


def test_the_search_finds_test_results_of_a_complete_study() -> None:
    whole = with_tests(realistic(), LOSS, SCORE)
    assert holds_a_test_result(printed(whole))
    assert holds_a_test_result(page(whole))


@pytest.mark.parametrize("brief", [True, False])
def test_the_terminal_shows_progress_only(unfinished: StudyResults, brief: bool) -> None:
    text = printed(unfinished, brief=brief)
    assert not holds_a_test_result(text)
    assert "Not finished: 239 of 240 trials have ended." in " ".join(text.split())
    assert "24 of 24" in text
    assert "2 of 3" in text
    for said in ("better", "worse", "no difference seen"):
        assert said not in text


def test_the_page_has_neither_test_results_nor_the_data(unfinished: StudyResults) -> None:
    text = page(unfinished)
    scripts = text.index('<script type="application/json" id="exports">')
    assert not holds_a_test_result(text[: text.index("<script type")])
    # The charts and the tables as files; behind them is plotly.js, which has all digits.
    assert not holds_a_test_result(text[scripts : text.index("<script>", scripts)])
    assert 'id="study"' not in text
    assert "How far the study is" in text
    assert "validation accuracy" in text
    packed = unfinished.trials[0].outcome.samples
    assert packed.test_scores not in text
    assert packed.test_losses not in text


def test_charts_of_an_unfinished_page_are_of_validation(unfinished: StudyResults) -> None:
    text = page(unfinished)
    start = text.index('<script type="application/json" id="charts">')
    charts = text[start : text.index("</script>", start)]
    assert "chart" in charts
    assert not holds_a_test_result(charts)
    assert "validation" in charts
    assert "test" not in charts


def test_files_have_none_either(unfinished: StudyResults, tmp_path: Path) -> None:
    readings = Readings(unfinished)
    tables = all_tables(readings, summarise(unfinished, readings))
    assert list(tables) == ["progress", "trials"]
    for path in write_tables(tables, tmp_path):
        assert not holds_a_test_result(path.read_text())
    for draw in (draw_differences, draw_budgets, draw_flatness):
        assert draw(unfinished) is None


def test_it_is_set_beside_no_other_study(unfinished: StudyResults) -> None:
    with pytest.raises(ValueError, match=r"must be finished .* fashion-mnist-00000000"):
        compare(unfinished, realistic(seed=1))


def test_nothing_run_is_no_error() -> None:
    nothing = replace(realistic(), trials=())
    assert "0 of 240" in printed(nothing)
    text = page(nothing)
    assert "How far the study is" in text
    assert not any(math.isfinite(row.best_validation) for row in summarise(nothing))
