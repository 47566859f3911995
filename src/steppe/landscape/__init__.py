"""Instruments that say how flat a minimum is; they know models and data, no optimizer."""

from steppe.landscape.barrier import Barrier, barrier
from steppe.landscape.density import Density, density
from steppe.landscape.eigenvalues import Eigenvalues, top_eigenvalues
from steppe.landscape.hessian import ggn, hessian
from steppe.landscape.operator import Operator
from steppe.landscape.preconditioned import Preconditioned, preconditioned
from steppe.landscape.profile import Profile, profile
from steppe.landscape.sharpness import Sharpness, sharpness
from steppe.landscape.surface import Line, Plane, line, plane
from steppe.landscape.trace import Trace, trace
from steppe.landscape.trajectory import Trajectory

__all__ = [
    "Barrier",
    "Density",
    "Eigenvalues",
    "Line",
    "Operator",
    "Plane",
    "Preconditioned",
    "Profile",
    "Sharpness",
    "Trace",
    "Trajectory",
    "barrier",
    "density",
    "ggn",
    "hessian",
    "line",
    "plane",
    "preconditioned",
    "profile",
    "sharpness",
    "top_eigenvalues",
    "trace",
]
