"""Count what training with an optimizer costs on many devices, without allocating anything."""

from steppe.optim.footprints.costs import ByteCounts, Footprint, StrategyCosts
from steppe.optim.footprints.count import footprint

__all__ = ["ByteCounts", "Footprint", "StrategyCosts", "footprint"]
