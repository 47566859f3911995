"""What the last step was made of, recomputed from the state when somebody asks."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steppe import rules
from steppe._engines import (
    BIRTHS,
    KEYS,
    MEAN,
    REPLACEMENTS,
    Function,
    ParamRow,
    bind,
    joint_norm,
    load_state,
    slot_sum,
)

_NAN = float("nan")


class TwoWay(NamedTuple):
    """A two-way update's direction, denominator and α."""

    direction: Tensor
    d: Tensor
    inverse: float


def adam_parts(row: ParamRow) -> TwoWay:
    """m̂, d and α of DualAdam; with ``scale_free`` divided by r."""
    direction = load_state(row, "exp_avg") * _corrections(row)[0]
    r = _unit(row)
    return TwoWay(direction / r, adam_denominator(row) / r, _alpha(row))


def critical_parts(row: ParamRow) -> TwoWay:
    """m̂ + κ·mean(slots), d and α of DualAdamCM."""
    correction = 1.0 if row.group["variant"] == "authors" else _corrections(row)[0]
    direction = load_state(row, "exp_avg") * correction + _remembered(row)
    return TwoWay(direction, adam_denominator(row), _alpha(row))


def adam_denominator(row: ParamRow) -> Tensor:
    """InvAdam's preconditioner, d = √v̂ + ε."""
    v = load_state(row, "max_exp_avg_sq" if row.group.get("amsgrad") else "exp_avg_sq")
    d: Tensor = bind(rules.denominator, torch)(v, _corrections(row)[1], row.group["eps"])
    return d


def two_way_preconditioner(row: ParamRow) -> Tensor:
    """(1−α)/d + α·d; with ``scale_free`` of q = d/r, and divided by r. Adam's where α = 0."""
    r, alpha = _unit(row), _alpha(row)
    p: Tensor = rules.two_way(1.0 / r, adam_denominator(row) / r, 1.0 - alpha, alpha)
    return p


def rmsprop_preconditioner(row: ParamRow) -> Tensor:
    """1/(√v + ε); centered, one over the standard deviation + ε."""
    mean = load_state(row, "grad_avg") if row.group["centered"] else 0.0
    v, eps = load_state(row, "square_avg"), row.group["eps"]
    d: Tensor = bind(rules.centered_denominator, torch)(v, mean, eps)
    return 1.0 / d


def own_weight(row: ParamRow, aggregate: Function) -> float:
    """Weight of the gradient itself in the aggregate of the next step."""
    own, _ = bind(aggregate, np)(_filled(row), row.group["kappa"])
    return float(own)


def inverse_share(
    rows: Iterable[ParamRow], parts: Callable[[ParamRow], TwoWay]
) -> dict[str, float]:
    """α averaged over parameters, and the norm of α·m̂·d over the norm of the whole update."""
    each = [(parts(row), row.shard.shard_group) for row in rows]
    if not each:
        return {"alpha": _NAN, "inverse_share": _NAN}
    inverse = float(joint_norm((rules.inverse_part(*part), team) for part, team in each))
    whole = float(
        joint_norm(
            (rules.two_way(part.direction, part.d, 1.0 - part.inverse, part.inverse), team)
            for part, team in each
        )
    )
    return {
        "alpha": float(np.mean([part.inverse for part, _ in each])),
        "inverse_share": inverse / whole if whole else _NAN,
    }


def buffer(rows: Iterable[ParamRow]) -> dict[str, float]:
    """Fill, replacement rate, age and keys of the buffers, each averaged over parameters.

    ``buffer_fill`` is the number of filled slots, ``replacement_rate`` how many items were stored
    per step, ``slot_age`` the mean age of filled slots in steps, ``key_min`` and ``key_max`` the
    extremes of all keys. What does not exist yet is NaN.
    """
    states = [row.state for row in rows if row.capacity]
    filled = [state[KEYS] > -torch.inf for state in states]
    ages = [
        (state["step"].to(state[BIRTHS]) - state[BIRTHS])[mask].mean().item()
        for state, mask in zip(states, filled, strict=True)
        if mask.any()
    ]
    keys = [
        key
        for state, mask in zip(states, filled, strict=True)
        for key in state[KEYS][mask].tolist()
    ]
    rates = [
        (state[REPLACEMENTS] / state["step"].to(state[REPLACEMENTS].device)).item()
        for state in states
    ]
    return {
        "buffer_fill": _mean([mask.sum().item() for mask in filled]),
        "replacement_rate": _mean(rates),
        "slot_age": _mean(ages),
        "key_min": min(keys, default=_NAN),
        "key_max": max(keys, default=_NAN),
    }


def _unit(row: ParamRow) -> float:
    """Return r = √mean(v̂) + ε, in which ``scale_free`` measures; 1 without."""
    if not row.group.get("scale_free"):
        return 1.0
    return math.sqrt(row.state[MEAN].item() * _corrections(row)[1]) + float(row.group["eps"])


def _alpha(row: ParamRow) -> float:
    rate = row.group.get("switch_rate", 1.0)
    return float(bind(rules.switch_weights, np)(row.state["step"].item(), rate)[1])


def _corrections(row: ParamRow) -> tuple[float, float]:
    group = row.group
    t = row.state["step"].item()
    *_, correction1, correction2 = rules.adam_scalars(t, 0.0, group["betas"], group["eps"], 0.0)
    return correction1, correction2


def _remembered(row: ParamRow) -> Any:
    """κ·mean(slots); 0 where nothing is remembered."""
    if not row.capacity:
        return 0.0
    (share,) = bind(rules.critical_mean, np)(_filled(row), row.group["kappa"])
    return slot_sum(row) * share


def _filled(row: ParamRow) -> int:
    return int((row.state[KEYS] > -torch.inf).sum()) if row.capacity else 0


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else _NAN
