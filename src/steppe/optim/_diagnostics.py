"""What ``diagnostics()`` reports, recomputed from the state when asked: ``step`` pays nothing.

The optimizers' classes build on these functions; users log what they return.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from steppe import rules
from steppe._engines import (
    BIRTHS,
    KEYS,
    REPLACEMENTS,
    ParamRow,
    joint_norm,
    load_state,
)
from steppe.optim._momenta import critical_aggregate
from steppe.optim._preconditioners import (
    adam_denominator,
    bias_corrections,
    integral_weights,
    inverse_weight,
    scale_free_unit,
)

_NAN = float("nan")


class TwoWayUpdate(NamedTuple):
    """The update (1−α)·direction/d + α·direction·d, before the learning rate."""

    direction: Tensor
    d: Tensor
    alpha: float


def dual_adam_update(row: ParamRow) -> TwoWayUpdate:
    """DualAdam's update along m̂; with ``scale_free`` m̂ and d are divided by r."""
    direction = load_state(row, "exp_avg") * bias_corrections(row)[0]
    r = scale_free_unit(row)
    return TwoWayUpdate(direction / r, adam_denominator(row) / r, inverse_weight(row))


def dual_adam_cm_update(row: ParamRow) -> TwoWayUpdate:
    """DualAdamCM's update along m̂ + κ·mean(slots)."""
    return TwoWayUpdate(critical_aggregate(row), adam_denominator(row), inverse_weight(row))


def inverse_share(
    rows: Iterable[ParamRow], update_of: Callable[[ParamRow], TwoWayUpdate]
) -> dict[str, float]:
    """α averaged over parameters, and ‖inverse part‖₂ / ‖whole update‖₂ over all parameters."""
    updates = [(update_of(row), row.shard.shard_group) for row in rows]
    if not updates:
        return {"alpha": _NAN, "inverse_share": _NAN}
    inverse = float(
        joint_norm((rules.inverse_part(*update), shard_group) for update, shard_group in updates)
    )
    whole = float(
        joint_norm(
            (rules.two_way(direction, d, 1.0 - alpha, alpha), shard_group)
            for (direction, d, alpha), shard_group in updates
        )
    )
    return {
        "alpha": float(np.mean([update.alpha for update, _ in updates])),
        "inverse_share": inverse / whole if whole else _NAN,
    }


def steps_to_switch(rows: Iterable[ParamRow]) -> dict[str, float]:
    """Return the steps until all parameters step as Adam does; infinite if some never will."""
    return {"steps_to_switch": max(map(_steps_left, rows), default=_NAN)}


def _steps_left(row: ParamRow) -> float:
    rate: float = row.group["switch_rate"]
    if rate == 0:
        return math.inf
    # 1/ξ need not be whole where ξ is 1 over a whole number.
    return max(0.0, math.ceil(1 / rate - 1e-6) - row.state["step"].item())


def integral_steps(rows: Iterable[ParamRow]) -> dict[str, float]:
    """Share of parameters before MIAdam's switch, and ‖update‖₂ / ‖Adam's‖₂ over all parameters."""
    rows = list(rows)
    if not rows:
        return {"early": _NAN, "step_ratio": _NAN}
    whole = float(joint_norm((_integral_update(row), row.shard.shard_group) for row in rows))
    adam = float(joint_norm((_adam_update(row), row.shard.shard_group) for row in rows))
    return {
        "early": float(np.mean([integral_weights(row)[1] == 0.0 for row in rows])),
        "step_ratio": whole / adam if adam else _NAN,
    }


def _integral_update(row: ParamRow) -> Tensor:
    last = load_state(row, f"integral_{row.group['integration_order']}")
    direction = rules.integral_direction(load_state(row, "exp_avg"), last, *integral_weights(row))
    update: Tensor = direction * bias_corrections(row)[0] / adam_denominator(row)
    return update


def _adam_update(row: ParamRow) -> Tensor:
    return load_state(row, "exp_avg") * bias_corrections(row)[0] / adam_denominator(row)


def buffer_statistics(rows: Iterable[ParamRow]) -> dict[str, float]:
    """Fill, replacement rate and slot age, averaged over parameters, and the extremes of all keys.

    What there is nothing of yet is NaN.
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


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else _NAN
