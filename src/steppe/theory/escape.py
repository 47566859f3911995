"""Escape from minima: the formula, walkers, and what is measured of a model."""

from steppe.theory.comparison import Agreement, Well, agreement, limit_well
from steppe.theory.formula import Escape, escape_time, path_coefficient
from steppe.theory.noise import GradientNoise, gradient_noise
from steppe.theory.prediction import Prediction, predict_escape
from steppe.theory.simulation import Simulation, simulate_escape

__all__ = [
    "Agreement",
    "Escape",
    "GradientNoise",
    "Prediction",
    "Simulation",
    "Well",
    "agreement",
    "escape_time",
    "gradient_noise",
    "limit_well",
    "path_coefficient",
    "predict_escape",
    "simulate_escape",
]
