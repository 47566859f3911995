"""Each method's momentum, recomputed from the state: SAM may perturb along it."""

import numpy as np
from torch import Tensor

from steppe import rules
from steppe._engines import ParamRow, bind, load_state, slot_sum
from steppe.optim._preconditioners import bias_corrections, filled_slots

#: Names of the first moment in the state, in this library and in torch.
MOMENTA = ("exp_avg", "momentum_buffer")


def first_moment(row: ParamRow) -> Tensor:
    """Return m, the moving average of gradients."""
    return load_state(row, next(name for name in MOMENTA if name in row.state))


def critical_aggregate(row: ParamRow) -> Tensor:
    """Return m̂ + κ·mean(slots), which critical momenta go along; SGD's m is not corrected."""
    correction = 1.0
    # The released code stores the uncorrected m and corrects the step's length instead.
    if "betas" in row.group and row.group["variant"] != "authors":
        correction = bias_corrections(row)[0]
    moment: Tensor = first_moment(row) * correction
    if not row.capacity:
        return moment
    (share,) = bind(rules.critical_mean, np)(filled_slots(row), row.group["kappa"])
    return moment + slot_sum(row) * float(share)
