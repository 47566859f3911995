"""The page, in a browser: what it shows, what its controls do, and that nothing breaks it."""

import csv
import html
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import synthetic_studies as studies
from helpers.browser import browser
from helpers.realistic_study import EPOCHS, realistic
from steppe.compare.records.results import Curvature, MetricDescription, StudyResults, load
from steppe.compare.records.summary import common_train_loss, curvature_at
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.page import page, write_page
from steppe.compare.report.page.styles import styles
from steppe.compare.report.two_studies import compare
from steppe.compare.report.two_studies import write_page as write_page_of_two

pytestmark = pytest.mark.thorough

__all__ = ["browser"]

# Every switch as it is when the page is opened.
FIRST_CHOICES = """() => {
  for (const group of document.querySelectorAll("[role=radiogroup]")) {
    group.querySelector("input").checked = true;
  }
  document.querySelector("input[type=radio]").dispatchEvent(new Event("change"));
}"""
# Rows and headings as they are, and as they have been before.
KEEP_ORDER = """() => {
  window.rowsBefore = [...document.querySelectorAll("tbody")].map(body => [body, [...body.rows]]);
  window.headingsBefore = [...document.querySelectorAll("th[aria-sort]")].map(
    heading => [heading, heading.getAttribute("aria-sort")]);
}"""
PUT_BACK_ORDER = """() => {
  for (const [body, rows] of window.rowsBefore) body.append(...rows);
  for (const [heading, order] of window.headingsBefore) heading.setAttribute("aria-sort", order);
}"""
CURVES = ("train-loss", "validation-loss", "validation-score")
NAMES = [each.name for each in realistic().contenders]


@pytest.fixture(scope="module")
def readings() -> Readings:
    return Readings(realistic())


@pytest.fixture(scope="module")
def open_page(
    browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[StudyResults], tuple[Any, list[str]]]:
    """Open a study's page; what it complains of, or asks for beyond its file, is gathered."""

    def opened(results: StudyResults) -> tuple[Any, list[str]]:
        path = tmp_path_factory.mktemp("page") / "study.html"
        write_page(results, path)
        complaints: list[str] = []
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(120_000)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda asked: complaints.append(asked.url))
        tab.goto(path.as_uri())
        complaints.remove(path.as_uri())
        return tab, complaints

    return opened


@pytest.fixture
def show(open_page: Callable[..., Any]) -> Iterator[Callable[[StudyResults], Any]]:
    """Open a page that must not complain."""
    opened = []

    def shown(results: StudyResults) -> Any:
        opened.append(open_page(results))
        return opened[-1][0]

    yield shown
    for tab, complaints in opened:
        tab.close()
        assert not complaints


@pytest.fixture(scope="module")
def study_page(open_page: Callable[..., Any]) -> tuple[Any, list[str]]:
    return open_page(realistic())


@pytest.fixture
def tab(study_page: tuple[Any, list[str]]) -> Iterator[Any]:
    """Give the page of the study, for a test that looks at it only."""
    tab, complaints = study_page
    yield tab
    assert not complaints


@pytest.fixture
def used_tab(tab: Any) -> Iterator[Any]:
    """Give it to be used; afterwards it is as when opened."""
    tab.evaluate(KEEP_ORDER)
    yield tab
    tab.evaluate(PUT_BACK_ORDER)
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.emulate_media(color_scheme="light", media="screen")
    tab.get_by_role("button", name="show all").click()
    tab.evaluate(FIRST_CHOICES)


def table(tab: Any, section: str) -> dict[str, dict[str, str]]:
    """Read a section's first table: name to heading to text."""
    headings, *rows = tab.eval_on_selector_all(
        f"#{section} table:first-of-type >> nth=0 >> tr",
        "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))",
    )
    return {
        name.split("\n")[0].strip(): dict(zip(headings[1:], cells, strict=True))
        for name, *cells in rows
    }


def data(tab: Any, chart: str) -> list[dict[str, Any]]:
    """Give the traces that Plotly has drawn."""
    return tab.evaluate(
        "name => document.getElementById(name).data.map("
        "({meta, mode, visible, x, y, line, error_y}) =>"
        " ({meta, mode, visible, x, y, line, error_y}))",
        f"chart-{chart}",
    )


def axis(tab: Any, chart: str, name: str) -> dict[str, Any]:
    return tab.evaluate(
        "([id, axis]) => {"
        " const {type, range, title} = document.getElementById(id)._fullLayout[axis];"
        " return {type, range, title: title.text} }",
        [f"chart-{chart}", name],
    )


def drawn(tab: Any, chart: str) -> int:
    """Count the lines and bands that stand in the picture."""
    return tab.locator(f"#chart-{chart} g.scatterlayer g.trace").count()


def until(tab: Any, condition: str) -> None:
    """Wait for a condition; Playwright's own waiting is a script that the page does not let run."""
    for _ in range(100):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(condition)


def of(tab: Any, chart: str, name: str) -> list[dict[str, Any]]:
    """Return an optimizer's traces in a chart."""
    return [each for each in data(tab, chart) if each.get("meta") == name]


def annotations(tab: Any, chart: str) -> list[str]:
    return tab.evaluate(
        "id => (document.getElementById(id)._fullLayout.annotations ?? []).map(each => each.text)",
        f"chart-{chart}",
    )


def test_every_section_is_there_and_every_chart_drawn(tab: Any) -> None:
    assert "8 optimizers" in tab.inner_text("h1")
    titles = [link.inner_text() for link in tab.locator("nav a").all()]
    assert titles == [
        "Results",
        "Result by tuning budget",
        "Result by compute",
        "Result by learning rate",
        "Trials",
        "Curvature at a common train loss",
        "What to use",
        "Exploratory",
        "How it was done",
        "To reproduce it",
    ]
    for link in tab.locator("nav a").all():
        assert tab.locator(f"section{link.get_attribute('href')} h2").count() == 1
    charts = tab.locator(".chart")
    assert charts.count() == 13
    for number in range(charts.count()):
        assert charts.nth(number).locator("svg.main-svg g.trace").count() >= 7
        assert charts.nth(number).get_attribute("aria-label")
    identifiers = tab.eval_on_selector_all("[id]", "all => all.map(each => each.id)")
    written = [each for each in identifiers if "-" not in each or each.startswith("chart-")]
    assert len(set(written)) == len(written)


def test_the_headline_has_a_sentence_for_each_of_the_family(tab: Any) -> None:
    found = tab.locator(".headline li").all_inner_texts()
    assert len(found) == 5
    assert found[3].startswith("adamw+sam is better than adamw: test accuracy +")
    assert "k = 4 of N = 24" in tab.inner_text(".headline")


def test_the_leaderboard_holds_the_estimates_best_first(tab: Any, readings: Readings) -> None:
    board = table(tab, "leaderboard")
    expected = {name: readings.expected(name, "score", 4) for name in NAMES}
    assert list(board) == sorted(expected, key=lambda name: -expected[name].mean)
    for name, row in board.items():
        value = expected[name]
        wanted = f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"
        assert " ".join(row["test accuracy, %"].split()) == wanted
    change = readings.difference("adamcm", "adamw", "score", 4)
    shown = board["adamcm"]["difference, test accuracy, points"]
    assert shown.startswith(f"+{change.estimate:.2f}")
    assert board["adamcm"]["verdict"] == "better"
    assert board["adamw+2epochs"]["verdict"] == "exploratory"
    assert board["adamw"]["difference, test accuracy, points"] == "–"
    assert board["adamcm"]["state, bytes"] == "28.0"
    assert board["adamw+sam"]["gradients"] == "816"
    assert "control for adamw+sam, added" in tab.inner_text("#leaderboard tbody")


def test_better_and_worse_are_said_of_the_primary_family_only(tab: Any) -> None:
    sections = ("budgets", "compute", "lr", "trials", "curvature", "recommended", "exploratory")
    for section in (*sections, "others", "controls", "curves", "gap", "densities", "costs"):
        text = tab.inner_text(f"#{section}").lower()
        assert "better" not in text, section
        assert "worse" not in text, section


def test_a_click_sorts_by_number_and_another_reverses(used_tab: Any) -> None:
    heading = used_tab.locator("#leaderboard th", has_text="state, bytes")

    def order() -> list[float]:
        return [float(row["state, bytes"]) for row in table(used_tab, "leaderboard").values()]

    heading.get_by_role("button").click()
    # As words, 12.0 would come before 8.0.
    assert order() == [8.0, 8.0, 8.0, 8.0, 8.0, 12.0, 28.0, 28.0]
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").press("Enter")
    assert order() == [28.0, 28.0, 12.0, 8.0, 8.0, 8.0, 8.0, 8.0]
    assert heading.get_attribute("aria-sort") == "descending"
    others = used_tab.locator("#leaderboard thead").first
    assert others.locator("[aria-sort=none]").count() == others.locator("th").count() - 1


@pytest.mark.parametrize("clicks", [1, 2])
def test_what_has_no_value_stays_last(used_tab: Any, clicks: int) -> None:
    for _ in range(clicks):
        heading = used_tab.locator("#leaderboard th").filter(has_text=re.compile("^p$"))
        heading.get_by_role("button").click()
    assert list(table(used_tab, "leaderboard"))[-1] == "adamw"


def test_the_curve_over_the_budget_has_bands_and_switches_to_the_loss(
    used_tab: Any, readings: Readings
) -> None:
    for label, reading in (("loss", "loss"), ("accuracy", "score")):
        used_tab.get_by_role("radiogroup", name="Reading").get_by_label(label, exact=True).check()
        band, line = of(used_tab, "budgets", "adamcm")
        expected = [readings.expected("adamcm", reading, k, samples=False) for k in range(1, 9)]
        assert line["x"] == list(range(1, 9))
        assert line["y"] == pytest.approx([each.mean for each in expected])
        highs, lows = [each.high for each in expected], [each.low for each in expected]
        assert band["y"] == pytest.approx([*highs, *lows[::-1]])
        assert label in axis(used_tab, "budgets", "yaxis")["title"]
        band, line = of(used_tab, "budget-differences", "adamcm")
        made = [readings.difference("adamcm", "adamw", reading, k) for k in range(1, 9)]
        assert line["y"] == pytest.approx([each.estimate for each in made])
        highs, lows = [each.high for each in made], [each.low for each in made]
        assert band["y"] == pytest.approx([*highs, *lows[::-1]])
        assert of(used_tab, "budget-differences", "adamw") == []
        assert "minus adamw’s" in axis(used_tab, "budget-differences", "yaxis")["title"]


def test_compute_stands_on_the_axis(tab: Any, readings: Readings) -> None:
    line, point = of(tab, "compute", "adamw+sam")
    assert line["x"] == [816 * k for k in range(1, 9)]
    assert point["x"] == [4 * 816]
    expected = readings.expected("adamw+sam", "score", 4, samples=False)
    assert point["y"] == pytest.approx([expected.mean])
    assert point["error_y"]["array"] == pytest.approx([expected.high - expected.mean])
    assert axis(tab, "compute", "xaxis")["type"] == "log"


def test_results_by_lr_are_means_over_the_pool(tab: Any) -> None:
    pool = realistic().trials_of("adamw", "pool")
    ended = sorted((t for t in pool if t.finite_outcome), key=lambda t: t.settings["lr"])
    means, strip = of(tab, "by-lr", "adamw")
    assert len(means["x"]) == len(ended) // 5
    first = ended[: round(len(ended) / len(means["x"]))]
    scores = [100 * t.outcome.final.test_score for t in first]
    assert means["y"][0] == pytest.approx(np.mean(scores))
    error = np.std(scores, ddof=1) / np.sqrt(len(scores))
    assert means["error_y"]["array"][0] == pytest.approx(error)
    assert strip["x"] == [t.settings["lr"] for t in pool if not t.finite_outcome]
    assert set(strip["y"]) == {"diverged"}


def test_one_far_behind_squeezes_no_axis(used_tab: Any, readings: Readings) -> None:
    found = readings.difference("adamcg", "adamw", "score", 4)
    low, _ = axis(used_tab, "differences", "xaxis")["range"]
    assert found.high < low
    assert annotations(used_tab, "differences") == [f"−{abs(found.estimate):.2f}"]
    used_tab.get_by_role("button", name="adamcg", exact=True).click()
    assert annotations(used_tab, "differences") == []
    used_tab.get_by_role("button", name="adamcg", exact=True).click()
    switch = used_tab.locator("#differences").get_by_role("radiogroup", name="Axis")
    switch.get_by_label("all").check()
    assert axis(used_tab, "differences", "xaxis")["range"][0] < found.low
    assert annotations(used_tab, "differences") == []
    switch.get_by_label("within reach").check()
    assert axis(used_tab, "differences", "xaxis")["range"][0] == low


def test_trials_can_be_sorted_and_are_all_there(used_tab: Any) -> None:
    rows = used_tab.locator("#trials tbody tr")
    assert rows.count() == len(realistic().trials)
    used_tab.locator("#trials th").filter(has_text=re.compile("^lr$")).get_by_role("button").click()
    column = "rows => rows.map(row => Number(row.cells[2].dataset.key))"
    rates = rows.evaluate_all(column)
    assert rates == sorted(rates)
    assert rates[0] == min(trial.settings["lr"] for trial in realistic().trials)


@pytest.mark.parametrize("name", ["adamw", "adamw+sam"])
def test_parallel_coordinates_show_one_contender_at_a_time(used_tab: Any, name: str) -> None:
    used_tab.get_by_label("Trials of").select_option(name)
    contender = next(each for each in realistic().contenders if each.name == name)
    lines = data(used_tab, "parallel")
    assert len(lines) == 24
    wanted = len(contender.space) + 2
    assert {len(line["y"]) for line in lines} == {wanted}
    ticks = used_tab.evaluate(
        "document.getElementById('chart-parallel')._fullLayout.xaxis.ticktext"
    )
    assert ticks == [*contender.space, "validation<br>accuracy", "test<br>accuracy"]
    lost = [t for t in realistic().trials_of(name, "pool") if not t.finite_outcome]
    assert lost
    assert sum(line["line"]["dash"] == "dot" for line in lines) == len(lost)
    # The best trial by validation is drawn last, at the top of that axis.
    assert lines[-1]["y"][-2] == 1.0


def test_curvature_at_a_common_loss_stands_before_that_at_the_end(used_tab: Any) -> None:
    common = common_train_loss(realistic())
    runs = [trial.outcome for trial in realistic().trials_of("adamw", "recommended")]
    wanted = {
        "sharpness at common train loss": lambda run: curvature_at(run.curve, common, "sharpness"),
        "λ_max at the end": lambda run: run.curvature.largest,
        "λ_max(PH) at the end": lambda run: run.curvature.preconditioned,
    }
    for label, measure in wanted.items():
        used_tab.get_by_label(label, exact=True).check()
        (points,) = of(used_tab, "flatness", "adamw")
        assert points["x"] == pytest.approx([measure(run) for run in runs])
        assert points["y"] == pytest.approx([run.final.test_loss for run in runs])
    headings = used_tab.locator("#curvature th button").all_inner_texts()
    assert headings[1:5] == [
        "sharpness at common loss",
        "λ_max at common loss",
        "sharpness at the end",
        "λ_max at the end",
    ]


def test_densities_are_one_line_for_each_contender(tab: Any) -> None:
    lines = data(tab, "densities")
    assert [line["meta"] for line in lines] == NAMES
    runs = [trial.outcome for trial in realistic().trials_of("adamcm", "recommended")]
    middle = sorted(runs, key=lambda run: run.curvature.largest)[1]
    (line,) = of(tab, "densities", "adamcm")
    assert line["x"] == pytest.approx([x for x, _ in middle.curvature.density])


def test_what_to_use_names_the_settings_and_the_edge(tab: Any) -> None:
    rows = table(tab, "recommended")
    assert rows["adamw+sam"]["settings"] == "lr 0.00469, weight_decay 1.78, rho 0.374"
    assert rows["adamw+sam"]["at the edge"] == "weight_decay, rho"
    assert "decide nothing" in tab.inner_text("#recommended")


def test_lines_are_means_and_bands_reach_from_the_lowest_to_the_highest(tab: Any) -> None:
    curves = [t.outcome.curve for t in realistic().trials_of("adamcg", "recommended")]
    losses = np.array([[epoch.validation_loss for epoch in curve] for curve in curves])
    band, line = of(tab, "validation-loss", "adamcg")
    assert line["y"] == pytest.approx(losses.mean(0))
    assert line["x"] == list(range(1, EPOCHS + 1))
    assert band["y"] == pytest.approx([*losses.max(0), *losses.min(0)[::-1]])
    assert of(tab, "validation-loss", "adamw+2epochs")[1]["x"] == list(range(1, 2 * EPOCHS + 1))


def test_a_name_in_the_legend_hides_its_curve_in_every_panel(used_tab: Any) -> None:
    key = used_tab.get_by_role("button", name="dualadam", exact=True)
    charts = (*CURVES, "gap", "by-lr", "budgets")
    before = {chart: drawn(used_tab, chart) for chart in charts}
    key.click()
    assert key.get_attribute("aria-pressed") == "false"
    for chart in CURVES:
        assert drawn(used_tab, chart) == before[chart] - 2
        assert {each["meta"] for each in data(used_tab, chart) if not each["visible"]} == {
            "dualadam"
        }
    for chart in ("gap", "by-lr", "budgets"):
        assert drawn(used_tab, chart) < before[chart]
    key.press("Space")
    assert {chart: drawn(used_tab, chart) for chart in before} == before
    used_tab.get_by_role("button", name="hide all").click()
    assert {drawn(used_tab, chart) for chart in before} == {0}


def test_losses_switch_to_a_linear_axis_and_back(used_tab: Any) -> None:
    assert [axis(used_tab, chart, "yaxis")["type"] for chart in CURVES] == ["log", "log", "linear"]
    used_tab.get_by_role("radiogroup", name="Losses").get_by_label("linear").check()
    assert [axis(used_tab, chart, "yaxis")["type"] for chart in CURVES] == ["linear"] * 3
    used_tab.get_by_role("radiogroup", name="Losses").get_by_label("logarithmic").check()
    assert axis(used_tab, "train-loss", "yaxis")["type"] == "log"


def test_curves_switch_from_epochs_to_training_time(used_tab: Any) -> None:
    used_tab.get_by_label("training time").check()
    curve = realistic().trials_of("adamw", "recommended")[0].outcome.curve
    for chart in CURVES:
        line = of(used_tab, chart, "adamw")[1]
        assert line["x"] == pytest.approx([epoch.seconds for epoch in curve])
        assert axis(used_tab, chart, "xaxis")["title"] == "training time, s"


def test_the_score_axis_is_fitted_to_the_later_half(used_tab: Any) -> None:
    low, high = axis(used_tab, "validation-score", "yaxis")["range"]
    assert low > max(of(used_tab, "validation-score", "adamcg")[1]["y"])
    (arrow,) = annotations(used_tab, "validation-score")
    assert arrow.startswith("adamcg 7")
    assert high > max(of(used_tab, "validation-score", "adamw+sam")[1]["y"])
    used_tab.locator("#curves").get_by_label("all", exact=True).check()
    assert axis(used_tab, "validation-score", "yaxis")["range"][0] < 60


def test_tables_are_copied_and_downloaded(used_tab: Any, tmp_path: Path) -> None:
    used_tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    name = "What the best of 4 trials is worth"
    used_tab.get_by_role("button", name=f"Copy as LaTeX: {name}").click()
    until(used_tab, "[...document.querySelectorAll('button')].some(b => b.textContent == 'copied')")
    copied = used_tab.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"% {name}\n\\begin{{tabular}}")
    with used_tab.expect_download() as download:
        used_tab.get_by_role("link", name=f"Download as CSV: {name}").click()
    assert download.value.suggested_filename == "leaderboard.csv"
    download.value.save_as(tmp_path / "leaderboard.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "leaderboard.csv").read_text())))
    assert rows[0]["optimizer"] == "adamw+sam"
    assert rows[0]["role"] == "asked for"


def test_on_a_phone_only_tables_scroll_sideways(used_tab: Any) -> None:
    used_tab.set_viewport_size({"width": 360, "height": 740})
    until(
        used_tab,
        "[...document.querySelectorAll('.chart .main-svg')]"
        ".every(each => each.getBoundingClientRect().right <= 360)",
    )
    assert used_tab.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    assert used_tab.evaluate("document.querySelector('.scroll').scrollWidth") > 360


@pytest.mark.parametrize("width", [360, 1600])
def test_charts_are_as_wide_as_the_paper_at_once(used_tab: Any, width: int) -> None:
    # A browser lays out its pages as soon as the listeners return.
    used_tab.set_viewport_size({"width": width, "height": 740})
    paper = 273 / 25.4 * 96
    widest = (
        "Math.max(...[...document.querySelectorAll('.chart .main-svg')]"
        ".map(each => each.getBoundingClientRect().width))"
    )
    printed = f"dispatchEvent(new Event('beforeprint')), {widest}"
    assert 0.9 * paper < used_tab.evaluate(printed) <= paper
    after = used_tab.evaluate(f"dispatchEvent(new Event('afterprint')), {widest}")
    assert (after > paper) == (width > paper)
    used_tab.emulate_media(media="print")
    until(used_tab, "getComputedStyle(document.querySelector('.modebar')).display == 'none'")


@pytest.mark.parametrize(
    ("scheme", "media", "ink"),
    [("dark", "screen", "light"), ("dark", "print", "dark"), ("light", "screen", "dark")],
)
def test_ink_is_light_on_dark_pages_in_charts_too(
    used_tab: Any, scheme: str, media: str, ink: str
) -> None:
    used_tab.emulate_media(color_scheme=scheme, media=media)
    way = "> 200" if ink == "light" else "< 50"
    for place, colour in (("body", "color"), ("#chart-gap .xtick text", "fill")):
        style = f"getComputedStyle(document.querySelector('{place}')).{colour}"
        until(used_tab, f"{style}.match(/[0-9]+/g).slice(0, 3).every(part => Number(part) {way})")


def test_the_data_come_with_the_page(used_tab: Any, tmp_path: Path, readings: Readings) -> None:
    embedded = json.loads(used_tab.inner_html("#study"))
    verdicts = embedded.pop("verdicts")
    # In the same order too.
    assert json.dumps(embedded) == json.dumps(realistic().to_dict())
    assert [each["verdict"] for each in verdicts] == [each.verdict for each in readings.verdicts]
    with used_tab.expect_download() as download:
        used_tab.get_by_text("Download the study").click()
    assert download.value.suggested_filename == "fashion-mnist-00000000.json"
    download.value.save_as(tmp_path / "data.json")
    assert load(tmp_path / "data.json").to_dict() == realistic().to_dict()


def test_what_is_needed_to_run_it_again_is_there(tab: Any) -> None:
    text = tab.inner_text("#reproduce")
    for each in ("steppe compare fashion-mnist --budget 4", "2026-11-28", "Ada", "The first try."):
        assert each in text
    assert "2.13.0" in text
    assert "study seed" in text


def test_names_and_errors_are_shown_and_never_obeyed(show: Callable[..., Any]) -> None:
    nasty = "<img src=x onerror=\"document.title='broken'\">&amp;<b>%{x}"
    error = "</script><script>document.title='broken'</script><!-- ${1}"
    results = studies.study(
        {"adamw": studies.scores(0.9, 0.91, 0.92), nasty: [*studies.scores(0.92, 0.93), None]},
        name="../</script>",
        task="<i>task</i>",
        command="steppe compare '<script>'",
        author="<script>",
        note="</p><b>",
        metric=MetricDescription("<b>bleu</b>", "<u>", 1.0),
    )
    *others, last = results.trials
    results = replace(results, trials=(*others, replace(last, error=error)))
    tab = show(results)
    assert "broken" not in tab.title()
    assert tab.locator("img, b, i, u").count() == 0
    assert nasty in tab.inner_text("#leaderboard tbody")
    assert error in tab.inner_text("#trials tbody")
    assert nasty in tab.locator("#chart-gap .ytick").all_text_contents()
    assert "<b>bleu</b>" in tab.text_content("#chart-validation-score .ytitle")
    embedded = json.loads(tab.inner_html("#study"))
    embedded.pop("verdicts")
    assert embedded == results.to_dict()


def test_what_gets_into_the_page_neither_runs_nor_asks(open_page: Callable[..., Any]) -> None:
    tab, _ = open_page(studies.study({"adamw": [studies.diverged()] * 3}))
    address = "https://example.invalid/x"
    for element, refused in (
        (f"<img src='{address}'>", "img-src"),
        (f"<iframe src='{address}'></iframe>", "frame-src"),
        (f"<link rel='stylesheet' href='{address}'>", "style-src-elem"),
        ("<img src='data:,' onerror='document.title = 1'>", "script-src-attr"),
    ):
        found = tab.evaluate(
            "html => new Promise(resolve => {"
            " document.addEventListener('securitypolicyviolation',"
            "  event => resolve(event.effectiveDirective), {once: true});"
            " document.body.insertAdjacentHTML('beforeend', html);"
            " setTimeout(resolve, 5000, 'nothing') })",
            element,
        )
        assert found == refused
    tab.close()


STREAM = studies.streamed(
    {
        "adamw": [
            studies.learnt([0.8], [0.9], [0.7, 0.8], [0.8, 0.7], [0.7, 0.6, 0.5], [0.6, 0.65, 1.0]),
            studies.learnt([0.6], [0.7], [0.8, 0.7], [0.7, 0.6], [0.7, 0.5, 0.5], [0.7, 0.55, 0.9]),
            studies.diverged(),
        ],
        "sgd": [studies.learnt([0.5], [0.6], [0.6, 0.5], [0.7, 0.6], [0.7] * 3, [0.7, 0.7, 0.6])]
        * 3,
        "nadam": [studies.diverged()] * 3,
    },
    passes=2,
)


@pytest.fixture(scope="module")
def stream_tab(open_page: Callable[..., Any]) -> Any:
    tab, complaints = open_page(STREAM)
    assert not complaints
    return tab


def test_each_task_of_a_stream_has_its_chart(stream_tab: Any) -> None:
    tab = stream_tab
    assert tab.locator("#tasks .chart").count() == 3
    runs = [trial.outcome.curve for trial in STREAM.trials_of("adamw", "pool")[:2]]
    for task in range(3):
        rows = [[100 * epoch.tasks[task] for epoch in curve[2 * task :]] for curve in runs]
        band, line, *sgd = data(tab, f"task-{task + 1}")
        # From the first epoch that trains it, and no run that diverged.
        assert line["x"] == list(range(2 * task + 1, 7))
        assert line["y"] == pytest.approx(np.mean(rows, axis=0))
        highest, lowest = np.max(rows, axis=0), np.min(rows, axis=0)
        assert band["y"] == pytest.approx([*highest, *lowest[::-1]])
        assert {each["meta"] for each in sgd} == {"sgd"}
        assert axis(tab, f"task-{task + 1}", "xaxis")["range"] == [0.5, 6.5]
        title = axis(tab, f"task-{task + 1}", "yaxis")["title"]
        assert title == f"task {task + 1}: validation accuracy, %"
    assert "task-4" not in tab.inner_html("#charts")


def test_the_score_axis_of_a_stream_shows_its_first_tasks_too(stream_tab: Any) -> None:
    """With few tasks, each just learnt, the score may be the highest."""
    low, high = axis(stream_tab, "validation-score", "yaxis")["range"]
    scores = [
        100 * epoch.validation_score
        for name in ("adamw", "sgd")
        for trial in STREAM.trials_of(name, "pool")
        for epoch in trial.outcome.curve
    ]
    assert low < min(scores) < max(scores) < high
    assert max(scores) == pytest.approx(90.0)


def test_what_is_forgotten_stands_in_the_leaderboard(stream_tab: Any) -> None:
    board = table(stream_tab, "leaderboard")
    # From where the tasks ended it falls by 0.3 and 0.05, and 0 and 0.05; by 0 and −0.1.
    assert board["adamw"]["forgetting, points"].split()[0] == "10.00"
    assert board["sgd"]["forgetting, points"].split()[0] == "−5.00"
    assert board["nadam"]["forgetting, points"] == "–"
    assert "Forgetting is how much lower" in stream_tab.inner_text("#method")


def test_curves_of_a_text_can_be_drawn_along_its_tokens(show: Callable[..., Any]) -> None:
    results = studies.of_text(
        {"adamw": studies.scores(90.0, 91.0, 92.0), "sgd": studies.scores(80.0, 81.0, 80.0)}
    )
    tab = show(results)
    tab.get_by_label("tokens", exact=True).check()
    for chart in CURVES:
        band, line = of(tab, chart, "adamw")
        # Two epochs of 1 000 blocks of 35 words.
        assert line["x"] == [35_000, 70_000]
        assert band["x"] == [35_000, 70_000, 70_000, 35_000]
        assert axis(tab, chart, "xaxis")["title"] == "tokens trained on"
    tab.get_by_label("epochs", exact=True).check()
    assert of(tab, "train-loss", "adamw")[1]["x"] == [1, 2]
    assert "35 000 tokens (1 000 sequences of 35)" in tab.inner_text("#method")


def test_what_is_neither_text_nor_stream_has_nothing_of_these(tab: Any) -> None:
    assert tab.get_by_label("tokens", exact=True).count() == 0
    assert tab.locator("#tasks").count() == 0
    assert "forgetting" not in tab.inner_text("#leaderboard thead >> nth=0")


DULL = studies.scores(0.9, 0.91, 0.92)
DIVERGED = [studies.diverged()] * 3
SHAPES = {
    "nothing searched": (
        studies.study({"adamw": DULL, "sgd": DULL[::-1]}),
        "sgd: no verdict: too few",
    ),
    "nothing run": (replace(realistic(), trials=()), "Not finished: 0 of 240 trials have ended."),
    "half done": (
        replace(realistic(), trials=realistic().trials[:100]),
        "Not finished: 100 of 240 trials have ended.",
    ),
    "all diverged": (
        studies.study({"adamw": DIVERGED, "sgd": DIVERGED}),
        "All trials diverged, failed, or ended without a result",
    ),
    "the baseline diverged": (studies.study({"adamw": DIVERGED, "sgd": DULL}), "sgd"),
    "alone": (studies.study({"adamw": DULL}), "adamw is alone"),
    "lower is better": (
        studies.study(
            {"adamw": studies.scores(9.0, 9.1, 9.2), "sgd": studies.scores(8.0, 8.2, 8.2)},
            metric=MetricDescription("perplexity", "", 1.0, higher_is_better=False),
        ),
        "test perplexity −0.967",
    ),
    "no curvature": (
        studies.study({"adamw": [replace(each, curvature=Curvature()) for each in DULL]}),
        "adamw is alone",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_headline_fits_studies_of_every_shape(shape: str) -> None:
    results, said = SHAPES[shape]
    text = page(results)
    assert said in html.unescape(text[text.index('class="headline"') : text.index("</header>")])
    # Numbers that are not there are dashes.
    tables = text[text.index("<main>") : text.index("</main>")]
    assert not re.search(r">\W*(nan|none|inf|undefined)\b", tables, re.IGNORECASE)


@pytest.mark.parametrize(
    ("shape", "charts"),
    [("nothing run", 0), ("all diverged", 0), ("half done", 1), ("lower is better", 9)],
)
def test_studies_of_every_shape_can_be_shown(
    show: Callable[..., Any], shape: str, charts: int
) -> None:
    tab = show(SHAPES[shape][0])
    assert tab.locator(".chart svg.main-svg:has(g.trace)").count() == charts
    assert tab.locator(".chart").count() == charts
    assert tab.locator(".legend").count() == (charts > 1)
    for link in tab.locator("nav a").all():
        assert tab.locator(f"section{link.get_attribute('href')} h2").count() == 1


def test_two_studies_stand_beside_each_other(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "two.html"
    write_page_of_two(compare(realistic(), realistic(seed=1)), path)
    complaints: list[str] = []
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(path.as_uri())
    rows = table(tab, "changes")
    assert rows["adamw+sam"]["verdicts"] == "no contradiction"
    assert len(data(tab, "two-studies")) == 14
    assert tab.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    tab.close()
    assert not complaints


def test_no_two_optimizers_look_the_same() -> None:
    looks = styles(studies.study({f"sgd{number}": [] for number in range(24)}))
    assert len({(each.colour, each.dash) for each in looks.values()}) == 24
    assert len({(each.colour, each.marker) for each in looks.values()}) == 24
