"""The tables of the page: for each its columns, and its cells with what they are sorted by."""

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
    NONE,
    decimals,
    duration,
    number,
    probability,
    settings_text,
    significant,
    unit_of_change,
    verdict,
    with_interval,
)
from steppe.compare.report.page.units import labelled, score_decimals

_MEBIBYTE = 2**20

_FORGETTING = "how much lower a task's accuracy is at the end than at its best, on validation data"


def leaderboard(results: StudyResults, rows: Sequence[OptimizerSummary]) -> HtmlTable:
    """Give everything of the test runs, best mean score first."""
    metric, digits = results.metric, score_decimals(rows)
    score = labelled(metric, "test")
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
        (row.name, _results(row, digits, metric.higher_is_better, forgets))
        for row in best_first(rows, metric)
    ]
    way = "descending" if metric.higher_is_better else "ascending"
    return HtmlTable("Leaderboard", columns, cells, (score, way))


def _results(
    row: OptimizerSummary, digits: int, higher_is_better: bool, forgets: bool
) -> list[HtmlCell]:
    changes = [HtmlCell(NONE, None), HtmlCell(NONE, None), HtmlCell(NONE, None), HtmlCell(NONE, "")]
    if row.score_change:
        changes = _change(row.score_change, digits, higher_is_better)
        changes.insert(2, _number(row.score_change.effect, _signed_hundredths))
    return [
        _interval(row.score, with_interval(row.score, digits)),
        *([_interval(row.forgetting, with_interval(row.forgetting, digits))] if forgets else []),
        *changes,
        _interval(row.test_loss, significant(row.test_loss)),
        _number(row.train_loss.mean, _three_digits),
        _interval(row.gap, significant(row.gap)),
        _number(row.step_ms, _hundredths),
        _number(row.seconds, duration),
        _number(row.state_bytes, _tenths),
        _count(row.runs, row.diverged, row.failed),
    ]


def beside_controls(results: StudyResults, rows: Sequence[OptimizerSummary]) -> HtmlTable:
    """Compare each optimizer that has a control with it."""
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
            reading.name,
            [
                _words(reading.control),
                *_change(reading.score, digits, metric.higher_is_better),
                *_change(reading.loss, loss_digits, False),
            ],
        )
        for reading in against_controls(results)
    ]
    return HtmlTable("Optimizers beside their controls", columns, cells)


def costs(rows: Sequence[OptimizerSummary]) -> HtmlTable:
    """Give time and memory with bars."""
    columns = {
        "ms per step": "median step: forward, backward, update",
        "training time": "median run, evaluation left out",
        "state, bytes per parameter": "what the optimizer keeps",
        "peak memory, MiB": "most that tensors took on the accelerator",
    }
    measured = {
        "ms per step": _bars([row.step_ms for row in rows], _hundredths),
        "training time": _bars([row.seconds for row in rows], duration),
        "state, bytes per parameter": _bars([row.state_bytes for row in rows], _tenths),
        "peak memory, MiB": _bars([row.peak_bytes / _MEBIBYTE for row in rows], _tenths),
    }
    known = [each for each in columns if any(cell.key is not None for cell in measured[each])]
    cells = zip(*(measured[each] for each in known), strict=True)
    named = [(row.name, list(each)) for row, each in zip(rows, cells, strict=False)]
    return HtmlTable("Time and memory", {each: columns[each] for each in known}, named)


def settings(results: StudyResults) -> HtmlTable:
    """Tell what was searched, what was chosen, and what it brought on validation data."""
    score = labelled(results.metric, "validation")
    columns = {
        "searched": "the declared search space",
        "ended with": "the settings of the test runs",
        f"{score}: default": "of the first tuning trial, which has the defaults",
        f"{score}: best": "of the tuning trial that was chosen",
        "tuning trials": "those that have ended",
    }
    cells = [(each.name, _tuned(results, each)) for each in results.contenders]
    return HtmlTable("Settings", columns, cells)


def _tuned(results: StudyResults, contender: Contender) -> list[HtmlCell]:
    trials = results.of(contender.name, TUNE)
    default, best = trials[0] if trials else None, chosen_trial(results, contender.name)
    return [
        _words(_searched(contender)),
        _words(settings_text(results.chosen(contender.name))),
        _validated(results, default),
        _validated(results, best),
        _count(len(trials), *_losses(trials)),
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


def _validated(results: StudyResults, trial: Trial | None) -> HtmlCell:
    if trial is None or trial.outcome is None:
        return HtmlCell(NONE, None)
    score = results.metric.factor * trial.outcome.final.validation_score
    return _number(score, lambda value: number(value, decimals([value], 4)))


def lost(results: StudyResults) -> HtmlTable:
    """List the runs that are in no mean, and why."""
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
                _words(f"{phases[trial.phase]} {trial.number}"),
                HtmlCell(str(trial.seed), float(trial.seed)),
                _words(settings_text(trial.settings)),
                _words(_end(trial)),
            ],
        )
        for trial in results.trials
        if _end(trial)
    ]
    return HtmlTable("Runs that diverged or failed", columns, cells)


def _end(trial: Trial) -> str:
    """Say how a run was lost; empty if it was not."""
    if trial.outcome is None:
        return f"failed: {trial.error}"
    # The curve holds the epochs before.
    return f"diverged in epoch {len(trial.outcome.curve) + 1}" if trial.outcome.diverged else ""


def _losses(trials: Sequence[Trial]) -> tuple[int, int]:
    """Count the trials that diverged, and those that failed."""
    ended = [trial.outcome for trial in trials if trial.outcome]
    return sum(outcome.diverged for outcome in ended), len(trials) - len(ended)


def _count(ended: int, diverged: int, failed: int) -> HtmlCell:
    losses = ((diverged, "diverged"), (failed, "failed"))
    said = ", ".join(f"{count} {how}" for count, how in losses if count)
    return HtmlCell(str(ended), float(ended - diverged - failed), said)


def _change(found: Comparison, digits: int, higher_is_better: bool) -> list[HtmlCell]:
    return [
        _interval(found.difference, with_interval(found.difference, digits, sign=True)),
        _number(found.p, probability),
        _words(verdict(found, higher_is_better)),
    ]


def _interval(value: Interval, text: str) -> HtmlCell:
    mean, bracket, bounds = text.partition("[")
    return HtmlCell(mean.strip(), _key(value.mean), bracket + bounds)


def _number(value: float, write: Callable[[float], str]) -> HtmlCell:
    return HtmlCell(write(value), _key(value))


def _words(text: str) -> HtmlCell:
    return HtmlCell(text, "" if text == NONE else text)


def _bars(values: Sequence[float], write: Callable[[float], str]) -> list[HtmlCell]:
    longest = max((value for value in values if math.isfinite(value)), default=0.0)
    return [
        HtmlCell(write(value), _key(value), share=value / longest if longest else None)
        if math.isfinite(value)
        else HtmlCell(NONE, None)
        for value in values
    ]


def _key(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _three_digits(value: float) -> str:
    return significant(Interval(value, math.nan, math.nan))


def _hundredths(value: float) -> str:
    return number(value, 2)


def _signed_hundredths(value: float) -> str:
    return number(value, 2, sign=True)


def _tenths(value: float) -> str:
    return number(value, 1)
