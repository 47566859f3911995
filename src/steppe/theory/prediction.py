"""How long a trained model would stay where it is, from what is measured of its loss."""

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
    barrier,
    flat_vector,
    interpolate_models,
)
from steppe.theory.escape_methods import find_method
from steppe.theory.formula import REGIMES, Escape, Noise, Regime, escape_time, noise_pair
from steppe.theory.noise import curvature_along, gradient_noise


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
    noise : tuple of float
        What was taken for C·B/|h|, at the model and at the top.
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
) -> Prediction:
    """Predict how long an optimizer would stay at a model, before it crosses over to another.

    The loss is taken along the straight way between them. Its top is the saddle; curvatures are
    those along the way, at the model and at the top; s is found where the way is steepest.

    The top of a straight way is no saddle of the loss: the gradient across the way need not be 0
    there. Ways around are lower, and the model is then left sooner: take the barrier as an upper
    bound, and the time as a guess.

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
        Its ``escape.warnings`` also name what this loss violates: a model that lies a little above
        the lowest point of the way; and a smooth loss, where the noise that is proportional to the
        curvature would vanish between minimum and saddle (Adam in the local regime bears that).

    Raises
    ------
    TypeError, ValueError
        An argument is not as :func:`escape_time` and :func:`steppe.landscape.barrier` say; there is
        no barrier on the way, the model is at no minimum of it, the curvatures do not have the
        signs of a minimum and a saddle, or the noise to be measured is 0.
    KeyboardInterrupt
        On Ctrl-C: part of a way has no known top.

    Examples
    --------
    From −1 over 0 to 1 the double well (w² − 1)² has curvatures 8 and −4:

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
    way = barrier(model, other, loss_fn, data, points=points)
    if not way.complete:
        raise KeyboardInterrupt
    losses, highest = way.losses, _highest(way.losses)
    where = (highest + _vertex(losses[highest - 1 : highest + 2])) / (points - 1)
    walker, go_to = interpolate_models(model, other)
    unit = _direction(model, other)
    h_min, noise_min = _measured(walker, loss_fn, data, unit, ratios is None)
    go_to(where)
    h_top, noise_top = _measured(walker, loss_fn, data, unit, ratios is None)
    if not (h_min > 0.0 > h_top):
        raise ValueError(
            f"the curvature along the way is {h_min:.3g} at the model and {h_top:.3g} at the top: "
            "expected a positive and a negative one"
        )
    if ratios is None:
        _check_measured(noise_min, noise_top)
        ratios = noise_min, noise_top
    first = float(losses[0])
    height = _loss(walker, loss_fn, data) - first
    s = (_steepest_loss(losses[: highest + 1]) - first) / height
    if not s > 0.0:
        raise ValueError(
            f"the model is at no minimum: the loss falls from {first:.6g} to {losses.min():.6g} on "
            "the way, and is steepest below where it began; train the model further"
        )
    found = escape_time(
        method, lr=lr, batch_size=batch_size, barrier=height, h_min=h_min, h_saddle=-h_top,
        s=s, alpha=alpha, regime=regime, noise=ratios,
    )  # fmt: skip
    doubts = _doubts(losses[: highest + 1], method, alpha, regime)
    found = replace(found, warnings=(*found.warnings, *doubts))
    return Prediction(found, height, where, h_min, -h_top, s, ratios)


def _highest(losses: Floats) -> int:
    """Return which point of the way is the top."""
    if not np.isfinite(losses).all():
        raise ValueError("the loss overflows on the way between the models")
    highest = int(losses.argmax())
    if highest in (0, len(losses) - 1):
        raise ValueError(
            "no barrier lies between the models: the loss is highest at one of them, "
            f"{losses[highest]:.6g}"
        )
    return highest


def _measured(
    model: nn.Module, loss_fn: LossFunction | None, data: Batches, unit: Tensor, noisy: bool
) -> tuple[float, float]:
    """Return the curvature along a direction, and C·B/|h| if it is asked for."""
    if not noisy:
        return curvature_along(model, loss_fn, data, unit[None]).item(), 1.0
    found = gradient_noise(model, loss_fn, data, unit)
    return float(found.curvature), float(found.ratio)


def _check_measured(noise_min: float, noise_top: float) -> None:
    for ratio, place in ((noise_min, "model"), (noise_top, "top")):
        if ratio == 0.0:
            raise ValueError(
                f"noise='measured' is 0 at the {place}: all batches have the same gradient along "
                "the way, and without noise nothing escapes"
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


def _direction(model: nn.Module, other: nn.Module) -> Tensor:
    """Return the unit vector from one model's parameters to another's."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    way = flat_vector([(q.detach().to(p) - p.detach()).double() for p, q in pairs])
    return way.div_(way.norm())


def _loss(model: nn.Module, loss_fn: LossFunction | None, data: Batches) -> float:
    objective = Objective(model, loss_fn, data)
    with objective.evaluation_mode():
        return objective.loss()[0]
