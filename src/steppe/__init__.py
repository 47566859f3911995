"""Optimizers for PyTorch whose steps find flat minima, and instruments that show it."""

from steppe.optim import SAM, SGDCG, SGDCM, AdamCG, AdamCM, DualAdam, DualAdamCM, InvAdam, RMSpropCG

__all__ = [
    "SAM",
    "SGDCG",
    "SGDCM",
    "AdamCG",
    "AdamCM",
    "DualAdam",
    "DualAdamCM",
    "InvAdam",
    "RMSpropCG",
]
__version__ = "0.1.0"
