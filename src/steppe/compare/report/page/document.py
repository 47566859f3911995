"""The HTML document: what it holds, put into its template."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steppe._shared.files import write_text
from steppe._shared.page.render import render
from steppe._shared.plurals import many
from steppe.compare.records.results import TEST, TUNE, StudyResults
from steppe.compare.records.summary import baseline_of, summarise
from steppe.compare.report.footnotes import notes
from steppe.compare.report.formatting import NONE
from steppe.compare.report.page import charts, tables
from steppe.compare.report.page.headline import headline
from steppe.compare.report.page.styles import styles


def write_page(results: StudyResults, path: Path, baseline: str | None = None) -> None:
    """Write :func:`page` to a file, whole or not at all.

    Raises
    ------
    ValueError
        No contender is called ``baseline``.
    OSError
        It cannot be written.
    """
    write_text(path, page(results, baseline))


def page(results: StudyResults, baseline: str | None = None) -> str:
    """Make one HTML document of a study that asks nothing of the network.

    Its tables, its charts, plotly.js and the study as JSON are all in it, about 5 MB.

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
        "curves": charts.learning_curves(results),
        "tasks": charts.by_task(results),
        "gap": charts.gaps(results, rows),
        "flatness": charts.flatness(results),
        "densities": charts.densities(results),
        "sensitivity": charts.sensitivity(results),
    }
    costs, lost = tables.costs(rows), tables.lost(results)
    return render(
        __package__,
        [chart for each in drawn.values() for chart in each],
        results=results,
        title=f"{results.task}: {many(len(results.contenders), 'optimizer')} compared",
        subtitle=_subtitle(results),
        sections=_sections(baseline, drawn | {"costs": costs.rows, "lost": lost.rows}),
        baseline=baseline,
        headline=headline(results, rows, baseline),
        roles=_roles(results, baseline),
        leaderboard=tables.leaderboard(results, rows),
        controls=tables.beside_controls(results, rows),
        costs=costs,
        settings=tables.settings(results),
        # The terminal's tables mark with daggers what this one says in words.
        notes=[note.removeprefix("† ") for note in notes(results, rows)],
        lost=lost,
        styles=styles(results),
        charts=drawn,
        along=_along(results),
        measures=charts.measures_of(drawn["flatness"][0]) if drawn["flatness"] else {},
        facts=_facts(results),
        study=results.to_dict(),
    )


def _roles(results: StudyResults, baseline: str) -> dict[str, str]:
    """Say of each contender what it is in the study, besides one among others."""
    roles = {}
    for each in results.contenders:
        said = ["baseline"] if each.name == baseline else []
        said += [f"control for {', '.join(each.control_for)}"] if each.control_for else []
        roles[each.name] = "; ".join(said)
    return roles


def _subtitle(results: StudyResults) -> str:
    tuned = many(results.budget, "tuning trial") + " each" if results.budget else "nothing tuned"
    model = results.setup.get("model")
    said = [str(model)] if model else []
    return ", ".join([*said, tuned, many(results.seeds, "test seed")])


def _sections(baseline: str, contents: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Give the headings of the sections, without those whose contents are empty."""
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
        "lost": "Runs that diverged or failed",
        "method": "How it was done",
        "reproduce": "To reproduce it",
    }
    return {each: title for each, title in sections.items() if contents.get(each, True)}


def _along(results: StudyResults) -> list[tuple[str, str]]:
    """Give what learning curves are drawn along: values of a switch, and their names."""
    tokens = [("tokens", "tokens")] if results.setup.get("length") else []
    return [("epochs", "epochs"), *tokens, ("seconds", "training time")]


def _facts(results: StudyResults) -> dict[str, dict[str, str]]:
    """Gather what another needs to run the study again."""
    seeds = {
        "tuning": _listed(trial.seed for trial in results.trials if trial.phase == TUNE),
        "test": _listed(trial.seed for trial in results.trials if trial.phase == TEST),
    }
    ran = {"where": _listed(trial.where for trial in results.trials if trial.where)}
    return {
        "RunSettings": {
            key.replace("_", " "): _written(each) for key, each in results.setup.items()
        },
        "Seeds": seeds,
        "Versions": dict(results.versions) | ran,
        "Optimizers": {each.name: each.title or NONE for each in results.contenders},
    }


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in sorted(set(values))) or NONE


def _written(value: Any) -> str:
    """Write a value of the setup: words as they are, the rest as JSON."""
    if value is None:
        return NONE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
