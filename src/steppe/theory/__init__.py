"""Theory of the methods: how long minima hold them, and how fast they converge on quadratics."""

from steppe.theory.comparison import Agreement, Well, agreement, limit_well
from steppe.theory.formula import Escape, escape_time, path_coefficient
from steppe.theory.noise import GradientNoise, gradient_noise
from steppe.theory.prediction import Prediction, predict_escape
from steppe.theory.quadratic import OptimalRate, optimal_rate, rate
from steppe.theory.simulation import SecondMoment, Simulation, simulate_escape

__all__ = [
    "Agreement",
    "Escape",
    "GradientNoise",
    "OptimalRate",
    "Prediction",
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
