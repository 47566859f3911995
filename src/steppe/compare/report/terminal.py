"""A study's tables in the terminal, with footnotes that say how to read them."""

import math
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console

from steppe._shared.messages import plural
from steppe._shared.statistics import Comparison
from steppe._shared.tables import TextTable, print_text
from steppe.compare.records.results import TUNE, Contender, StudyResults
from steppe.compare.records.summary import (
    OptimizerSummary,
    against_controls,
    baseline_of,
    best_first,
    chosen_trial,
    summarise,
)
from steppe.compare.report.footnotes import footnotes
from steppe.compare.report.formatting import (
    MISSING,
    decimals,
    format_duration,
    format_interval,
    format_number,
    format_p_value,
    format_settings,
    format_short,
    format_significant,
    unit_of_change,
)
from steppe.compare.report.verdicts import verdict


def print_report(
    console: Console,
    results: StudyResults,
    baseline: str | None = None,
    *,
    brief: bool = False,
) -> None:
    """Print a study's tables and footnotes.

    Parameters
    ----------
    console : rich.console.Console
        Where to; everything fits from 80 columns on.
    results : StudyResults
        A study, finished or not.
    baseline : str or None, default None
        The contender that the others are compared with; None takes the first.
    brief : bool, default False
        Only the leaderboard and the differences.

    Raises
    ------
    ValueError
        No contender is called ``baseline``.
    """
    baseline = baseline_of(results, baseline)
    rows = best_first(summarise(results, baseline), results.metric)
    ended = [row for row in rows if row.runs]
    if ended:
        console.print(_leaderboard(results, ended))
    else:
        console.print("No test run has ended.\n")
    if not brief and any(math.isfinite(row.sharpness.mean) for row in ended):
        console.print(_curvature(ended))
    if not brief and any(row.settings for row in ended):
        console.print(_settings(results, ended))
    if any(row.score_change and row.score_change.seeds > 1 for row in ended):
        for table in _differences(results, ended, baseline):
            console.print(table)
        for line in _control_lines(results):
            print_text(console, line)
        console.print()
    if brief:
        return
    for note in footnotes(results, rows):
        print_text(console, note)


def _leaderboard(results: StudyResults, rows: Sequence[OptimizerSummary]) -> TextTable:
    metric, setup = results.metric, results.setup
    runs = plural(results.seeds, "test seed")
    table = TextTable(f"{results.task}, {setup['model']}: {runs}, {_length(results)}")
    score = f"test\n{metric.name} {metric.unit}".rstrip()
    forgets = any(math.isfinite(row.forgetting.mean) for row in rows)
    for heading in (score, "test\nloss", *(["forget-\nting"] if forgets else [])):
        table.add_column(heading, justify="right", min_width=8)
    for heading in ("train\nloss", "gap", "ms per\nstep", "state\nB/param", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    digits = decimals((row.score.mean for row in rows), 4)
    loss_digits = decimals((row.test_loss.mean for row in rows), 3)
    for row in rows:
        table.add_row(
            f"{row.name} †" if row.diverged or row.failed else row.name,
            _why_no_numbers(row) or _stacked(format_interval(row.score, digits)),
            _stacked(format_interval(row.test_loss, loss_digits)),
            *([_stacked(format_interval(row.forgetting, digits))] if forgets else []),
            format_short(row.train_loss.mean),
            format_number(row.gap.mean, loss_digits),
            format_number(row.step_ms, 2),
            format_number(row.state_bytes, 1),
            format_duration(row.seconds),
        )
    return table


def _length(results: StudyResults) -> str:
    setup = results.setup
    if stream := setup.get("stream"):
        passes = setup["epochs"] // len(stream)
        each = "seen once" if passes == 1 else f"seen {passes} times"
        return (
            f"{plural(len(stream), 'task')} {each}, {plural(passes * sum(stream), 'step')} in all"
        )
    return f"{plural(setup['epochs'], 'epoch')} of {plural(setup['steps_per_epoch'], 'step')}"


def _why_no_numbers(row: OptimizerSummary) -> str:
    """Return why there are no numbers; empty if there are."""
    if row.diverged + row.failed < row.runs:
        return ""
    return "diverged" if row.diverged else "failed"


def _stacked(text: str) -> str:
    """Put the interval under its mean, so that many columns fit beside each other."""
    return text.replace(" [", "\n[")


def _curvature(rows: Sequence[OptimizerSummary]) -> TextTable:
    table = TextTable("Curvature of the train loss where the runs ended")
    for heading in ("sharpness", "λ_max", "trace", "λ_max(PH)"):
        table.add_column(heading, justify="right", min_width=8)
    table.add_column("threshold", justify="right", no_wrap=True)
    for row in rows:
        measured = (row.sharpness, row.largest, row.trace, row.preconditioned)
        cells = [_stacked(format_significant(each)) for each in measured]
        table.add_row(row.name, *cells, format_short(row.threshold.mean))
    return table


def _settings(results: StudyResults, rows: Sequence[OptimizerSummary]) -> TextTable:
    contenders = {each.name: each for each in results.contenders}
    if not results.budget:
        table = TextTable("Settings: defaults")
        table.add_column("settings")
        for row in rows:
            table.add_row(row.name, format_settings(row.settings))
        return table
    metric = results.metric
    table = TextTable(
        f"Settings: the best by validation {metric.name}, and what the default scored there"
    )
    table.add_column("settings")
    table.add_column("trials", justify="right")
    for heading in ("default", "best"):
        table.add_column(f"{heading}\n{metric.unit}".rstrip(), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name, format_settings(row.settings), *_tuning(results, contenders[row.name])
        )
    return table


def _tuning(results: StudyResults, contender: Contender) -> list[str]:
    """Return how many trials there were, and the default's and the best's validation score."""
    if contender.follows:
        return [f"as {contender.follows}", MISSING, MISSING]
    trials = results.trials_of(contender.name, TUNE)
    cells = []
    for trial in (trials[0] if trials else None, chosen_trial(results, contender.name)):
        outcome = trial and trial.outcome
        score = outcome.final.validation_score if outcome else math.nan
        score *= results.metric.factor
        cells.append(format_number(score, decimals([score], 4)))
    return [str(len(trials)), *cells]


def _differences(
    results: StudyResults, rows: Sequence[OptimizerSummary], baseline: str
) -> list[TextTable]:
    metric = results.metric
    return [
        _difference_table(
            f"Test {metric.name}{unit_of_change(metric)}: difference from {baseline}, seed by seed",
            {row.name: row.score_change for row in rows if row.score_change},
            metric.higher_is_better,
        ),
        _difference_table(
            f"Test loss: difference from {baseline}, seed by seed",
            {row.name: row.loss_change for row in rows if row.loss_change},
            False,
        ),
    ]


def _difference_table(
    title: str, found: Mapping[str, Comparison], higher_is_better: bool
) -> TextTable:
    table = TextTable(title)
    for heading in ("difference", "p (Holm)", "effect", "seeds"):
        table.add_column(heading, justify="right", min_width=8 if heading == "difference" else None)
    table.add_column("", no_wrap=True)
    digits = _difference_decimals(found.values())
    for name, each in found.items():
        table.add_row(
            name,
            format_interval(each.difference, digits, sign=True),
            format_p_value(each.p),
            format_number(each.effect, 2, sign=True),
            str(each.seeds),
            verdict(each, higher_is_better),
        )
    return table


def _control_lines(results: StudyResults) -> list[str]:
    metric, readings = results.metric, against_controls(results)
    digits = _difference_decimals(each.score for each in readings)
    loss_digits = _difference_decimals(each.loss for each in readings)
    return [
        f"{each.name} against its control {each.control}: test {metric.name} "
        f"{_format_comparison(each.score, digits, metric.higher_is_better)}; "
        f"test loss {_format_comparison(each.loss, loss_digits, False)}."
        for each in readings
    ]


def _format_comparison(found: Comparison, digits: int, higher_is_better: bool) -> str:
    written = format_interval(found.difference, digits, sign=True)
    return f"{written}, p {format_p_value(found.p)}, {verdict(found, higher_is_better)}"


def _difference_decimals(found: Iterable[Comparison]) -> int:
    return max(1, decimals((each.difference.mean for each in found), 2))
