"""Instruments that say how flat a minimum is; they know models and data, no optimizer."""

from steppe.landscape.hessian import ggn, hessian
from steppe.landscape.operator import Operator
from steppe.landscape.preconditioned import Preconditioned, preconditioned
from steppe.landscape.sharpness import Sharpness, sharpness

__all__ = [
    "Operator",
    "Preconditioned",
    "Sharpness",
    "ggn",
    "hessian",
    "preconditioned",
    "sharpness",
]
