"""Footnotes to a study's tables: what the numbers are, how fair they are, and what is missing.

The terminal prints them under its tables, the page under "How it was done".
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from steppe._shared.messages import plural
from steppe._shared.statistics import LEVEL
from steppe.compare.records.results import TEST, TUNE, Contender, StudyResults, Trial
from steppe.compare.records.summary import OptimizerSummary
from steppe.compare.report.formatting import format_settings, join_with_and
from steppe.compare.report.verdicts import SAME_ON_EVERY_SEED, verdict

_CURVATURE = (
    "Curvature is that of the train loss. Sharpness is how much the loss rises in a SAM step of "
    "0.05. λ_max and trace are the Hessian's. λ_max(PH) is after the optimizer's preconditioner P; "
    "steps are stable while it is below the threshold, at the run's first lr. All shrink with the "
    "train loss: compare optimizers that fit equally well."
)
_SWITCH = (
    "switch is the share of the run's steps until DualAdam is Adam, or the warm-up ends. The "
    "published value is 16 %: 12 500 steps of a 200-epoch CIFAR run."
)
_STREAM = (
    "The tasks come one after the other, and {scenario}. Average accuracy is the "
    "mean of the tasks' accuracies; in the learning curves, of those so far. Forgetting is how "
    "much lower the accuracy on a task is at the end than at its best before, the mean over all "
    "tasks but the last (Chaudhry et al. 2018), on validation data."
)
# By whether the stream is domain-incremental.
_SCENARIOS = {
    False: "a sample's task is known",
    True: "a sample's task is not known: all have the same classes and share the outputs",
}
_EQUAL = (
    "Differences that are the same on every seed have no interval and no test. They are no "
    "certainty: scores come in steps of one test sample."
)


def footnotes(results: StudyResults, rows: Sequence[OptimizerSummary]) -> list[str]:
    """Return the footnotes of a study's tables, a paragraph each.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.
    rows : sequence of OptimizerSummary
        Its summary.
    """
    found = [_budget(results), *_intervals(results, rows), *_comparisons(rows)]
    if any(math.isfinite(row.sharpness.mean) for row in rows):
        found.append(_CURVATURE)
    if any("switch" in row.settings for row in rows):
        found.append(_SWITCH)
    if results.setup.get("stream"):
        shared = results.setup.get("domain_incremental", False)
        found.append(_STREAM.format(scenario=_SCENARIOS[shared]))
    found += [note for row in rows for note in _row_notes(results, row)]
    found += [*_unsuccessful_tuning(results), *_ends_of_ranges(results, rows)]
    return [*found, *_hardware(results), *_memory(rows), *_unfinished(results)]


def _samples(results: StudyResults, part: str) -> str:
    """Return how many samples a part of the data has; of text, how many tokens."""
    samples, length = results.setup[f"{part}_samples"], results.setup.get("length")
    if length is None:
        return f"{_count(samples)} samples"
    return f"{_count(samples * length)} tokens ({_count(samples)} sequences of {length})"


def _budget(results: StudyResults) -> str:
    trained = f"Trained on {_samples(results, 'train')}"
    if not results.budget:
        return (
            f"{trained}. Nothing was tuned: every optimizer runs at its defaults, so differences "
            "say as much about defaults as about optimizers."
        )
    tuned = (
        f"{trained}. Equal budgets: every optimizer has {plural(results.budget, 'tuning trial')}, "
        f"its default first, judged by the {results.metric.name} on validation data, "
        f"{_samples(results, 'validation')}. The best settings run on "
        f"{plural(results.seeds, 'fresh seed')}, and only then is the test set looked at. The best "
        "of many validation scores is too good on average; the test score is not."
    )
    follows = [
        f"{each.name} takes over the settings of {each.follows}"
        for each in results.contenders
        if each.follows
    ]
    return f"{tuned} Not tuned: {join_with_and(follows)}." if follows else tuned


def _intervals(results: StudyResults, rows: Sequence[OptimizerSummary]) -> list[str]:
    samples = results.setup["test_samples"]
    of_one = results.metric.unit == "%" and not results.setup.get("stream")
    step = f" (one is {100 / samples:.2g} points)" if of_one else ""
    on = f"one test set of {_samples(results, 'test')}{step}"
    most = max(row.runs - row.diverged - row.failed for row in rows)
    if most == 0:
        return []
    if most == 1:
        return [
            f"One seed on {on} has no interval: nothing can be said about differences. Gap is test "
            "loss − train loss."
        ]
    return [
        "[low, high] is the 95 % bootstrap interval of the mean over seeds (expanded percentile; "
        f"of up to four seeds it is their range), on {on}. Gap is test loss − train loss."
    ]


def _comparisons(rows: Sequence[OptimizerSummary]) -> list[str]:
    changes = [change for row in rows for change in (row.score_change, row.loss_change) if change]
    if not any(change.seeds > 1 for change in changes):
        return []
    found = [
        f"better and worse: p < {LEVEL} in the paired t-test over seeds, corrected after Holm for "
        "the number of optimizers, or of comparisons with controls, separately for score and loss. "
        "The intervals are not corrected. effect is the mean difference over its standard "
        "deviation between seeds (Cohen's d_z with Hedges' correction). No difference seen does "
        "not mean that there is none: more seeds show smaller ones."
    ]
    if any(verdict(change, True) == SAME_ON_EVERY_SEED for change in changes):
        found.append(_EQUAL)
    return found


def _row_notes(results: StudyResults, row: OptimizerSummary) -> list[str]:
    found = []
    if row.diverged:
        found.append(
            f"† {row.name}: {row.diverged} of {plural(row.runs, 'test run')} diverged (loss not "
            "finite), in no mean."
        )
    if row.failed:
        error = next(
            trial.error for trial in results.trials_of(row.name, TEST) if trial.outcome is None
        )
        found.append(
            f"† {row.name}: {row.failed} of {plural(row.runs, 'test run')} failed, in no mean: "
            f"{error}"
        )
    if math.isfinite(row.score.mean) and math.isnan(row.sharpness.mean):
        found.append(f"{row.name} ended where derivatives are not finite: no curvature there.")
    return found


def _unsuccessful_tuning(results: StudyResults) -> list[str]:
    def diverged(trial: Trial) -> bool:
        return trial.outcome is not None and trial.outcome.diverged

    found = []
    for what, condition in (
        ("diverged", diverged),
        ("failed", lambda trial: trial.outcome is None),
    ):
        counts = _count_by_contender(results, condition)
        if counts:
            found.append(
                f"Tuning trials that {what}: {join_with_and(counts)}, of {results.budget} each."
            )
    return found


def _count_by_contender(results: StudyResults, condition: Callable[[Trial], bool]) -> list[str]:
    counts = {
        each.name: sum(map(condition, results.trials_of(each.name, TUNE)))
        for each in results.contenders
    }
    return [f"{name} {count}" for name, count in counts.items() if count]


def _ends_of_ranges(results: StudyResults, rows: Iterable[OptimizerSummary]) -> list[str]:
    """Name the chosen values within 5 % of an end of their range: the best may lie beyond."""
    spaces = {each.name: each.space for each in results.contenders}
    found = [
        f"{row.name} {format_settings({name: row.settings[name]})}"
        for row in rows
        for name, space in spaces[row.name].items()
        if name in row.settings and "low" in space and _is_at_an_end(row.settings[name], space)
    ]
    return [f"Chosen at an end of the searched range: {join_with_and(found)}."] if found else []


def _is_at_an_end(value: float, space: Mapping[str, Any]) -> bool:
    if not space["low"] <= value <= space["high"]:
        # The default may lie outside, as no weight decay does.
        return False
    scale = math.log if space.get("log") else float
    low, high = scale(space["low"]), scale(space["high"])
    return not 0.05 < (scale(value) - low) / (high - low) < 0.95


def _hardware(results: StudyResults) -> list[str]:
    labels = sorted({trial.where for trial in results.trials if trial.where})
    if len(labels) > 1:
        return [f"Run on different machines, so compare no times: {'; '.join(labels)}."]
    return [f"Run on {label}." for label in labels]


def _memory(rows: Iterable[OptimizerSummary]) -> list[str]:
    peaks = [
        f"{row.name} {row.peak_bytes / 2**20:.0f}" for row in rows if math.isfinite(row.peak_bytes)
    ]
    return [f"Peak memory on the accelerator, MiB: {join_with_and(peaks)}."] if peaks else []


def _unfinished(results: StudyResults) -> list[str]:
    if results.complete:
        return []
    short = [text for each in results.contenders if (text := _missing(results, each))]
    return [f"Not finished: {'; '.join(short)}."]


def _missing(results: StudyResults, contender: Contender) -> str:
    """Return how many trials of a contender have ended; empty if all have."""
    budget = contender.tuning_trials(results.budget)
    tuned, tested = (len(results.trials_of(contender.name, phase)) for phase in (TUNE, TEST))
    if tuned >= budget and tested >= results.seeds:
        return ""
    tuning = f"{tuned} of {plural(budget, 'tuning trial')}, " if budget else ""
    return f"{contender.name} {tuning}{tested} of {plural(results.seeds, 'test run')}"


def _count(samples: int) -> str:
    return f"{samples:,}".replace(",", " ")
