"""Predict how long a trained model would stay at its minimum, from measurements of its loss."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor, nn

from steppe._shared.array_types import Floats
from steppe._shared.names import check_name
from steppe._shared.validation import check_integer, check_positive
from steppe.landscape import (
    Batches,
    LossFunction,
    Objective,
    Result,
    Weight,
    barrier,
    flat_vector,
    interpolation,
)
from steppe.theory.escape_formula import REGIMES, Escape, Noise, Regime, escape_time, noise_pair
from steppe.theory.escape_methods import find_method
from steppe.theory.noise import curvature_along, gradient_noise


@dataclass(frozen=True)
class Prediction(Result):
    """The result of :func:`predict_escape`.

    Attributes
    ----------
    escape : Escape
        The escape time, with warnings about assumptions that do not hold.
    barrier : float
        How far the loss rises from the model to the top of the path, in the loss's unit.
    where : float
        Position of the top on the path; 0 is the model, 1 the other model.
    h_min, h_saddle : float
        Curvature along the path at the model, and its magnitude at the top.
    s : float
        Share of the barrier below the steepest point, where the curvature changes its sign.
    noise : tuple of float
        The C·B/|h| that was assumed or measured, at the model and at the top.
    """

    escape: Escape
    barrier: float
    where: float
    h_min: float
    h_saddle: float
    s: float
    noise: tuple[float, float]


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
    weight: Weight | None = None,
) -> Prediction:
    """Predict how many steps an optimizer would stay at a model before it moves to another one.

    The loss is evaluated along the straight path between the two models. The top of the path stands
    for the saddle; curvatures are those along the path, at the model and at the top; s is the share
    of the barrier below the steepest point. :func:`escape_time` has the formula.

    The top of a straight path is no saddle of the loss, because the gradient across the path need
    not be 0 there. Curved paths are lower, so the model is left sooner: take the barrier as an
    upper bound, and the time as a rough guess.

    Parameters
    ----------
    model, other : nn.Module
        Two models of one architecture, the first at a minimum. Neither is changed.
    loss_fn, data, weight
        As in :func:`steppe.landscape.hessian`.
    method, lr, batch_size, alpha, regime
        As in :func:`escape_time`.
    noise : float, pair of float or "measured", default 1.0
        As in :func:`escape_time`; "measured" calls :func:`gradient_noise` at the model and at the
        top, with the batches of ``data``.
    points : int, default 51
        Number of evenly spaced points of the path, at least 5; each takes one forward pass over the
        data.

    Returns
    -------
    Prediction
        Its ``escape.warnings`` also name assumptions that this loss violates: the model may lie
        above the lowest point of the path; and on a smooth loss, noise in proportion to the
        curvature would vanish between minimum and saddle, which only Adam's formula in the local
        regime tolerates.

    Raises
    ------
    TypeError, ValueError
        An argument is not as :func:`escape_time` and :func:`steppe.landscape.barrier` ask; there is
        no barrier on the path; the model is not at a minimum of it; the curvatures do not have the
        signs of a minimum and a saddle; or the measured noise is 0.
    KeyboardInterrupt
        On Ctrl-C: a part of the path does not tell the top.

    References
    ----------
    As in :func:`escape_time`; taking the path from a straight line is this library's own.

    Examples
    --------
    The double well (w² − 1)² has the curvature 8 at its minima ±1, and −4 at its top 0:

    >>> import torch
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
    find_method(method, alpha)
    check_name("regime", regime, REGIMES)
    check_positive(lr=lr, batch_size=batch_size)
    check_integer(least=5, points=points)
    ratios = None if isinstance(noise, str) and noise == "measured" else noise_pair(noise)
    path = barrier(model, other, loss_fn, data, points=points, weight=weight)
    if not path.complete:
        raise KeyboardInterrupt
    losses, highest = path.losses, _highest(path.losses)
    where = (highest + _vertex(losses[highest - 1 : highest + 2])) / (points - 1)
    unit = _direction(model, other)
    with interpolation(model, other) as go_to:
        h_min, noise_min = _measure(model, loss_fn, data, unit, weight, ratios is None)
        go_to(where)
        h_top, noise_top = _measure(model, loss_fn, data, unit, weight, ratios is None)
        height = _loss(model, loss_fn, data, weight) - float(losses[0])
    _check_curvatures(h_min, h_top)
    if ratios is None:
        _check_noise(noise_min, noise_top)
        ratios = noise_min, noise_top
    s = _share_below_steepest(losses[: highest + 1], height)
    found = escape_time(
        method, lr=lr, batch_size=batch_size, barrier=height, h_min=h_min, h_saddle=-h_top,
        s=s, alpha=alpha, regime=regime, noise=ratios,
    )  # fmt: skip
    doubts = _doubts(losses[: highest + 1], method, alpha, regime)
    found = replace(found, warnings=(*found.warnings, *doubts))
    return Prediction(found, height, where, h_min, -h_top, s, ratios)


def _highest(losses: Floats) -> int:
    """Return the index of the path's highest point."""
    if not np.isfinite(losses).all():
        raise ValueError("the loss overflows on the path between the models")
    highest = int(losses.argmax())
    if highest in (0, len(losses) - 1):
        raise ValueError(
            "no barrier lies between the models: the loss is highest at one of them, "
            f"{losses[highest]:.6g}"
        )
    return highest


def _measure(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    unit: Tensor,
    weight: Weight | None,
    with_noise: bool,
) -> tuple[float, float]:
    """Return the curvature along a direction, and C·B/|h| if asked for, else 1."""
    if not with_noise:
        return curvature_along(model, loss_fn, data, unit[None], weight=weight).item(), 1.0
    found = gradient_noise(model, loss_fn, data, unit, weight=weight)
    return float(found.curvature), float(found.ratio)


def _check_curvatures(h_min: float, h_top: float) -> None:
    if not (h_min > 0.0 > h_top):
        raise ValueError(
            f"the curvature along the path is {h_min:.3g} at the model and {h_top:.3g} at the top: "
            "expected a positive and a negative one"
        )


def _check_noise(noise_min: float, noise_top: float) -> None:
    for ratio, point in ((noise_min, "model"), (noise_top, "top")):
        if ratio == 0.0:
            raise ValueError(
                f"noise='measured' is 0 at the {point}: all batches have the same gradient along "
                "the path, and without noise nothing escapes"
            )


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
    """Return the x at which a parabola through the values at x = −1, 0 and 1 is highest."""
    before, at, after = map(float, three)
    bend = before - 2.0 * at + after
    return 0.5 * (before - after) / bend if bend else 0.0


def _share_below_steepest(losses: Floats, height: float) -> float:
    """Return the share of the barrier that lies below the steepest point of the ascent."""
    first = float(losses[0])
    share = (_loss_at_steepest(losses) - first) / height
    if not share > 0.0:
        raise ValueError(
            f"the model is at no minimum: the loss falls from {first:.6g} to {losses.min():.6g} on "
            "the path, and is steepest below where it began; train the model further"
        )
    return share


def _loss_at_steepest(losses: Floats) -> float:
    """Return the loss where it rises fastest, interpolated between the points."""
    rises = np.diff(losses)
    steepest = int(rises.argmax())
    shift = _vertex(rises[steepest - 1 : steepest + 2]) if 0 < steepest < len(rises) - 1 else 0.0
    return float(np.interp(steepest + 0.5 + shift, np.arange(len(losses)), losses))


def _direction(model: nn.Module, other: nn.Module) -> Tensor:
    """Return the unit vector from one model's parameters to another's."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    difference = flat_vector([(q.detach().to(p) - p.detach()).double() for p, q in pairs])
    return difference.div_(difference.norm())


def _loss(
    model: nn.Module, loss_fn: LossFunction | None, data: Batches, weight: Weight | None
) -> float:
    objective = Objective(model, loss_fn, data, weight=weight)
    with objective.evaluation_mode():
        return objective.loss()[0]
