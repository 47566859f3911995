"""One optimizer step on a batch: closures, SAM's two passes, GradScaler, accumulation, clipping."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import steppe
from steppe.compare.data.loading import Part
from steppe.compare.tasks.task import Task
from steppe.compare.training.evaluation import sum_over_processes
from steppe.compare.training.run import RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator


class OptimizerStep:
    """Takes steps of any optimizer.

    Every step goes through a closure, which every optimizer accepts, and SAM and LBFGS need.
    ``GradScaler`` takes no closure, so with it SAM's two passes are spelled out here. It unscales
    gradients once a step, so they are clipped after the second pass; of the first pass's gradient
    only the direction matters.

    Parameters
    ----------
    model : nn.Module
        The model as Accelerate wrapped it.
    task : Task
        What computes the loss of a batch.
    optimizer : Optimizer
        The optimizer itself. Without ``GradScaler`` it is stepped, as Accelerate's wrapper looks
        for installed packages at each step, for a quarter of a millisecond.
    wrapped_optimizer : accelerate.optimizer.AcceleratedOptimizer
        Accelerate's wrapper of it, which steps through ``GradScaler``.
    accelerator : accelerate.Accelerator
        Processes, precision and scaler.
    run_settings : RunSettings
        Clipping.

    Attributes
    ----------
    gradients : int
        Forward and backward passes over a batch so far, however many parts it was cut into: one a
        step, two with SAM, with LBFGS as many as it asks for.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: Optimizer,
        wrapped_optimizer: Any,
        accelerator: "Accelerator",
        run_settings: RunSettings,
    ) -> None:
        self._model, self._task = model, task
        self._optimizer, self._wrapped_optimizer = optimizer, wrapped_optimizer
        self._accelerator, self._run_settings = accelerator, run_settings
        self.gradients = 0

    def take(self, parts: Sequence[Part]) -> Tensor:
        """Take one step on a batch, in parts; return the mean loss before it."""
        losses: list[Tensor] = []

        def closure() -> Tensor:
            losses.append(self._compute_gradients(parts))
            self._clip_gradients()
            return losses[-1]

        if self._accelerator.scaler is None:
            self._optimizer.step(closure)  # type: ignore[arg-type]  # its stub says float
            if not losses:
                name = type(self._optimizer).__name__
                raise TypeError(f"{name}.step(closure) must call closure: it makes the gradients")
            return losses[0]
        loss = self._compute_gradients(parts)
        if isinstance(self._optimizer, steppe.SAM):
            with self._optimizer.perturbed():
                self._compute_gradients(parts)
        self._clip_gradients()
        self._wrapped_optimizer.step()
        return loss

    def _compute_gradients(self, parts: Sequence[Part]) -> Tensor:
        """Fill the gradients of a batch, part by part; return its loss."""
        self._optimizer.zero_grad()
        self.gradients += 1
        processes = self._accelerator.num_processes
        if self._task.weight is not None and (len(parts) > 1 or processes > 1):
            return self._compute_weighted_gradients(parts)
        count = sum(part.size for part in parts)
        total = torch.zeros((), device=self._accelerator.device)
        for number, part in enumerate(parts, start=1):
            with self._gradient_sync(last=number == len(parts)):
                # For a step of the user's own, that calls parts of the model.
                with self._accelerator.autocast():
                    loss = self._task.batch_loss(self._model, part.batch)
                loss = loss * (part.size / count)
                self._accelerator.backward(loss)
            total += loss.detach()
        return total

    def _compute_weighted_gradients(self, parts: Sequence[Part]) -> Tensor:
        """Weight parts, and processes' shares, by what their losses are divided by.

        That is known of all once the last has been computed, so gradients are divided at the end.
        """
        sums = torch.zeros(2, dtype=torch.float64, device=self._accelerator.device)
        for number, part in enumerate(parts, start=1):
            with self._gradient_sync(last=number == len(parts)):
                with self._accelerator.autocast():
                    loss, weight = self._task.weighted_loss(self._model, part.batch, part.size)
                # The mean over nothing is NaN. All processes have to make a gradient.
                loss = loss * weight if weight else self._nothing()
                self._accelerator.backward(loss)
            sums += torch.stack([loss.detach().double(), sums.new_tensor(weight)])
        total, weight = sum_over_processes(sums, self._accelerator).tolist()
        # Gradients are means over the processes.
        factor = self._accelerator.num_processes / weight if weight else 0.0
        for param in self._model.parameters():
            if param.grad is not None:
                param.grad.mul_(factor)
        return torch.tensor(total / weight if weight else 0.0, device=sums.device)

    def _nothing(self) -> Tensor:
        trained = (param for param in self._model.parameters() if param.requires_grad)
        return torch.stack([param.sum() for param in trained]).sum() * 0.0

    def _clip_gradients(self) -> None:
        if self._run_settings.clip is not None:
            self._accelerator.clip_grad_norm_(self._model.parameters(), self._run_settings.clip)

    def _gradient_sync(self, *, last: bool) -> AbstractContextManager[Any]:
        """Synchronise gradients between processes in the batch's last part only."""
        return nullcontext() if last else self._accelerator.no_sync(self._model)
