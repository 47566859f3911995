"""How high the loss rises on the straight line from one model to another."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from steppe._shared.array_types import Floats
from steppe.landscape._drawing import BLUE, RED, axes_for
from steppe.landscape.objective.batches import Batches
from steppe.landscape.objective.loss_weight import LossFunction, Weight
from steppe.landscape.objective.objective import MeanLoss, Objective
from steppe.landscape.result import Result
from steppe.landscape.surfaces._interpolation import interpolation
from steppe.landscape.surfaces._scan import check_points, scan_losses

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Barrier(Result):
    """The result of :func:`barrier`.

    Attributes
    ----------
    height : float
        How far the loss rises above the linear interpolation of the two models' losses, in the
        loss's own unit; 0 if it never rises above it.
    where : float
        The t of the highest rise; 0 is the first model, 1 the second.
    coordinates : ndarray
        The t of each point, shape (points,).
    losses : ndarray
        The mean loss at each point; infinite where it overflows, NaN where it was not computed.
    samples : int
        How many samples the means are over.
    train : bool
        Whether the models were evaluated in ``train()`` mode.
    complete : bool
        Whether all points were computed. If not, ``height`` and ``where`` are those of the points
        that were.
    """

    height: float
    where: float
    coordinates: Floats
    losses: Floats
    samples: int
    train: bool
    complete: bool

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the loss between the models, its linear interpolation, and the height."""
        axes = axes_for(axes, "Loss between two models")
        shown = np.isfinite(self.losses)
        axes.plot(self.coordinates[shown], self.losses[shown], color=BLUE, lw=1.7)
        model_losses = self.losses[[0, -1]]
        axes.plot([0, 1], model_losses, "o--", color="0.45", lw=1.0, ms=5)
        if 0 < self.height < np.inf:
            base = np.interp(self.where, [0, 1], model_losses)
            axes.plot(
                [self.where] * 2,
                [base, base + self.height],
                "-",
                color=RED,
                lw=1.5,
                label=f"barrier {self.height:.3g}",
            )
            axes.legend(frameon=False)
        axes.set_xlabel("t, from the first model (0) to the second (1)")
        axes.set_ylabel("mean loss")
        return axes


def barrier(
    model_a: nn.Module,
    model_b: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    *,
    points: int = 25,
    train: bool = False,
    weight: Weight | None = None,
) -> Barrier:
    r"""Measure the loss barrier on the straight line from one model to another.

    .. math:: \max_t \; L(t) - \bigl((1 - t) \, L(0) + t \, L(1)\bigr), \qquad t ∈ [0, 1]

    with L(t) the mean loss at (1 − t)·a + t·b, where a and b are all parameters and all
    floating-point buffers of the two models; other buffers are those of ``model_a``. Models without
    a barrier are linearly mode-connected. ``model_a`` itself is moved, so that a loss that reads
    its parameters (an L2 penalty) is that of each point, and is restored afterwards.

    Parameters
    ----------
    model_a, model_b : nn.Module
        Two models of one architecture, called as in :func:`~steppe.landscape.hessian`.
    loss_fn, data, weight
        As in :func:`~steppe.landscape.hessian`. Each point takes one forward pass over the data.
    points : int, default 25
        Number of evenly spaced points, both models included; at least 3.
    train : bool, default False
        Evaluate in ``train()`` mode. Default: ``eval()`` mode.

    Returns
    -------
    Barrier
        On Ctrl-C the points evaluated so far, with ``complete=False``.

    Raises
    ------
    TypeError
        ``model_a`` or ``model_b`` is no module.
    ValueError
        The models' parameters or buffers differ in name or shape; ``points`` is out of range; the
        loss of ``model_a`` or ``model_b`` is not finite; or the data is not as
        :func:`~steppe.landscape.hessian` asks.

    Notes
    -----
    With BatchNorm, ``eval()`` uses running statistics that are interpolated as well. These are not
    the statistics of the interpolated network, whose activations vary less than either model's:
    part of such a barrier comes from that alone, and disappears when the statistics are computed
    anew (REPAIR). ``train=True`` uses each batch's own statistics instead.

    References
    ----------
    Frankle et al., *Linear Mode Connectivity and the Lottery Ticket Hypothesis*, ICML 2020, arXiv
    1912.05671. Jordan et al., *REPAIR: REnormalizing Permuted Activations for Interpolation
    Repair*, ICLR 2023, arXiv 2211.08403.

    Examples
    --------
    Between −1 and 1 the double well (w² − 1)² rises by 1:

    >>> import torch
    >>> left, right = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(left.weight, -1.0), nn.init.constant_(right.weight, 1.0)
    >>> double_well = lambda outputs, targets: (outputs.square() - 1).square().mean()
    >>> found = barrier(left, right, double_well, [(torch.ones(4, 1), torch.zeros(4, 1))])
    >>> found.height, found.where
    (1.0, 0.5)
    """
    check_points(points)
    coordinates = np.arange(points) / (points - 1)
    with interpolation(model_a, model_b) as go_to:
        objective = Objective(model_a, loss_fn, data, train=train, weight=weight)

        def loss_at(t: float, *, require_finite: bool = True) -> MeanLoss:
            go_to(t)
            # At each point: a model may compute weights anew when its mode is set.
            with objective.evaluation_mode():
                objective.compares_losses = True
                return objective.loss(require_finite=require_finite)

        (loss_a, samples, _), (loss_b, *_) = loss_at(0.0), loss_at(1.0)
        inner, complete = scan_losses(
            "Barrier",
            points - 2,
            lambda i: loss_at(coordinates[i + 1], require_finite=False).loss,
        )
    losses = np.array([loss_a, *inner, loss_b])
    rises = losses - ((1 - coordinates) * loss_a + coordinates * loss_b)
    highest = int(np.nanargmax(rises))
    return Barrier(
        height=float(rises[highest]),
        where=float(coordinates[highest]),
        coordinates=coordinates,
        losses=losses,
        samples=samples,
        train=train,
        complete=complete,
    )
