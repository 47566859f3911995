"""Tables of trials and settings; those of an unfinished study have no test result."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steppe._shared.page.parts import HtmlCell, HtmlTable
from steppe.compare.records.results import (
    DEFAULT,
    PHASES,
    POOL,
    RECOMMENDED,
    ContenderRecord,
    Outcome,
    StudyResults,
    Trial,
)
from steppe.compare.records.summary import OptimizerSummary, best_first
from steppe.compare.report.formatting import decimals, format_number, format_settings
from steppe.compare.report.tables.cells import (
    EMPTY,
    interval_cell,
    number_cell,
    text_cell,
    three_digits,
)
from steppe.compare.report.units import reading_decimals, score_label

_COLUMNS = {
    POOL: ("trials", "random settings, each with a seed of its own"),
    DEFAULT: ("untuned runs", "at the default settings"),
    RECOMMENDED: ("recommended runs", "at the settings of the best trial"),
}


def progress(results: StudyResults, rows: Sequence[OptimizerSummary]) -> HtmlTable:
    """Return how far a study has come, with validation scores only."""
    contenders = {each.name: each for each in results.contenders}
    best = score_label(results.metric, "best validation")
    columns = dict(_COLUMNS.values()) | {
        "diverged": "trials that diverged, failed, or have no result",
        best: "of the trials so far",
    }
    digits = decimals((row.best_validation for row in rows), 4)
    cells = []
    for row in best_first(rows, results.metric):
        made = [_progress_cell(results, contenders[row.name], phase) for phase in PHASES]
        made.append(number_cell(row.diverged, lambda value: format_number(value, 0)))
        made.append(number_cell(row.best_validation, lambda value: format_number(value, digits)))
        cells.append((row.name, made))
    return HtmlTable("How far the study is", columns, cells)


def _progress_cell(results: StudyResults, contender: ContenderRecord, phase: str) -> HtmlCell:
    planned = results.plan.planned(contender, phase)
    ended = len(results.trials_of(contender.name, phase))
    return HtmlCell(f"{ended} of {planned}", float(ended)) if planned else EMPTY


def recommended(results: StudyResults, rows: Sequence[OptimizerSummary]) -> HtmlTable:
    """Return the settings of the best trial of each pool, and what runs with fresh seeds reach."""
    digits, metric = reading_decimals(rows, "score"), results.metric
    columns = {
        "settings": "of the trial with the best validation score of the whole pool",
        "at the edge": "settings in the outer tenth of what was tried: more may lie beyond",
        score_label(metric, "test"): "at these settings, mean over fresh seeds with its interval",
        "test loss": "at these settings, mean over fresh seeds with its interval",
        score_label(metric, "best validation"): "of that trial: the best of many is too good",
        "searched": "the declared search space",
    }
    spaces = {each.name: each.space for each in results.contenders}
    cells = [
        (
            row.name,
            [
                text_cell(format_settings(row.recommended)),
                text_cell(", ".join(row.at_edge)),
                interval_cell(row.recommended_score, digits),
                interval_cell(row.recommended_loss, None),
                number_cell(row.best_validation, lambda value: format_number(value, digits)),
                text_cell(_searched(spaces[row.name])),
            ],
        )
        for row in best_first(rows, metric)
    ]
    return HtmlTable("Recommended settings", columns, cells)


def _searched(space: Mapping[str, Any]) -> str:
    """Write a search space.

    Examples
    --------
    >>> _searched({"lr": {"low": 1e-4, "high": 0.1, "log": True}})
    'lr 0.0001 … 0.1 (log)'
    """
    ranges = [f"{name} {_range(each)}" for name, each in space.items()]
    return ", ".join(ranges) or "nothing: its defaults"


def _range(space: Mapping[str, Any]) -> str:
    if "choices" in space:
        return "{" + ", ".join(f"{value:g}" for value in space["choices"]) + "}"
    return f"{space['low']:g} … {space['high']:g}" + (" (log)" if space.get("log") else "")


def trials(results: StudyResults) -> HtmlTable:
    """Return all trials that have ended, with a column for each setting."""
    names = list(dict.fromkeys(name for trial in results.trials for name in trial.settings))
    parts = ("validation", "test") if results.complete else ("validation",)
    columns = {"run": "of the pool, or at default or recommended settings; from 0"}
    columns |= dict.fromkeys(names, "a setting")
    for part in parts:
        columns[score_label(results.metric, part)] = "at the end of the run"
        columns[f"{part} loss"] = "at the end of the run"
    columns |= {
        "train loss": "at the end of the run, unaugmented",
        "ended": "diverged: the loss stopped being finite",
    }
    cells = [
        (trial.optimizer, _trial_cells(results, trial, names, parts))
        for contender in results.contenders
        for phase in PHASES
        for trial in results.trials_of(contender.name, phase)
    ]
    return HtmlTable("All trials", columns, cells)


def _trial_cells(
    results: StudyResults, trial: Trial, names: Sequence[str], parts: Sequence[str]
) -> list[HtmlCell]:
    outcome, factor = trial.outcome, results.metric.factor

    def final(name: str) -> float:
        return getattr(outcome.final, name) if outcome else math.nan

    return [
        HtmlCell(f"{trial.phase} {trial.number}", f"{trial.phase} {trial.number:05d}"),
        *(number_cell(trial.settings.get(name, math.nan), three_digits) for name in names),
        *(
            cell
            for part in parts
            for cell in (
                number_cell(factor * final(f"{part}_score"), lambda x: format_number(x, 2)),
                number_cell(final(f"{part}_loss"), three_digits),
            )
        ),
        number_cell(final("train_loss"), three_digits),
        text_cell(_how_it_ended(trial, outcome)),
    ]


def _how_it_ended(trial: Trial, outcome: Outcome | None) -> str:
    if outcome is None:
        return f"failed: {trial.error}"
    # The curve holds the epochs before.
    return f"diverged in epoch {len(outcome.curve) + 1}" if outcome.diverged else "as planned"
