"""Hyperparameters of runs: the type of their values, and values that papers published.

Studies search around them, and ``steppe play`` takes the published ones.
"""

from collections.abc import Mapping

#: Values of hyperparameters by name, such as ``{"lr": 1e-3, "switch": 0.16}``.
Settings = Mapping[str, float]

#: 1/ξ of DualAdam as a share of the run. The paper's switch takes 1/8e-5 = 12 500 steps, 16 % of
#: its 200 epochs on CIFAR (Shi et al. 2026, arXiv 2603.07122).
PUBLISHED_SWITCH = 0.16

#: SAM's radius ρ (Foret et al. 2021, arXiv 2010.01412).
PUBLISHED_RHO = 0.05
