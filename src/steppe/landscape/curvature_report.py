"""The curvature report of a minimum: all that the instruments measure about it, in one call.

``steppe profile`` prints it for a saved run.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steppe._shared.notebook_tables import html_table
from steppe._shared.pictures import new_figure
from steppe._shared.validation import checked_seed
from steppe.landscape._drawing import BLUE, RED, axes_for, needs_log_scale
from steppe.landscape.objective.batches import Batches
from steppe.landscape.objective.loss_weight import LossFunction, Weight
from steppe.landscape.objective.objective import Objective
from steppe.landscape.objective.parameter_choice import Params
from steppe.landscape.operators.hessian import Product, hessian
from steppe.landscape.operators.operator import Operator
from steppe.landscape.operators.preconditioned import Preconditioned, preconditioned
from steppe.landscape.operators.stability_of_sam import threshold_of_sam
from steppe.landscape.result import Result
from steppe.landscape.row_table import row_table, row_text
from steppe.landscape.spectra.density import Density, density
from steppe.landscape.spectra.eigenvalues import Eigenvalues, Which, top_eigenvalues
from steppe.landscape.spectra.trace import Trace, trace
from steppe.landscape.stages import MOST_PRODUCTS, remark_on, run_stages, with_error
from steppe.landscape.surfaces._directions import filter_normalised
from steppe.landscape.surfaces.line import Line, line
from steppe.landscape.surfaces.sharpness import Sharpness, sharpness

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ASAM's radius is relative to the parameters' size, and ten times SAM's in its paper.
_ADAPTIVE_RHO = 0.5
_TRACE_PRODUCTS = 60
_PROBES, _STEPS = 5, 40
_POINTS = 25
# Length of the lines on each side, in the parameters' unit.
_REACH = 1.0


@dataclass(frozen=True, eq=False)
class CurvatureReport(Result):
    """The result of :func:`profile`.

    A field is None where Ctrl-C came before its measurement, or where it needs an optimizer and
    none was given.

    Attributes
    ----------
    parameters, samples : int
        Number of parameters (elements) and of samples.
    train : bool
        Whether the model was in ``train()`` mode.
    loss, gradient_norm : float
        The mean loss and its gradient's L2 norm at the model's parameters.
    top : Eigenvalues
        The Hessian's eigenvalues of largest magnitude.
    bottom : Eigenvalues
        The Hessian's smallest eigenvalue, with sign: negative at a saddle.
    trace : Trace
        The Hessian's trace.
    density : Density
        The density of the Hessian's eigenvalues.
    worst, adaptive, average : Sharpness
        SAM's sharpness, ASAM's at radius 0.5, and the mean rise in random directions.
    preconditioned : Eigenvalues
        The largest eigenvalue of the Hessian scaled by the optimizer's preconditioner.
    threshold : float
        The value of ``preconditioned`` from which the optimizer is unstable.
    is_sams : bool
        Whether ``threshold`` is SAM's own, which is lower than the base optimizer's and depends on
        the gradient's norm: of SAM along the gradient around SGD. Of others it is the base's.
    steepest, random : Line
        The loss along the first eigenvector, and along a random filter-normalised direction, to
        distance 1. ``random`` is None where no parameter has filters.
    products : int
        How many products with the Hessian it took.
    complete : bool
        Whether everything was measured and has converged.
    """

    parameters: int
    samples: int
    train: bool
    loss: float
    gradient_norm: float
    products: int
    complete: bool
    top: Eigenvalues | None = None
    bottom: Eigenvalues | None = None
    trace: Trace | None = None
    density: Density | None = field(default=None, repr=False)
    worst: Sharpness | None = None
    adaptive: Sharpness | None = None
    average: Sharpness | None = None
    preconditioned: Eigenvalues | None = None
    threshold: float | None = None
    is_sams: bool = False
    steepest: Line | None = field(default=None, repr=False)
    random: Line | None = field(default=None, repr=False)

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the report's lines: a name, the value with its error, and a remark."""
        mode = "train" if self.train else "eval"
        lines = [
            ("loss", f"{self.loss:.4g}", f"{self.samples} samples, {mode}() mode"),
            ("gradient norm", f"{self.gradient_norm:.3g}", f"{self.parameters} parameters"),
        ]
        return [*lines, *self._spectrum_rows(), *self._sharpness_rows(), *self._stability_rows()]

    def table(self, title: str = "Curvature report") -> Any:
        """Return the report as a ``rich.table.Table``.

        Raises
        ------
        ImportError
            Rich is not installed.
        """
        return row_table(self.rows(), title)

    def _repr_html_(self) -> str:
        """Return the table and the figure for notebooks."""
        from steppe._shared.shown_figures import image_of

        return html_table(self.rows(), caption="Curvature report") + image_of(self.figure())

    def __str__(self) -> str:
        """Return the report as lines of plain text."""
        return row_text(self.rows())

    def figure(self) -> "Figure":
        """Draw eigenvalues, spectral density, the loss along two lines, and the table.

        Raises
        ------
        ImportError
            Matplotlib is not installed.
        """
        figure = new_figure(None, (11.0, 7.6))
        (first, second), (third, fourth) = figure.subplots(2, 2)
        self._draw(first, self.top, Eigenvalues.plot)
        self._draw(second, self.density, Density.plot)
        self._draw_lines(third)
        fourth.axis("off")
        fourth.text(0.0, 1.0, str(self), family="monospace", fontsize=7.6, va="top")
        return figure

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the loss along the first eigenvector and along a random direction."""
        axes = axes_for(axes, "Loss along two directions")
        self._draw_lines(axes)
        return axes

    def _spectrum_rows(self) -> Iterator[tuple[str, str, str]]:
        if self.top is not None:
            for rank, pair in enumerate(zip(self.top.values, self.top.errors, strict=True), 1):
                # The eigenvalue of largest magnitude may be the most negative one.
                name = "λ_max" if rank == 1 and pair[0] >= 0 else f"λ_{rank}"
                yield name, with_error(*pair), remark_on(self.top, rank - 1)
        if self.bottom is not None:
            value, error = self.bottom.values[0], self.bottom.errors[0]
            yield "λ_min", with_error(value, error), remark_on(self.bottom)
        if self.trace is not None:
            found = self.trace
            yield "trace", with_error(found.value, found.stderr), remark_on(found)
            if self.top is not None and self.top.values[0] > 0:
                dimension = found.value / self.top.values[0]
                yield "trace / λ_max", f"{dimension:.3g}", "directions as sharp as the sharpest"

    def _sharpness_rows(self) -> Iterator[tuple[str, str, str]]:
        kinds = (("sharpness, SAM", self.worst), ("sharpness, ASAM", self.adaptive))
        for name, found in (*kinds, ("sharpness, average", self.average)):
            if found is not None:
                value = f"{found.value:.3g}"
                if found.stderr is not None:
                    value = with_error(found.value, found.stderr)
                yield name, value, f"rise at radius {found.rho:g}"

    def _stability_rows(self) -> Iterator[tuple[str, str, str]]:
        if self.preconditioned is None or self.threshold is None:
            return
        value, error = self.preconditioned.values[0], self.preconditioned.errors[0]
        share = value / self.threshold
        verdict = "stable" if share < 1.0 else "unstable"
        remark = remark_on(self.preconditioned) or "after the optimizer's preconditioner"
        yield "λ_max(PH)", with_error(value, error), remark
        name = "threshold of SAM" if self.is_sams else "threshold"
        yield name, f"{self.threshold:.4g}", f"λ_max(PH) is {share:.1%} of it: {verdict}"

    @staticmethod
    def _draw(axes: "Axes", found: Any, plot: Callable[[Any, "Axes"], Any]) -> None:
        if found is None:
            axes.axis("off")
        else:
            plot(found, axes)

    def _draw_lines(self, axes: "Axes") -> None:
        axes = axes_for(axes, "Loss along two directions")
        lines = (
            ("first eigenvector", self.steepest, RED),
            ("random", self.random, BLUE),
        )
        for name, found, colour in lines:
            if found is not None:
                axes.plot(found.coordinates, found.losses, color=colour, lw=1.7, label=name)
        if not axes.lines:
            axes.axis("off")
            return
        if needs_log_scale(np.concatenate([line.get_ydata() for line in axes.lines])):
            axes.set_yscale("log")
        axes.set_xlabel("distance from the parameters")
        axes.set_ylabel("mean loss")
        axes.legend(frameon=False)


def profile(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    optimizer: Optimizer | None = None,
    *,
    params: Params | None = None,
    train: bool = False,
    weight: Weight | None = None,
    product: Product = "double-backward",
    k: int = 5,
    rho: float = 0.05,
    seed: int = 0,
) -> CurvatureReport:
    """Measure how flat the loss is at a model's parameters, with all instruments.

    It takes about 300 products with the Hessian, which cost as much as some 700 gradients over all
    the data: pass a part of a large data set.

    Parameters
    ----------
    model, loss_fn, data, params, train, weight, product
        As in :func:`~steppe.landscape.hessian`.
    optimizer : Optimizer, optional
        Its state is the preconditioner, see :func:`~steppe.landscape.preconditioned`. Default: the
        report has no preconditioned eigenvalue.
    k : int, default 5
        Number of eigenvalues.
    rho : float, default 0.05
        Radius of SAM's and of the average sharpness, in the parameters' unit.
    seed : int, default 0
        Seed of all random vectors: the same seed gives the same report.

    Returns
    -------
    CurvatureReport
        ``print(report)`` prints the table, ``report.figure()`` draws the picture. On Ctrl-C the
        report has what was measured until then.

    Raises
    ------
    ValueError
        As the instruments do: the loss is not a scalar or not finite, the data is empty, the
        optimizer's preconditioner is unknown, ….

    Examples
    --------
    >>> model = nn.Linear(3, 1)
    >>> data = [(torch.randn(20, 3), torch.randn(20, 1))]
    >>> report = profile(model, nn.functional.mse_loss, data, k=2)
    >>> report.top.converged, report.trace.value > 0, report.complete
    (array([ True,  True]), True, True)
    """
    objective = Objective(model, loss_fn, data, params=params, train=train, weight=weight)
    objective.check_precision("profile")
    with objective.evaluation_mode():
        gradient, loss, samples, _ = objective.gradient()
    common: dict[str, Any] = {"params": objective.params, "train": train, "weight": weight}
    H = hessian(model, loss_fn, data, product=product, **common)
    operator = None if optimizer is None else preconditioned(H, optimizer)
    rise = partial(sharpness, model, loss_fn, data, seed=seed, **common)
    along = partial(line, model, loss_fn, data, reach=_REACH, points=_POINTS, **common)
    measured: dict[str, Any] = {}
    # In the order of importance, as Ctrl-C may end it.
    stages: dict[str, Callable[[], Any]] = {
        "top": lambda: _eigenvalues(H, min(k, H.size), "LM", seed),
        "bottom": lambda: _eigenvalues(H, 1, "SA", seed),
        "trace": lambda: trace(H, products=_TRACE_PRODUCTS, seed=seed),
        "density": lambda: density(H, probes=_PROBES, steps=_STEPS, seed=seed),
        "worst": lambda: rise(rho=rho),
        "adaptive": lambda: rise(rho=_ADAPTIVE_RHO, adaptive=True),
        "average": lambda: rise(rho=rho, kind="average"),
        "steepest": lambda: along(direction=_unit(measured["top"].vectors[:, 0])),
    }
    if any(param.ndim > 1 and param.any() for param in objective.params):
        stages["random"] = lambda: along(direction=_unit(_random_direction(objective, seed)))
    if operator is not None:
        stages["preconditioned"] = lambda: _eigenvalues(operator, 1, "LA", seed)
    return CurvatureReport(
        complete=run_stages(stages, measured),
        parameters=objective.size,
        samples=samples,
        train=train,
        loss=loss,
        gradient_norm=gradient.norm().item(),
        products=H.products,
        **_threshold(optimizer, operator, gradient.norm().item()),
        **measured,
    )


def _threshold(
    optimizer: Optimizer | None, operator: Preconditioned | None, gradient_norm: float
) -> dict[str, Any]:
    """Return the eigenvalue from which steps are unstable, and whether it is SAM's own."""
    if operator is None:
        return {}
    own = threshold_of_sam(optimizer, operator, gradient_norm)
    if own is None:
        return {"threshold": operator.threshold}
    return {"threshold": own * float(operator.diagonal[0]), "is_sams": True}


def _eigenvalues(H: Operator, count: int, which: Which, seed: int) -> Eigenvalues:
    return top_eigenvalues(H, count, which=which, seed=seed, max_products=MOST_PRODUCTS)


def _unit(direction: Tensor) -> Tensor:
    unit: Tensor = direction / direction.norm()
    return unit


def _random_direction(objective: Objective, seed: int) -> Tensor:
    return filter_normalised(objective, torch.Generator().manual_seed(checked_seed(seed)))
