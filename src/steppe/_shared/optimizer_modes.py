"""Modes of optimizers: some keep other weights for training than for evaluation.

Schedule-Free's ``train()`` and ``eval()`` switch the parameters between them, in place.
"""

from typing import Any, Literal

from torch.optim import Optimizer


def has_modes(optimizer: Optimizer | type[Optimizer]) -> bool:
    """Return whether an optimizer, or a class of optimizers, has ``train()`` and ``eval()``."""
    return all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))


def switch_mode(optimizer: Optimizer, mode: Literal["train", "eval"]) -> None:
    """Switch an optimizer's mode; do nothing if it has none.

    Parameters
    ----------
    optimizer : Optimizer
        If it has no modes, but a ``base_optimizer`` that has, as SAM may, that one is switched.
    mode : "train" or "eval"
        For steps, or for the weights that are evaluated and saved.

    Examples
    --------
    >>> import torch
    >>> class Loud(torch.optim.SGD):
    ...     def train(self): print("train")
    ...     def eval(self): print("eval")
    >>> switch_mode(Loud([torch.zeros(1)]), "eval")
    eval
    """
    inner: Any = optimizer
    while inner is not None and not has_modes(inner):
        inner = getattr(inner, "base_optimizer", None)
    if inner is not None:
        getattr(inner, mode)()
