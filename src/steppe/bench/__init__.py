"""Measure what a step of an optimizer costs: time, memory traffic and memory.

``steppe bench`` runs a whole :class:`BenchmarkPlan`; the scripts in ``benchmarks/`` measure single
optimizers with the same code. Other rooms and scripts import from here. A name is imported when it
is first used, as ``import steppe`` needs nothing of it.

- A benchmark: :func:`plan_benchmark`, :class:`BenchmarkPlan`, :func:`execute`, :class:`FirstStep`.
- One optimizer on one model: :class:`MeasuredOptimizer`, :func:`find_measured`,
  :func:`default_names`, :data:`BASELINE`, :func:`measure`, :class:`Measurement`,
  :func:`try_measure`, :class:`Failure`, :func:`disturbed`, :data:`DISTURBED_RATIO`.
- Models as tensor shapes: :data:`MODELS`, :class:`Model`, :func:`check_models`, :func:`uniform`,
  :func:`parameters`, :func:`warm_up`.
- What a step moves: :func:`least_bytes`, :func:`items_stored`.
- Time and memory of anything: :func:`time_in_turn`, :class:`Copy`, :func:`peak_extra`.
- The command of ``steppe``: :func:`bench_command`.
"""

from typing import TYPE_CHECKING

from steppe._shared.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from steppe.bench.bandwidth import Copy as Copy
    from steppe.bench.benchmark import BenchmarkPlan as BenchmarkPlan
    from steppe.bench.benchmark import execute as execute
    from steppe.bench.benchmark import plan_benchmark as plan_benchmark
    from steppe.bench.benchmark import try_measure as try_measure
    from steppe.bench.command import bench as bench_command
    from steppe.bench.disturbance import DISTURBED_RATIO as DISTURBED_RATIO
    from steppe.bench.disturbance import disturbed as disturbed
    from steppe.bench.failure import Failure as Failure
    from steppe.bench.first_step import FirstStep as FirstStep
    from steppe.bench.measurement import Measurement as Measurement
    from steppe.bench.measurement import measure as measure
    from steppe.bench.memory import peak_extra as peak_extra
    from steppe.bench.optimizers import BASELINE as BASELINE
    from steppe.bench.optimizers import MeasuredOptimizer as MeasuredOptimizer
    from steppe.bench.optimizers import default_names as default_names
    from steppe.bench.optimizers import find_measured as find_measured
    from steppe.bench.shapes import MODELS as MODELS
    from steppe.bench.shapes import Model as Model
    from steppe.bench.shapes import check_models as check_models
    from steppe.bench.shapes import uniform as uniform
    from steppe.bench.timing import Action as Action
    from steppe.bench.timing import time_in_turn as time_in_turn
    from steppe.bench.traffic import items_stored as items_stored
    from steppe.bench.traffic import least_bytes as least_bytes
    from steppe.bench.workload import parameters as parameters
    from steppe.bench.workload import warm_up as warm_up

__all__ = [
    "BASELINE",
    "DISTURBED_RATIO",
    "MODELS",
    "Action",
    "BenchmarkPlan",
    "Copy",
    "Failure",
    "FirstStep",
    "MeasuredOptimizer",
    "Measurement",
    "Model",
    "bench_command",
    "check_models",
    "default_names",
    "disturbed",
    "execute",
    "find_measured",
    "items_stored",
    "least_bytes",
    "measure",
    "parameters",
    "peak_extra",
    "plan_benchmark",
    "time_in_turn",
    "try_measure",
    "uniform",
    "warm_up",
]
__getattr__, __dir__ = lazy_imports(__name__)
