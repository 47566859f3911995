"""The tables of the page: columns, and cells with the values that sort them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steppe._shared.page.parts import HtmlCell, HtmlTable
from steppe._shared.statistics import Comparison, Interval
from steppe.compare.records.results import TEST, TUNE, Contender, StudyResults, Trial
from steppe.compare.records.summary import (
    OptimizerSummary,
    against_controls,
    best_first,
    chosen_trial,
)
from steppe.compare.report.formatting import (
    MISSING,
    decimals,
    format_duration,
    format_interval,
    format_number,
    format_p_value,
    format_settings,
    format_significant,
    unit_of_change,
)
from steppe.compare.report.page.units import score_decimals, score_label
from steppe.compare.report.verdicts import verdict

_MEBIBYTE = 2**20

_FORGETTING = "how much lower a task's accuracy is at the end than at its best, on validation data"


def leaderboard(results: StudyResults, rows: Sequence[OptimizerSummary]) -> HtmlTable:
    """Return the leaderboard: results of the test runs, best mean score first."""
    metric, digits = results.metric, score_decimals(rows)
    score = score_label(metric, "test")
    forgets = any(math.isfinite(row.forgetting.mean) for row in rows)
    columns = {
        score: "mean over seeds with its 95 % interval",
        **({f"forgetting{unit_of_change(metric)}": _FORGETTING} if forgets else {}),
        f"difference{unit_of_change(metric)}": "from the baseline, seed by seed, with its interval",
        "Holm p": "of the difference's paired t-test, corrected for the number of optimizers",
        "effect size": "the difference over its standard deviation between seeds",
        "verdict": "better or worse only if p is below 0.05",
        "test loss": "mean over seeds with its 95 % interval",
        "train loss": "at the end, over all training samples, without augmentation",
        "gap": "test loss − train loss",
        "ms per step": "median step: forward, backward, update",
        "training time": "median run, evaluation left out",
        "state, bytes": "optimizer state, bytes per trainable parameter",
        "runs": "test runs that have ended",
    }
    cells = [
        (row.name, _leaderboard_cells(row, digits, metric.higher_is_better, forgets))
        for row in best_first(rows, metric)
    ]
    way = "descending" if metric.higher_is_better else "ascending"
    return HtmlTable("Leaderboard", columns, cells, (score, way))


def _leaderboard_cells(
    row: OptimizerSummary, digits: int, higher_is_better: bool, forgets: bool
) -> list[HtmlCell]:
    changes = [
        HtmlCell(MISSING, None),
        HtmlCell(MISSING, None),
        HtmlCell(MISSING, None),
        HtmlCell(MISSING, ""),
    ]
    if row.score_change:
        changes = _change_cells(row.score_change, digits, higher_is_better)
        changes.insert(2, _number_cell(row.score_change.effect, _signed_hundredths))
    return [
        _interval_cell(row.score, format_interval(row.score, digits)),
        *(
            [_interval_cell(row.forgetting, format_interval(row.forgetting, digits))]
            if forgets
            else []
        ),
        *changes,
        _interval_cell(row.test_loss, format_significant(row.test_loss)),
        _number_cell(row.train_loss.mean, _three_digits),
        _interval_cell(row.gap, format_significant(row.gap)),
        _number_cell(row.step_ms, _hundredths),
        _number_cell(row.seconds, format_duration),
        _number_cell(row.state_bytes, _tenths),
        _runs_cell(row.runs, row.diverged, row.failed),
    ]


def controls(results: StudyResults, rows: Sequence[OptimizerSummary]) -> HtmlTable:
    """Return the differences between each optimizer and its control."""
    metric, digits = results.metric, score_decimals(rows)
    loss_digits = decimals([row.test_loss.mean for row in rows], 4)
    columns = {
        "control": "what it is to be read beside",
        f"difference in test {metric.name}{unit_of_change(metric)}": "seed by seed",
        "Holm p": "corrected for the number of such readings",
        "verdict": "on the score",
        "difference in test loss": "seed by seed",
        "Holm p of the loss": "corrected for the number of such readings",
        "verdict on the loss": "lower is better",
    }
    cells = [
        (
            each.name,
            [
                _text_cell(each.control),
                *_change_cells(each.score, digits, metric.higher_is_better),
                *_change_cells(each.loss, loss_digits, False),
            ],
        )
        for each in against_controls(results)
    ]
    return HtmlTable("Optimizers beside their controls", columns, cells)


def costs(rows: Sequence[OptimizerSummary]) -> HtmlTable:
    """Return time and memory, with bars."""
    columns = {
        "ms per step": "median step: forward, backward, update",
        "training time": "median run, evaluation left out",
        "state, bytes per parameter": "what the optimizer keeps",
        "peak memory, MiB": "most that tensors took on the accelerator",
    }
    measured = {
        "ms per step": _bar_cells([row.step_ms for row in rows], _hundredths),
        "training time": _bar_cells([row.seconds for row in rows], format_duration),
        "state, bytes per parameter": _bar_cells([row.state_bytes for row in rows], _tenths),
        "peak memory, MiB": _bar_cells([row.peak_bytes / _MEBIBYTE for row in rows], _tenths),
    }
    known = [each for each in columns if any(cell.key is not None for cell in measured[each])]
    cells = zip(*(measured[each] for each in known), strict=True)
    named = [(row.name, list(each)) for row, each in zip(rows, cells, strict=False)]
    return HtmlTable("Time and memory", {each: columns[each] for each in known}, named)


def settings(results: StudyResults) -> HtmlTable:
    """Return what was searched, what was chosen, and its score on validation data."""
    score = score_label(results.metric, "validation")
    columns = {
        "searched": "the declared search space",
        "ended with": "the settings of the test runs",
        f"{score}: default": "of the first tuning trial, which has the defaults",
        f"{score}: best": "of the tuning trial that was chosen",
        "tuning trials": "those that have ended",
    }
    cells = [(each.name, _settings_cells(results, each)) for each in results.contenders]
    return HtmlTable("Settings", columns, cells)


def _settings_cells(results: StudyResults, contender: Contender) -> list[HtmlCell]:
    trials = results.trials_of(contender.name, TUNE)
    default, best = trials[0] if trials else None, chosen_trial(results, contender.name)
    return [
        _text_cell(_searched(contender)),
        _text_cell(format_settings(results.chosen(contender.name))),
        _validation_cell(results, default),
        _validation_cell(results, best),
        _runs_cell(len(trials), *_count_unsuccessful(trials)),
    ]


def _searched(contender: Contender) -> str:
    """Write a search space.

    Examples
    --------
    >>> _searched(Contender("adamw", space={"lr": {"low": 1e-4, "high": 0.1, "log": True}}))
    'lr 0.0001 … 0.1 (log)'
    """
    if contender.follows:
        return f"nothing: takes over {contender.follows}'s"
    ranges = [f"{name} {_range(space)}" for name, space in contender.space.items()]
    return ", ".join(ranges) or "nothing: its defaults"


def _range(space: Mapping[str, Any]) -> str:
    if "choices" in space:
        return "{" + ", ".join(f"{value}" for value in space["choices"]) + "}"
    return f"{space['low']:g} … {space['high']:g}" + (" (log)" if space.get("log") else "")


def _validation_cell(results: StudyResults, trial: Trial | None) -> HtmlCell:
    if trial is None or trial.outcome is None:
        return HtmlCell(MISSING, None)
    score = results.metric.factor * trial.outcome.final.validation_score
    return _number_cell(score, lambda value: format_number(value, decimals([value], 4)))


def unsuccessful_runs(results: StudyResults) -> HtmlTable:
    """Return the runs that are in no mean because they diverged or failed."""
    columns = {
        "run": "tuning trials and test runs are numbered from 0",
        "seed": "of weights and order",
        "settings": "the hyperparameters",
        "what happened": "diverged: the loss stopped being finite",
    }
    phases = {TUNE: "tuning trial", TEST: "test run"}
    cells = [
        (
            trial.optimizer,
            [
                _text_cell(f"{phases[trial.phase]} {trial.number}"),
                HtmlCell(str(trial.seed), float(trial.seed)),
                _text_cell(format_settings(trial.settings)),
                _text_cell(_what_happened(trial)),
            ],
        )
        for trial in results.trials
        if _what_happened(trial)
    ]
    return HtmlTable("Runs that diverged or failed", columns, cells)


def _what_happened(trial: Trial) -> str:
    """Return how a run diverged or failed; empty if it did neither."""
    if trial.outcome is None:
        return f"failed: {trial.error}"
    # The curve holds the epochs before.
    return f"diverged in epoch {len(trial.outcome.curve) + 1}" if trial.outcome.diverged else ""


def _count_unsuccessful(trials: Sequence[Trial]) -> tuple[int, int]:
    """Count the trials that diverged, and those that failed."""
    ended = [trial.outcome for trial in trials if trial.outcome]
    return sum(outcome.diverged for outcome in ended), len(trials) - len(ended)


def _runs_cell(ended: int, diverged: int, failed: int) -> HtmlCell:
    losses = ((diverged, "diverged"), (failed, "failed"))
    aside = ", ".join(f"{count} {how}" for count, how in losses if count)
    return HtmlCell(str(ended), float(ended - diverged - failed), aside)


def _change_cells(found: Comparison, digits: int, higher_is_better: bool) -> list[HtmlCell]:
    return [
        _interval_cell(found.difference, format_interval(found.difference, digits, sign=True)),
        _number_cell(found.p, format_p_value),
        _text_cell(verdict(found, higher_is_better)),
    ]


def _interval_cell(value: Interval, text: str) -> HtmlCell:
    mean, bracket, bounds = text.partition("[")
    return HtmlCell(mean.strip(), _sort_key(value.mean), bracket + bounds)


def _number_cell(value: float, write: Callable[[float], str]) -> HtmlCell:
    return HtmlCell(write(value), _sort_key(value))


def _text_cell(text: str) -> HtmlCell:
    return HtmlCell(text, "" if text == MISSING else text)


def _bar_cells(values: Sequence[float], write: Callable[[float], str]) -> list[HtmlCell]:
    longest = max((value for value in values if math.isfinite(value)), default=0.0)
    return [
        HtmlCell(write(value), _sort_key(value), share=value / longest if longest else None)
        if math.isfinite(value)
        else HtmlCell(MISSING, None)
        for value in values
    ]


def _sort_key(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _three_digits(value: float) -> str:
    return format_significant(Interval(value, math.nan, math.nan))


def _hundredths(value: float) -> str:
    return format_number(value, 2)


def _signed_hundredths(value: float) -> str:
    return format_number(value, 2, sign=True)


def _tenths(value: float) -> str:
    return format_number(value, 1)
