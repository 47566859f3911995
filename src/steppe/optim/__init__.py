"""The optimizers, with the interface of torch.optim, and what they cost on many devices.

The optimizers and the layout of their state are stable; ``Offload``, ``footprint``,
``param_groups`` and their result classes are experimental. Modules that begin with an underscore
are private to this package.
"""

from steppe.optim.critical_gradients import SGDCG, AdamCG, RMSpropCG
from steppe.optim.critical_momenta import SGDCM, AdamCM, DualAdamCM
from steppe.optim.dual_adam import DualAdam, InvAdam
from steppe.optim.footprints import ByteCounts, Footprint, StrategyCosts, footprint
from steppe.optim.grouping import ParamGroups, param_groups
from steppe.optim.mi_adam import MIAdam
from steppe.optim.offload import Offload
from steppe.optim.sam import SAM

__all__ = [
    "SAM",
    "SGDCG",
    "SGDCM",
    "AdamCG",
    "AdamCM",
    "ByteCounts",
    "DualAdam",
    "DualAdamCM",
    "Footprint",
    "InvAdam",
    "MIAdam",
    "Offload",
    "ParamGroups",
    "RMSpropCG",
    "StrategyCosts",
    "footprint",
    "param_groups",
]
