"""Test functions of a few parameters whose minima and curvatures are known."""

from steppe.functions.ackley import ackley
from steppe.functions.beale import beale
from steppe.functions.catalogue import FUNCTIONS, find_function
from steppe.functions.function import Function, Minimum
from steppe.functions.goldstein_price import goldstein_price
from steppe.functions.levy import levy
from steppe.functions.quadratic import Quadratic, quadratic
from steppe.functions.rosenbrock import rosenbrock
from steppe.functions.sharp_flat import SharpFlat, sharp_flat
from steppe.functions.six_hump_camel import six_hump_camel

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
