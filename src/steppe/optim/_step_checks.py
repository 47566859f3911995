"""Refuse gradients and number formats that no engine takes, before a step changes anything.

:mod:`steppe.optim._base` calls it, and beside it what else is refused before a step: options out of
their range (``_group_options.py``), parameters whose shards cannot be stepped
(``_sharded_params.py``, ``_fsdp1.py``), and state that does not fit (``_state_checks.py``).
Gradients that can be copied into a layout that an engine takes are in
``_engines/base/gradients.py``.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter

import torch
from torch import Tensor
from torch.nn import Parameter

from steppe._engines import is_sharded

_USUAL = {Tensor, Parameter}
_layout = attrgetter("layout")


def check_gradients(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    optimizer: str,
    name_of: Callable[[int], str],
) -> None:
    """Refuse sparse gradients, and those that are sharded where their parameter is not.

    Parameters
    ----------
    params, grads
        All parameters of the optimizer and their gradients.
    optimizer
        Its name, for the message.
    name_of
        Returns the name of a parameter for the message, given its index among all.

    Raises
    ------
    RuntimeError
        The message names the parameter, and what is expected.
    """
    # Of ten thousand usual ones it takes 1 ms to see that all are, and 4 to look at each.
    found = [grad for grad in grads if grad is not None]
    if (
        set(map(type, found)) <= _USUAL
        and set(map(type, params)) <= _USUAL
        and set(map(_layout, found)) <= {torch.strided}
    ):
        return
    for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if grad is None:
            continue
        if is_sharded(grad) != is_sharded(param):
            kinds = ["a DTensor" if is_sharded(x) else "a plain tensor" for x in (param, grad)]
            raise RuntimeError(
                f"{name_of(index)}, shape {tuple(param.shape)}, is {kinds[0]} and its "
                f"gradient {kinds[1]}; expected both of one kind"
            )
        if grad.layout is not torch.strided:
            raise RuntimeError(
                f"{optimizer} does not take {grad.layout} gradients: "
                f"{name_of(index)}, shape {tuple(grad.shape)}; "
                "use dense ones, e.g. Embedding(sparse=False)"
            )


def check_takes_error(param: Tensor, grad: Tensor | None, name: str, option: str | None) -> None:
    """Refuse a parameter in float16 where ``param_error`` asks for a weight of 24 bits.

    Raises
    ------
    RuntimeError
        It names the parameter: with float16's range its weight would not be that of bfloat16.
    """
    if grad is not None and option is not None and param.dtype == torch.float16:
        raise RuntimeError(
            f"{name} is torch.float16, to which param_error={option!r} adds nothing: expected "
            "parameters in bfloat16, or param_error=None for the group"
        )


def check_format(param: Tensor, grad: Tensor | None, name: str, *, differentiable: bool) -> None:
    """Refuse a parameter to be stepped in a number format, or a graph, that cannot take a step.

    Raises
    ------
    RuntimeError
        It is of integers, quantised, in 8 bits or nested, or in a ``differentiable`` step a leaf
        that requires a gradient: a step would be rounded off, or fail after others have been
        stepped.
    """
    if grad is None:
        return
    if differentiable and param.is_leaf and param.requires_grad:
        raise RuntimeError(
            f"{name} is a leaf that requires a gradient, which autograd lets nobody change in "
            "place: step a clone() of it with differentiable=True, or set differentiable=False"
        )
    is_real = param.is_floating_point() and param.dtype.itemsize > 1
    if param.is_nested or not (is_real or param.is_complex()):
        kind = "nested" if param.is_nested else str(param.dtype)
        raise RuntimeError(
            f"{name} is {kind}: expected a dense parameter in float64, float32, bfloat16, float16 "
            "or a complex format"
        )
