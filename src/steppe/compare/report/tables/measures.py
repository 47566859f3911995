"""Tables of curvature, time and memory."""

import math
from collections.abc import Sequence

from steppe._shared.page.parts import HtmlCell, HtmlTable
from steppe._shared.statistics import Interval
from steppe.compare.records.gap_at_common_loss import gaps_at_common_loss
from steppe.compare.records.summary import OptimizerSummary
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.formatting import format_count, format_duration, format_number
from steppe.compare.report.tables.cells import bar_cells, interval_cell, number_cell, three_digits

_MEBIBYTE = 2**20


def curvature(rows: Sequence[OptimizerSummary]) -> HtmlTable:
    """Return curvature at a common train loss beside that at the end; no column without numbers."""
    found: dict[str, tuple[str, list[Interval]]] = {
        "sharpness at common loss": (
            "rise of the loss in a SAM step of 0.05, where the train loss was the same for all",
            [row.sharpness_at_common_loss for row in rows],
        ),
        "λ_max at common loss": (
            "largest eigenvalue of the Hessian, where the train loss was the same for all",
            [row.largest_at_common_loss for row in rows],
        ),
        "sharpness at the end": (
            "rise of the loss in a SAM step of 0.05",
            [row.sharpness for row in rows],
        ),
        "λ_max at the end": ("largest eigenvalue", [row.largest for row in rows]),
        "trace": ("of the Hessian, at the end", [row.trace for row in rows]),
        "λ_max(PH)": (
            "largest eigenvalue after the optimizer's preconditioner, at the end",
            [row.preconditioned for row in rows],
        ),
        "threshold": (
            "of λ_max(PH), above which steps are unstable",
            [row.threshold for row in rows],
        ),
    }
    known = {
        name: each
        for name, each in found.items()
        if any(math.isfinite(value.mean) for value in each[1])
    }
    cells = [
        (row.name, [interval_cell(values[place], None) for _, values in known.values()])
        for place, row in enumerate(rows)
    ]
    columns = {name: meaning for name, (meaning, _) in known.items()}
    return HtmlTable(
        "Curvature of the train loss, at the recommended settings", columns, cells if known else []
    )


def gaps(readings: Readings) -> HtmlTable:
    """Return test loss − train loss as it is, and where the train loss is the same for all."""
    found = gaps_at_common_loss(readings)
    columns = {
        "train loss": "expected of the best of k",
        "gap": "test loss − train loss, expected of the same trials",
        "gap at common train loss": "moved to the baseline's train loss, along the line of each "
        "contender's best trials",
        "difference": "from the baseline's, at the common train loss, with its 95 % interval",
    }
    cells = [
        (
            each.name,
            [
                *(number_cell(x, three_digits) for x in (each.train, each.gap, each.at_common)),
                interval_cell(each.difference, 3, sign=True),
            ],
        )
        for each in found
    ]
    return HtmlTable("Generalisation gap", columns, cells)


def further_metrics(readings: Readings, rows: Sequence[OptimizerSummary]) -> HtmlTable:
    """Return the test results of a task's other metrics, of the best of the declared budget."""
    outcomes = [trial.outcome for trial in readings.results.trials if trial.outcome]
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.final.test_others)
    columns = dict.fromkeys(names, "test result expected of the best of k")

    def cell(row: OptimizerSummary, name: str) -> HtmlCell:
        found = readings.expected_mean(
            row.name, lambda outcome: outcome.final.test_others.get(name, math.nan)
        )
        return number_cell(found, three_digits)

    cells = [(row.name, [cell(row, name) for name in names]) for row in rows]
    return HtmlTable("Further metrics, on the test set", columns, cells if names else [])


def costs(rows: Sequence[OptimizerSummary]) -> HtmlTable:
    """Return time and memory, with bars."""
    columns = {
        "gradient evaluations": "of one run: forward and backward of a batch is one",
        "ms per step": "median step: forward, backward, update",
        "training time": "median run, evaluation left out",
        "state, bytes per parameter": "what the optimizer keeps",
        "peak memory, MiB": "most that tensors took on the accelerator",
    }
    measured = dict(
        zip(
            columns,
            (
                bar_cells([row.gradients for row in rows], format_count),
                bar_cells([row.step_ms for row in rows], lambda value: format_number(value, 2)),
                bar_cells([row.seconds for row in rows], format_duration),
                bar_cells([row.state_bytes for row in rows], lambda value: format_number(value, 1)),
                bar_cells(
                    [row.peak_bytes / _MEBIBYTE for row in rows],
                    lambda value: format_number(value, 1),
                ),
            ),
            strict=True,
        )
    )
    known = [each for each in columns if any(cell.key is not None for cell in measured[each])]
    cells = zip(*(measured[each] for each in known), strict=True)
    named = [(row.name, list(each)) for row, each in zip(rows, cells, strict=False)]
    return HtmlTable("Time and memory", {each: columns[each] for each in known}, named)
