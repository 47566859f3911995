"""The optimizers, as torch.optim has them."""

from steppe.optim.critical_gradients import SGDCG, AdamCG, RMSpropCG
from steppe.optim.critical_momenta import SGDCM, AdamCM, DualAdamCM
from steppe.optim.dual_adam import DualAdam, InvAdam
from steppe.optim.offload import Offload
from steppe.optim.sam import SAM

__all__ = [
    "SAM",
    "SGDCG",
    "SGDCM",
    "AdamCG",
    "AdamCM",
    "DualAdam",
    "DualAdamCM",
    "InvAdam",
    "Offload",
    "RMSpropCG",
]
