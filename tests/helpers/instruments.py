"""Instruments of a loss, each as a function of a model, a loss function and batches."""

from collections.abc import Callable
from typing import Any

from steppe.landscape import density, hessian, line, plane, profile, sharpness

INSTRUMENTS: dict[str, Callable[..., Any]] = {
    "density": lambda *a: density(hessian(*a), probes=2, steps=5).to_dict(),
    "sharpness of groups": lambda *a: sharpness(*a, m=7).to_dict(),
    "average sharpness": lambda *a: sharpness(*a, kind="average").to_dict(),
    "line": lambda *a: line(*a, points=3).to_dict(),
    "plane": lambda *a: plane(*a, points=3).to_dict(),
    "profile": lambda *a: profile(*a, k=2).to_dict(),
}
