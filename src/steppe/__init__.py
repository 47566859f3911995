"""Optimizers for PyTorch whose steps find flat minima, and instruments that show it."""

from typing import TYPE_CHECKING

from steppe._shared import importing_process as _importing_process  # noqa: F401 - before a fork
from steppe._shared.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from steppe import functions as functions
    from steppe import landscape as landscape
    from steppe import optim as optim
    from steppe import theory as theory
    from steppe.optim import SAM as SAM
    from steppe.optim import SGDCG as SGDCG
    from steppe.optim import SGDCM as SGDCM
    from steppe.optim import AdamCG as AdamCG
    from steppe.optim import AdamCM as AdamCM
    from steppe.optim import DualAdam as DualAdam
    from steppe.optim import DualAdamCM as DualAdamCM
    from steppe.optim import InvAdam as InvAdam
    from steppe.optim import MIAdam as MIAdam
    from steppe.optim import RMSpropCG as RMSpropCG

__all__ = [
    "SAM",
    "SGDCG",
    "SGDCM",
    "AdamCG",
    "AdamCM",
    "DualAdam",
    "DualAdamCM",
    "InvAdam",
    "MIAdam",
    "RMSpropCG",
]
__version__ = "0.1.0"
__getattr__, __dir__ = lazy_imports(__name__)
