"""The tables of a study: the terminal, the page, and CSV and LaTeX files show the same ones."""

from collections.abc import Sequence

from steppe._shared.page.parts import HtmlTable
from steppe.compare.records.robustness import RobustReadings
from steppe.compare.records.summary import OptimizerSummary
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.tables import forgetting, measures, results, robustness, trials


def all_tables(
    readings: Readings,
    rows: Sequence[OptimizerSummary],
    robust: RobustReadings | None = None,
) -> dict[str, HtmlTable]:
    """Return a study's tables by their names, those that have rows.

    Of an unfinished study only its progress and its trials, without any test result; of one whose
    trials all diverged, failed or have no result, its trials.

    Parameters
    ----------
    readings : Readings
        A study's, finished or not.
    rows : sequence of OptimizerSummary
        Its summary.
    robust : RobustReadings, optional
        Those of the same readings, if they are at hand: they keep what they have computed.
    """
    study = readings.results
    if not study.complete:
        found = {"progress": trials.progress(study, rows), "trials": trials.trials(study)}
    elif not any(row.trials > row.diverged for row in rows):
        found = {"trials": trials.trials(study)}
    else:
        robust = robust or RobustReadings(readings)
        found = {
            "leaderboard": results.leaderboard(readings, rows),
            "budgets": results.budgets(readings, rows, "score"),
            "budgets-loss": results.budgets(readings, rows, "loss"),
            "trials": trials.trials(study),
            "curvature": measures.curvature(rows),
            "recommended": trials.recommended(study, rows),
            "differences": results.other_differences(readings, rows),
            "controls": results.controls(readings, rows),
            "gaps": measures.gaps(readings),
            "metrics": measures.further_metrics(readings, rows),
            "robustness": robustness.robustness(robust, rows, study.baseline),
            "robustness-tuned": robustness.robustness(robust, rows, study.baseline, tuned=True),
            "forgetting": forgetting.forgetting(readings),
            "costs": measures.costs(rows),
        }
    return {name: table for name, table in found.items() if table.rows}
