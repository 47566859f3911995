"""A study in Python: its verdicts, tables and figures; in a notebook it shows itself."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steppe._shared.extras import install_command
from steppe._shared.files import write_text
from steppe._shared.names import look_up
from steppe._shared.page.parts import HtmlTable
from steppe.compare.execution.study_registry import read_study
from steppe.compare.records.results import StudyResults
from steppe.compare.records.summary import OptimizerSummary, summarise
from steppe.compare.records.verdicts import Readings, Verdict
from steppe.compare.report.exports import to_csv, to_latex
from steppe.compare.report.headline import headline
from steppe.compare.report.page import write_page
from steppe.compare.report.pictures import (
    draw_budgets,
    draw_curves,
    draw_differences,
    draw_flatness,
)
from steppe.compare.report.robustness_picture import draw_robustness
from steppe.compare.report.tables import all_tables

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class Study:
    """The results of a comparison, finished or not; :func:`~steppe.compare.run` returns one.

    Parameters
    ----------
    results : StudyResults
        The trials, as :func:`~steppe.compare.read_study` reads them.

    Attributes
    ----------
    results : StudyResults
        The same.

    Examples
    --------
    >>> study = load("docs/results/digits.json")  # doctest: +SKIP
    >>> study.to_csv("digits.csv")  # doctest: +SKIP
    """

    def __init__(self, results: StudyResults) -> None:
        self.results = results

    @property
    def complete(self) -> bool:
        """Whether every trial has ended: before that, nothing is said of the test set."""
        return self.results.complete

    def verdicts(self) -> list[Verdict]:
        """Return each optimizer beside the baseline; none of an unfinished study."""
        return self._readings.verdicts

    def table(self, name: str | None = None) -> HtmlTable:
        """Return a table, by default the leaderboard, or of an unfinished study its progress.

        Raises
        ------
        ValueError
            There is none of that name; the message lists those there are.
        """
        return look_up("table", name or next(iter(self._tables)), self._tables)

    def to_csv(self, path: str | PathLike[str] | None = None, table: str | None = None) -> str:
        """Return a table as CSV, with intervals in columns of their own, and write it to a file.

        Parameters
        ----------
        path : str or path, optional
            The file.
        table : str, optional
            As for :meth:`table`.
        """
        return self._written(to_csv, path, table)

    def to_latex(self, path: str | PathLike[str] | None = None, table: str | None = None) -> str:
        """Return a table as LaTeX with booktabs, and write it to a file, as :meth:`to_csv` does."""
        return self._written(to_latex, path, table)

    def to_pandas(self, table: str | None = None) -> "pandas.DataFrame":
        """Return a table as a data frame of numbers, with intervals in columns of their own.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        try:
            import pandas
        except ImportError as missing:
            raise ImportError(f"to_pandas needs pandas: {install_command('pandas')}") from missing
        return pandas.read_csv(io.StringIO(self.to_csv(table=table)), index_col=0)

    def plot_differences(self) -> "Figure | None":
        """Draw each optimizer minus the baseline; None if there is nothing to draw."""
        return draw_differences(self.results, self._readings)

    def plot_budget(self) -> "Figure | None":
        """Draw the expected result of the best of k trials, by k."""
        return draw_budgets(self.results, self._readings)

    def plot_curves(self) -> "Figure | None":
        """Draw learning curves at the recommended settings."""
        return draw_curves(self.results)

    def plot_flatness(self) -> "Figure | None":
        """Draw test loss by sharpness and by λ_max at a common train loss."""
        return draw_flatness(self.results)

    def plot_robustness(self, optimizers: Sequence[str] = ()) -> "Figure | None":
        """Draw what the best of k keeps with changed weights, by default of the first six."""
        return draw_robustness(self.results, self._readings, optimizers)

    def report(self, path: str | PathLike[str]) -> Path:
        """Write the study's page, one file that loads nothing from the network; return its path.

        Raises
        ------
        OSError
            It cannot be written.
        """
        page = Path(path)
        write_page(self.results, page, self._readings)
        return page

    def save(self, path: str | PathLike[str]) -> Path:
        """Write all trials and verdicts as JSON, for :func:`~steppe.compare.load`.

        Raises
        ------
        OSError
            It cannot be written.
        """
        self.results.save(path)
        return Path(path)

    def __repr__(self) -> str:
        said = headline(self._readings, self._rows)
        return "\n".join([f"Study {self.results.name}", *said.findings, *said.plan])

    def _repr_html_(self) -> str:
        said = headline(self._readings, self._rows)
        findings = "".join(f"<li>{escape(each)}</li>" for each in said.findings)
        plan = "".join(f"<p>{escape(each)}</p>" for each in said.plan)
        return f"<ul>{findings}</ul>{self.table()._repr_html_()}{plan}"

    @cached_property
    def _readings(self) -> Readings:
        return Readings(self.results)

    @cached_property
    def _rows(self) -> list[OptimizerSummary]:
        return list(summarise(self.results, self._readings))

    @cached_property
    def _tables(self) -> Mapping[str, HtmlTable]:
        return all_tables(self._readings, self._rows)

    def _written(self, write: Callable[[HtmlTable], str], path: Any, table: str | None) -> str:
        text = write(self.table(table))
        if path is not None:
            write_text(Path(path), text)
        return text


def load(path: str | PathLike[str], study: str | None = None) -> Study:
    """Open a study: a file of :meth:`Study.save`, a storage, or the directory of one.

    Nothing is written, and no optimizer or task of its author is imported.

    Parameters
    ----------
    path : str or path
        What ``steppe report`` takes: a JSON file, a directory, a file or a URL.
    study : str, optional
        The study's name. Default: the only study there.

    Raises
    ------
    ValueError, OSError
        There is none, it is damaged, or there are several.
    """
    return Study(read_study(os.fspath(path), study))
