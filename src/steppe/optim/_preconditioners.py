"""Each method's diagonal preconditioner, recomputed from the state when somebody asks for it.

The public face is :meth:`steppe.optim._base.RuleOptimizer.preconditioner`. The quantities of a
method that its diagnostics need too, α, v̂'s denominator and r, are computed here.
"""

import math

import numpy as np
import torch
from torch import Tensor

from steppe import rules
from steppe._engines import KEYS, MEAN, Function, ParamRow, bind, load_state


def adam_denominator(row: ParamRow) -> Tensor:
    """D = √v̂ + ε: Adam divides by it, InvAdam multiplies by it."""
    v = load_state(row, "max_exp_avg_sq" if row.group.get("amsgrad") else "exp_avg_sq")
    d: Tensor = bind(rules.denominator, torch)(v, bias_corrections(row)[1], row.group["eps"])
    return d


def two_way_preconditioner(row: ParamRow) -> Tensor:
    """(1−α)/d + α·d, which is Adam's 1/d where α = 0; with ``scale_free`` [(1−α)/q + α·q]/r."""
    r, alpha = scale_free_unit(row), inverse_weight(row)
    p: Tensor = rules.two_way(1.0 / r, adam_denominator(row) / r, 1.0 - alpha, alpha)
    return p


def integral_preconditioner(row: ParamRow) -> Tensor:
    """lrⁿ⁻¹/(1+κ)ⁿ/d before the switch, then Adam's 1/d.

    1/(1+κ)ⁿ is what n integrals make of a momentum that changes sign in every step, as at the edge
    of stability.
    """
    early, late = integral_weights(row)
    damping = (1.0 + float(row.group["integration_rate"])) ** row.group["integration_order"]
    p: Tensor = (early / damping + late) / adam_denominator(row)
    return p


def rmsprop_preconditioner(row: ParamRow) -> Tensor:
    """1/(√v + ε); if ``centered``, one over the standard deviation + ε."""
    mean = load_state(row, "grad_avg") if row.group["centered"] else 0.0
    v, eps = load_state(row, "square_avg"), row.group["eps"]
    d: Tensor = bind(rules.centered_denominator, torch)(v, mean, eps)
    return 1.0 / d


def own_weight(row: ParamRow, aggregate: Function) -> float:
    """Weight of the gradient itself in the aggregate of the next step."""
    own, _ = bind(aggregate, np)(filled_slots(row), row.group["kappa"])
    return float(own)


def inverse_weight(row: ParamRow) -> float:
    """α, the weight of the inverse part; 0 for methods without one."""
    rate = row.group.get("switch_rate", 1.0)
    return float(bind(rules.switch_weights, np)(row.state["step"].item(), rate)[1])


def integral_weights(row: ParamRow) -> tuple[float, float]:
    """Weights of MIAdam's last integral and of m in its direction."""
    group = row.group
    early, late = bind(rules.integral_weights, np)(
        row.state["step"].item(),
        float(group["lr"]),
        group["switch_rate"],
        group["integration_order"],
    )
    return float(early), float(late)


def scale_free_unit(row: ParamRow) -> float:
    """R = √mean(v̂) + ε, by which ``scale_free`` divides m̂ and d; 1 without ``scale_free``."""
    if not row.group.get("scale_free"):
        return 1.0
    return math.sqrt(row.state[MEAN].item() * bias_corrections(row)[1]) + float(row.group["eps"])


def bias_corrections(row: ParamRow) -> tuple[float, float]:
    """1/(1−β1ᵗ) and 1/(1−β2ᵗ), by which m and v are multiplied to give m̂ and v̂."""
    group = row.group
    t = row.state["step"].item()
    *_, correction1, correction2 = rules.adam_scalars(t, 0.0, group["betas"], group["eps"], 0.0)
    return float(correction1), float(correction2)


def filled_slots(row: ParamRow) -> int:
    """Return how many slots hold an item: the key of a free slot is −∞."""
    return int((row.state[KEYS] > -torch.inf).sum()) if row.capacity else 0
