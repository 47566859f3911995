"""The loss along a line through the parameters."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from steppe._shared.array_types import Floats
from steppe._shared.validation import checked_seed
from steppe.landscape._drawing import BLUE, RED, axes_for, needs_log_scale
from steppe.landscape.objective.batches import Batches
from steppe.landscape.objective.loss_weight import LossFunction, Weight
from steppe.landscape.objective.objective import Objective
from steppe.landscape.objective.parameter_choice import Params
from steppe.landscape.result import Result
from steppe.landscape.surfaces._directions import checked_direction, filter_normalised
from steppe.landscape.surfaces._scan import scan_losses, symmetric_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Line(Result):
    """The result of :func:`line`.

    Attributes
    ----------
    coordinates : ndarray
        The steps a along the direction, shape (points,).
    losses : ndarray
        The mean loss at each; infinite where it overflows, NaN where it was not computed.
    loss : float
        The mean loss at the model's own parameters.
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
        axes.plot(self.coordinates[shown], losses, color=BLUE, lw=1.7)
        axes.plot(0.0, self.loss, "o", color=RED, label="the parameters as they are")
        if needs_log_scale(losses):
            axes.set_yscale("log")
        axes.set_xlim(self.coordinates[0], self.coordinates[-1])
        axes.set_xlabel("step along the direction, in its length")
        axes.set_ylabel("mean loss")
        axes.legend(frameon=False)
        return axes


def line(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    *,
    direction: Tensor | None = None,
    reach: float = 1.0,
    points: int = 41,
    params: Params | None = None,
    train: bool = False,
    weight: Weight | None = None,
    seed: int = 0,
) -> Line:
    r"""Evaluate the mean loss along a line through the parameters.

    .. math:: a ↦ L(w + a \, d), \qquad a ∈ [-r, r]

    It costs one forward pass over the data for each point. The model is restored afterwards: mode,
    parameters, gradients, buffers and random state.

    Parameters
    ----------
    model, loss_fn, data, params, train, weight
        As in :func:`~steppe.landscape.hessian`.
    direction : Tensor, optional
        d, of shape (size,), in the order of ``params``; for example an eigenvector of the Hessian,
        ``top_eigenvalues(H).vectors[:, 0]``. Default: a random direction, filter-normalised.
    reach : float, default 1.0
        r, in units of d's length; positive.
    points : int, default 41
        Number of evenly spaced points, at least 3; an odd number includes a = 0.
    seed : int, default 0
        Seed of the random direction: the same seed gives the same direction on every device.

    Returns
    -------
    Line
        On Ctrl-C the points evaluated so far, with ``complete=False``.

    Raises
    ------
    ValueError
        ``direction``, ``reach`` or ``points`` is out of range; the loss at the model's own
        parameters is not finite; or model or data is not as :func:`~steppe.landscape.hessian` asks.

    References
    ----------
    Li et al., *Visualizing the Loss Landscape of Neural Nets*, NeurIPS 2018, arXiv 1712.09913.

    Examples
    --------
    The loss w²/2, at w = 0 and along d = 2, is (2a)²/2:

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> data = [(torch.ones(4, 1), torch.zeros(4, 1))]
    >>> found = line(model, half_square, data, direction=torch.tensor([2.0]), points=5)
    >>> found.coordinates, found.losses
    (array([-1. , -0.5,  0. ,  0.5,  1. ]), array([2. , 0.5, 0. , 0.5, 2. ]))
    """
    objective = Objective(model, loss_fn, data, params=params, train=train, weight=weight)
    coordinates = symmetric_steps(reach, points)
    if direction is None:
        direction = filter_normalised(objective, torch.Generator().manual_seed(checked_seed(seed)))
    direction = checked_direction(objective, "direction", direction)
    with objective.evaluation_mode(moves_params=True):
        centre = objective.parameter_vector()
        loss, samples, _ = objective.loss()

        def loss_at(index: int) -> float:
            objective.set_parameters(centre.add(direction, alpha=coordinates[index]))
            return objective.loss(require_finite=False).loss

        losses, complete = scan_losses("Line", points, loss_at)
    return Line(coordinates, losses, loss, samples, train, complete)
