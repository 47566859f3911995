"""Footnotes to a study's tables: what the numbers are, how fair they are, and what is missing.

The terminal prints them under its tables, the page under "How it was done".
"""

import math
from collections.abc import Iterable, Sequence

from steppe._shared.messages import plural
from steppe._shared.statistics import LEVEL
from steppe.compare.records.results import POOL, StudyResults
from steppe.compare.records.summary import OptimizerSummary, common_train_loss
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.formatting import (
    format_count,
    format_settings,
    format_short,
    join_with_and,
)

_ROBUSTNESS = (
    "With changed weights and inputs: weights of two or more dimensions are rounded to few bits, "
    "with a scale for each output channel (of its largest weight, of least squared error, or of "
    "that with errors compensated in linear layers, as GPTQ does), or get noise of so many "
    "standard deviations of their tensor; inputs are corrupted at severities 1 to 5. All on the "
    "same validation and test samples, which clean has too: 2 000 of each, or all if there are "
    "fewer, unless the task sets another number. Kurtosis is that of the weights, 3 if they are "
    "Gaussian. Intervals are not corrected: there are no verdicts."
)
_CURVATURE = (
    "Curvature is that of the train loss, of runs at the recommended settings. Sharpness is how "
    "much the loss rises in a SAM step of 0.05. λ_max and trace are the Hessian's. λ_max(PH) is "
    "after the optimizer's preconditioner P; steps are stable while it is below the threshold, at "
    "the run's first lr. All shrink with the train loss, so compare them at a common one{common}."
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
_INTERVALS = (
    "[low, high] is a 95 % interval. {parts} p is that of a studentised label swap over trials. "
    "Gap is test loss − train loss."
)
# By whether test samples and validation samples have a part in it.
_PARTS = {
    (True, True): "It has three parts: the jackknife over trials, the test samples, and the "
    "jackknife over groups of validation samples, which choose.",
    (True, False): "It has two parts: the jackknife over trials, and the test samples. That of the "
    "validation samples, which choose, is not in it: not all trials have results by sample.",
    (False, True): "It has two parts: the jackknife over trials, and that over groups of "
    "validation samples, which choose. That of the test samples is not in it: not all trials have "
    "results by sample.",
    (False, False): "It is the jackknife's over trials. The parts of the test and validation "
    "samples are not in it: not all trials have results by sample.",
}
_DIVERGED = (
    "A trial that diverged, or whose result is no number, has the worst validation score. Where it "
    "is the best of k all the same, its test result is the worst of the study."
)
_VERDICTS = (
    f"Better and worse mean p < {LEVEL} on the primary reading at the declared budget, corrected "
    "after Holm for the optimizers that were asked for. The intervals are not corrected. No "
    "difference seen does not mean that there is none. Everything else is exploratory: no verdicts."
)
_RECOMMENDED = (
    "The recommended settings are those of the best trial of the whole pool, run again on "
    "{repeats}. They decide nothing."
)


_EARLY_STOPPING = (
    "Evaluated, measured and kept are a run's weights after the epoch with the best validation "
    "score. All epochs are trained: learning curves and costs are those of the whole run, and a "
    "run that diverges after its best epoch has diverged."
)


def footnotes(readings: Readings, rows: Sequence[OptimizerSummary]) -> list[str]:
    """Return the footnotes of a study's tables, a paragraph each.

    Parameters
    ----------
    readings : Readings
        Those of a study, finished or not.
    rows : sequence of OptimizerSummary
        Its summary.
    """
    results = readings.results
    found = [_design(results)]
    if results.complete:
        intervals = _INTERVALS.format(parts=_PARTS[readings.has_samples])
        found += [intervals, *([_VERDICTS] if len(rows) > 1 else [])]
        if any(row.recommended for row in rows):
            found.append(_RECOMMENDED.format(repeats=plural(results.plan.repeats, "fresh seed")))
        if any(math.isfinite(row.sharpness.mean) for row in rows):
            found.append(_CURVATURE.format(common=_common_loss(results)))
        if results.setup.get("robustness"):
            found.append(_ROBUSTNESS)
    if results.setup.get("early_stopping"):
        found.append(_EARLY_STOPPING)
    if any(row.diverged for row in rows):
        found.append(_DIVERGED)
    if any("switch" in each.space for each in results.contenders):
        found.append(_SWITCH)
    if results.setup.get("stream"):
        shared = results.setup.get("domain_incremental", False)
        found.append(_STREAM.format(scenario=_SCENARIOS[shared]))
    found += [*_unsuccessful(results), *_unsearched(results)]
    found += _edges(rows)
    return [*found, *_hardware(results), *_memory(rows), *_missing(results)]


def _design(results: StudyResults) -> str:
    plan, step = results.plan, ""
    if results.metric.unit == "%" and not results.setup.get("stream"):
        step = f" (one is {100 / results.setup['test_samples']:.2g} points)"
    return (
        f"Trained on {_samples(results, 'train')}. Each contender has {plan.trials} trials; a "
        "trial draws its settings at random, and has a seed of its own. Trials of one number have "
        "the same point of the unit cube and the same seed for all contenders. Trials are chosen "
        f"by the {results.metric.name} on validation data, {_samples(results, 'validation')}, and "
        f"scored on a test set of {_samples(results, 'test')}{step}."
    )


def _samples(results: StudyResults, part: str) -> str:
    """Return how many samples a part of the data has; of text, how many tokens."""
    samples, length = results.setup[f"{part}_samples"], results.setup.get("length")
    if length is None:
        return f"{format_count(samples)} samples"
    return (
        f"{format_count(samples * length)} tokens ({format_count(samples)} sequences of {length})"
    )


def _common_loss(results: StudyResults) -> str:
    common = common_train_loss(results)
    if not math.isfinite(common):
        return ": here it was not measured along the way"
    return f", the lowest that all runs came through: {format_short(common)}"


def _unsuccessful(results: StudyResults) -> list[str]:
    found = []
    for each in results.contenders:
        errors = [t.error for t in results.trials_of(each.name, POOL) if t.outcome is None]
        if errors:
            found.append(
                f"† {each.name}: {len(errors)} of {plural(results.plan.trials, 'trial')} failed, "
                f"counted like one that diverged: {errors[0]}"
            )
    return found


def _unsearched(results: StudyResults) -> list[str]:
    """Say whose settings are not searched beside a baseline whose are: it is no fair comparison."""
    baseline, *others = results.contenders
    names = [each.name for each in others if not each.space]
    if not baseline.space or not names:
        return []
    return [
        f"Nothing is searched for {join_with_and(names)}, whose trials differ by seeds alone, and "
        f"{plural(len(baseline.space), 'setting')} for {baseline.name}. A Contender has a search "
        "space of one's own."
    ]


def _edges(rows: Iterable[OptimizerSummary]) -> list[str]:
    found = [
        f"{row.name} {format_settings({name: row.recommended[name] for name in row.at_edge})}"
        for row in rows
        if row.at_edge
    ]
    if not found:
        return []
    return [
        "Recommended settings in the outer tenth of what was tried, beyond which there may be "
        f"more to gain: {join_with_and(found)}."
    ]


def _hardware(results: StudyResults) -> list[str]:
    labels = sorted({trial.where for trial in results.trials if trial.where})
    if len(labels) > 1:
        return [f"Run on different machines, so times cannot be compared: {'; '.join(labels)}."]
    return [f"Run on {label}." for label in labels]


def _memory(rows: Iterable[OptimizerSummary]) -> list[str]:
    peaks = [
        f"{row.name} {row.peak_bytes / 2**20:.0f}" for row in rows if math.isfinite(row.peak_bytes)
    ]
    return [f"Peak memory on the accelerator, MiB: {join_with_and(peaks)}."] if peaks else []


def _missing(results: StudyResults) -> list[str]:
    if results.complete:
        return []
    counts = {each.name: len(results.trials_of(each.name, POOL)) for each in results.contenders}
    short = [f"{name} {count}" for name, count in counts.items() if count < results.plan.trials]
    if not short:
        return ["Not finished: runs at default or recommended settings are missing."]
    return [f"Not finished, of {plural(results.plan.trials, 'trial')} each: {'; '.join(short)}."]
