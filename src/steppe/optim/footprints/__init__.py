"""What training with an optimizer costs on many devices, counted without allocating any of it."""

from steppe.optim.footprints.costs import Bytes, Costs, Footprint
from steppe.optim.footprints.count import footprint

__all__ = ["Bytes", "Costs", "Footprint", "footprint"]
