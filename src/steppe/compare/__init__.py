"""Train optimizers against each other on real data, and test which differences are real.

Other rooms, figures and scripts import from here; everything else in this package is private. A
name is imported when it is first used, as studies need packages that ``import steppe`` does not.

- A comparison: :func:`run`, :func:`load`, :class:`Study`, :class:`Verdict`, and optimizers of your
  own: :class:`Contender` with :class:`LogUniform`, :class:`Uniform` and :class:`Choice`.
- A task, steppe's or your own: :class:`Task`, :class:`Metric`, :class:`Data`, :class:`Stream`,
  :class:`CurvatureSettings`, :class:`RobustnessSettings`, :class:`TaskError`.
- Tasks by name: :data:`TASKS`, :class:`TaskMaker`, :class:`Size`, :func:`find_task`,
  :class:`TaskSource`, :class:`LoadedTask`, :func:`find_model`.
- Samples: :class:`TensorSamples`, :func:`held_out`, :func:`fingerprint_of`, :func:`head`.
- One run: :class:`Run`, :class:`RunSettings`, :class:`RunContext`, :class:`Training`,
  :func:`train`, :func:`make_accelerator`, :func:`reproducible`, :func:`differentiable`,
  :func:`run_settings_from_dict`.
- A study's results: :func:`read_study`, :class:`StudyResults`, :class:`Trial`,
  :class:`Outcome`, :class:`Epoch`, :class:`RobustReadings`, :func:`contrast`,
  :func:`forgetting_at_common_loss`, :func:`forgetting_pools`, :func:`print_report`.
- Measures: :func:`perplexity`, :func:`batch_size_for`.
- The commands of ``steppe``: :func:`compare_command`, :func:`worker_command`,
  :func:`report_command`, :func:`profile_command`.

Inside, imports run one way: ``records`` and ``models`` know nothing of the others; above them are
``data``, ``metrics``, ``tasks``, ``training``, ``planning``, ``execution``, ``report`` (which reads
``records`` only), ``python``, and ``cli`` on top.
"""

from typing import TYPE_CHECKING

from steppe._shared.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from steppe._shared.contender import Contender as Contender
    from steppe.compare.cli.compare import compare as compare_command
    from steppe.compare.cli.profile import profile as profile_command
    from steppe.compare.cli.report import report as report_command
    from steppe.compare.cli.worker import worker as worker_command
    from steppe.compare.data.datasets import Data as Data
    from steppe.compare.data.datasets import Stream as Stream
    from steppe.compare.data.datasets import TensorSamples as TensorSamples
    from steppe.compare.data.datasets import fingerprint_of as fingerprint_of
    from steppe.compare.data.datasets import held_out as held_out
    from steppe.compare.data.loading import head as head
    from steppe.compare.execution.study_registry import read_study as read_study
    from steppe.compare.metrics.curvature import CurvatureSettings as CurvatureSettings
    from steppe.compare.metrics.curvature import batch_size_for as batch_size_for
    from steppe.compare.metrics.robustness import RobustnessSettings as RobustnessSettings
    from steppe.compare.metrics.scores import Metric as Metric
    from steppe.compare.metrics.scores import perplexity as perplexity
    from steppe.compare.models.image_models import find_model as find_model
    from steppe.compare.planning.search_spaces import Choice as Choice
    from steppe.compare.planning.search_spaces import LogUniform as LogUniform
    from steppe.compare.planning.search_spaces import Uniform as Uniform
    from steppe.compare.python.run import run as run
    from steppe.compare.python.study import Study as Study
    from steppe.compare.python.study import load as load
    from steppe.compare.records.best_of_k import Difference as Difference
    from steppe.compare.records.best_of_k import Pool as Pool
    from steppe.compare.records.best_of_k import compare_pools as compare_pools
    from steppe.compare.records.best_of_k import contrast as contrast
    from steppe.compare.records.best_of_k import expected_best as expected_best
    from steppe.compare.records.forgetting_at_common_loss import (
        forgetting_at_common_loss as forgetting_at_common_loss,
    )
    from steppe.compare.records.forgetting_at_common_loss import (
        forgetting_pools as forgetting_pools,
    )
    from steppe.compare.records.results import DEFAULT as DEFAULT
    from steppe.compare.records.results import POOL as POOL
    from steppe.compare.records.results import RECOMMENDED as RECOMMENDED
    from steppe.compare.records.results import Epoch as Epoch
    from steppe.compare.records.results import Outcome as Outcome
    from steppe.compare.records.results import StudyResults as StudyResults
    from steppe.compare.records.results import Trial as Trial
    from steppe.compare.records.robustness import RobustReadings as RobustReadings
    from steppe.compare.records.summary import recommended_settings as recommended_settings
    from steppe.compare.records.summary import repeated_runs as repeated_runs
    from steppe.compare.records.verdicts import Readings as Readings
    from steppe.compare.records.verdicts import Verdict as Verdict
    from steppe.compare.report.terminal import print_report as print_report
    from steppe.compare.tasks.makers import TASKS as TASKS
    from steppe.compare.tasks.makers import Size as Size
    from steppe.compare.tasks.makers import TaskMaker as TaskMaker
    from steppe.compare.tasks.source import TaskSource as TaskSource
    from steppe.compare.tasks.source import find_task as find_task
    from steppe.compare.tasks.task import LoadedTask as LoadedTask
    from steppe.compare.tasks.task import Task as Task
    from steppe.compare.tasks.trace import TaskError as TaskError
    from steppe.compare.training.accelerator import make_accelerator as make_accelerator
    from steppe.compare.training.differentiable import differentiable as differentiable
    from steppe.compare.training.reproducibility import reproducible as reproducible
    from steppe.compare.training.run import Run as Run
    from steppe.compare.training.run import RunContext as RunContext
    from steppe.compare.training.run import RunSettings as RunSettings
    from steppe.compare.training.run import run_settings_from_dict as run_settings_from_dict
    from steppe.compare.training.train import Training as Training
    from steppe.compare.training.train import train as train

__all__ = [
    "DEFAULT",
    "POOL",
    "RECOMMENDED",
    "TASKS",
    "Choice",
    "Contender",
    "CurvatureSettings",
    "Data",
    "Difference",
    "Epoch",
    "LoadedTask",
    "LogUniform",
    "Metric",
    "Outcome",
    "Pool",
    "Readings",
    "RobustReadings",
    "RobustnessSettings",
    "Run",
    "RunContext",
    "RunSettings",
    "Size",
    "Stream",
    "Study",
    "StudyResults",
    "Task",
    "TaskError",
    "TaskMaker",
    "TaskSource",
    "TensorSamples",
    "Training",
    "Trial",
    "Uniform",
    "Verdict",
    "batch_size_for",
    "compare_command",
    "compare_pools",
    "contrast",
    "differentiable",
    "expected_best",
    "find_model",
    "find_task",
    "fingerprint_of",
    "forgetting_at_common_loss",
    "forgetting_pools",
    "head",
    "held_out",
    "load",
    "make_accelerator",
    "perplexity",
    "print_report",
    "profile_command",
    "read_study",
    "recommended_settings",
    "repeated_runs",
    "report_command",
    "reproducible",
    "run",
    "run_settings_from_dict",
    "train",
    "worker_command",
]
__getattr__, __dir__ = lazy_imports(__name__)
