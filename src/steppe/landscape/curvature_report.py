"""The report card of a minimum: everything that is measured about it, in one call."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steppe.landscape._objective import Batches, LossFunction, Objective
from steppe.landscape._result import Result, axes_for, new_figure
from steppe.landscape.operators.hessian import hessian
from steppe.landscape.operators.operator import Operator
from steppe.landscape.operators.preconditioned import preconditioned
from steppe.landscape.sharpness import Sharpness, sharpness
from steppe.landscape.spectra.density import Density, density
from steppe.landscape.spectra.eigenvalues import Eigenvalues, Which, top_eigenvalues
from steppe.landscape.spectra.trace import Trace, trace
from steppe.landscape.surfaces._directions import filter_normalised
from steppe.landscape.surfaces.surface import Line, is_wide, line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ASAM's radius is in units of the parameters' size, and ten times SAM's in its paper.
_ADAPTIVE_RHO = 0.5
_TRACE_PRODUCTS = 60
_PROBES, _STEPS = 5, 40
_POINTS = 25
_MOST_PRODUCTS = 300
# How far the lines go, in the parameters' unit.
_REACH = 1.0


@dataclass(frozen=True, eq=False)
class CurvatureReport(Result):
    """What :func:`profile` measured; None is what Ctrl-C, or the lack of an optimizer, left out.

    Attributes
    ----------
    parameters, samples : int
        How many there are.
    train : bool
        Whether the model was in ``train()`` mode.
    loss, gradient_norm : float
        Where the parameters are.
    top : Eigenvalues
        The Hessian's eigenvalues of largest magnitude.
    bottom : Eigenvalues
        Its smallest one, with sign: negative at a saddle.
    trace : Trace
        Its trace.
    density : Density
        How all its eigenvalues are distributed.
    worst, adaptive, average : Sharpness
        SAM's sharpness, ASAM's at radius 0.5, and the mean rise in random directions.
    preconditioned : Eigenvalues
        The largest eigenvalue after the optimizer's preconditioner.
    threshold : float
        Where that stops being stable.
    steepest, random : Line
        The loss along the first eigenvector, and along a random filter-normalised direction, to
        distance 1; there is no random one where no parameter has filters.
    products : int
        How many products with the Hessian it took.
    complete : bool
        Whether all was measured, and has converged.
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
    steepest: Line | None = field(default=None, repr=False)
    random: Line | None = field(default=None, repr=False)

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the card's lines: what, its value with its error, and a remark."""
        mode = "train" if self.train else "eval"
        lines = [
            ("loss", f"{self.loss:.4g}", f"{self.samples} samples, {mode}() mode"),
            ("gradient norm", f"{self.gradient_norm:.3g}", f"{self.parameters} parameters"),
        ]
        return [*lines, *self._spectrum(), *self._rises(), *self._stability()]

    def table(self, title: str = "CurvatureReport") -> Any:
        """Return the card as a ``rich.table.Table``.

        Raises
        ------
        ImportError
            Rich is not installed.
        """
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
        table.add_column("")
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("")
        for row in self.rows():
            table.add_row(*row)
        return table

    def __str__(self) -> str:
        """Lay the card out as plain text."""
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        lines = (f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows)
        return "\n".join(lines)

    def figure(self) -> "Figure":
        """Draw the card: eigenvalues, spectral density, loss along two lines, and the table."""
        figure = new_figure(11.0, 7.6)
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

    def _spectrum(self) -> Iterator[tuple[str, str, str]]:
        if self.top is not None:
            for number, row in enumerate(zip(self.top.values, self.top.errors, strict=True), 1):
                # The one of largest magnitude may be the most negative.
                name = "λ_max" if number == 1 and row[0] >= 0 else f"λ_{number}"
                yield name, _with_error(*row), _unless(self.top.converged[number - 1])
        if self.bottom is not None:
            value, error = self.bottom.values[0], self.bottom.errors[0]
            yield "λ_min", _with_error(value, error), _unless(self.bottom.converged[0])
        if self.trace is not None:
            found = self.trace
            yield "trace", _with_error(found.value, found.stderr), _unless(found.converged)
            if self.top is not None and self.top.values[0] > 0:
                dimension = found.value / self.top.values[0]
                yield "trace / λ_max", f"{dimension:.3g}", "directions as sharp as the sharpest"

    def _rises(self) -> Iterator[tuple[str, str, str]]:
        kinds = (("sharpness, SAM", self.worst), ("sharpness, ASAM", self.adaptive))
        for name, found in (*kinds, ("sharpness, average", self.average)):
            if found is not None:
                value = f"{found.value:.3g}"
                if found.stderr is not None:
                    value = _with_error(found.value, found.stderr)
                yield name, value, f"rise at radius {found.rho:g}"

    def _stability(self) -> Iterator[tuple[str, str, str]]:
        if self.preconditioned is None or self.threshold is None:
            return
        value, error = self.preconditioned.values[0], self.preconditioned.errors[0]
        share = value / self.threshold
        verdict = "stable" if share < 1.0 else "unstable"
        yield "λ_max(PH)", _with_error(value, error), "after the optimizer's preconditioner"
        yield "threshold", f"{self.threshold:.4g}", f"λ_max(PH) is {share:.1%} of it: {verdict}"

    @staticmethod
    def _draw(axes: "Axes", found: Any, plot: Callable[[Any, "Axes"], Any]) -> None:
        if found is None:
            axes.axis("off")
        else:
            plot(found, axes)

    def _draw_lines(self, axes: "Axes") -> None:
        axes = axes_for(axes, "Loss along two directions")
        lines = (
            ("first eigenvector", self.steepest, "#D55E00"),
            ("random", self.random, "#0072B2"),
        )
        for name, found, colour in lines:
            if found is not None:
                axes.plot(found.coordinates, found.losses, color=colour, lw=1.7, label=name)
        if not axes.lines:
            axes.axis("off")
            return
        if is_wide(np.concatenate([line.get_ydata() for line in axes.lines])):
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
    params: Iterable[Tensor] | None = None,
    train: bool = False,
    k: int = 5,
    rho: float = 0.05,
    seed: int = 0,
) -> CurvatureReport:
    """Measure how flat the loss is where a model's parameters are.

    About 300 products with the Hessian, which are some 700 gradients over all the data: give it a
    part of a large data set.

    Parameters
    ----------
    model, loss_fn, data, params, train
        As in :func:`~steppe.landscape.hessian`.
    optimizer : Optimizer, optional
        Its state is the preconditioner, see :func:`~steppe.landscape.preconditioned`.
    k : int, default 5
        How many eigenvalues.
    rho : float, default 0.05
        Radius of SAM's and of the average sharpness.
    seed : int
        Of all random vectors. Same seed, same card.

    Returns
    -------
    Profile
        ``print(card)`` is the table, ``card.figure()`` the picture. On Ctrl-C the card has what was
        measured until then.

    Raises
    ------
    ValueError
        As the parts do: the loss is not a scalar or not finite, the data is empty, the optimizer is
        none whose preconditioner is known, ….

    Examples
    --------
    >>> model = nn.Linear(3, 1)
    >>> data = [(torch.randn(20, 3), torch.randn(20, 1))]
    >>> card = profile(model, nn.functional.mse_loss, data, k=2)
    >>> card.top.converged, card.trace.value > 0, card.complete
    (array([ True,  True]), True, True)
    """
    objective = Objective(model, loss_fn, data, params=params, train=train)
    # What sharpness would say when the spectrum has been measured.
    objective.check_width("profile")
    with objective.at_work():
        gradient, loss, samples = objective.gradient()
    options = {"params": objective.params, "train": train}
    H = hessian(model, loss_fn, data, **options)  # type: ignore[arg-type]
    operator = None if optimizer is None else preconditioned(H, optimizer)
    found: dict[str, Any] = {}

    def eigenvalues(of: Operator, count: int, which: Which) -> Eigenvalues:
        return top_eigenvalues(of, count, which=which, seed=seed, max_products=_MOST_PRODUCTS)

    def rise(**how: Any) -> Sharpness:
        return sharpness(model, loss_fn, data, **options, seed=seed, **how)  # type: ignore[arg-type]

    def along(direction: Tensor) -> Line:
        unit = direction / direction.norm()
        return line(model, loss_fn, data, direction=unit, reach=_REACH, points=_POINTS, **options)  # type: ignore[arg-type]

    stages: dict[str, Callable[[], Any]] = {
        "top": lambda: eigenvalues(H, min(k, H.size), "LM"),
        "bottom": lambda: eigenvalues(H, 1, "SA"),
        "trace": lambda: trace(H, products=_TRACE_PRODUCTS, seed=seed),
        "density": lambda: density(H, probes=_PROBES, steps=_STEPS, seed=seed),
        "worst": lambda: rise(rho=rho),
        "adaptive": lambda: rise(rho=_ADAPTIVE_RHO, adaptive=True),
        "average": lambda: rise(rho=rho, kind="average"),
        "steepest": lambda: along(found["top"].vectors[:, 0]),
    }
    if any(param.ndim > 1 and param.any() for param in objective.params):
        stages["random"] = lambda: along(_random(objective, seed))
    if operator is not None:
        stages["preconditioned"] = lambda: eigenvalues(operator, 1, "LA")
    complete = _measure(stages, found)
    return CurvatureReport(
        parameters=objective.size,
        samples=samples,
        train=train,
        loss=loss,
        gradient_norm=gradient.norm().item(),
        products=H.products,
        complete=complete,
        threshold=None if operator is None else operator.threshold,
        **found,
    )


def _measure(stages: dict[str, Callable[[], Any]], found: dict[str, Any]) -> bool:
    """Go through the stages until Ctrl-C; return whether all is there and has converged."""
    for name, stage in stages.items():
        try:
            found[name] = stage()
        except KeyboardInterrupt:
            return False
        if _is_interrupted(found[name]):
            return False
    return all(_is_whole(result) for result in found.values())


def _is_whole(result: Any) -> bool:
    return bool(np.all(getattr(result, "converged", True)) and getattr(result, "complete", True))


def _is_interrupted(result: Any) -> bool:
    """Whether it was Ctrl-C that ended it: eigenvalues may also have been given up."""
    gave_up = isinstance(result, Eigenvalues) and result.products >= _MOST_PRODUCTS
    return not (_is_whole(result) or gave_up)


def _random(objective: Objective, seed: int) -> Tensor:
    return filter_normalised(objective, torch.Generator().manual_seed(seed))


def _with_error(value: float, error: float) -> str:
    """Write a value with its error to two digits, or to four digits where the error is smaller.

    >>> _with_error(12.345, 0.0678), _with_error(8.21638, 5e-8), _with_error(0.5, float("nan"))
    ('12.345 ± 0.068', '8.216', '0.5')
    >>> _with_error(0.0, 0.0), _with_error(1.234e20, 5e18)
    ('0', '1.2e+20 ± 5e+18')
    """
    if not np.isfinite(error) or error <= 1e-4 * abs(value):
        return f"{value:.4g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    if digits > 5 or abs(value) >= 1e7:
        return f"{value:.1e} ± {error:.0e}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _unless(converged: bool) -> str:
    return "" if converged else "not converged"
