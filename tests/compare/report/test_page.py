"""The page, in a browser: what it shows, what its controls do, and that nothing breaks it."""

import html
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import synthetic_studies as studies
from helpers.browser import browser
from steppe.compare.records.json_format import from_json
from steppe.compare.records.results import (
    Contender,
    Curvature,
    Epoch,
    FinalScores,
    Metric,
    Outcome,
    RunCosts,
    StudyResults,
    Trial,
    load,
)
from steppe.compare.report.page import page, write_page
from steppe.compare.report.page.styles import styles

pytestmark = pytest.mark.thorough

__all__ = ["browser"]

CURVES = ("train-loss", "validation-loss", "validation-score")
PERPLEXITY = Metric("perplexity", "", 1.0, higher_is_better=False)

LR = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}}
SWITCH = {"switch": {"choices": [0.08, 0.16, 0.32]}}
CONTENDERS = (
    Contender("adamw", "AdamW, decoupled weight decay", LR, {"lr": 1e-3}),
    Contender(
        "adam+warmup",
        "Adam, lr warmed up",
        LR | SWITCH,
        {"lr": 1e-3, "switch": 0.16},
        control_for=("dualadam", "dualadam-scale-free"),
    ),
    Contender("dualadam", "DualAdam", LR | SWITCH, {"lr": 1e-3, "switch": 0.16}),
    Contender("dualadam-scale-free", "DualAdam", LR | SWITCH, {"lr": 1e-3, "switch": 0.16}),
    Contender("adamcm", "AdamCM, 5 critical momenta", LR, {"lr": 1e-3}),
    Contender("adam+2lr", "Adam", {}, {"lr": 2e-3}, control_for=("adamcm",), follows="adamcm"),
    Contender("adamcg", "AdamCG, 5 critical gradients", LR, {"lr": 1e-3}),
    Contender("adamw+sam", "AdamW under SAM, rho 0.05", LR, {"lr": 1e-3}),
)
SEEDS, BUDGET, EPOCHS = 5, 8, 12
DIVERGED = Outcome((), True, FinalScores(), Curvature(), RunCosts(2.0, 1.0, 8.0))


def run(random: np.random.Generator, place: int, score: float, density: bool = True) -> Outcome:
    """Make a run that learns; sharper ones end in a higher test loss."""
    left = np.exp(-np.arange(1, EPOCHS + 1) / (2.5 + place % 3))
    noise = random.normal(0.0, 0.004, (3, EPOCHS))
    train = 0.05 + 0.01 * place + 1.5 * left * np.exp(noise[0])
    validation = 3.0 * (1 - score) + 1.2 * left + noise[1]
    reached = score - 0.4 * left + noise[2] / 4
    step = 3.0 + (3.0 if place == 7 else 0.3 * place)
    curve = tuple(
        Epoch(float(t), float(v), float(s), 1e-3, step * 0.4 * (epoch + 1))
        for epoch, (t, v, s) in enumerate(zip(train, validation, reached, strict=True))
    )
    loss = float(validation[-1]) + 0.01
    largest = 4.0 * math.exp(15 * (loss - 0.3)) * random.lognormal(0.0, 0.2)
    x = np.linspace(-0.1 * largest, 1.1 * largest, 80)
    y = np.exp(-((x / (0.03 * largest)) ** 2)) + 1e-4 * np.exp(
        -(((x - largest) / (0.03 * largest)) ** 2)
    )
    return Outcome(
        curve,
        False,
        FinalScores(float(train[-1]), 0.99, float(validation[-1]), float(reached[-1]), loss, score),
        Curvature(
            largest / 200,
            largest,
            30 * largest,
            9_000 * largest,
            38_000.0,
            tuple(zip(x.tolist(), (y / largest).tolist(), strict=True)) if density else (),
        ),
        RunCosts(
            step, step * 0.4 * EPOCHS, (8.0, 8.0, 12.0, 12.0, 28.0, 8.0, 28.0, 8.0)[place % 8]
        ),
    )


def make_study() -> StudyResults:
    """Make a tuned study in which some runs diverged and one failed, and adamcm is better."""
    random = np.random.default_rng(5)
    outcomes: dict[str, list[Outcome | None]] = {}
    trials: list[Trial] = []
    settings: dict[str, Any] = {}
    for place, each in enumerate(CONTENDERS):
        score = 0.90 + (0.012 if each.name == "adamcm" else 0.001 * (place % 3))
        outcomes[each.name] = [
            run(random, place, score + 0.001 * seed + random.normal(0, 0.0015))
            for seed in range(SEEDS)
        ]
        tried = [] if each.follows else tuned(random, place, each, score)
        trials += tried
        settings[each.name] = max(tried, key=validated).settings if tried else settings["adamcm"]
    outcomes["adamcg"][2:4] = [DIVERGED, DIVERGED]
    outcomes["adamw+sam"][4] = None
    for name, each in outcomes.items():
        trials += studies.runs_of(name, each, settings[name])
    return studies.study(
        {},
        contenders=CONTENDERS,
        trials=trials,
        task="fashion-mnist",
        budget=BUDGET,
        seeds=SEEDS,
        setup=studies.SETUP | {"epochs": EPOCHS},
        command="steppe compare fashion-mnist --trials 8 --seeds 5",
        versions={"python": "3.11.9", "torch": "2.13.0", "steppe": "0.1.0"},
    )


def validated(trial: Trial) -> float:
    return trial.outcome.final.validation_score if trial.outcome != DIVERGED else -math.inf


def tuned(
    random: np.random.Generator, place: int, contender: Contender, score: float
) -> list[Trial]:
    rates = [1e-3, *(10 ** random.uniform(-4, -1, BUDGET - 1)).tolist()]
    return studies.tuning(
        contender.name,
        [
            (
                {**contender.defaults, "lr": rate},
                DIVERGED
                if rate > 0.05
                else run(random, place, score - 0.02 * abs(math.log10(rate / 2e-3)) ** 2, False),
            )
            for rate in rates
        ],
    )


STUDY = make_study()


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
    return open_page(STUDY)


@pytest.fixture
def tab(study_page: tuple[Any, list[str]]) -> Iterator[Any]:
    """Give the page of the study, as it is when opened but for the order of its rows."""
    tab, complaints = study_page
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.emulate_media(color_scheme="light", media="screen")
    tab.get_by_role("button", name="show all").click()
    for label in ("epochs", "logarithmic", "sharpness"):
        tab.get_by_label(label, exact=True).check()
    yield tab
    assert not complaints


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
        "({meta, mode, visible, x, y}) => ({meta, mode, visible, x, y}))",
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


def test_every_section_is_there_and_every_chart_drawn(tab: Any) -> None:
    assert "8 optimizers" in tab.inner_text("h1")
    for link in tab.locator("nav a").all():
        assert tab.locator(f"section{link.get_attribute('href')} h2").count() == 1
    charts = tab.locator(".chart")
    assert charts.count() == 9
    for number in range(charts.count()):
        assert charts.nth(number).locator("svg.main-svg g.trace").count() >= 7
    identifiers = tab.eval_on_selector_all("[id]", "all => all.map(each => each.id)")
    written = [each for each in identifiers if "-" not in each or each.startswith("chart-")]
    assert len(set(written)) == len(written)


def test_the_leaderboard_holds_the_means(show: Callable[..., Any]) -> None:
    board = table(show(STUDY), "leaderboard")
    runs = {name: [t.outcome for t in STUDY.trials_of(name, "test")] for name in board}
    whole = {name: [o for o in each if o and not o.diverged] for name, each in runs.items()}
    scores = {name: 100 * np.mean([o.final.test_score for o in whole[name]]) for name in whole}
    # Best first.
    assert list(board) == sorted(scores, key=lambda name: -scores[name])
    for name, row in board.items():
        assert row["test accuracy, %"].startswith(f"{scores[name]:.2f}")
    assert board["adamcm"]["verdict"] == "better"
    assert board["adamcm"]["difference, points"].startswith(
        f"+{scores['adamcm'] - scores['adamw']:.2f}"
    )
    assert board["adamw"]["difference, points"] == "–"
    assert board["adamcg"]["runs"].split() == ["5", "2", "diverged"]
    assert board["adamw+sam"]["runs"].split() == ["5", "1", "failed"]
    assert board["adamcm"]["state, bytes"] == "28.0"


def test_controls_are_named_and_read_beside_what_they_control(tab: Any) -> None:
    assert "control for dualadam, dualadam-scale-free" in tab.inner_text("#leaderboard tbody")
    beside = tab.locator("#leaderboard table").nth(1).inner_text()
    for name, control in (("dualadam", "adam+warmup"), ("adamcm", "adam+2lr")):
        assert any(
            line.strip().startswith(name) and control in line for line in beside.splitlines()
        )


def test_a_click_sorts_by_number_and_another_reverses(tab: Any) -> None:
    heading = tab.locator("#leaderboard th", has_text="state, bytes")
    column = "rows => rows.map(row => row.cells[11].innerText.trim())"

    def order() -> list[float]:
        rows = tab.locator("#leaderboard table").first.locator("tbody tr")
        return [float(each) for each in rows.evaluate_all(column)]

    heading.get_by_role("button").click()
    # As words, 12.0 would come before 8.0.
    assert order() == [8.0, 8.0, 8.0, 8.0, 12.0, 12.0, 28.0, 28.0]
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").press("Enter")
    assert order() == [28.0, 28.0, 12.0, 12.0, 8.0, 8.0, 8.0, 8.0]
    assert heading.get_attribute("aria-sort") == "descending"
    assert tab.locator("#leaderboard thead").first.locator("[aria-sort=none]").count() == 12


@pytest.mark.parametrize("clicks", [1, 2])
def test_what_has_no_value_stays_last(tab: Any, clicks: int) -> None:
    for _ in range(clicks):
        tab.locator("#leaderboard th", has_text="Holm p").first.get_by_role("button").click()
    assert list(table(tab, "leaderboard"))[-1] == "adamw"


def test_lines_are_means_and_bands_reach_from_the_lowest_to_the_highest(
    tab: Any,
) -> None:
    curves = [t.outcome.curve for t in STUDY.trials_of("adamcg", "test") if t.outcome != DIVERGED]
    losses = np.array([[epoch.validation_loss for epoch in curve] for curve in curves])
    band, line = (each for each in data(tab, "validation-loss") if each["meta"] == "adamcg")
    assert line["y"] == pytest.approx(losses.mean(0))
    assert line["x"] == list(range(1, EPOCHS + 1))
    assert band["y"] == pytest.approx([*losses.max(0), *losses.min(0)[::-1]])


def test_a_name_in_the_legend_hides_its_curve_in_every_panel(tab: Any) -> None:
    key = tab.get_by_role("button", name="dualadam", exact=True)
    before = {chart: drawn(tab, chart) for chart in (*CURVES, "gap", "sensitivity")}
    key.click()
    assert key.get_attribute("aria-pressed") == "false"
    for chart in CURVES:
        assert drawn(tab, chart) == before[chart] - 2
        assert {each["meta"] for each in data(tab, chart) if not each["visible"]} == {"dualadam"}
    for chart in ("gap", "sensitivity"):
        assert drawn(tab, chart) < before[chart]
    key.press("Space")
    assert {chart: drawn(tab, chart) for chart in before} == before
    tab.get_by_role("button", name="hide all").click()
    assert {drawn(tab, chart) for chart in before} == {0}


def test_losses_switch_to_a_linear_axis_and_back(tab: Any) -> None:
    assert [axis(tab, chart, "yaxis")["type"] for chart in CURVES] == ["log", "log", "linear"]
    tab.get_by_role("radiogroup", name="Losses").get_by_label("linear").check()
    assert [axis(tab, chart, "yaxis")["type"] for chart in CURVES] == ["linear"] * 3
    tab.get_by_role("radiogroup", name="Losses").get_by_label("logarithmic").check()
    assert axis(tab, "train-loss", "yaxis")["type"] == "log"


def test_curves_switch_from_epochs_to_training_time(tab: Any) -> None:
    tab.get_by_label("training time").check()
    seconds = [epoch.seconds for epoch in STUDY.trials_of("adamw", "test")[0].outcome.curve]
    for chart in CURVES:
        line = next(each for each in data(tab, chart) if each["mode"] == "lines+markers")
        assert line["x"] == pytest.approx(seconds)
        assert axis(tab, chart, "xaxis")["title"] == "training time, s"


def test_the_score_axis_is_fitted_to_what_is_shown(tab: Any) -> None:
    tab.get_by_role("button", name="hide all").click()
    tab.get_by_role("button", name="adamcm", exact=True).click()
    band = next(each for each in data(tab, "validation-score") if each["meta"] == "adamcm")["y"]
    late = [*band[4:EPOCHS], *band[EPOCHS:-4]]
    low, high = axis(tab, "validation-score", "yaxis")["range"]
    assert low == pytest.approx(min(late), abs=0.1 * (max(late) - min(late)))
    assert high == pytest.approx(max(late), abs=0.1 * (max(late) - min(late)))
    assert low < min(late) < max(late) < high
    assert "leaves out what only the first third" in tab.inner_text("#curves")


def test_each_measure_of_curvature_can_be_set_against_the_test_loss(
    tab: Any,
) -> None:
    runs = [trial.outcome for trial in STUDY.trials_of("adamw", "test")]
    for label, measure in (
        ("λ_max", "largest"),
        ("trace", "trace"),
        ("λ_max(PH)", "preconditioned"),
    ):
        tab.get_by_label(label, exact=True).check()
        points = data(tab, "flatness")[0]
        assert points["x"] == pytest.approx([getattr(run.curvature, measure) for run in runs])
        assert points["y"] == pytest.approx([run.final.test_loss for run in runs])


def test_diverged_tuning_trials_stand_in_their_own_strip(tab: Any) -> None:
    lost = [t.settings["lr"] for t in STUDY.trials_of("adamcm", "tune") if t.outcome == DIVERGED]
    assert lost
    points = [each for each in data(tab, "sensitivity") if each["meta"] == "adamcm"]
    assert points[1]["x"] == lost
    assert set(points[1]["y"]) == {"diverged"}
    assert len(points[0]["x"]) + len(lost) == BUDGET


def test_on_a_phone_only_tables_scroll_sideways(tab: Any) -> None:
    tab.set_viewport_size({"width": 360, "height": 740})
    until(
        tab,
        "[...document.querySelectorAll('.chart .main-svg')]"
        ".every(each => each.getBoundingClientRect().right <= 360)",
    )
    assert tab.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    assert tab.evaluate("document.querySelector('.scroll').scrollWidth") > 360


@pytest.mark.parametrize(
    ("scheme", "media", "ink"),
    [("dark", "screen", "light"), ("dark", "print", "dark"), ("light", "screen", "dark")],
)
def test_ink_is_light_on_dark_pages_in_charts_too(
    tab: Any, scheme: str, media: str, ink: str
) -> None:
    tab.emulate_media(color_scheme=scheme, media=media)
    way = "> 200" if ink == "light" else "< 50"
    for place, colour in (("body", "color"), ("#chart-gap .xtick text", "fill")):
        style = f"getComputedStyle(document.querySelector('{place}')).{colour}"
        until(tab, f"{style}.match(/[0-9]+/g).slice(0, 3).every(part => Number(part) {way})")


def test_the_data_come_with_the_page(tab: Any, tmp_path: Path) -> None:
    embedded = json.loads(tab.inner_html("#study"))
    # In the same order too.
    assert json.dumps(embedded) == json.dumps(STUDY.to_dict())
    assert from_json(StudyResults, embedded).to_dict() == STUDY.to_dict()
    with tab.expect_download() as download:
        tab.get_by_text("Download the study").click()
    assert download.value.suggested_filename == "toy-00000000.json"
    download.value.save_as(tmp_path / "data.json")
    assert load(tmp_path / "data.json").to_dict() == STUDY.to_dict()


def test_names_and_errors_are_shown_and_never_obeyed(show: Callable[..., Any]) -> None:
    nasty = "<img src=x onerror=\"document.title='broken'\">&amp;<b>%{x}"
    error = "</script><script>document.title='broken'</script><!-- ${1}"
    results = studies.study(
        {"adamw": studies.scores(0.9, 0.91), nasty: [studies.outcome(0.92), None]},
        name="../</script>",
        task="<i>task</i>",
        command="steppe compare '<script>'",
        metric=Metric("<b>bleu</b>", "<u>", 1.0),
    )
    *others, last = results.trials
    results = replace(results, trials=(*others, replace(last, error=error)))
    tab = show(results)
    assert "broken" not in tab.title()
    assert tab.locator("img, b, i, u").count() == 0
    assert nasty in tab.inner_text("#leaderboard tbody")
    assert error in tab.inner_text("#unsuccessful tbody")
    assert nasty in tab.locator("#chart-gap .ytick").all_text_contents()
    assert "<b>bleu</b>" in tab.text_content("#chart-validation-score .ytitle")
    assert json.loads(tab.inner_html("#study")) == results.to_dict()


def test_what_gets_into_the_page_neither_runs_nor_asks(open_page: Callable[..., Any]) -> None:
    tab, _ = open_page(studies.study({"adamw": [DIVERGED]}))
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


# Accuracies of the tasks of a stream after each of two epochs a task, for two seeds.
STREAM = studies.streamed(
    {
        "adamw": [
            studies.learnt([0.8], [0.9], [0.7, 0.8], [0.8, 0.7], [0.7, 0.6, 0.5], [0.6, 0.65, 1.0]),
            studies.learnt([0.6], [0.7], [0.8, 0.7], [0.7, 0.6], [0.7, 0.5, 0.5], [0.7, 0.55, 0.9]),
        ],
        "sgd": [studies.learnt([0.5], [0.6], [0.6, 0.5], [0.7, 0.6], [0.7] * 3, [0.7, 0.7, 0.6])]
        * 2,
        "nadam": [DIVERGED] * 2,
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
    runs = [trial.outcome.curve for trial in STREAM.trials_of("adamw", "test")]
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
        for trial in STREAM.trials_of(name, "test")
        for epoch in trial.outcome.curve
    ]
    assert low < min(scores) < max(scores) < high
    assert max(scores) == pytest.approx(90.0)
    assert "leaves out" not in stream_tab.inner_text("#curves")


def test_what_is_forgotten_stands_in_the_leaderboard(stream_tab: Any) -> None:
    tab = stream_tab
    board = table(tab, "leaderboard")
    # From where the tasks ended it falls by 0.3 and 0.05, and 0 and 0.05; by 0 and −0.1.
    assert board["adamw"]["forgetting, points"].split() == ["10.00", "[2.50,", "17.50]"]
    assert board["sgd"]["forgetting, points"].split()[0] == "−5.00"
    assert board["nadam"]["forgetting, points"] == "–"
    assert "Forgetting is how much lower" in tab.inner_text("#method")
    heading = tab.locator("#leaderboard th", has_text="forgetting")
    heading.get_by_role("button").click()
    assert list(table(tab, "leaderboard")) == ["sgd", "adamw", "nadam"]


def test_curves_of_a_text_can_be_drawn_along_its_tokens(show: Callable[..., Any]) -> None:
    results = studies.of_text({"adamw": studies.scores(90.0, 91.0), "sgd": studies.scores(80.0)})
    tab = show(results)
    tab.get_by_label("tokens", exact=True).check()
    for chart in CURVES:
        band, line, alone = data(tab, chart)
        # Two epochs of 1 000 blocks of 35 words.
        assert line["x"] == alone["x"] == [35_000, 70_000]
        assert band["x"] == [35_000, 70_000, 70_000, 35_000]
        assert axis(tab, chart, "xaxis")["title"] == "tokens trained on"
    tab.get_by_label("epochs", exact=True).check()
    assert data(tab, "train-loss")[1]["x"] == [1, 2]
    assert "35 000 tokens (1 000 sequences of 35)" in tab.inner_text("#method")


def test_what_is_neither_text_nor_stream_has_nothing_of_these(tab: Any) -> None:
    assert tab.get_by_label("tokens", exact=True).count() == 0
    assert tab.locator("#tasks").count() == 0
    assert "forgetting" not in tab.inner_text("#leaderboard thead >> nth=0")


DULL = studies.scores(0.9, 0.91, 0.92)
SHAPES = {
    "nothing tuned": (studies.study({"adamw": DULL, "sgd": DULL[::-1]}), "Nobody beats adamw"),
    "nothing run": (replace(STUDY, trials=()), "No test run has ended yet."),
    "only tuned": (
        replace(STUDY, trials=tuple(each for each in STUDY.trials if each.phase == "tune")),
        "No test run has ended yet.",
    ),
    "one seed": (
        studies.study({"adamw": DULL[:1], "sgd": DULL[1:2]}),
        "Too few seeds to tell anyone from adamw",
    ),
    "all diverged": (
        studies.study({"adamw": [DIVERGED] * 2, "sgd": [DIVERGED] * 2}),
        "All test runs diverged or failed",
    ),
    "the baseline diverged": (
        studies.study({"adamw": [DIVERGED] * 2, "sgd": DULL[:2]}),
        "No test run of adamw came to an end",
    ),
    "alone": (studies.study({"adamw": DULL}), "adamw is alone"),
    "twelve": (studies.plausible(12), "adamw"),
    "lower is better": (
        studies.study(
            {"adamw": studies.scores(9.0, 9.1, 9.2), "sgd": studies.scores(8.0, 8.2, 8.2)},
            metric=PERPLEXITY,
        ),
        "Better than adamw (test perplexity): sgd by −0.967",
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
    [("nothing run", 0), ("all diverged", 0), ("one seed", 7), ("lower is better", 7)],
)
def test_studies_of_every_shape_can_be_shown(
    show: Callable[..., Any], shape: str, charts: int
) -> None:
    tab = show(SHAPES[shape][0])
    assert tab.locator(".chart svg.main-svg:has(g.trace)").count() == charts
    assert tab.locator(".chart").count() == charts
    assert tab.locator(".legend").count() == bool(charts)
    for link in tab.locator("nav a").all():
        assert tab.locator(f"section{link.get_attribute('href')} h2").count() == 1


def test_an_unfinished_study_says_so() -> None:
    assert STUDY.complete
    assert "Not finished" not in page(STUDY)
    assert "Not finished: this is how it stands." in page(replace(STUDY, trials=STUDY.trials[:-1]))


def test_another_baseline_can_be_named() -> None:
    assert "Better than adam+warmup (test accuracy, points): adamcm by" in page(
        STUDY, "adam+warmup"
    )


def test_an_unknown_baseline_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "study.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="sgd"):
        write_page(STUDY, path, "sgd")
    assert [each.name for each in tmp_path.iterdir()] == ["study.html"]
    assert path.read_text() == "old"


def test_no_two_optimizers_look_the_same() -> None:
    looks = styles(studies.study({f"sgd{number}": [] for number in range(24)}))
    assert len({(each.colour, each.dash) for each in looks.values()}) == 24
    assert len({(each.colour, each.marker) for each in looks.values()}) == 24
