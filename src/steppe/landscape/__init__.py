"""Instruments that measure how flat a minimum is, with error bars.

All are built on one operator, the Hessian of the mean loss, or on the loss at other parameters.
They know models and data; they import no optimizer.
"""

from steppe.landscape.curvature_by_layer import CurvatureByLayer, LayerCurvature, by_layer
from steppe.landscape.curvature_report import CurvatureReport, profile
from steppe.landscape.monitoring.monitor import Monitor
from steppe.landscape.monitoring.run_measurement import RunMeasurement
from steppe.landscape.noise_scale import NoiseScale, noise_scale
from steppe.landscape.objective.batch_gradients import batch_gradients as batch_gradients
from steppe.landscape.objective.batch_gradients import check_has_noise as check_has_noise
from steppe.landscape.objective.batches import Batch as Batch
from steppe.landscape.objective.batches import Batches
from steppe.landscape.objective.batches import read_batch as read_batch
from steppe.landscape.objective.differentiate import flat_vector as flat_vector
from steppe.landscape.objective.loss_weight import LossFunction
from steppe.landscape.objective.loss_weight import Weight as Weight
from steppe.landscape.objective.objective import Objective
from steppe.landscape.objective.sample_groups import cut as cut
from steppe.landscape.operators.fisher import empirical_fisher, fisher
from steppe.landscape.operators.hessian import ggn, hessian
from steppe.landscape.operators.operator import Operator
from steppe.landscape.operators.preconditioned import Preconditioned, preconditioned
from steppe.landscape.perturbations.confidence import Confidences as Confidences
from steppe.landscape.perturbations.confidence import calibration_error as calibration_error
from steppe.landscape.perturbations.confidence import is_classification as is_classification
from steppe.landscape.perturbations.corruptions import IMAGE_CORRUPTIONS as IMAGE_CORRUPTIONS
from steppe.landscape.perturbations.corruptions import TOKEN_CORRUPTIONS as TOKEN_CORRUPTIONS
from steppe.landscape.perturbations.error_over_draws import error_over_draws as error_over_draws
from steppe.landscape.perturbations.inputs import is_images as is_images
from steppe.landscape.perturbations.inputs import is_tokens as is_tokens
from steppe.landscape.perturbations.own_measure import OwnMeasure as OwnMeasure
from steppe.landscape.perturbations.own_measure import check_measures as check_measures
from steppe.landscape.perturbations.own_measure import check_names_differ as check_names_differ
from steppe.landscape.perturbations.own_measure import take_measure as take_measure
from steppe.landscape.perturbations.perturbation import Corruption, Rounding, WeightNoise
from steppe.landscape.perturbations.perturbation import Perturbation as Perturbation
from steppe.landscape.perturbations.perturbation import changed_weights as changed_weights
from steppe.landscape.perturbations.perturbation import (
    checked_perturbations as checked_perturbations,
)
from steppe.landscape.perturbations.perturbation import generator_of as generator_of
from steppe.landscape.perturbations.perturbation import usual_perturbations as usual_perturbations
from steppe.landscape.perturbations.reference import Reference as Reference
from steppe.landscape.perturbations.reference import reference_of as reference_of
from steppe.landscape.perturbations.robustness import robustness
from steppe.landscape.perturbations.robustness_result import Perturbed, Robustness
from steppe.landscape.perturbations.scored_passes import PERPLEXITY as PERPLEXITY
from steppe.landscape.perturbations.weight_tails import WeightTails, weight_tails
from steppe.landscape.result import Result
from steppe.landscape.spectra.block_norms import BlockNorms
from steppe.landscape.spectra.density import Density, density
from steppe.landscape.spectra.diagonal import Diagonal, diagonal
from steppe.landscape.spectra.eigenvalues import Eigenvalues, top_eigenvalues
from steppe.landscape.spectra.trace import Trace, trace
from steppe.landscape.spectra.update_sharpness import UpdateSharpness, update_sharpness
from steppe.landscape.surfaces._directions import checked_direction as checked_direction
from steppe.landscape.surfaces._interpolation import interpolation as interpolation
from steppe.landscape.surfaces.barrier import Barrier, barrier
from steppe.landscape.surfaces.line import Line, line
from steppe.landscape.surfaces.plane import Plane, plane
from steppe.landscape.surfaces.sharpness import Sharpness, sharpness
from steppe.landscape.surfaces.trajectory import PCA, Trajectory

# What is imported "as" itself above and not listed here is for other rooms, not for users.
__all__ = [
    "PCA",
    "Barrier",
    "Batches",
    "BlockNorms",
    "Corruption",
    "CurvatureByLayer",
    "CurvatureReport",
    "Density",
    "Diagonal",
    "Eigenvalues",
    "LayerCurvature",
    "Line",
    "LossFunction",
    "Monitor",
    "NoiseScale",
    "Objective",
    "Operator",
    "Perturbed",
    "Plane",
    "Preconditioned",
    "Result",
    "Robustness",
    "Rounding",
    "RunMeasurement",
    "Sharpness",
    "Trace",
    "Trajectory",
    "UpdateSharpness",
    "WeightNoise",
    "WeightTails",
    "barrier",
    "by_layer",
    "density",
    "diagonal",
    "empirical_fisher",
    "fisher",
    "ggn",
    "hessian",
    "line",
    "noise_scale",
    "plane",
    "preconditioned",
    "profile",
    "robustness",
    "sharpness",
    "top_eigenvalues",
    "trace",
    "update_sharpness",
    "weight_tails",
]
