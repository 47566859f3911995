"""The page's HTML document: all its parts, put into the template."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steppe._shared.files import write_text
from steppe._shared.messages import plural
from steppe._shared.page.render import render
from steppe.compare.records.results import TEST, TUNE, StudyResults
from steppe.compare.records.summary import baseline_of, summarise
from steppe.compare.report.footnotes import footnotes
from steppe.compare.report.formatting import MISSING
from steppe.compare.report.page import charts, learning_curves, tables
from steppe.compare.report.page.headline import headline
from steppe.compare.report.page.styles import styles


def write_page(results: StudyResults, path: Path, baseline: str | None = None) -> None:
    """Write :func:`page` to a file, atomically.

    Raises
    ------
    ValueError
        No contender is called ``baseline``.
    OSError
        It cannot be written.
    """
    write_text(path, page(results, baseline))


def page(results: StudyResults, baseline: str | None = None) -> str:
    """Return a study as one HTML document that loads nothing from the network.

    It holds tables, charts, plotly.js and the study as JSON, about 5 MB.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.
    baseline : str or None, default None
        The contender that the others are compared with; None takes the first.

    Raises
    ------
    ValueError
        No contender is called ``baseline``.
    """
    baseline = baseline_of(results, baseline)
    rows = summarise(results, baseline)
    drawn = {
        "differences": charts.differences(results, rows),
        "curves": learning_curves.learning_curves(results),
        "tasks": learning_curves.by_task(results),
        "gap": charts.gaps(results, rows),
        "flatness": charts.flatness(results),
        "densities": charts.densities(results),
        "sensitivity": charts.sensitivity(results),
    }
    costs, unsuccessful = tables.costs(rows), tables.unsuccessful_runs(results)
    return render(
        __package__,
        [chart for each in drawn.values() for chart in each],
        results=results,
        title=f"{results.task}: {plural(len(results.contenders), 'optimizer')} compared",
        subtitle=_subtitle(results),
        sections=_sections(
            baseline, drawn | {"costs": costs.rows, "unsuccessful": unsuccessful.rows}
        ),
        baseline=baseline,
        headline=headline(results, rows, baseline),
        roles=_roles(results, baseline),
        leaderboard=tables.leaderboard(results, rows),
        controls=tables.controls(results, rows),
        costs=costs,
        settings=tables.settings(results),
        # The terminal's tables mark rows with daggers; the page's tables say it in words.
        notes=[note.removeprefix("† ") for note in footnotes(results, rows)],
        unsuccessful=unsuccessful,
        styles=styles(results),
        charts=drawn,
        along=_horizontal_axes(results),
        measures=charts.measures_of(drawn["flatness"][0]) if drawn["flatness"] else {},
        facts=_facts(results),
        study=results.to_dict(),
    )


def _roles(results: StudyResults, baseline: str) -> dict[str, str]:
    """Return each contender's role: baseline, control for others, or none."""
    roles = {}
    for each in results.contenders:
        roles_of = ["baseline"] if each.name == baseline else []
        roles_of += [f"control for {', '.join(each.control_for)}"] if each.control_for else []
        roles[each.name] = "; ".join(roles_of)
    return roles


def _subtitle(results: StudyResults) -> str:
    tuned = plural(results.budget, "tuning trial") + " each" if results.budget else "nothing tuned"
    model = results.setup.get("model")
    parts = [str(model)] if model else []
    return ", ".join([*parts, tuned, plural(results.seeds, "test seed")])


def _sections(baseline: str, contents: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Return the headings of the sections that have contents."""
    sections = {
        "leaderboard": "Leaderboard",
        "differences": f"Differences from {baseline}",
        "curves": "Learning curves",
        "tasks": "Tasks of the stream",
        "gap": "Generalisation gap",
        "flatness": "Test loss and curvature",
        "densities": "Densities of the Hessian’s eigenvalues",
        "costs": "Time and memory",
        "settings": "Settings",
        "unsuccessful": "Runs that diverged or failed",
        "method": "How it was done",
        "reproduce": "To reproduce it",
    }
    return {each: title for each, title in sections.items() if contents.get(each, True)}


def _horizontal_axes(results: StudyResults) -> list[tuple[str, str]]:
    """Return the axes that learning curves can be drawn along: values of a switch, and names."""
    tokens = [("tokens", "tokens")] if results.setup.get("length") else []
    return [("epochs", "epochs"), *tokens, ("seconds", "training time")]


def _facts(results: StudyResults) -> dict[str, dict[str, str]]:
    """Return what is needed to run the study again: setup, seeds, versions, optimizers."""
    seeds = {
        "tuning": _listed(trial.seed for trial in results.trials if trial.phase == TUNE),
        "test": _listed(trial.seed for trial in results.trials if trial.phase == TEST),
    }
    ran = {"where": _listed(trial.where for trial in results.trials if trial.where)}
    return {
        "Setup": {key.replace("_", " "): _written(each) for key, each in results.setup.items()},
        "Seeds": seeds,
        "Versions": dict(results.versions) | ran,
        "Optimizers": {each.name: each.title or MISSING for each in results.contenders},
    }


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in sorted(set(values))) or MISSING


def _written(value: Any) -> str:
    """Write a value of the setup: text as it is, everything else as JSON."""
    if value is None:
        return MISSING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
