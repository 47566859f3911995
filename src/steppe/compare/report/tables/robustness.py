"""Tables of what is left of the best of k once weights or inputs are changed."""

from collections.abc import Sequence

from steppe._shared.page.parts import HtmlCell, HtmlTable
from steppe.compare.records.measure_names import CLEAN, CORRUPTED
from steppe.compare.records.robustness import RobustReadings
from steppe.compare.records.summary import OptimizerSummary
from steppe.compare.report.formatting import decimals, format_interval
from steppe.compare.report.tables.cells import interval_cell

# What a terminal has room for; the page has all.
_SHOWN = (
    CLEAN,
    "3 bits absmax",
    "3 bits least error",
    "2 bits absmax",
    "2 bits least error",
    "2 bits compensated",
    "weight noise 0.3",
    "weight noise 0.5",
    CORRUPTED,
    "kurtosis",
)
_FEW = 12
_DIGITS = 4


def robustness(
    readings: RobustReadings,
    rows: Sequence[OptimizerSummary],
    baseline: str,
    *,
    tuned: bool = False,
) -> HtmlTable:
    """Return each measure of the best of k, and below it how it differs from the baseline's.

    Parameters
    ----------
    readings : RobustReadings
        Of a study.
    rows : sequence of OptimizerSummary
        Its summary.
    baseline : str
        Whom all are compared with.
    tuned : bool, default False
        Whether the best of k is that by the measure's own validation value.
    """
    measures = readings.measures
    if tuned:
        measures = [each for each in measures if each != CLEAN and readings.is_score(each)]
    chosen = "by the measure's own validation value" if tuned else "by clean validation data"
    meaning = f"best of k {chosen}; below, minus {baseline}, with its 95 % interval"
    columns = dict.fromkeys(measures, meaning)
    digits = {
        each: decimals([readings.expected(r.name, each, tuned=tuned).mean for r in rows], _DIGITS)
        for each in measures
    }

    def cell(name: str, measure: str) -> HtmlCell:
        value = readings.expected(name, measure, tuned=tuned)
        shown = interval_cell(value, digits[measure])
        if name == baseline:
            return HtmlCell(shown.text, shown.key, bounds=shown.bounds)
        change = readings.change(name, baseline, measure, tuned=tuned)
        return HtmlCell(
            shown.text,
            shown.key,
            format_interval(change, digits[measure], sign=True),
            bounds=shown.bounds,
        )

    title = "the measure itself" if tuned else "clean data"
    cells = [(row.name, [cell(row.name, each) for each in measures]) for row in rows]
    return HtmlTable(
        f"With changed weights and inputs, chosen by {title}", columns, cells if measures else []
    )


def not_in_a_terminal(table: HtmlTable) -> set[str]:
    """Return the columns of such a table that a terminal has no room for."""
    if len(table.columns) <= _FEW:
        return set()
    return set(table.columns) - set(_SHOWN)
