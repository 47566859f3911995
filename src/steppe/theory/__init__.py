"""How long minima hold an optimizer, and how fast it converges on quadratics.

Formulas, simulations by the optimizers' own rules, and measurements of what the formulas assume. It
uses :mod:`steppe.landscape` and :mod:`steppe.rules`; it imports no optimizer.
"""

from steppe.theory.escape_comparison import Agreement, Well, agreement, limit_well
from steppe.theory.escape_formula import Escape, Noise, Regime, escape_time, path_coefficient
from steppe.theory.escape_methods import find_method as find_method
from steppe.theory.escape_prediction import Prediction, predict_escape
from steppe.theory.escape_simulation import SecondMoment, Simulation, simulate_escape
from steppe.theory.noise import GradientNoise, gradient_noise
from steppe.theory.quadratic import OptimalRate, optimal_rate, rate

# What is imported "as" itself above and not listed here is for other rooms, not for users.
__all__ = [
    "Agreement",
    "Escape",
    "GradientNoise",
    "Noise",
    "OptimalRate",
    "Prediction",
    "Regime",
    "SecondMoment",
    "Simulation",
    "Well",
    "agreement",
    "escape_time",
    "gradient_noise",
    "limit_well",
    "optimal_rate",
    "path_coefficient",
    "predict_escape",
    "rate",
    "simulate_escape",
]
