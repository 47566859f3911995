"""The table of what is forgotten while a second task is learnt."""

from steppe._shared.page.parts import HtmlCell, HtmlTable
from steppe.compare.records.best_of_k import Difference
from steppe.compare.records.forgetting_at_common_loss import (
    common_loss,
    forgetting_at_common_loss,
    second_task,
)
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.formatting import decimals, unit_of_change
from steppe.compare.report.tables.cells import (
    EMPTY,
    difference_cells,
    interval_cell,
    number_cell,
    three_digits,
)


def forgetting(readings: Readings) -> HtmlTable:
    """Return what the best of k trials is expected to forget; no rows without a second task."""
    study = readings.results
    second, found = second_task(study), forgetting_at_common_loss(readings)
    if second is None or not found:
        return HtmlTable("Forgetting", {}, [])
    metric = study.metric
    lost = f"{metric.name} lost{unit_of_change(metric)}"
    columns = {
        "test loss": "on the first task, expected of the best of k, with its 95 % interval",
        "loss, difference": "from the baseline's, with its 95 % interval",
        "loss, p": "of no difference, not corrected",
        lost: "from before fine-tuning, of the same trials",
        f"{lost}, difference": "from the baseline's",
        f"{lost}, p": "of no difference, not corrected",
        "reached": "trials that have come down to the common loss; others count as the worst",
    }
    digits = [
        decimals([getattr(each, name).mean for each in found], 3) for name in ("loss", "lost")
    ]
    rows = [
        (
            each.name,
            [
                interval_cell(each.loss, digits[0]),
                *_difference(each.loss_difference, digits[0]),
                interval_cell(each.lost, digits[1]),
                *_difference(each.lost_difference, digits[1]),
                number_cell(float(each.reached), lambda count: f"{count:.0f}"),
            ],
        )
        for each in found
    ]
    caption = f"Forgetting: {study.task}, where the loss on {second.task} is " + three_digits(
        common_loss(study)
    )
    return HtmlTable(caption, columns, rows)


def _difference(found: Difference | None, digits: int) -> list[HtmlCell]:
    return [EMPTY, EMPTY] if found is None else difference_cells(found, digits)
