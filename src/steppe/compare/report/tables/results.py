"""Tables of what a complete study shows: the leaderboard, budgets, differences, and controls."""

import math
from collections.abc import Iterator, Sequence

from steppe._shared.page.parts import HtmlCell, HtmlTable
from steppe._shared.statistics import Interval
from steppe.compare.records.choices import Primary
from steppe.compare.records.results import MEAN_LOSS, ContenderRecord, StudyResults
from steppe.compare.records.summary import OptimizerSummary, best_first
from steppe.compare.records.verdicts import Readings, Verdict
from steppe.compare.report.formatting import (
    format_count,
    format_number,
    format_p_value,
    format_share,
    unit_of_change,
)
from steppe.compare.report.tables.cells import (
    EMPTY,
    difference_cells,
    interval_cell,
    number_cell,
    text_cell,
    three_digits,
)
from steppe.compare.report.units import (
    change_label,
    other_reading,
    reading_decimals,
    reading_label,
    score_label,
)

_TEST_LOSS = "expected of the same trials, with its 95 % interval"
_FORGETTING = (
    "how much lower a task's accuracy is at the end than at its best, on validation data, of runs "
    "at the recommended settings"
)


def leaderboard(readings: Readings, rows: Sequence[OptimizerSummary]) -> HtmlTable:
    """Return what the best of k trials of each contender is expected to reach, best first."""
    results = readings.results
    metric, k = results.metric, results.plan.budget
    score = reading_label(readings, "score")
    # Then the score is the test loss.
    is_loss = metric == MEAN_LOSS
    forgets = any(math.isfinite(row.forgetting.mean) for row in rows)
    columns = {
        score: f"expected of the best of {k} by validation, with its 95 % interval",
        f"difference, {change_label(readings, results.plan.primary)}": "from the baseline, trial "
        "by trial, with its 95 % interval",
        "p": "of the difference, corrected after Holm; as it is where the verdict is exploratory",
        "verdict": "better or worse only if p is below 0.05",
        **({} if is_loss else {"test loss": _TEST_LOSS}),
        "train loss": "expected of the same trials: over all training samples, unaugmented",
        "gap": "test loss − train loss, expected of the same trials",
        f"untuned {score_label(metric, '').strip()}": "at the default settings: mean over seeds "
        "with its 95 % interval",
        **({f"forgetting{unit_of_change(metric)}": _FORGETTING} if forgets else {}),
        "diverged": "share of the pool's trials that diverged, failed, or have no result",
        "gradients": "gradient evaluations of one run: forward and backward of a batch is one",
        "ms per step": "median step: forward, backward, update",
        "state, bytes": "optimizer state, bytes per trainable parameter",
        "role": "what the contender is in the study",
    }
    verdicts = {each.optimizer: each for each in readings.verdicts}
    roles = {each.name: role(results, each) for each in results.contenders}
    digits = reading_decimals(rows, "score")
    change_digits = reading_decimals(rows, results.plan.primary)
    cells = []
    for row in best_first(rows, metric):
        made = [
            interval_cell(row.score, digits),
            *_verdict_cells(verdicts.get(row.name), change_digits),
            *([] if is_loss else [interval_cell(row.loss, None)]),
            *_measure_cells(row, digits, forgets),
            text_cell(roles[row.name]),
        ]
        cells.append((row.name, made))
    way = "descending" if metric.higher_is_better else "ascending"
    what = "a trial" if k == 1 else f"the best of {k} trials"
    return HtmlTable(f"What {what} is worth", columns, cells, (score, way))


def _verdict_cells(found: Verdict | None, digits: int) -> list[HtmlCell]:
    if found is None:
        return [EMPTY, EMPTY, text_cell("")]
    change = Interval(found.estimate, found.low, found.high)
    return [
        interval_cell(change, digits, sign=True),
        number_cell(found.p, format_p_value),
        text_cell(found.verdict),
    ]


def _measure_cells(row: OptimizerSummary, digits: int, forgets: bool) -> list[HtmlCell]:
    return [
        number_cell(row.train_loss, three_digits),
        number_cell(row.gap, three_digits),
        interval_cell(row.untuned, digits),
        *([interval_cell(row.forgetting, digits)] if forgets else []),
        number_cell(row.diverged / row.trials if row.trials else math.nan, format_share),
        number_cell(row.gradients, format_count),
        number_cell(row.step_ms, lambda value: format_number(value, 2)),
        number_cell(row.state_bytes, lambda value: format_number(value, 1)),
    ]


def role(results: StudyResults, contender: ContenderRecord) -> str:
    """Return what a contender is in a study: the baseline, a control, asked for or added."""
    if contender.name == results.baseline:
        return "baseline"
    controls = f"control for {', '.join(contender.control_for)}" if contender.control_for else ""
    asked = contender.name in results.plan.family
    return ", ".join(filter(None, (controls, "asked for" if asked else "added")))


def budgets(readings: Readings, rows: Sequence[OptimizerSummary], reading: Primary) -> HtmlTable:
    """Return the expected test result of the best of k for some budgets k."""
    plan, digits = readings.results.plan, reading_decimals(rows, reading)
    columns = {f"k = {k}": _budget_meaning(k, plan.budget) for k in shown_budgets(readings)}
    cells = [
        (
            row.name,
            [
                interval_cell(readings.expected(row.name, reading, k, samples=False), digits)
                for k in shown_budgets(readings)
            ],
        )
        for row in rows
    ]
    title = f"{reading_label(readings, reading)}, of the best of k trials"
    return HtmlTable(title[:1].upper() + title[1:], columns, cells)


def _budget_meaning(k: int, declared: int) -> str:
    return (
        "the best of one trial: a random setting"
        if k == 1
        else f"the best of {k} trials" + (", the declared budget" if k == declared else "")
    )


def shown_budgets(readings: Readings) -> list[int]:
    """Return the budgets that stand in tables: powers of two, the declared and the largest one."""
    largest = readings.budgets[-1]
    powers = {2**power for power in range(largest.bit_length())}
    return sorted(k for k in powers | {readings.results.plan.budget, largest} if 1 <= k <= largest)


def other_differences(readings: Readings, rows: Sequence[OptimizerSummary]) -> HtmlTable:
    """Return the differences from the baseline on the reading that is not primary."""
    results, reading = readings.results, other_reading(readings)
    label, digits = change_label(readings, reading), reading_decimals(rows, reading)
    columns = {
        reading_label(readings, reading): "expected of the best of k",
        f"difference, {label}": f"from {results.baseline}, trial by trial",
        "p, uncorrected": "of the difference alone",
    }
    cells = []
    for row in rows:
        value = row.loss if reading == "loss" else row.score
        changes = [EMPTY, EMPTY]
        if row.name != results.baseline:
            found = readings.difference(row.name, results.baseline, reading, results.plan.budget)
            changes = difference_cells(found, digits)
        cells.append((row.name, [interval_cell(value, digits), *changes]))
    return HtmlTable(f"Differences in {label} from {results.baseline}", columns, cells)


def controls(readings: Readings, rows: Sequence[OptimizerSummary]) -> HtmlTable:
    """Return the differences between each optimizer and each of its controls."""
    columns: dict[str, str] = {"control": "what it is to be read beside"}
    readings_shown: tuple[Primary, ...] = ("score", "loss")
    for reading in readings_shown:
        label = readings.label(reading)
        columns[f"difference, {change_label(readings, reading)}"] = "optimizer − control"
        columns[f"p of the {label}"] = "of the difference alone, uncorrected"
    budget = readings.results.plan.budget
    cells = [
        (
            name,
            [
                text_cell(control),
                *(
                    cell
                    for reading in readings_shown
                    for cell in difference_cells(
                        readings.difference(name, control, reading, budget),
                        reading_decimals(rows, reading),
                    )
                ),
            ],
        )
        for name, control in control_pairs(readings)
    ]
    return HtmlTable("Optimizers beside their controls", columns, cells)


def control_pairs(readings: Readings) -> Iterator[tuple[str, str]]:
    """Yield each optimizer that has a control with each of its controls."""
    contenders = readings.results.contenders
    for each in contenders:
        for control in contenders:
            if each.name in control.control_for:
                yield each.name, control.name
