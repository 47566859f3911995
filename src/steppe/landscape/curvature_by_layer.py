"""Curvature layer by layer: the blocks on the Hessian's diagonal, and what lies between them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from steppe._shared.notebook_tables import html_table
from steppe._shared.pictures import new_figure, style_axes
from steppe._shared.progress import progress
from steppe._shared.validation import check_integer
from steppe.landscape._drawing import BLUE, axes_for, needs_log_scale
from steppe.landscape.objective.batches import Batches
from steppe.landscape.objective.layers import Layers, layers_of
from steppe.landscape.objective.loss_weight import LossFunction, Weight
from steppe.landscape.objective.objective import Objective
from steppe.landscape.objective.parameter_choice import Params
from steppe.landscape.operators.hessian import Product, hessian
from steppe.landscape.operators.operator import Operator
from steppe.landscape.result import Result
from steppe.landscape.spectra.block_norms import BlockNorms, block_norms
from steppe.landscape.spectra.eigenvalues import Eigenvalues, top_eigenvalues
from steppe.landscape.spectra.trace import Trace, trace
from steppe.landscape.stages import (
    MOST_PRODUCTS,
    is_complete,
    is_interrupted,
    remark_on,
    run_stages,
    with_error,
)
from steppe.landscape.surfaces.sharpness import Sharpness, sharpness

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEAD = ("layer", "parameters", "λ_max", "trace", "share", "sharpness", "remark")


@dataclass(frozen=True, eq=False)
class LayerCurvature(Result):
    """How sharp the loss is in one layer's parameters, all others kept.

    Attributes
    ----------
    name : str
        The layer's.
    parameters : int
        Number of its elements.
    top : Eigenvalues
        The largest eigenvalue of its block of the Hessian, and the eigenvector.
    trace : Trace
        The block's trace.
    sharpness : Sharpness
        SAM's: how much the loss rises a distance ρ up the gradient by the layer's parameters.
    """

    name: str
    parameters: int
    top: Eigenvalues
    trace: Trace
    sharpness: Sharpness

    @property
    def is_complete(self) -> bool:
        """Whether all has converged."""
        return all(map(is_complete, (self.top, self.trace, self.sharpness)))


@dataclass(frozen=True, eq=False)
class CurvatureByLayer(Result):
    """The result of :func:`by_layer`.

    Attributes
    ----------
    layers : tuple of LayerCurvature
        In the model's order.
    between : BlockNorms or None
        ‖H_ij‖_F for layers i and j, and the share of ‖H‖_F² that lies between layers; None where
        it was not asked for.
    products : int
        How many products with a block, or with the whole Hessian, it took.
    complete : bool
        Whether everything was measured and has converged.
    """

    layers: tuple[LayerCurvature, ...]
    between: BlockNorms | None = field(repr=False)
    products: int
    complete: bool

    def __getitem__(self, name: str) -> LayerCurvature:
        """Return a layer by its name.

        Raises
        ------
        KeyError
            There is none; the message lists all.
        """
        for each in self.layers:
            if each.name == name:
                return each
        raise KeyError(f"no layer is called {name!r}: {', '.join(x.name for x in self.layers)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, ready for ``json.dumps``."""
        return {**super().to_dict(), "layers": [each.to_dict() for each in self.layers]}

    def rows(self) -> list[tuple[str, ...]]:
        """Return a line for each layer: name, size, λ_max, trace, its share, sharpness, remark."""
        whole = sum(each.trace.value for each in self.layers)
        return [
            (
                each.name,
                f"{each.parameters:,}",
                with_error(each.top.values[0], each.top.errors[0]),
                with_error(each.trace.value, each.trace.stderr),
                f"{each.trace.value / whole:.1%}" if whole > 0 else "",
                f"{each.sharpness.value:.3g}",
                remark_on(each.top) or remark_on(each.trace),
            )
            for each in self.layers
        ]

    def __str__(self) -> str:
        """Return the table as lines of plain text, and below it what lies between layers."""
        rows = [_HEAD, *self.rows()]
        if not any(row[-1] for row in rows[1:]):
            rows = [row[:-1] for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for name, *cells in rows:
            shown = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *shown]).rstrip())
        return "\n".join([*lines, *self._below()])

    def _below(self) -> Iterator[str]:
        if self.between is not None:
            share, error = self.between.off_diagonal, self.between.off_diagonal_error
            yield f"between layers: {with_error(100 * share, 100 * error)} % of ‖H‖_F²"

    def _repr_html_(self) -> str:
        """Return the table and the figure for notebooks."""
        from steppe._shared.shown_figures import image_of

        caption = ". ".join(["Curvature by layer", *self._below()])
        head = dict.fromkeys(_HEAD, "")
        return html_table(self.rows(), head, caption=caption) + image_of(self.figure())

    def figure(self) -> "Figure":
        """Draw λ_max, trace and sharpness of each layer, and what lies between layers.

        Raises
        ------
        ImportError
            Matplotlib is not installed.
        """
        count = 3 if self.between is None else 4
        figure = new_figure("Curvature by layer", (3.6 * count, 1.8 + 0.22 * len(self.layers)))
        first, second, third, *last = figure.subplots(1, count)
        self.plot(first)
        traces = [(each.trace.value, each.trace.stderr) for each in self.layers]
        self._draw(second, "trace", traces)
        title = f"sharpness, ρ = {self.layers[0].sharpness.rho:g}"
        self._draw(third, title, [(each.sharpness.value, 0.0) for each in self.layers])
        for axes in (second, third):
            axes.tick_params(labelleft=False)
        for axes in last:
            self._draw_between(axes)
        return figure

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the largest eigenvalue of each layer's block, with its error."""
        axes = axes_for(axes, "λ_max")
        pairs = [(each.top.values[0], each.top.errors[0]) for each in self.layers]
        self._draw(axes, "λ_max", pairs)
        return axes

    def _draw(self, axes: "Axes", what: str, pairs: Sequence[tuple[float, float]]) -> None:
        style_axes(axes, what, grid="x")
        values, errors = np.array(pairs).T
        places = np.arange(len(values))
        axes.errorbar(values, places, xerr=errors, fmt="o", ms=4, color=BLUE, lw=1.2)
        axes.set_yticks(places, [each.name for each in self.layers], fontsize=7)
        axes.set_ylim(len(values) - 0.5, -0.5)
        if needs_log_scale(values):
            axes.set_xscale("log")

    def _draw_between(self, axes: "Axes") -> None:
        assert self.between is not None
        style_axes(axes, "between layers", grid=None)
        norms = self.between.norms
        own = np.sqrt(np.clip(np.diag(norms), np.finfo(float).tiny, None))
        image = axes.imshow(norms / np.outer(own, own), vmin=0.0, vmax=1.0, cmap="Blues")
        axes.set_aspect("auto")
        names = [each.name for each in self.layers]
        axes.set_yticks(range(len(names)), [])
        axes.set_xticks(range(len(names)), names, fontsize=7, rotation=90)
        axes.figure.colorbar(image, ax=axes, label="‖H_ij‖ / √(‖H_ii‖·‖H_jj‖)")


def by_layer(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    *,
    layers: Layers | None = None,
    params: Params | None = None,
    train: bool = False,
    weight: Weight | None = None,
    product: Product = "double-backward",
    trace_products: int = 30,
    rho: float = 0.05,
    between: int = 0,
    seed: int = 0,
) -> CurvatureByLayer:
    r"""Measure how sharp the loss is in each layer's parameters alone, all others kept.

    Of each layer i it finds the largest eigenvalue and the trace of its block H_ii of the Hessian,
    and SAM's sharpness. A layer takes about 50 products with its block, which cost the less, the
    nearer it is to the outputs.

    Parameters
    ----------
    model, loss_fn, data, params, train, weight, product
        As in :func:`~steppe.landscape.hessian`; what ``params`` does not choose is in no layer.
    layers : type, tuple of types or mapping, optional
        What a layer is. A type of modules, such as ``nn.TransformerEncoderLayer``, or several: each
        such module with all that is inside, and beside them each module outside that holds
        parameters itself. A mapping from names of your own to what chooses parameters, as
        ``params`` does: these alone. Default: each module that holds parameters itself. Parameters
        that the model itself holds are a layer each.
    trace_products : int, default 30
        Products for each trace, at least 6.
    rho : float, default 0.05
        ρ of the sharpness, in the parameters' unit.
    between : int, default 0
        Estimate how much of the Hessian lies between layers, by so many random vectors for each
        layer: E‖H_ij z‖² = ‖H_ij‖_F² for z of random signs. Each takes a product with the whole
        Hessian, and errors take two of them. 0 leaves it out.
    seed : int, default 0
        Seed of all random vectors: the same seed gives the same result.

    Returns
    -------
    CurvatureByLayer
        ``print(result)`` prints the table, ``result.figure()`` draws the picture. On Ctrl-C it has
        the layers that were measured until then, with ``complete=False``.

    Raises
    ------
    ValueError
        As the instruments do; or ``layers`` chooses none, or two layers have the same parameter.
    TypeError
        ``layers`` is neither a type of modules nor a mapping, or a number is no integer.
    KeyboardInterrupt
        Ctrl-C came before the first layer was measured.

    References
    ----------
    Wang et al., *The Sharpness Disparity Principle in Transformers for Accelerating Language Model
    Pre-Training*, arXiv 2502.19002, on sharpness by kinds of blocks.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    >>> data = [(torch.randn(20, 3), torch.randn(20, 1))]
    >>> found = by_layer(model, nn.functional.mse_loss, data, between=4)
    >>> [each.name for each in found.layers], found.between.norms.shape
    (['0', '2'], (2, 2))
    """
    check_integer(0, between=between)
    objective = Objective(model, loss_fn, data, params=params, train=train, weight=weight)
    objective.check_precision("by_layer")
    members = layers_of(objective.model, objective.params, layers)
    common: dict[str, Any] = {"train": train, "weight": weight}
    operators: list[Operator] = []

    def block(own: list[Tensor]) -> Operator:
        operators.append(hessian(model, loss_fn, data, params=own, product=product, **common))
        return operators[-1]

    measured: list[LayerCurvature] = []
    norms = None
    with progress("curvature by layer", len(members) + bool(between)) as advance:
        try:
            for name, own in members.items():
                rise = partial(sharpness, model, loss_fn, data, rho=rho, params=own, **common)
                measured.append(_measured(name, block(own), rise, trace_products, seed))
                advance(1)
            if between:
                whole = block([param for own in members.values() for param in own])
                sizes = [sum(param.numel() for param in own) for own in members.values()]
                norms = block_norms(whole, sizes, int(between), seed)
            is_whole = True
        except KeyboardInterrupt:
            if not measured:
                raise
            is_whole = False
    return CurvatureByLayer(
        layers=tuple(measured),
        between=norms,
        products=sum(each.products for each in operators),
        complete=is_whole and all(each.is_complete for each in measured),
    )


def _measured(
    name: str, H: Operator, rise: Callable[[], Sharpness], trace_products: int, seed: int
) -> LayerCurvature:
    """Measure a layer; raise KeyboardInterrupt where Ctrl-C has stopped an instrument."""
    found: dict[str, Any] = {}
    stages: dict[str, Callable[[], Any]] = {
        "top": lambda: top_eigenvalues(H, 1, which="LA", seed=seed, max_products=MOST_PRODUCTS),
        "trace": lambda: trace(H, products=trace_products, seed=seed),
        "sharpness": rise,
    }
    run_stages(stages, found)
    if len(found) < len(stages) or is_interrupted(found["sharpness"]):
        raise KeyboardInterrupt
    return LayerCurvature(name=name, parameters=H.size, **found)
