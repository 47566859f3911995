"""The command ``steppe report``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from steppe._shared.cli_options import OUTPUT, Open, StudyName, group
from steppe._shared.console import make_console, refusals
from steppe._shared.files import check_not_overwritten
from steppe._shared.interrupts import ending_at_once
from steppe._shared.progress import progress

if TYPE_CHECKING:
    from steppe.compare.records.results import StudyResults

_CHECKPOINTS = group("From kept checkpoints", 50)


@Parameter(name="*")
@dataclass(frozen=True)
class KeptCheckpoints:
    """What is measured from the checkpoints that a study has kept.

    Attributes
    ----------
    robustness : bool, default False
        Measure the checkpoints beside the study's file with rounded weights, noise on weights and
        corrupted inputs, as steppe compare --robustness does while it trains. It needs those of all
        trials: steppe compare --checkpoints all. What has been measured is kept.
    task : str, optional
        The study's task, if it is your own, as mytask.py:task. Code is imported only if you name
        it.
    device : str, default "cpu"
        A torch device to evaluate on.
    data : Path, optional
        Directory with the files of the data set, for tasks that read files.
    """

    robustness: Annotated[bool, _CHECKPOINTS, Parameter(negative="", show_default=False)] = False
    task: Annotated[str | None, _CHECKPOINTS, Parameter(metavar="FILE:TASK")] = None
    device: Annotated[str, _CHECKPOINTS, Parameter(metavar="DEVICE")] = "cpu"
    data: Annotated[Path | None, _CHECKPOINTS, Parameter(metavar="DIR")] = None

    def measured(self, results: "StudyResults", directory: Path) -> "StudyResults":
        """Return a study's results, with the robustness of its trials if that is asked for.

        Raises
        ------
        ValueError
            It cannot be measured, or options of it are given without it.
        """
        if not self.robustness:
            if self != _NOTHING:
                raise ValueError("--task, --device and --data are for --robustness: give it too")
            return results
        # Imported here because torch takes two seconds: reports do without.
        from steppe.compare.execution.kept_checkpoints import measure_checkpoints
        from steppe.compare.training.run import RunContext

        context = RunContext(directory, self.device, data=self.data, task=self.task or "")
        with progress("Measuring checkpoints", len(results.trials)) as advance:
            return measure_checkpoints(results, context, advance)


_NOTHING = KeptCheckpoints()


def report(
    storage: str,
    other: str | None = None,
    /,
    *,
    study: StudyName = None,
    brief: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    page: Annotated[Path | None, OUTPUT, Parameter(metavar="FILE")] = None,
    json: Annotated[Path | None, OUTPUT, Parameter(metavar="FILE")] = None,
    figures: Annotated[Path | None, OUTPUT, Parameter(metavar="DIR")] = None,
    tables: Annotated[Path | None, OUTPUT, Parameter(metavar="DIR")] = None,
    kept: KeptCheckpoints = _NOTHING,
    show: Open = False,
) -> None:
    """Print a study's results, and write them as one self-contained page.

    Parameters
    ----------
    storage
        The study's URL, file or directory, or a JSON file that --json has written.
    other
        A second study of the same task, to be set beside the first.
    brief
        Print only the result and the first table.
    page
        HTML file for the page. Default: report.html beside the study's file, and
        report-of-two.html of two studies.
    json
        Write all results and verdicts to this JSON file, for other programs; compressed if its
        name ends in .json.gz.
    figures
        Write differences, the curve over the tuning budget, learning curves, flatness and
        robustness (if it was measured) as PNG files into this directory.
    tables
        Write every table as CSV and as LaTeX (booktabs) into this directory.

    Examples
    --------
    Print a study, also while it runs:

        steppe report results/digits

    Publish it:

        steppe report results/digits --json digits.json --figures images --tables tables

    Set two studies of one task beside each other:

        steppe report digits.json results/digits-again
    """
    console = make_console()
    with refusals():
        if other is not None:
            _check_options_of_two(study=study, brief=brief, json=json, figures=figures)
    with refusals(), ending_at_once():
        # Imported here because they take half a second: help and misspelt options do without.
        from steppe.compare.cli import publish
        from steppe.compare.execution.storage_names import study_file
        from steppe.compare.execution.study_registry import read_study
        from steppe.compare.records.verdicts import Readings

    with refusals():
        files = (study_file(each) for each in (storage, other) if each is not None)
        check_not_overwritten((each for each in files if each), page=page, json=json)
        results = read_study(storage, study)
        results = kept.measured(results, _beside(storage))
        if other is not None:
            theirs = read_study(other, None)
            path = page or _beside(storage) / publish.PAGE_OF_TWO
            publish.publish_two(console, (results, theirs), path, tables=tables, show=show)
            return
        readings = Readings(results)
        if json is not None:
            results.save(json)
        if figures is not None:
            publish.draw_figures(readings, figures)
        if tables is not None:
            publish.save_tables(readings, tables)
        path = page or _beside(storage) / publish.PAGE
        publish.publish(console, results, path, readings=readings, brief=brief, show=show)


def _check_options_of_two(**given: object) -> None:
    """Refuse the options that take one study.

    Raises
    ------
    ValueError
        Naming the option.
    """
    for name, value in given.items():
        if value:
            raise ValueError(
                f"--{name} takes one study: run steppe report with each storage by itself"
            )


def _beside(storage: str) -> Path:
    """Return the directory of a study's file; the current one for a URL."""
    if "://" in storage:
        return Path()
    path = Path(storage)
    return path if path.is_dir() else path.parent
