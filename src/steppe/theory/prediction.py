"""How long a trained model would stay where it is, from what is measured of its loss."""

import copy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from steppe.landscape.barrier import barrier
from steppe.landscape.hessian import hessian
from steppe.landscape.lanczos import Floats
from steppe.landscape.objective import Batches, LossFunction, Objective, flat
from steppe.landscape.result import Result
from steppe.theory.escape import Escape, Noise, Regime, escape_time
from steppe.theory.noise import gradient_noise


@dataclass(frozen=True)
class Prediction(Result):
    """What :func:`predict_escape` found.

    Attributes
    ----------
    escape : Escape
        The time, and what speaks against it.
    barrier : float
        How far the loss rises from the model to the top of the way.
    where : float
        Where the top lies; 0 is the model, 1 the other.
    h_min, h_saddle : float
        Curvature along the way at the model, and its magnitude at the top.
    s : float
        Share of the barrier below the steepest point, where the curvature changes its sign.
    noise : float or pair
        What was taken for C·B/|h|.
    """

    escape: Escape
    barrier: float
    where: float
    h_min: float
    h_saddle: float
    s: float
    noise: Noise


def predict_escape(
    model: nn.Module,
    other: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    *,
    method: str,
    lr: float,
    batch_size: float,
    alpha: float | None = None,
    regime: Regime = "local",
    noise: Noise | Literal["measured"] = 1.0,
    points: int = 51,
) -> Prediction:
    """Predict how long an optimizer would stay at a model, before it crosses over to another.

    The loss is taken along the straight way between them. Its top is the saddle; curvatures are
    those along the way, at the model and at the top; s is found where the way is steepest. A way
    around may be lower: then the model is left sooner.

    Parameters
    ----------
    model, other : nn.Module
        Two models of one architecture; the first at a minimum. They are not changed.
    loss_fn, data
        As in :func:`steppe.landscape.hessian`.
    method, lr, batch_size, alpha, regime
        As in :func:`escape_time`.
    noise : float, pair or "measured", default 1.0
        As in :func:`escape_time`; "measured" takes :func:`gradient_noise` at the model and at the
        top, from the batches of ``data``.
    points : int, default 51
        Where the loss is taken on the way, evenly spaced; a pass over the data each. From 5.

    Returns
    -------
    Prediction
        Its ``escape.warnings`` also name what this loss violates: a model that lies above the
        lowest point of the way; and a smooth loss, where the noise that is proportional to the
        curvature would vanish between minimum and saddle (Adam in the local regime bears that).

    Raises
    ------
    ValueError
        There is no barrier on the way, the curvatures do not have the signs of a minimum and a
        saddle, or as :func:`steppe.landscape.barrier` and :func:`escape_time` say.
    KeyboardInterrupt
        On Ctrl-C: part of a way has no known top.

    Examples
    --------
    From −1 over 0 to 1 the double well (w² − 1)² has curvatures 8 and −4:

    >>> left, right = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(left.weight, -1.0), nn.init.constant_(right.weight, 1.0)
    >>> double_well = lambda outputs, targets: (outputs.square() - 1).square().mean()
    >>> data = [(torch.ones(4, 1), torch.zeros(4, 1))]
    >>> found = predict_escape(
    ...     left, right, double_well, data, method="adam", lr=0.001, batch_size=4, points=101
    ... )
    >>> found.barrier, found.where, found.h_min, found.h_saddle, round(found.s, 2)
    (1.0, 0.5, 8.0, 4.0, 0.44)
    """
    if points < 5:
        raise ValueError(f"points={points} must be at least 5, to find the steepest of them")
    way = barrier(model, other, loss_fn, data, points=points)
    if not way.complete:
        raise KeyboardInterrupt
    losses = way.losses
    if not np.isfinite(losses).all():
        raise ValueError("the loss overflows on the way between the models")
    highest = int(losses.argmax())
    if highest in (0, points - 1):
        raise ValueError(
            "no barrier lies between the models: the loss is highest at one of them, "
            f"{losses[highest]:.6g}"
        )
    where = (highest + _vertex(losses[highest - 1 : highest + 2])) / (points - 1)
    start, top = (_between(model, other, t) for t in (0.0, where))
    height = _loss(top, loss_fn, data) - float(losses[0])
    direction = _direction(model, other)
    h_min, h_top = (_curvature(each, loss_fn, data, direction) for each in (start, top))
    if not (h_min > 0.0 > h_top):
        raise ValueError(
            f"the curvature along the way is {h_min:.3g} at the model and {h_top:.3g} at the top: "
            "expected a positive and a negative one"
        )
    if noise == "measured":
        at_min, at_top = (
            gradient_noise(each, loss_fn, data, direction).ratio for each in (start, top)
        )
        noise = at_min, at_top
    s = (_steepest_loss(losses[: highest + 1]) - float(losses[0])) / height
    found = escape_time(
        method, lr=lr, batch_size=batch_size, barrier=height, h_min=h_min, h_saddle=-h_top,
        s=s, alpha=alpha, regime=regime, noise=noise,
    )  # fmt: skip
    doubts = _doubts(losses[: highest + 1], method, alpha, regime)
    found = replace(found, warnings=(*found.warnings, *doubts))
    return Prediction(found, height, where, h_min, -h_top, s, noise)


def _doubts(losses: Floats, method: str, alpha: float | None, regime: Regime) -> tuple[str, ...]:
    doubts = []
    if (fall := float(losses[0] - losses.min())) > 0:
        doubts.append(f"the loss falls by {fall:.3g} before it rises: the model is at no minimum")
    if regime == "frozen" or not (method == "adam" or alpha == 0.0):
        doubts.append(
            "the loss is smooth: noise in proportion to its curvature would vanish between minimum "
            "and saddle, where the time hangs on the least noise there is"
        )
    return tuple(doubts)


def _vertex(three: Floats) -> float:
    """Return where a parabola through the losses at −1, 0 and 1 is highest."""
    before, at, after = map(float, three)
    bend = before - 2.0 * at + after
    return 0.5 * (before - after) / bend if bend else 0.0


def _steepest_loss(losses: Floats) -> float:
    """Return the loss where it rises fastest, between the points that are known."""
    rises = np.diff(losses)
    steepest = int(rises.argmax())
    shift = _vertex(rises[steepest - 1 : steepest + 2]) if 0 < steepest < len(rises) - 1 else 0.0
    return float(np.interp(steepest + 0.5 + shift, np.arange(len(losses)), losses))


def _between(model: nn.Module, other: nn.Module, t: float) -> nn.Module:
    """Return a copy of a model, on the straight way to another."""
    found = copy.deepcopy(model).requires_grad_(True)
    ends = other.state_dict()
    with torch.no_grad():
        for name, tensor in found.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(ends[name].to(tensor), t)
    return found


def _direction(model: nn.Module, other: nn.Module) -> Tensor:
    """Return the unit vector from one model's parameters to another's."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    way = flat([(q.detach().to(p) - p.detach()).double() for p, q in pairs])
    return way.div_(way.norm())


def _loss(model: nn.Module, loss_fn: LossFunction | None, data: Batches) -> float:
    objective = Objective(model, loss_fn, data)
    with objective.at_work():
        return objective.loss()[0]


def _curvature(
    model: nn.Module, loss_fn: LossFunction | None, data: Batches, direction: Tensor
) -> float:
    H = hessian(model, loss_fn, data)
    unit = direction.to(H.dtype)
    return float(unit.double() @ H.matvec(unit).double())
