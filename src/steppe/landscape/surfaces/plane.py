"""The loss on a plane through the parameters, spanned by two directions or by a trajectory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from steppe._shared.array_types import Floats
from steppe._shared.validation import checked_seed
from steppe.landscape._drawing import RED, axes_for, spans_wide_range
from steppe.landscape.objective.batches import Batches
from steppe.landscape.objective.loss_weight import LossFunction, Weight
from steppe.landscape.objective.objective import Objective
from steppe.landscape.objective.parameter_choice import Params
from steppe.landscape.result import Result
from steppe.landscape.surfaces._directions import checked_direction, filter_normalised
from steppe.landscape.surfaces._scan import check_points, scan_losses, symmetric_steps
from steppe.landscape.surfaces.trajectory import PCA, Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

# Width beyond a trajectory's path on each side, as a part of the path's larger extent.
_MARGIN = 0.2
# Number of contours.
_LEVELS = 20
# Losses below this part of the largest share the lowest colour of a logarithmic scale.
_LOWEST_LEVEL = 1e-4


@dataclass(frozen=True, eq=False)
class Plane(Result):
    """The result of :func:`plane`.

    Attributes
    ----------
    a : ndarray
        Steps along the first direction, shape (points,): one for each column of ``losses``.
    b : ndarray
        Steps along the second direction, shape (points,): one for each row.
    losses : ndarray
        ``losses[i, j]`` is the mean loss at the centre + a[j]·d₁ + b[i]·d₂; infinite where it
        overflows, NaN where it was not computed.
    loss : float
        The mean loss at the centre: at the model's parameters, or the trajectory's last record.
    samples : int
        How many samples the means are over.
    path : ndarray or None
        For a trajectory, the records' coordinates (a, b) in the plane, shape (records, 2).
    explained : ndarray or None
        For a trajectory, the share of the records' squared distance from the centre along each
        direction, shape (2,).
    train : bool
        Whether the model was in ``train()`` mode.
    complete : bool
        Whether all points were computed.
    """

    a: Floats
    b: Floats
    losses: Floats
    loss: float
    samples: int
    path: Floats | None
    explained: Floats | None
    train: bool
    complete: bool

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw contours of the loss, and the path.

        Contours are at equal ratios where the loss ranges widely, else at equal distances. Grey
        areas are those where the loss is not finite, or was not computed.
        """
        axes = axes_for(axes, "Loss on a plane")
        axes.set_facecolor("0.85")
        _draw_contours(axes, self)
        if self.path is not None:
            _draw_path(axes, self.path)
        else:
            axes.plot(0.0, 0.0, "o", color=RED, mec="white")
        labels = ["step along the first direction", "step along the second direction"]
        if self.explained is not None:
            labels = [f"component {i} ({p:.1%})" for i, p in enumerate(self.explained, start=1)]
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        return axes


def plane(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    *,
    directions: Sequence[Tensor] | Tensor | Trajectory | None = None,
    reach: float | None = None,
    points: int = 21,
    params: Params | None = None,
    train: bool = False,
    weight: Weight | None = None,
    seed: int = 0,
) -> Plane:
    r"""Evaluate the mean loss on a square grid in a plane.

    .. math:: (a, b) ↦ L(c + a \, d_1 + b \, d_2)

    It costs one forward pass over the data for each of points² grid points. The model is restored
    afterwards: mode, parameters, gradients, buffers and random state.

    Parameters
    ----------
    model, loss_fn, data, params, train, weight
        As in :func:`~steppe.landscape.hessian`.
    directions : pair of Tensor or Trajectory, optional
        d₁ and d₂, each of shape (size,), in the order of ``params``; the centre c is then at the
        model's parameters. A trajectory stands for its two principal directions; c is then its
        last record, and what is not recorded, such as running statistics, is taken from ``model``.
        Default: two random directions, filter-normalised.
    reach : float, optional
        The grid goes from −reach to reach in both directions, in units of their lengths; positive.
        Default: 1; for a trajectory, as far as its path with a margin.
    points : int, default 21
        Number of evenly spaced points in each direction, at least 3.
    seed : int, default 0
        Seed of the random directions: the same seed gives the same directions on every device.

    Returns
    -------
    Plane
        On Ctrl-C the points evaluated so far, with ``complete=False``.

    Raises
    ------
    ValueError
        ``directions``, ``reach`` or ``points`` is out of range; the loss at the centre is not
        finite; or model or data is not as :func:`~steppe.landscape.hessian` asks.

    References
    ----------
    Li et al., *Visualizing the Loss Landscape of Neural Nets*, NeurIPS 2018, arXiv 1712.09913.

    Examples
    --------
    The loss (w₁² + 4 w₂²)/4 about 0:

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> data = [(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1))]
    >>> found = plane(model, half_square, data, directions=torch.eye(2), reach=2.0, points=3)
    >>> found.losses
    array([[5., 4., 5.],
           [1., 0., 1.],
           [5., 4., 5.]])
    """
    objective = Objective(model, loss_fn, data, params=params, train=train, weight=weight)
    check_points(points)
    pca = _principal(objective, directions) if isinstance(directions, Trajectory) else None
    if pca is None:
        d1, d2 = _pair(objective, directions, seed)
    else:
        d1, d2 = (row.to(objective.device, objective.dtype) for row in pca.directions)
    a, b = _grid(pca, reach, points)

    with objective.evaluation_mode(moves_params=True):
        if pca is not None:
            objective.set_parameters(pca.center.to(objective.device))
        centre = objective.parameter_vector()
        loss, samples, _ = objective.loss()

        def loss_at(index: int) -> float:
            row, column = divmod(index, points)
            objective.set_parameters(centre.add(d1, alpha=a[column]).add_(d2, alpha=b[row]))
            return objective.loss(require_finite=False).loss

        losses, complete = scan_losses("Plane", points * points, loss_at)
    return Plane(
        a=a,
        b=b,
        losses=losses.reshape(points, points),
        loss=loss,
        samples=samples,
        path=pca.coordinates if pca else None,
        explained=pca.explained if pca else None,
        train=train,
        complete=complete,
    )


def _principal(objective: Objective, trajectory: Trajectory) -> PCA:
    pca = trajectory.pca()
    size = pca.directions.shape[1]
    if size != objective.size:
        raise ValueError(
            f"directions is a trajectory of {size} elements, params have {objective.size}: record "
            "the same parameters"
        )
    return pca


def _pair(objective: Objective, directions: Any, seed: int) -> tuple[Tensor, Tensor]:
    if directions is None:
        generator = torch.Generator().manual_seed(checked_seed(seed))
        return filter_normalised(objective, generator), filter_normalised(objective, generator)
    if not isinstance(directions, Tensor | Sequence):
        raise TypeError(
            "directions must be two vectors or a Trajectory, got " + type(directions).__name__
        )
    if len(directions) != 2:
        raise ValueError(
            f"directions has {len(directions)} elements, expected two vectors (the rows of a "
            "matrix) or a Trajectory"
        )
    d1, d2 = (checked_direction(objective, f"directions[{i}]", directions[i]) for i in (0, 1))
    if abs(torch.cosine_similarity(d1.double(), d2.double(), dim=0).item()) > 1 - 1e-9:
        raise ValueError("directions are parallel: they span no plane")
    return d1, d2


def _grid(pca: PCA | None, reach: float | None, points: int) -> tuple[Floats, Floats]:
    if pca is None or reach is not None:
        steps = symmetric_steps(1.0 if reach is None else reach, points)
        return steps, steps
    lows, highs = pca.coordinates.min(axis=0), pca.coordinates.max(axis=0)
    margin = _MARGIN * (highs - lows).max()
    a, b = np.linspace(lows - margin, highs + margin, points).T
    return a, b


def _draw_contours(axes: "Axes", plane: Plane) -> None:
    from matplotlib.ticker import FormatStrFormatter

    shown = np.isfinite(plane.losses)
    if np.unique(plane.losses[shown]).size < 2:
        axes.set_xlim(plane.a[0], plane.a[-1])
        axes.set_ylim(plane.b[0], plane.b[-1])
        return
    levels, norm = _levels(plane.losses[shown])
    losses = np.ma.array(np.maximum(plane.losses, levels[0]), mask=~shown)
    filled = axes.contourf(plane.a, plane.b, losses, levels, norm=norm, cmap="cividis")
    axes.contour(plane.a, plane.b, losses, levels, colors="white", linewidths=0.4, alpha=0.6)
    bar = axes.figure.colorbar(
        filled, ax=axes, label="mean loss", ticks=levels[::3], format=FormatStrFormatter("%.3g")
    )
    bar.ax.minorticks_off()


def _levels(losses: Floats) -> tuple[Floats, "Normalize | None"]:
    from matplotlib.colors import LogNorm

    low, high = losses.min(), losses.max()
    if low >= 0 and spans_wide_range(low, high):
        levels = np.geomspace(max(low, _LOWEST_LEVEL * high), high, _LEVELS)
        return levels, LogNorm(levels[0], levels[-1])
    return np.linspace(low, high, _LEVELS), None


def _draw_path(axes: "Axes", path: Floats) -> None:
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=3.5, foreground="white")]
    axes.plot(*path.T, ".-", color=RED, lw=2.0, ms=4, path_effects=outline)
    axes.plot(*path[0], "s", color=RED, mec="white", ms=7, label="first record")
    axes.plot(*path[-1], "o", color=RED, mec="white", ms=8, label="last record")
    axes.legend(fontsize=8)
