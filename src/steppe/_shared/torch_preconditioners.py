"""The diagonal preconditioners of torch's optimizers, read from their state.

Curvature (:func:`steppe.landscape.preconditioned`) and SAM's preconditioned metric need them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

#: From a parameter's state and its group.
Reader = Callable[[dict[str, Any], dict[str, Any]], Tensor]


def preconditioner_reader(optimizer: Optimizer) -> Reader | None:
    """Return what reads 1/(√v̂ + ε), by which the optimizer multiplies momenta, of one parameter.

    That of a complex parameter is its real view's. None if it is not known for the class.
    """
    return next((read for kind, read in _READERS.items() if isinstance(optimizer, kind)), None)


#: The classes that are known, for messages.
KNOWN_CLASSES = "Adam, AdamW, NAdam, RMSprop, Adagrad"


def _adam(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    v = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    correction = 1 - float(group["betas"][1]) ** float(state["step"])
    return _inverse_root(_real(v) / correction, group)


def _rmsprop(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    v = _real(state["square_avg"])
    return _inverse_root(v - _real(state["grad_avg"]) ** 2 if group["centered"] else v, group)


def _adagrad(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    return _inverse_root(_real(state["sum"]), group)


def _inverse_root(v: Tensor, group: dict[str, Any]) -> Tensor:
    inverse: Tensor = 1 / (v.sqrt() + group["eps"])
    return inverse


def _real(v: Tensor) -> Tensor:
    return torch.view_as_real(v) if v.is_complex() else v


_READERS: dict[type[Optimizer], Reader] = {
    Adam: _adam,
    AdamW: _adam,
    NAdam: _adam,
    RMSprop: _rmsprop,
    Adagrad: _adagrad,
}
