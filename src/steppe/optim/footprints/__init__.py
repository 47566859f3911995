"""Count the memory and traffic of training with an optimizer on many devices, allocating nothing.

:func:`footprint` (in ``count``) is public as ``steppe.optim.footprint``; ``costs`` has its result,
``meta_optimizer`` finds the optimizer's state on the meta device. ``benchmarks/footprint.py``
writes ``docs/scaling.md`` with it.
"""

from steppe.optim.footprints.costs import ByteCounts, Footprint, StrategyCosts
from steppe.optim.footprints.count import footprint

__all__ = ["ByteCounts", "Footprint", "StrategyCosts", "footprint"]
