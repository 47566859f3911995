"""What the terminal prints: the same sentences and tables as the page, whole at any width."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from helpers import synthetic_studies as studies
from helpers.realistic_study import realistic
from helpers.synthetic_studies import diverged, outcome, scores
from steppe.compare.records.results import (
    ContenderRecord,
    Curvature,
    MetricDescription,
    RunCosts,
    StudyResults,
)
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.terminal import print_report


def printed(study: StudyResults, width: int = 100, brief: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(console, study, brief=brief)
    return console.file.getvalue()


def flat(text: str) -> str:
    return " ".join(text.split())


def lines_of(text: str, name: str) -> list[list[str]]:
    """Give the cells of a contender's lines, one a table."""
    cells = [line.split() for line in text.splitlines()]
    return [line for line in cells if line[:1] == [name]]


@pytest.fixture(scope="module")
def whole() -> str:
    return printed(realistic())


def test_it_begins_with_what_was_found(whole: str) -> None:
    lines = whole.splitlines()
    assert lines[0] == "fashion-mnist, small_cnn: 12 epochs of 34 steps"
    assert lines[1].startswith("dualadam")
    order = [
        "adamw+sam is better than adamw",
        "The smallest difference this plan would find",
        "What the best of 4 trials is worth",
        "Test accuracy, %, of the best of k trials",
        "Curvature of the train loss",
        "Recommended settings",
        "Exploratory",
        "Differences in test loss from adamw",
        "Optimizers beside their controls",
        "Trained on 1 077 samples",
    ]
    places = [flat(whole).find(each) for each in order]
    assert -1 not in places
    assert places == sorted(places)


def test_the_leaderboard_holds_the_estimates_best_first(whole: str) -> None:
    board = whole[whole.index("What the best of 4") : whole.index("Test accuracy, %, of the best")]
    readings = Readings(realistic())
    expected = {c.name: readings.expected(c.name, "score", 4) for c in realistic().contenders}
    order = sorted(expected, key=lambda name: -expected[name].mean)
    found = [line.split()[0] for line in board.splitlines() if line.split()[:1] != []]
    assert [each for each in found if each in expected][: len(order)] == order
    for name, value in expected.items():
        assert f"{value.mean:.2f}" in lines_of(board, name)[0]
        assert f"[{value.low:.2f}, {value.high:.2f}]" in board
    for heading in ("verdict", "untuned", "diverged", "gradients", "state,", "role", "gap"):
        assert heading in board
    assert "control for adamw+sam, added" in flat(board)


def test_better_and_worse_are_said_of_the_primary_family_only(whole: str) -> None:
    assert "better" in whole
    exploratory = whole[whole.index("Exploratory") : whole.index("Trained on")]
    assert "better" not in exploratory
    assert "worse" not in exploratory
    assert "no difference seen" not in exploratory


def test_in_brief_it_is_the_sentences_and_the_first_table(whole: str) -> None:
    brief = printed(realistic(), brief=True)
    assert whole.startswith(brief.rstrip("\n"))
    assert "What the best of 4 trials is worth" in brief
    assert "Recommended" not in brief


@pytest.mark.parametrize("width", [40, 80, 100])
def test_every_number_fits(width: int, whole: str) -> None:
    text = printed(realistic(), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    readings = Readings(realistic())
    for contender in realistic().contenders:
        value = readings.expected(contender.name, "score", 4)
        assert f"{value.mean:.2f}" in text
        assert f"[{value.low:.2f}, {value.high:.2f}]" in text


def test_the_loss_may_be_primary() -> None:
    plan = replace(realistic().plan, primary="loss")
    text = printed(replace(realistic(), plan=plan))
    assert "Test loss, of the best of k trials" in text
    assert "Differences in test accuracy, points from adamw" in flat(text)


def test_controls_are_read_beside_what_they_control(whole: str) -> None:
    beside = whole[whole.index("beside their controls") : whole.index("Trained on")]
    found = Readings(realistic()).difference("adamw+sam", "adamw+2epochs", "score", 4)
    row = lines_of(beside, "adamw+sam")[0]
    assert row[1] == "adamw+2epochs"
    assert f"+{found.estimate:.2f}" in row
    assert "control" not in printed(studies.study({"adamw": scores(0.9, 0.8, 0.7)}))


def test_of_an_error_the_lowest_comes_first() -> None:
    metric = MetricDescription("error", "", 1.0, higher_is_better=False)
    made = {"adamw": scores(0.9, 0.8, 0.9), "sgd": scores(0.2, 0.1, 0.2)}
    text = printed(studies.study(made, metric=metric))
    board = text[text.index("What a trial") :]
    assert board.index("sgd") < board.index("adamw")
    assert "points" not in text


def test_divergence_and_failure_are_shown() -> None:
    made = {
        "adamw": scores(0.9, 0.8, 0.7, 0.9),
        "sgd": [outcome(0.9), diverged(), outcome(0.8), diverged()],
        "nadam": [outcome(0.9), studies.FAILED, outcome(0.8), outcome(0.7)],
    }
    text = printed(studies.study(made))
    assert "50 %" in text
    assert "† nadam: 1 of 4 trials failed, counted like one that diverged: RuntimeError: no" in text
    assert (
        "A trial that diverged, or whose result is no number, has the worst validation score."
        in flat(text)
    )
    assert "nan" not in text.replace("nadam", "")


def test_if_all_diverged_there_are_no_numbers() -> None:
    text = printed(studies.study({"adamw": [diverged()] * 3, "sgd": [diverged()] * 3}))
    assert (
        "All trials diverged, failed, or ended without a result: there is nothing to compare."
        in text
    )
    assert "What the best of" not in text
    assert "Exploratory" not in text.split("Trained on")[0]


def test_a_failure_may_speak_in_brackets() -> None:
    study = studies.study({"adamw": [studies.FAILED] * 3})
    trials = [replace(trial, error="ValueError: [/bold] of [red]") for trial in study.trials]
    text = printed(replace(study, trials=tuple(trials)))
    assert "ValueError: [/bold] of [red]" in text


def test_settings_at_the_edge_are_told(whole: str) -> None:
    assert "Recommended settings in the outer tenth of what was tried" in flat(whole)
    assert "adamw+sam weight_decay 1.78, rho 0.374" in flat(whole)


def test_a_switch_is_explained_where_there_is_one(whole: str) -> None:
    assert "switch is the share of the run's steps until DualAdam is Adam" in flat(whole)
    assert "switch" not in printed(studies.study({"adamw": scores(0.9, 0.8, 0.7)}))


def test_curvature_names_the_common_loss(whole: str) -> None:
    assert "the lowest that all runs came through: 0." in flat(whole)
    bare = [outcome(curvature=Curvature())] * 3
    assert "λ_max" not in printed(studies.study({"adamw": bare}))
    ends = printed(studies.study({"adamw": [outcome()] * 3}))
    assert "here it was not measured along the way" in flat(ends)


def test_where_it_ran_and_what_memory_it_took() -> None:
    costs = RunCosts(1.0, 2.0, 8.0, 3 * 2.0**20)
    study = studies.study({"adamw": [outcome(costs=costs)] * 3, "sgd": scores(0.9, 0.8, 0.7)})
    assert "Peak memory on the accelerator, MiB: adamw 3." in printed(study)
    trials = [replace(trial, where="cpu, 2 threads, ada") for trial in study.trials]
    assert "Run on cpu, 2 threads, ada." in printed(replace(study, trials=tuple(trials)))
    trials[0] = replace(trials[0], where="cuda, bob")
    text = printed(replace(study, trials=tuple(trials)))
    assert "so times cannot be compared: cpu, 2 threads, ada; cuda, bob." in flat(text)


def test_who_made_it_and_why_is_told(whole: str) -> None:
    assert whole.rstrip().endswith("Ada: The first try.")
    assert printed(replace(realistic(), author="")).rstrip().endswith("\nThe first try.")


def test_a_stream_has_a_column_of_what_is_forgotten() -> None:
    runs = [
        studies.learnt([0.9], [0.8, 0.7], [0.6, 0.65, 1.0]),  # falls by 0.3 and 0.05
        studies.learnt([0.9], [0.8, 0.7], [0.7, 0.65, 1.0]),  # by 0.2 and 0.05
        studies.learnt([0.9], [0.8, 0.7], [0.6, 0.65, 1.0]),
    ]
    text = printed(studies.streamed({"adamw": runs, "sgd": runs}, passes=1))
    assert "3 tasks seen once, 60 steps in all" in text
    assert "forgetting" in text
    # 17.5, 12.5 and 17.5 points: the runs where nothing is searched are the pool's first.
    assert "15.83" in text
    assert "Forgetting is how much lower the accuracy on a task is" in flat(text)
    assert "(one is" not in text
    assert "forget" not in printed(studies.study({"adamw": scores(0.9, 0.8, 0.7)})).lower()


@pytest.mark.parametrize(
    ("setup", "scenario"),
    [
        ({}, "and a sample's task is known."),
        ({"domain_incremental": True}, "and a sample's task is not known"),
    ],
)
def test_the_scenario_of_a_stream_is_told(setup: dict[str, bool], scenario: str) -> None:
    run = studies.learnt([0.9], [0.8, 0.7], [0.6, 0.7, 1.0])
    results = studies.streamed({"adamw": [run] * 3})
    text = flat(printed(replace(results, setup={**results.setup, **setup})))
    assert f"The tasks come one after the other, {scenario}" in text


def test_of_a_text_the_tokens_are_told() -> None:
    text = flat(printed(studies.of_text({"adamw": scores(90.0, 91.0, 92.0)})))
    assert "Trained on 35 000 tokens (1 000 sequences of 35)" in text
    assert "a test set of 2 800 tokens (80 sequences of 35)." in text


def test_contenders_without_a_space_have_no_settings() -> None:
    contenders = [ContenderRecord("adamw", defaults={"lr": 1e-3}), ContenderRecord("sgd")]
    made = {"adamw": scores(0.9, 0.8, 0.7), "sgd": scores(0.9, 0.7, 0.8)}
    text = printed(studies.study(made, contenders=contenders))
    table = text[text.index("Recommended settings") :]
    assert lines_of(table, "adamw")[0][1:3] == ["lr", "0.001"]


def test_early_stopping_is_said() -> None:
    study = realistic()
    said = "Evaluated, measured and kept are a run's weights after the epoch with the best"
    assert said not in flat(printed(study))
    assert said in flat(printed(replace(study, setup={**study.setup, "early_stopping": True})))
