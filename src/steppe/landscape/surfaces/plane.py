"""The loss along a line and on a plane through the parameters."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from steppe._shared.array_types import Floats
from steppe.landscape._objective import Batches, LossFunction, Objective
from steppe.landscape._result import Result, axes_for
from steppe.landscape.surfaces._directions import checked_direction, filter_normalised
from steppe.landscape.surfaces._scan import check_points, scan
from steppe.landscape.surfaces.trajectory import PCA, Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

# Part of the path's larger extent that a plane shows beyond it on each side.
_MARGIN = 0.2
# From this ratio of the largest to the smallest loss on, equal steps would show nothing near the
# minimum.
_WIDE = 20.0
_LEVELS = 20
# What lies deeper below the largest loss shares the lowest colour.
_DEPTH = 1e-4


@dataclass(frozen=True, eq=False)
class Line(Result):
    """What :func:`line` found.

    Attributes
    ----------
    coordinates : ndarray
        The steps a along the direction, shape (points,).
    losses : ndarray
        The mean loss at each; infinite where it overflows, NaN where it was not computed.
    loss : float
        The mean loss at the parameters as they are.
    samples : int
        How many samples the means are over.
    train : bool
        Whether the model was in ``train()`` mode.
    complete : bool
        Whether all points were computed.
    """

    coordinates: Floats
    losses: Floats
    loss: float
    samples: int
    train: bool
    complete: bool

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the loss along the line; the scale is logarithmic where its range is large."""
        axes = axes_for(axes, "Loss along a line")
        shown = np.isfinite(self.losses)
        losses = self.losses[shown]
        axes.plot(self.coordinates[shown], losses, color="#0072B2", lw=1.7)
        axes.plot(0.0, self.loss, "o", color="#D55E00", label="the parameters as they are")
        if is_wide(losses):
            axes.set_yscale("log")
        axes.set_xlim(self.coordinates[0], self.coordinates[-1])
        axes.set_xlabel("step along the direction, in its length")
        axes.set_ylabel("mean loss")
        axes.legend(frameon=False)
        return axes


@dataclass(frozen=True, eq=False)
class Plane(Result):
    """What :func:`plane` found.

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
        The mean loss at the centre: the parameters as they are, or the trajectory's last record.
    samples : int
        How many samples the means are over.
    path : ndarray or None
        Of a trajectory: the records' coordinates (a, b) in the plane, shape (records, 2).
    explained : ndarray or None
        Of a trajectory: the part of its squared distances that lies along each direction.
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
        """Draw contours of the loss, at equal ratios where its range is large, and the path.

        Grey is where the loss is not finite, or was not computed.
        """
        axes = axes_for(axes, "Loss on a plane")
        axes.set_facecolor("0.85")
        _draw_contours(axes, self)
        if self.path is not None:
            _draw_path(axes, self.path)
        else:
            axes.plot(0.0, 0.0, "o", color="#D55E00", mec="white")
        labels = ["step along the first direction", "step along the second direction"]
        if self.explained is not None:
            labels = [f"component {i} ({p:.1%})" for i, p in enumerate(self.explained, start=1)]
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        return axes


def line(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    *,
    direction: Tensor | None = None,
    reach: float = 1.0,
    points: int = 41,
    params: Iterable[Tensor] | None = None,
    train: bool = False,
    seed: int = 0,
) -> Line:
    r"""Take the mean loss along a line through the parameters.

    .. math:: a ↦ L(w + a \, d), \qquad a ∈ [-r, r]

    One pass over the data for each point. The model is left as found: mode, parameters, gradients,
    buffers and random state.

    Parameters
    ----------
    model, loss_fn, data, params, train
        As in :func:`hessian`.
    direction : Tensor, optional
        d, of shape (size,), in the order of ``params``: such as an eigenvector of the Hessian,
        ``top_eigenvalues(H).vectors[:, 0]``. Default: a random one, filter-normalised.
    reach : float, default 1.0
        r, in lengths of d; positive.
    points : int, default 41
        Number of points, evenly spaced, from 3; an odd number includes a = 0.
    seed : int, default 0
        Of the random direction. Same seed, same direction.

    Returns
    -------
    Line
        On Ctrl-C, what there is so far, marked as not complete.

    Raises
    ------
    ValueError
        ``direction``, ``reach`` or ``points`` is out of range, the loss at the parameters as they
        are is not finite, or as :func:`hessian` says of model and data.

    References
    ----------
    Li et al., *Visualizing the Loss Landscape of Neural Nets*, NeurIPS 2018, arXiv 1712.09913.

    Examples
    --------
    Of w²/2 at w = 0 along d = 2 it is (2a)²/2:

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> data = [(torch.ones(4, 1), torch.zeros(4, 1))]
    >>> found = line(model, half_square, data, direction=torch.tensor([2.0]), points=5)
    >>> found.coordinates, found.losses
    (array([-1. , -0.5,  0. ,  0.5,  1. ]), array([2. , 0.5, 0. , 0.5, 2. ]))
    """
    objective = Objective(model, loss_fn, data, params=params, train=train)
    coordinates = _steps(reach, points)
    if direction is None:
        direction = filter_normalised(objective, torch.Generator().manual_seed(seed))
    direction = checked_direction(objective, "direction", direction)
    with objective.at_work(moves=True):
        centre = objective.position()
        loss, samples = objective.loss()
        losses, complete = scan(
            objective,
            "Line",
            points,
            lambda i: objective.place(centre.add(direction, alpha=coordinates[i])),
        )
    return Line(coordinates, losses, loss, samples, train, complete)


def plane(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    *,
    directions: Sequence[Tensor] | Tensor | Trajectory | None = None,
    reach: float | None = None,
    points: int = 21,
    params: Iterable[Tensor] | None = None,
    train: bool = False,
    seed: int = 0,
) -> Plane:
    r"""Take the mean loss on a square grid in a plane.

    .. math:: (a, b) ↦ L(c + a \, d_1 + b \, d_2)

    One pass over the data for each of points² places, row by row. The model is left as found: mode,
    parameters, gradients, buffers and random state.

    Parameters
    ----------
    model, loss_fn, data, params, train
        As in :func:`hessian`.
    directions : pair of Tensor or Trajectory, optional
        d₁ and d₂, each of shape (size,), in the order of ``params``; c is then the parameters as
        they are. Of a trajectory, its two principal directions; c is then its last record, and
        what has not been recorded, such as running statistics, is as in ``model``. Default: two
        random directions, filter-normalised.
    reach : float, optional
        The grid goes from −reach to reach in both directions, in their lengths; positive. Default:
        1; of a trajectory, as far as its path with a margin.
    points : int, default 21
        Number of points in each direction, evenly spaced, from 3.
    seed : int, default 0
        Of the random directions. Same seed, same directions.

    Returns
    -------
    Plane
        On Ctrl-C, what there is so far, marked as not complete.

    Raises
    ------
    ValueError
        ``directions``, ``reach`` or ``points`` is out of range, the loss at the centre is not
        finite, or as :func:`hessian` says of model and data.

    References
    ----------
    Li et al., *Visualizing the Loss Landscape of Neural Nets*, NeurIPS 2018, arXiv 1712.09913.

    Examples
    --------
    Of (w₁² + 4 w₂²)/4 at 0:

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
    objective = Objective(model, loss_fn, data, params=params, train=train)
    check_points(points)
    pca = _principal(objective, directions) if isinstance(directions, Trajectory) else None
    if pca is None:
        d1, d2 = _pair(objective, directions, seed)
    else:
        d1, d2 = (row.to(objective.device, objective.dtype) for row in pca.directions)
    a, b = _grid(pca, reach, points)

    with objective.at_work(moves=True):
        if pca is not None:
            objective.place(pca.center.to(objective.device))
        centre = objective.position()
        loss, samples = objective.loss()

        def go_to(number: int) -> None:
            row, column = divmod(number, points)
            objective.place(centre.add(d1, alpha=a[column]).add_(d2, alpha=b[row]))

        losses, complete = scan(objective, "Plane", points * points, go_to)
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


def _steps(reach: float, points: int) -> Floats:
    """Return steps from −reach to reach, symmetric to the last bit."""
    check_points(points)
    if not (math.isfinite(reach) and reach > 0):
        raise ValueError(f"reach must be a finite number above 0, got {reach}")
    return reach * (np.arange(1 - points, points, 2) / (points - 1))


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
        generator = torch.Generator().manual_seed(seed)
        return filter_normalised(objective, generator), filter_normalised(objective, generator)
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
        steps = _steps(1.0 if reach is None else reach, points)
        return steps, steps
    lows, highs = pca.coordinates.min(axis=0), pca.coordinates.max(axis=0)
    margin = _MARGIN * (highs - lows).max()
    a, b = np.linspace(lows - margin, highs + margin, points).T
    return a, b


def is_wide(losses: Floats) -> bool:
    """Whether losses need a logarithmic scale to be seen."""
    return bool(losses.size and losses.min() > 0 and losses.max() > _WIDE * losses.min())


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
    if low >= 0 and high > _WIDE * low:
        levels = np.geomspace(max(low, _DEPTH * high), high, _LEVELS)
        return levels, LogNorm(levels[0], levels[-1])
    return np.linspace(low, high, _LEVELS), None


def _draw_path(axes: "Axes", path: Floats) -> None:
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=3.5, foreground="white")]
    axes.plot(*path.T, ".-", color="#D55E00", lw=2.0, ms=4, path_effects=outline)
    axes.plot(*path[0], "s", color="#D55E00", mec="white", ms=7, label="first record")
    axes.plot(*path[-1], "o", color="#D55E00", mec="white", ms=8, label="last record")
    axes.legend(fontsize=8)
