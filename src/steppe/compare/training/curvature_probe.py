"""The curvature of a run's model, as much of it as the run asks for."""

import math
from contextlib import suppress
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

from steppe.compare.metrics.curvature import CurvatureSettings, measure, measure_quickly
from steppe.compare.records.results import Curvature
from steppe.compare.tasks.task import LoadedTask
from steppe.compare.training.differentiable import Differentiable, differentiable, mean_loss
from steppe.compare.training.run import Run

if TYPE_CHECKING:
    from accelerate import Accelerator

# After about so many epochs of a run curvature is measured along the way.
_MEASURED_EPOCHS = 8


class CurvatureProbe:
    """Measures the curvature of a run's model on the first training samples.

    Parameters
    ----------
    run : Run
        It says how much is measured.
    loaded : LoadedTask
        Its loss, its settings of curvature, and its training samples without augmentation.
    accelerator : accelerate.Accelerator
        The device and the number format.
    model : nn.Module
        The model, not wrapped.
    optimizer : Optimizer
        Its optimizer, with the learning rates that it starts with.
    """

    def __init__(
        self,
        run: Run,
        loaded: LoadedTask,
        accelerator: "Accelerator",
        model: nn.Module,
        optimizer: Optimizer,
    ) -> None:
        self._run, self._loaded, self._accelerator = run, loaded, accelerator
        self._model, self._optimizer = model, optimizer
        self._initial_lrs = [group["lr"] for group in optimizer.param_groups if "lr" in group]

    def at_the_end(self) -> Curvature:
        """Measure a trained model, which must not be under autocast any more."""
        settings, extent = self._loaded.task.curvature, self._run.curvature
        if extent == "none" or (extent == "quick" and not settings.often):
            return Curvature()
        with suppress(Exception):  # a user's model may refuse it in any way
            return self._measured(extent == "quick", settings)
        return Curvature()

    def _measured(self, is_quick: bool, settings: CurvatureSettings) -> Curvature:
        model, loss, batches, weight = self._differentiable()
        if is_quick:
            return measure_quickly(model, loss, batches, settings, weight)
        # The threshold of stability is 2/lr: at the end of the schedule it would say nothing about
        # the lr that was trained with.
        for group, lr in zip(self._optimizer.param_groups, self._initial_lrs, strict=False):
            group["lr"] = lr
        return measure(model, loss, batches, self._optimizer, settings, weight)

    def along_the_way(self, epoch: int) -> dict[str, float]:
        """Return train loss, sharpness and largest eigenvalue after some epochs of some runs."""
        epochs, settings = self._run.own_settings.epochs, self._loaded.task.curvature
        every = math.ceil(epochs / _MEASURED_EPOCHS)
        asked = self._run.curvature == "full" and settings.often
        rounded = self._accelerator.mixed_precision != "no"
        if not asked or (epochs - 1 - epoch) % every or rounded:
            return {}
        with suppress(Exception):
            whole = self._differentiable()
            model, loss, batches, weight = whole
            found = measure_quickly(model, loss, batches, settings, weight)
            return {
                "probe_loss": mean_loss(whole),
                "sharpness": found.sharpness,
                "largest": found.largest,
            }
        return {}

    def _differentiable(self) -> Differentiable:
        few = self._loaded.task.curvature.samples
        return differentiable(self._loaded, self._model, self._accelerator.device, few)
