"""Instruments that say how flat a minimum is; they know models and data, no optimizer."""

from steppe.landscape.curvature_report import CurvatureReport, profile
from steppe.landscape.operators.hessian import ggn, hessian
from steppe.landscape.operators.operator import Operator
from steppe.landscape.operators.preconditioned import Preconditioned, preconditioned
from steppe.landscape.sharpness import Sharpness, sharpness
from steppe.landscape.spectra.density import Density, density
from steppe.landscape.spectra.eigenvalues import Eigenvalues, top_eigenvalues
from steppe.landscape.spectra.trace import Trace, trace
from steppe.landscape.surfaces.barrier import Barrier, barrier
from steppe.landscape.surfaces.surface import Line, Plane, line, plane
from steppe.landscape.surfaces.trajectory import Trajectory

__all__ = [
    "Barrier",
    "CurvatureReport",
    "Density",
    "Eigenvalues",
    "Line",
    "Operator",
    "Plane",
    "Preconditioned",
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
