"""Train one run, the same way every time, and measure where it ended.

Workers train a study's trials with :func:`train`; planning takes one step with :class:`Training` to
see that an optimizer can train a model at all.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from operator import truediv
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Dataset

from steppe._shared.interrupts import raise_if_stopped
from steppe._shared.optimizer_state import state_bytes
from steppe.compare.data.datasets import Data, Stream, parts_of, size_of
from steppe.compare.models.language_models import Recurrent, carried_state
from steppe.compare.records.packed_numbers import pack
from steppe.compare.records.results import (
    Curvature,
    Epoch,
    FinalScores,
    Outcome,
    RunCosts,
    SampleResults,
)
from steppe.compare.tasks.task import LoadedTask
from steppe.compare.training import checkpoint
from steppe.compare.training.accelerator import end_tracking, logged_numbers, make_accelerator
from steppe.compare.training.best_epoch import BestEpoch
from steppe.compare.training.curvature_probe import CurvatureProbe
from steppe.compare.training.evaluated_weights import EvaluatedWeights
from steppe.compare.training.evaluation import (
    Evaluation,
    batches_for,
    evaluate,
    sum_over_processes,
)
from steppe.compare.training.fine_tuning import fine_tuning_of
from steppe.compare.training.optimizer_step import OptimizerStep
from steppe.compare.training.own_schedule import OwnSchedule
from steppe.compare.training.reproducibility import (
    epoch_seed,
    reproducible,
    seed_epoch,
    seed_everything,
)
from steppe.compare.training.robustness import robustness_of
from steppe.compare.training.run import Run, RunContext, RunSettings
from steppe.compare.training.unfinished_run import UnfinishedRun

if TYPE_CHECKING:
    from accelerate import Accelerator

OnEpoch = Callable[[int, Epoch], None]


def train(
    run: Run,
    loaded: LoadedTask,
    context: RunContext,
    on_epoch: OnEpoch = lambda number, epoch: None,
    accelerator: "Accelerator | None" = None,
    then: LoadedTask | None = None,
) -> Outcome:
    """Train from the seed's initial weights, in the seed's data order, and measure the result.

    Weights and order depend on the seed alone, so optimizers are compared like with like. After
    each epoch the run is saved in a file; the same run, started again, goes on from there and ends
    with the same numbers. The caller's random state, thread count and determinism setting are
    restored.

    Parameters
    ----------
    run : Run
        What to train. The test set is looked at once, at the end.
    loaded : LoadedTask
        The task, with its data.
    context : RunContext
        Where to train and where to leave files.
    on_epoch : callable
        Called after each epoch with its number, from 0, and its results. What it raises ends the
        run.
    accelerator : accelerate.Accelerator, optional
        Default: a new one, from :func:`~steppe.compare.training.accelerator.make_accelerator`.
    then : LoadedTask, optional
        The second task, of a study that has one.

    Returns
    -------
    Outcome
        A run whose loss stops being finite ends with that epoch, as diverged.
    """
    with reproducible(context):
        accelerator = accelerator or make_accelerator(run, context)
        training = Training(run, loaded, context, accelerator)
        training.resume(on_epoch)
        return training.outcome(then)


def take_trial_step(run: Run, loaded: LoadedTask, context: RunContext) -> None:
    """Take one step with a new model and leave nothing behind, to see that a run can be trained.

    Parameters
    ----------
    run, loaded, context
        As in :func:`train`; the step is not tracked.

    Raises
    ------
    Exception
        Whatever the model, the optimizer or the launch raises.
    """
    with reproducible(context):
        untracked = replace(context, track="")
        training = Training(run, loaded, untracked, make_accelerator(run, untracked))
        training.take_step()
        training.unfinished.check()


class Training:
    """One run between its first step and its last.

    Parameters
    ----------
    run, loaded, context
        As in :func:`train`.
    accelerator : accelerate.Accelerator
        The processes that train it.

    Attributes
    ----------
    model : nn.Module
        The model, as Accelerate wrapped it.
    curve : list of Epoch
        The epochs so far.
    diverged : bool
        Whether the loss has stopped being finite.
    unfinished : UnfinishedRun
        What the run goes on from if it is stopped.

    Raises
    ------
    ValueError
        If the processes of a launch cannot train it together.
    """

    def __init__(
        self, run: Run, loaded: LoadedTask, context: RunContext, accelerator: "Accelerator"
    ) -> None:
        self.run, self.context, self.accelerator = run, context, accelerator
        self._loaded = loaded
        self.task, self.data = task, data = loaded
        self.curve: list[Epoch] = []
        self.diverged, self._peak_bytes = False, 0.0
        self._seconds: list[float] = []
        # The same weights in all processes.
        seed_everything(epoch_seed(run.seed, -1))
        model = task.model()
        # Moved by hand first: an optimizer of parameters that move later may lose them.
        model.to(accelerator.device)
        # A pretrained model comes in eval() mode: all epochs are to be alike, also after a resume.
        model.train()
        steps = run.own_settings.steps
        optimizer = run.recipe.build_for(model, run.settings, steps)
        self._unwrapped_model, self._unwrapped_optimizer = model, optimizer
        _check_processes(run.run_settings, model, accelerator.num_processes, data)
        self._weights = EvaluatedWeights(model, optimizer, steps, ema=run.recipe.ema)
        # Before the schedule, which changes lr at once.
        self._probe = CurvatureProbe(run, loaded, accelerator, model, optimizer)
        stopped = run.run_settings.early_stopping
        self._best = BestEpoch(model, optimizer, task.score) if stopped else None
        self._order = torch.Generator()
        self._prepare(model, optimizer, steps)

    def _prepare(self, model: nn.Module, optimizer: Optimizer, steps: int) -> None:
        """Let Accelerate wrap all that trains."""
        task, settings = self.task, self.run.run_settings
        how = {
            "order": self._order,
            "weights": self.data.weights,
            "workers": self._loader_workers,
            "collate": task.collate_fn,
            "parts": settings.accumulate,
        }
        parts = parts_of(self.data.train)
        loaders = [batches_for(model, part, settings.batch_size, **how) for part in parts]
        schedule = self._make_schedule(optimizer, steps)
        self.model, wrapped_optimizer, self._schedule, *self._loaders = self.accelerator.prepare(
            model, optimizer, schedule, *loaders
        )
        self._step = OptimizerStep(
            self.model, task, optimizer, wrapped_optimizer, self.accelerator, settings
        )
        with_state = {
            "model": model,
            "average": self._weights.average,
            "best": self._best,
            "optimizer": optimizer,
            "schedule": self._schedule,
            "scaler": self.accelerator.scaler,
        }
        path = checkpoint.progress_path(self.context.out, self.run)
        self.unfinished = UnfinishedRun(path, with_state, self.accelerator)

    def _make_schedule(self, optimizer: Optimizer, steps: int) -> LRScheduler | OwnSchedule | None:
        if not any("lr" in group for group in optimizer.param_groups):
            return None
        if self.task.schedule is None or self.run.recipe.schedule_free:
            return LambdaLR(optimizer, self.run.lr_factor)
        return OwnSchedule(self.task.schedule(optimizer, steps), optimizer, self.run.rising)

    def take_step(self) -> None:
        """Take one step on the first batch."""
        with self._weights.training():
            self._step.take(next(iter(self._loaders[0])))

    def resume(self, on_epoch: OnEpoch) -> None:
        """Train the epochs that are left, from the last one that was saved.

        Parameters
        ----------
        on_epoch : callable
            As in :func:`train`.
        """
        if (earlier := self.unfinished.load()) is not None:
            self.curve = [Epoch(**epoch) for epoch in earlier["curve"]]
            self._seconds, self._step.gradients = earlier["seconds"], earlier["gradients"]
        for number in range(len(self.curve), self.run.own_settings.epochs):
            epoch = self._train_epoch(number)
            self.diverged = not math.isfinite(epoch.train_loss + epoch.validation_loss)
            if self.diverged:
                return
            self.curve.append(epoch)
            if self._best:
                self._best.update(epoch)
            self.accelerator.log(logged_numbers(epoch), step=number)
            # What a signal has interrupted, and a library has swallowed, is not gone on from.
            raise_if_stopped()
            self.unfinished.save(self._numbers())
            on_epoch(number, epoch)

    def outcome(self, then: LoadedTask | None = None) -> Outcome:
        """Measure the trained model, and save it as a checkpoint; ``then`` is the second task."""
        if self._best and not self.diverged:
            self._best.restore()
        final, samples = (FinalScores(), SampleResults()) if self.diverged else self._final()
        curvature, others = Curvature(), dict[str, Any]()
        if not self.diverged:
            if self.run.run_settings.robustness:
                others["robustness"] = robustness_of(
                    self._unwrapped_model, self._loaded, self.accelerator.device, self._evaluate
                )
            others["fine_tuning"] = fine_tuning_of(
                self.run, self._loaded, then, self.context, self._unwrapped_model, self.accelerator
            )
            # Autocast would round second derivatives away; all else that uses it is done.
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            curvature = self._probe.at_the_end()
        if self.accelerator.is_main_process:
            kept, extent = self.context.checkpoints, self.run.curvature
            # Of hundreds of trials those that are measured in full are worth the room.
            if not self.diverged and kept and (kept == "all" or extent == "full"):
                path = checkpoint.checkpoint_path(self.context.out, self.run)
                checkpoint.save(path, self.run, self._unwrapped_model, self._unwrapped_optimizer)
            self.unfinished.remove()
        if self.context.track:
            end_tracking(self.accelerator, final, len(self.curve))
        curve, costs = tuple(self.curve), self._costs()
        return Outcome(curve, self.diverged, final, curvature, costs, samples, **others)

    def _train_epoch(self, number: int) -> Epoch:
        seed_epoch(self.run.seed, number, self.accelerator.process_index)
        self._order.manual_seed(epoch_seed(self.run.seed, number))
        device = self.accelerator.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = _now(device)
        total, count = torch.zeros((), device=device), 0
        part = self.run.own_settings.task_index(number)
        with self._weights.training(), carried_state(self._unwrapped_model) as advance:
            for parts in self._loaders[part]:
                size = sum(each.size for each in parts)
                total += self._step.take(parts) * size
                self._weights.update()
                count += size
                advance()
                lr = self._unwrapped_optimizer.param_groups[0].get("lr", math.nan)
                if self._schedule is not None:
                    self._schedule.step()
        self._seconds.append(_now(device) - started)
        if device.type == "cuda":
            self._peak_bytes = max(torch.cuda.max_memory_allocated(), self._peak_bytes)
        found = self._evaluate(self._validation_until(part))
        train_loss = sum_over_processes(total, self.accelerator)
        samples = sum_over_processes(count, self.accelerator)
        return Epoch(
            float(train_loss) / float(samples),
            found.loss,
            found.score,
            lr=float(lr),
            seconds=sum(self._seconds),
            tasks=found.tasks,
            **self._probe.along_the_way(number),
        )

    def _validation_until(self, part: int) -> Dataset[Any]:
        """Return a stream's validation samples of its tasks up to this one; else all."""
        validation = self.data.validation
        return Stream(parts_of(validation)[: part + 1]) if self.data.is_stream else validation

    def _evaluate(self, dataset: Dataset[Any], **how: Any) -> Evaluation:
        return evaluate(
            self._unwrapped_model,
            self.task,
            dataset,
            self.accelerator,
            batch_size=self.run.run_settings.batch_size,
            sample_length=self.run.run_settings.length or 1,
            workers=self._loader_workers,
            **how,
        )

    def _final(self) -> tuple[FinalScores, SampleResults]:
        # Whatever has been drawn since the last epoch, which a run that goes on has not seen.
        last = self.run.own_settings.epochs
        seed_epoch(self.run.seed, last, self.accelerator.process_index)
        train = self._evaluate(self.data.unaugmented)
        validation = self._evaluate(self.data.validation, by_sample=True)
        test = self._evaluate(self.data.test, by_sample=True)
        samples = SampleResults(
            validation_scores=pack(validation.scores),
            validation_losses=pack(validation.losses),
            test_scores=pack(test.scores),
            test_losses=pack(test.losses),
        )
        final = FinalScores(
            train.loss,
            train.score,
            validation.loss,
            validation.score,
            test.loss,
            test.score,
            test.others,
        )
        return final, samples

    def _costs(self) -> RunCosts:
        model, settings = self._unwrapped_model, self.run.own_settings
        steps = [settings.steps_of_epoch(epoch) for epoch in range(len(self._seconds))]
        held = state_bytes(self._unwrapped_optimizer) + self._weights.bytes
        return RunCosts(
            step_ms=1e3 * median(map(truediv, self._seconds, steps)),
            seconds=sum(self._seconds),
            state_bytes=held / sum(p.numel() for p in model.parameters() if p.requires_grad),
            peak_bytes=self._peak_bytes or math.nan,
            gradients=self._step.gradients,
        )

    @property
    def _loader_workers(self) -> int:
        # On CPUs they would take from training the time that they save it.
        return 0 if self.accelerator.device.type == "cpu" else self.task.loaders

    def _numbers(self) -> dict[str, Any]:
        return {
            "curve": [asdict(epoch) for epoch in self.curve],
            "seconds": self._seconds,
            "gradients": self._step.gradients,
        }


def _check_processes(settings: RunSettings, model: nn.Module, processes: int, data: Data) -> None:
    """Refuse processes that cannot train together."""
    evaluated = [part for each in (data.validation, data.test) for part in parts_of(each)]
    fewest = min(map(size_of, evaluated))
    if isinstance(model, Recurrent) and (settings.accumulate > 1 or processes > 1):
        raise ValueError(
            f"{settings.model} reads on from batch to batch, which cannot be split: "
            "grad-accumulation and processes must be 1, got "
            f"{settings.accumulate} and {processes}"
        )
    if fewest < processes:
        raise ValueError(
            f"samples must leave one of validation and test for each of {processes} "
            f"processes, got {fewest}"
        )


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()
