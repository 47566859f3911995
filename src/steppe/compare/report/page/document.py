"""The page's HTML document: all its parts, put into the template."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steppe._shared.files import write_text
from steppe._shared.messages import plural
from steppe._shared.page.parts import Chart, HtmlTable
from steppe._shared.page.render import render
from steppe.compare.records.json_format import to_json
from steppe.compare.records.results import PHASES, StudyResults
from steppe.compare.records.robustness import RobustReadings
from steppe.compare.records.summary import OptimizerSummary, summarise
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.exports import to_csv, to_latex
from steppe.compare.report.footnotes import footnotes
from steppe.compare.report.formatting import MISSING
from steppe.compare.report.headline import headline
from steppe.compare.report.page import (
    comparisons,
    curvature_charts,
    forgetting_charts,
    learning_curves,
    pool_charts,
    robustness_charts,
)
from steppe.compare.report.page.styles import styles
from steppe.compare.report.tables import all_tables
from steppe.compare.report.units import other_reading

Charts = dict[str, list[Chart]]

#: More seeds than these are not listed.
_SEEDS = 4

_CHARTS = (
    "differences",
    "budgets",
    "compute",
    "lr",
    "parallel",
    "flatness",
    "by_amount",
    "by_trial",
    "others",
    "curves",
    "tasks",
    "gap",
    "forgetting",
    "densities",
)


def write_page(results: StudyResults, path: Path, readings: Readings | None = None) -> None:
    """Write :func:`page` to a file, atomically.

    Raises
    ------
    OSError
        It cannot be written.
    """
    write_text(path, page(results, readings))


def page(results: StudyResults, readings: Readings | None = None) -> str:
    """Return a study as one HTML document that loads nothing from the network.

    It holds tables, charts, plotly.js and the study as JSON, about 5 MB. Of an unfinished study it
    has neither test results nor the study's data.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.
    readings : Readings, optional
        Those of the study, if they are at hand.
    """
    readings = readings or Readings(results)
    robust = RobustReadings(readings)
    rows = summarise(results, readings)
    drawn = _charts(readings, robust, rows)
    tables = all_tables(readings, rows, robust)
    flatness = drawn["flatness"]
    return render(
        __package__,
        [chart for each in drawn.values() for chart in each],
        results=results,
        title=f"{results.task}: {plural(len(results.contenders), 'optimizer')} compared",
        subtitle=_subtitle(results),
        about=[each for each in (results.author, results.note) if each],
        sections=_sections(readings, tables, drawn),
        headline=headline(readings, rows),
        tables=tables,
        **_leaderboard_and_roles(tables),
        exports=exported(tables),
        # The terminal's notes have daggers; the page says it in words.
        notes=[note.removeprefix("† ") for note in footnotes(readings, rows)],
        styles=styles(results),
        charts=drawn,
        along=_horizontal_axes(results),
        measures=curvature_charts.measures_of(results, flatness[0]) if flatness else {},
        scales=robustness_charts.selectable_scales(robust),
        robust_measures=robustness_charts.selectable_measures(robust),
        readings=[(each, readings.label(each)) for each in _readings(readings)],
        selectable=_selectable(results, drawn["parallel"]),
        facts=_facts(results),
        study=study_data(readings) if results.complete else None,
    )


def _leaderboard_and_roles(tables: Mapping[str, HtmlTable]) -> dict[str, Any]:
    """Return the leaderboard for the page, which writes the roles, its last column, under names."""
    if "leaderboard" not in tables:
        return {"leaderboard": None, "roles": {}}
    board = tables["leaderboard"]
    columns = dict(list(board.columns.items())[:-1])
    rows = [(name, cells[:-1]) for name, cells in board.rows]
    return {
        "leaderboard": replace(board, columns=columns, rows=rows),
        "roles": {name: cells[-1].text for name, cells in board.rows},
    }


def exported(tables: Mapping[str, HtmlTable]) -> dict[str, dict[str, str]]:
    """Return tables as the page's buttons copy and download them."""
    return {name: {"csv": to_csv(table), "tex": to_latex(table)} for name, table in tables.items()}


def study_data(readings: Readings) -> dict[str, Any]:
    """Return a study as JSON, with its verdicts as ``--json`` has them."""
    verdicts = [vars(each) for each in readings.verdicts]
    return {**readings.results.to_dict(), "verdicts": to_json(verdicts)}


def _readings(readings: Readings) -> tuple[Any, Any]:
    return readings.results.plan.primary, other_reading(readings)


def _charts(readings: Readings, robust: RobustReadings, rows: Sequence[OptimizerSummary]) -> Charts:
    """Return the charts of each section; of an unfinished study, of validation only."""
    results = readings.results
    nothing: Charts = {name: [] for name in _CHARTS}
    if not any(row.trials > row.diverged for row in rows):
        return nothing
    if not results.complete:
        return nothing | {"parallel": pool_charts.parallel_coordinates(results)}
    primary, other = _readings(readings)
    return {
        "differences": comparisons.differences(readings, rows, primary, "differences"),
        "budgets": comparisons.budget_curves(readings, rows),
        "compute": comparisons.result_by_compute(readings, rows),
        "lr": pool_charts.by_lr(results),
        "parallel": pool_charts.parallel_coordinates(results),
        "flatness": curvature_charts.flatness(results),
        "by_amount": robustness_charts.by_amount(readings, robust, rows),
        "by_trial": robustness_charts.by_trial(readings, robust, rows),
        "others": comparisons.differences(readings, rows, other, "other-differences"),
        "curves": learning_curves.learning_curves(results),
        "tasks": learning_curves.by_task(results),
        "gap": learning_curves.gaps(results),
        "forgetting": forgetting_charts.forgetting(results),
        "densities": curvature_charts.densities(results),
    }


def _subtitle(results: StudyResults) -> str:
    plan = results.plan
    planned = f"the best of {plan.budget}, estimated from {plan.trials} trials each"
    return ", ".join(filter(None, (str(results.setup.get("model", "")), planned, results.created)))


def _sections(
    readings: Readings, tables: Mapping[str, HtmlTable], charts: Charts
) -> dict[str, str]:
    """Return the headings of the sections that have contents."""
    if not readings.results.complete:
        found = {"progress": "How far it is", "trials": "Trials"}
    else:
        found = {
            "leaderboard": "Results",
            "budgets": "Result by tuning budget",
            "compute": "Result by compute",
            "lr": "Result by learning rate",
            "trials": "Trials",
            "curvature": "Curvature at a common train loss",
            "robustness": "With changed weights and inputs",
            "recommended": "What to use",
            "exploratory": "Exploratory",
        }
    contents = {**tables, **charts, "exploratory": tables.get("differences")}
    shown = {each: title for each, title in found.items() if contents.get(each)}
    return shown | {"method": "How it was done", "reproduce": "To reproduce it"}


def _horizontal_axes(results: StudyResults) -> list[tuple[str, str]]:
    """Return the axes that learning curves can be drawn along: values of a switch, and names."""
    tokens = [("tokens", "tokens")] if results.setup.get("length") else []
    return [("epochs", "epochs"), *tokens, ("seconds", "training time")]


def _selectable(results: StudyResults, drawn: Sequence[Chart]) -> list[tuple[str, str]]:
    """Return the contenders whose trials can be selected: values, and names."""
    values = {pool_charts.contender_value(i): c.name for i, c in enumerate(results.contenders)}
    return [(value, values[value]) for chart in drawn for value in chart.variants]


def _facts(results: StudyResults) -> dict[str, dict[str, str]]:
    """Return what is needed to run the study again: setup, plan, versions, optimizers."""
    ran = {"where": _listed(trial.where for trial in results.trials if trial.where)}
    seeds = {
        f"seeds, {phase}": _shortened({t.seed for t in results.trials if t.phase == phase})
        for phase in PHASES
    }
    about = {"planned on": results.created, "author": results.author, "note": results.note}
    about |= {"study": results.name}
    return {
        "About": {name: value or MISSING for name, value in about.items()},
        "Setup": {key.replace("_", " "): _written(each) for key, each in results.setup.items()},
        "Plan": {key.replace("_", " "): _written(each) for key, each in vars(results.plan).items()}
        | seeds,
        "Versions": dict(results.versions) | ran,
        "Optimizers": {each.name: each.title or MISSING for each in results.contenders},
    }


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in sorted(set(values))) or MISSING


def _shortened(seeds: set[int]) -> str:
    """Write some seeds: the study's data has all."""
    if len(seeds) <= _SEEDS:
        return _listed(seeds)
    return f"{_listed(sorted(seeds)[:_SEEDS])} … ({len(seeds)} in all)"


def _written(value: Any) -> str:
    """Write a value of the setup: text as it is, lists with commas, everything else as JSON."""
    if value is None or value in ((), []):
        return MISSING
    if isinstance(value, list | tuple):
        return ", ".join(map(_written, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
