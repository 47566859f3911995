"""Test functions by the names that ``steppe play`` takes.

Users look them up by :func:`find_function`; the figures use the same ones.
"""

import inspect
from collections.abc import Callable, Mapping

from steppe._shared.names import look_up, unknown_name_message
from steppe.functions._ackley import ackley
from steppe.functions._beale import beale
from steppe.functions._goldstein_price import goldstein_price
from steppe.functions._levy import levy
from steppe.functions._quadratic import quadratic
from steppe.functions._rosenbrock import rosenbrock
from steppe.functions._sharp_flat import sharp_flat
from steppe.functions._six_hump_camel import six_hump_camel
from steppe.functions.function import Function

FUNCTIONS: Mapping[str, Callable[..., Function]] = {
    "ackley": ackley,
    "beale": beale,
    "goldstein-price": goldstein_price,
    "levy": levy,
    "quadratic": quadratic,
    "rosenbrock": rosenbrock,
    "sharp-flat": sharp_flat,
    "six-hump-camel": six_hump_camel,
}


def find_function(name: str, **parameters: float) -> Function:
    """Make the test function of that name.

    Parameters
    ----------
    name : str
        A key of ``FUNCTIONS``.
    **parameters
        Arguments of the function's factory, such as ``dimension`` of ackley, levy, quadratic and
        rosenbrock.

    Raises
    ------
    TypeError, ValueError
        The name is unknown, the factory does not take such a parameter, or its value is out of
        range.

    Examples
    --------
    >>> find_function("ackley", dimension=5).dimension
    5
    """
    factory = look_up("function", name, FUNCTIONS)
    taken = inspect.signature(factory).parameters
    for parameter in parameters:
        if not taken:
            raise ValueError(f"{name} takes no parameter, got {parameter}")
        if parameter not in taken:
            raise ValueError(unknown_name_message(f"parameter of {name}", parameter, taken))
    return factory(**parameters)
