"""Theory of the methods: how long minima hold them, and how fast they converge on quadratics."""

from steppe.theory.quadratic import OptimalRate, optimal_rate, rate

__all__ = ["OptimalRate", "optimal_rate", "rate"]
