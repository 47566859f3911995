"""The result of :func:`~steppe.landscape.robustness`, as a table and as a picture."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steppe._shared.notebook_tables import html_table
from steppe.landscape._drawing import BLUE, axes_for
from steppe.landscape.perturbations.scored_passes import PERPLEXITY
from steppe.landscape.result import Result
from steppe.landscape.row_table import row_table, row_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The name of the results without any perturbation.
CLEAN = "clean"


@dataclass(frozen=True)
class Perturbed(Result):
    """A model's results after a perturbation, as means over its draws.

    Attributes
    ----------
    name : str
        The perturbation, such as "3 bits absmax"; "clean" is none.
    score, score_error : float
        The mean of the metric over samples, and its standard error over samples and draws; of
        perplexity exp of the mean loss. NaN without a metric.
    loss, loss_error : float
        The mean loss, and its standard error: over samples where the loss is cross-entropy, else
        over batches.
    change, change_error : float
        Score minus the clean one, sample by sample, and its standard error; without scores of
        samples, that of the loss, batch by batch.
    draws : int
        How often it was drawn.
    """

    name: str
    score: float
    score_error: float
    loss: float
    loss_error: float
    change: float
    change_error: float
    draws: int


@dataclass(frozen=True, eq=False)
class Robustness(Result):
    """The result of :func:`robustness`.

    Attributes
    ----------
    metric : str
        What scores are: "accuracy", "perplexity", the name of your own metric, or "" for none.
    samples : int
        How many samples the means are over.
    results : tuple of Perturbed
        The clean results, then those after each perturbation.
    kurtosis, outliers : float
        Tails of the weights, see :func:`~steppe.landscape.weight_tails`.
    calibration_error, calibration_error_stderr : float
        The expected calibration error of a classifier, and its standard error by a jackknife over
        20 groups of samples; NaN of other models.
    brier, brier_stderr : float
        The Brier score of a classifier, and its standard error; NaN of other models.
    own : dict
        Your own measures, by their names.
    complete : bool
        Whether everything was measured; Ctrl-C keeps what has been.
    """

    metric: str
    samples: int
    results: tuple[Perturbed, ...]
    kurtosis: float
    outliers: float
    calibration_error: float
    calibration_error_stderr: float
    brier: float
    brier_stderr: float
    own: Mapping[str, float]
    complete: bool

    def __getitem__(self, name: str) -> Perturbed:
        """Return the results after a perturbation, by its name.

        Raises
        ------
        KeyError
            It was not measured; the message lists what was.
        """
        for each in self.results:
            if each.name == name:
                return each
        raise KeyError(f"{name!r} was not measured: {', '.join(x.name for x in self.results)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, ready for ``json.dumps``."""
        return {**super().to_dict(), "results": [each.to_dict() for each in self.results]}

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the lines of the table: a name, score or loss with its error, and its change."""
        lines = [
            (each.name, self._shown(each), self._shown_change(each) if each.name != CLEAN else "")
            for each in self.results
        ]
        lines.append(("kurtosis of weights", f"{self.kurtosis:.3g}", "3 if Gaussian"))
        lines.append(("weights beyond 3σ", f"{100 * self.outliers:.3g} %", "0.27 % if Gaussian"))
        if math.isfinite(self.brier):
            error = _with_error(self.calibration_error, self.calibration_error_stderr)
            lines.append(("calibration error", error, "of 15 bins"))
            lines.append(("Brier score", _with_error(self.brier, self.brier_stderr), ""))
        return [*lines, *((name, f"{value:.4g}", "") for name, value in self.own.items())]

    def table(self, title: str = "Robustness") -> Any:
        """Return the results as a ``rich.table.Table``.

        Raises
        ------
        ImportError
            Rich is not installed.
        """
        return row_table(self.rows(), title, (self.metric or "loss", "change"), "right")

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        head = {"": "", self.metric or "loss": "", "change": "from the clean model's"}
        return html_table(self.rows(), head, caption="Robustness")

    def __str__(self) -> str:
        """Return the table as lines of plain text."""
        return row_text(self.rows())

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the score, or the loss, after each perturbation, with its error."""
        axes = axes_for(axes, "Robustness")
        names = [each.name for each in self.results]
        has_score = bool(self.metric)
        values = [each.score if has_score else each.loss for each in self.results]
        errors = [each.score_error if has_score else each.loss_error for each in self.results]
        places = range(len(names))
        axes.errorbar(values, places, xerr=errors, fmt="o", ms=4, color=BLUE, lw=1.2)
        axes.axvline(values[0], color="0.6", lw=1.0)
        axes.set_yticks(places, names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel(self.metric or "mean loss")
        return axes

    def _shown(self, each: Perturbed) -> str:
        if not self.metric:
            return _with_error(each.loss, each.loss_error)
        return _with_error(each.score, each.score_error)

    def _shown_change(self, each: Perturbed) -> str:
        of_loss = " of loss" if self.metric in ("", PERPLEXITY) else ""
        return f"{_with_error(each.change, each.change_error, '+')}{of_loss}"


def _with_error(value: float, error: float, sign: str = "") -> str:
    shown = f"{value:{sign}.4g}"
    return shown if math.isnan(error) else f"{shown} ± {error:.2g}"
