"""A user's own measure of a trained model, which finds the model in ``eval()`` mode."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from steppe._shared.identity import are_same
from steppe._shared.interrupts import uninterrupted
from steppe.landscape.objective.random_state import RandomState
from steppe.landscape.objective.reachable import reachable
from steppe.landscape.objective.restore_model import restore_on_exit

#: ``measure(model, batches)``, any number of a trained model.
OwnMeasure = Callable[[nn.Module, Any], float]


def check_measures(measures: Any) -> None:
    """Refuse measures that are no functions with names.

    Raises
    ------
    TypeError
        The message names what is wrong.
    """
    if not isinstance(measures, Mapping):
        raise TypeError(f"measures must be a dict of names to functions, got {measures!r}")
    for name, measure in measures.items():
        if not isinstance(name, str) or not name.strip() or not callable(measure):
            raise TypeError(f"measures has {name!r}: {measure!r}, expected a name and a function")


def check_names_differ(names: Sequence[str]) -> None:
    """Refuse two measures of one name.

    Raises
    ------
    ValueError
        With the name.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two measures are called {twice!r}: each needs a name of its own")


def take_measure(name: str, measure: OwnMeasure, model: nn.Module, data: Any) -> float:
    """Return what a measure says of a model, and put back what it changes in it.

    Torch's, NumPy's and Python's generators, and those of the data, begin alike in each, and are
    put back too.

    Raises
    ------
    TypeError
        It returned no number.
    """
    random = RandomState(model, data, list(reachable(model)))
    with uninterrupted() as interruptible, random.restored(), _kept(model):
        random.begin_pass()
        model.eval()
        with torch.no_grad(), interruptible():
            found = measure(model, data)
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError):
        what = type(found).__name__
        raise TypeError(f"measures has {name!r}, which must return a number, got {what}") from None


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Put back parameters, buffers, attributes, modes and hooks, and what gradients there were."""
    known = [(each, each.requires_grad, each.grad) for each in model.parameters()]
    sums = [None if grad is None else grad.clone() for _, _, grad in known]
    modules = [(each, type(each), each._is_full_backward_hook) for each in model.modules()]
    hooks = [(own, own.copy()) for each in model.modules() for own in _hooks_of(each)]
    try:
        with restore_on_exit(model, model.parameters()):
            yield
    finally:
        for module, kind, backward in modules:
            # torch.nn.utils.parametrize gives a module a class of its own.
            module.__class__ = kind
            module._is_full_backward_hook = backward
        for own, before in hooks:
            if [*own] != [*before] or not are_same([*own.values()], [*before.values()]):
                own.clear()
                own.update(before)
        for (each, requires_grad, grad), value in zip(known, sums, strict=True):
            each.requires_grad_(requires_grad)
            each.grad = grad
            if grad is not None and value is not None:
                grad.detach().copy_(value)


def _hooks_of(module: nn.Module) -> list[dict[Any, Any]]:
    return [
        value
        for name, value in vars(module).items()
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
    ]
