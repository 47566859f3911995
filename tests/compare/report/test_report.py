"""The tables and their reading, from outcomes made up for them."""

import dataclasses
import io

import pytest
from rich.console import Console

from helpers import synthetic_studies as studies
from helpers.synthetic_studies import diverged, outcome, scores
from steppe.compare.records.results import Contender, Curvature, Metric, RunCosts, StudyResults
from steppe.compare.report.terminal import print_report


def printed(
    study: StudyResults, width: int = 100, baseline: str | None = None, brief: bool = False
) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(console, study, baseline, brief=brief)
    return console.file.getvalue()


def flat(text: str) -> str:
    return " ".join(text.split())


def lines_of(text: str, name: str) -> list[list[str]]:
    """Give the cells of a contender's lines, one a table."""
    cells = [line.split() for line in text.splitlines()]
    return [line for line in cells if line[:1] == [name]]


def test_the_leaderboard_is_sorted_by_score_and_holds_all_columns() -> None:
    costs = RunCosts(step_ms=1.25, seconds=400.0, state_bytes=8.0)
    made = {
        "adamw": [outcome(score, 0.3, 0.1, costs=costs) for score in (0.90, 0.91, 0.92)],
        "sgd": scores(0.94, 0.95, 0.96),
        "nadam": [diverged()] * 3,
    }
    text = printed(studies.study(made))
    order = [
        line.split()[0] for line in text.splitlines() if line[1:6] in ("adamw", "sgd  ", "nadam")
    ]
    assert order[:3] == ["sgd", "adamw", "nadam"]
    row = lines_of(text, "adamw")[0]
    assert row == ["adamw", "91.00", "0.300", "0.1", "0.200", "1.25", "8.0", "6.7", "min"]
    assert "[90.00, 92.00]" in text
    assert "toy, mlp: 3 test seeds, 2 epochs of 34 steps" in text
    assert "accuracy %" in text


def test_of_an_error_the_lowest_comes_first() -> None:
    metric = Metric("error", "", 1.0, higher_is_better=False)
    made = {"adamw": scores(0.9, 0.8), "sgd": scores(0.2, 0.1)}
    text = printed(studies.study(made, metric=metric))
    assert text.index("sgd") < text.index("adamw")
    assert "%" not in text.split("Trained on")[0]
    assert "points" not in text


def test_curvature_has_its_table() -> None:
    text = printed(studies.study({"adamw": scores(0.9, 0.8), "sgd": scores(0.9, 0.8)}))
    assert lines_of(text, "adamw")[1] == ["adamw", "0.0100", "2.00", "3.00", "400", "3.8e+04"]


def test_without_any_curvature_there_is_no_table_of_it() -> None:
    bare = [outcome(curvature=Curvature()), outcome(0.8, curvature=Curvature())]
    text = printed(studies.study({"adamw": bare}))
    assert "λ_max" not in text
    assert "adamw ended where derivatives are not finite: no curvature there." in text


def test_no_difference_seen_is_said() -> None:
    text = printed(
        studies.study({"adamw": scores(0.90, 0.91, 0.92), "sgd": scores(0.91, 0.90, 0.93)})
    )
    (line,) = (line for line in text.splitlines() if "+0.33 [−1.00, +1.00]" in line)
    # Differences 1, −1, 1: t = 1/2, and of two degrees of freedom p = 1 − t/√(2 + t²) = 2/3;
    # the effect is 1/3 over 2/√3, times 1/√π.
    assert line.split()[4:] == ["0.667", "+0.16", "3", "no", "difference", "seen"]


def test_a_difference_that_is_seen_is_said_for_score_and_loss() -> None:
    text = printed(
        studies.study(
            {
                "adamw": [outcome(0.90, 0.30), outcome(0.91, 0.31), outcome(0.92, 0.32)],
                "sgd": [outcome(0.951, 0.20), outcome(0.960, 0.21), outcome(0.969, 0.221)],
                "nadam": [outcome(0.801, 0.40), outcome(0.81, 0.41), outcome(0.819, 0.421)],
            }
        )
    )
    score, loss = text.split("Test loss: difference from adamw")
    assert lines_of(score, "sgd")[-1][-1] == lines_of(loss, "sgd")[0][-1] == "better"
    assert lines_of(score, "nadam")[-1][-1] == lines_of(loss, "nadam")[0][-1] == "worse"
    assert "+5.0 [+4.9, +5.1]" in text
    assert "Test accuracy, points: difference from adamw" in text


def test_another_baseline_can_be_named() -> None:
    text = printed(studies.study({"adamw": scores(0.9, 0.8), "sgd": scores(0.9, 0.7)}), 100, "sgd")
    assert "difference from sgd" in text
    with pytest.raises(ValueError, match="baseline: no contender"):
        printed(studies.study({"adamw": scores(0.9)}), 100, "sgd")


def test_in_brief_it_is_the_beginning_of_the_tables_and_the_differences() -> None:
    study = studies.plausible(5, 4, 3, 2)
    whole, brief = printed(study), printed(study, brief=True)
    assert set(brief.splitlines()) < set(whole.splitlines())
    assert "difference from" in brief
    assert "Settings" not in brief
    assert "Curvature" not in brief
    assert "bootstrap" not in brief


def test_controls_are_read_beside_what_they_control() -> None:
    contenders = [
        Contender("adamw"),
        Contender("adam+warmup", control_for=("dualadam",)),
        Contender("dualadam"),
    ]
    made = {
        "adamw": scores(0.5, 0.6, 0.8),
        "adam+warmup": scores(0.70, 0.71, 0.73),
        "dualadam": scores(0.80, 0.82, 0.83),
    }
    text = flat(printed(studies.study(made, contenders=contenders)))
    assert "dualadam against its control adam+warmup: test accuracy +10.3 [+10.0, +11.0], p" in text
    assert "p 0.001, better; test loss +0.0, p –, no difference seen." in text
    assert "control" not in printed(studies.study({"adamw": scores(0.9)}))


def test_equal_differences_are_called_what_they_are() -> None:
    adamw = scores(0.50, 0.75, 0.625)
    text = printed(
        studies.study({"adamw": adamw, "sgd": scores(0.625, 0.875, 0.75), "nadam": adamw})
    )
    table = text.split("difference from adamw")[1]
    assert flat(table).count("+12.5 – – 3 same on every seed") == 1
    assert lines_of(table, "nadam")[0][2:] == ["–", "–", "3", "no", "difference", "seen"]
    assert "They are no certainty" in flat(text)


def test_one_seed_gets_no_interval_and_no_claim() -> None:
    text = printed(studies.study({"adamw": scores(0.9), "sgd": scores(0.8)}))
    assert "nothing can be said about differences" in flat(text)
    assert "difference from" not in text
    assert "[" not in text


def test_an_untuned_study_says_so() -> None:
    contenders = [Contender(name, defaults={"lr": 1e-3}) for name in ("adamw", "sgd")]
    made = {"adamw": scores(0.9, 0.8), "sgd": scores(0.8, 0.9)}
    text = printed(studies.study(made, contenders=contenders))
    assert "Settings: defaults" in text
    assert ["adamw", "lr", "0.001"] in lines_of(text, "adamw")
    assert "Trained on 1 077 samples. Nothing was tuned" in text
    assert "Equal budgets" not in text


TUNED = [
    ({"lr": 1e-3}, outcome(0.80)),
    ({"lr": 4e-3}, outcome(0.85)),
    ({"lr": 9e-2}, diverged()),
    ({"lr": 9e-3}, None),
]


def tuned(**changes) -> StudyResults:
    space = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}}
    contenders = [
        Contender("adamw", space=space, defaults={"lr": 4e-3}),
        Contender("adamw+sam", defaults={"lr": 4e-3}, follows="adamw"),
    ]
    made = {"adamw": scores(0.9, 0.91), "adamw+sam": scores(0.92, 0.91)}
    given = {"contenders": contenders, "trials": studies.tuning("adamw", TUNED), "budget": 4}
    return studies.study(made, **{**given, **changes})


def test_what_was_chosen_stands_beside_what_the_default_scored() -> None:
    text = printed(tuned())
    assert ["adamw", "lr", "0.004", "4", "80.00", "85.00"] in lines_of(text, "adamw")
    assert ["adamw+sam", "lr", "0.004", "as", "adamw", "–", "–"] in lines_of(text, "adamw+sam")
    said = flat(text)
    assert "Equal budgets: every optimizer has 4 tuning trials, its default first" in said
    assert "by the accuracy on validation data, 180 samples" in said
    assert "The best settings run on 2 fresh seeds" in said
    assert "one test set of 540 samples (one is 0.19 points)" in said
    assert "Not tuned: adamw+sam takes over the settings of adamw." in said
    assert "Tuning trials that diverged: adamw 1, of 4 each." in said
    assert "Tuning trials that failed: adamw 1, of 4 each." in said
    assert "At an end" not in said
    assert "Not finished" not in said


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"low": 1e-4, "high": 4.2e-3, "log": True}, True),
        ({"low": 3.9e-3, "high": 1.0, "log": True}, True),
        ({"low": 0.0, "high": 4.1e-3}, True),
        ({"low": 0.0, "high": 1e-2}, False),
        ({"choices": [1e-3, 4e-3]}, False),
    ],
)
def test_a_choice_at_an_end_of_its_range_is_told(space: dict, told: bool) -> None:
    contenders = [Contender("adamw", space={"lr": space}, defaults={"lr": 4e-3})]
    study = studies.study(
        {"adamw": scores(0.9, 0.8)},
        contenders=contenders,
        trials=studies.tuning("adamw", TUNED),
        budget=4,
    )
    assert ("Chosen at an end of the searched range: adamw lr 0.004." in printed(study)) is told


def test_a_switch_is_explained_where_there_is_one() -> None:
    contenders = [Contender("dualadam", defaults={"lr": 1e-3, "switch": 0.16})]
    text = flat(printed(studies.study({"dualadam": scores(0.9, 0.8)}, contenders=contenders)))
    assert "switch is the share of the run's steps until DualAdam is Adam" in text
    assert "published value is 16 %" in text
    assert "switch" not in printed(tuned())


def test_divergence_and_failure_are_shown() -> None:
    made = {
        "adamw": scores(0.9, 0.8, 0.7),
        "sgd": [outcome(0.9), diverged(), outcome(0.8)],
        "nadam": [diverged()] * 3,
        "radam": [studies.FAILED] * 3,
        "adagrad": [diverged(), studies.FAILED, outcome(0.5)],
    }
    text = printed(studies.study(made))
    assert "† sgd: 1 of 3 test runs diverged" in text
    assert "† nadam: 3 of 3 test runs diverged" in text
    assert "† radam: 3 of 3 test runs failed, in no mean: RuntimeError: no" in text
    assert "† adagrad: 1 of 3 test runs diverged" in text
    assert "† adagrad: 1 of 3 test runs failed" in text
    assert lines_of(text, "nadam")[0][:3] == ["nadam", "†", "diverged"]
    assert lines_of(text, "radam")[0][:3] == ["radam", "†", "failed"]
    assert "too few seeds" in text
    assert "no curvature there" not in text
    assert "nan" not in text.replace("nadam", "")


def test_if_all_diverged_nothing_is_compared() -> None:
    text = printed(studies.study({"adamw": [diverged()] * 3, "sgd": [diverged()] * 3}))
    assert "3 of 3 test runs diverged" in text
    assert "difference from" not in text
    assert "interval" not in text
    assert "nan" not in text


def test_a_failure_may_speak_in_brackets() -> None:
    study = studies.study({"adamw": [studies.FAILED]})
    trial = dataclasses.replace(study.trials[0], error="ValueError: [/bold] of [red]")
    text = printed(dataclasses.replace(study, trials=(trial,)))
    assert "ValueError: [/bold] of [red]" in text


def test_an_unfinished_study_says_what_is_missing() -> None:
    made = {"adamw": scores(0.9, 0.8), "sgd": scores(0.9), "nadam": []}
    text = flat(printed(studies.study(made, seeds=2)))
    assert "Not finished: sgd 1 of 2 test runs; nadam 0 of 2 test runs." in text
    assert "nadam –" not in text
    text = flat(printed(tuned(budget=6)))
    assert "Not finished: adamw 4 of 6 tuning trials, 2 of 2 test runs." in text


def test_nothing_finished_is_said() -> None:
    text = flat(printed(studies.study({"adamw": [], "sgd": []}, seeds=3, budget=5)))
    assert text.startswith("No test run has ended.")
    assert "adamw 0 of 1 tuning trial, 0 of 3 test runs; sgd" in text
    assert "Curvature" not in text
    assert "difference" not in text


def test_where_it_ran_and_what_memory_it_took() -> None:
    costs = RunCosts(1.0, 2.0, 8.0, 3 * 2.0**20)
    study = studies.study({"adamw": [outcome(costs=costs)] * 2, "sgd": scores(0.9, 0.8)})
    assert "Peak memory on the accelerator, MiB: adamw 3." in printed(study)
    trials = [dataclasses.replace(trial, where="cpu, 2 threads, ada") for trial in study.trials]
    text = printed(dataclasses.replace(study, trials=tuple(trials)))
    assert "Run on cpu, 2 threads, ada." in text
    trials[0] = dataclasses.replace(trials[0], where="cuda, bob")
    text = printed(dataclasses.replace(study, trials=tuple(trials)))
    assert "so compare no times: cpu, 2 threads, ada; cuda, bob." in flat(text)


@pytest.mark.parametrize("width", [80, 100])
def test_every_number_fits(width: int) -> None:
    text = printed(studies.plausible(12, 3, budget=2, epochs=2), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    if width == 100:
        assert len(lines_of(text, "dualadam-scale-free+sam")) == 5


def test_a_stream_has_a_column_of_what_is_forgotten_and_its_reading() -> None:
    runs = [
        studies.learnt([0.9], [0.8, 0.7], [0.6, 0.65, 1.0]),  # falls by 0.3 and 0.05
        studies.learnt([0.9], [0.8, 0.7], [0.7, 0.65, 1.0]),  # by 0.2 and 0.05
    ]
    # What never stood higher than at the end is not forgotten, but gained.
    gains = [studies.learnt([0.5], [0.6, 0.7], [0.7, 0.7, 0.8])] * 2
    text = printed(studies.streamed({"adamw": runs, "sgd": gains}, passes=2))
    table = text.split("Curvature")[0]
    assert "test forget- train" in flat(table)
    # Means over two runs: score, test loss, forgetting.
    assert lines_of(table, "adamw")[0][1:4] == ["76.67", "0.300", "15.00"]
    assert lines_of(table, "sgd")[0][3] == "−5.00"
    assert "[12.50, 17.50]" in table
    assert "3 tasks seen 2 times, 120 steps in all" in table
    assert "average accuracy" in flat(table)
    assert "Forgetting is how much lower the accuracy on a task is" in flat(text)
    # A mean of means does not come in steps of one sample.
    assert "(one is" not in text
    assert max(map(len, printed(studies.streamed({"adamw": runs}), 80).splitlines())) <= 80


def test_a_stream_may_be_seen_once() -> None:
    rows = [[0.9], [0.8, 0.7], [0.6, 0.65, 1.0]]
    text = printed(studies.streamed({"adamw": [studies.learnt(*rows)] * 2}))
    assert "3 tasks seen once, 60 steps in all" in text


@pytest.mark.parametrize(
    ("setup", "scenario"),
    [
        ({}, "and a sample's task is known."),  # as older files have it
        ({"domain_incremental": False}, "and a sample's task is known."),
        ({"domain_incremental": True}, "and a sample's task is not known"),
    ],
)
def test_the_scenario_of_a_stream_is_told(setup: dict[str, bool], scenario: str) -> None:
    results = studies.streamed({"adamw": [studies.learnt([0.9], [0.8, 0.7], [0.6, 0.7, 1.0])] * 2})
    text = flat(printed(dataclasses.replace(results, setup={**results.setup, **setup})))
    assert f"The tasks come one after the other, {scenario}" in text


def test_what_is_no_stream_forgets_nothing() -> None:
    text = printed(studies.study({"adamw": scores(0.9, 0.8)}))
    assert "forget" not in text.lower()
    assert "(one is 0.19 points)" in flat(text)


@pytest.mark.parametrize("budget", [0, 2])
def test_of_a_text_the_tokens_are_told(budget: int) -> None:
    text = flat(printed(studies.of_text({"adamw": scores(90.0, 91.0)}, budget=budget)))
    assert "Trained on 35 000 tokens (1 000 sequences of 35)" in text
    assert ("validation data, 7 000 tokens (200 sequences of 35)" in text) == bool(budget)
    assert "one test set of 2 800 tokens (80 sequences of 35)" in text
    assert "(one is" not in text
    assert "samples" not in text.split("Trained on")[1].split("bootstrap")[0]
