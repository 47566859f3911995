"""Test functions of a few variables, with known minima and derivatives in closed form.

``steppe play`` descends on them; they depend on torch only and import no other room.
"""

from steppe.functions._ackley import ackley
from steppe.functions._beale import beale
from steppe.functions._goldstein_price import goldstein_price
from steppe.functions._levy import levy
from steppe.functions._quadratic import Quadratic, quadratic
from steppe.functions._rosenbrock import rosenbrock
from steppe.functions._sharp_flat import SharpFlat, sharp_flat
from steppe.functions._six_hump_camel import six_hump_camel
from steppe.functions.catalogue import FUNCTIONS, find_function
from steppe.functions.function import Function, Minimum

__all__ = [
    "FUNCTIONS",
    "Function",
    "Minimum",
    "Quadratic",
    "SharpFlat",
    "ackley",
    "beale",
    "find_function",
    "goldstein_price",
    "levy",
    "quadratic",
    "rosenbrock",
    "sharp_flat",
    "six_hump_camel",
]
