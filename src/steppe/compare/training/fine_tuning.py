"""What a trained model forgets of its task while it is fine-tuned on a second one."""

import math
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from steppe.compare.data.loading import Part
from steppe.compare.models.language_models import carried_state
from steppe.compare.records.outcomes import FineTuningCurve
from steppe.compare.records.second_task import SecondTask
from steppe.compare.tasks.task import LoadedTask
from steppe.compare.training.evaluation import batches_for, evaluate
from steppe.compare.training.reproducibility import epoch_seed, reproducible, seed_everything
from steppe.compare.training.run import Run, RunContext
from steppe.compare.training.sample_choice import some_samples

if TYPE_CHECKING:
    from accelerate import Accelerator

# Of each part of both tasks, at each point of a curve.
_SAMPLES = 1_000
# No run has so many epochs: what is drawn is drawn for nothing else.
_EPOCH = 1_000_000
# Losses and scores of both tasks on validation and test samples.
_NUMBERS = 8


def fine_tuning_of(
    run: Run,
    loaded: LoadedTask,
    then: LoadedTask | None,
    context: RunContext,
    model: nn.Module,
    accelerator: "Accelerator",
) -> tuple[FineTuningCurve, ...]:
    """Fine-tune a trained model's weights on the study's second task, once for each of its lrs.

    A new model gets the weights, so that the trained one stays as it is; so do all random states.
    Every contender's is trained alike: by AdamW with torch's defaults, with a constant lr, in
    float32, on the same batches for one seed of the run. Each process of a launch trains the same
    model, and evaluates its share of the samples.

    Parameters
    ----------
    run : Run
        Its seed decides the order of the batches, and what is drawn in training.
    loaded : LoadedTask
        The task that the model was trained on.
    then : LoadedTask or None
        The study's second task, if it has one.
    context : RunContext
        Device and threads.
    model : nn.Module
        The trained model, not wrapped.
    accelerator : accelerate.Accelerator
        The processes.

    Returns
    -------
    tuple of FineTuningCurve
        Empty if the study has no second task.

    Raises
    ------
    ValueError
        The study has one, and it is not given.
    """
    second = run.run_settings.then
    if second is None:
        return ()
    if then is None:
        raise ValueError(f"then must be the second task {second.task} with its data, got None")
    with reproducible(context):
        seed = epoch_seed(run.seed, _EPOCH)
        seed_everything(seed)
        tuned = loaded.task.model().to(accelerator.device)
        sizes = run.run_settings.batch_size, second.batch_size
        tuning = _FineTuning(second, (loaded, then), sizes, tuned, accelerator)
        return tuple(tuning.curve(model.state_dict(), lr, seed) for lr in second.lrs)


class _FineTuning:
    """Trains a model on a second task, and evaluates it on both."""

    def __init__(
        self,
        second: SecondTask,
        tasks: tuple[LoadedTask, LoadedTask],
        batch_sizes: tuple[int, int],
        model: nn.Module,
        accelerator: "Accelerator",
    ) -> None:
        self._second, self._then = second, tasks[1]
        self._model, self._accelerator = model, accelerator
        self._evaluated = [
            (each.task, some_samples(part, _SAMPLES, model), size)
            for each, size in zip(tasks, batch_sizes, strict=True)
            for part in (each.data.validation, each.data.test)
        ]
        # Of the trained model, which is the same whatever lr follows.
        self._first: list[float] | None = None

    def curve(self, start: dict[str, Any], lr: float, seed: int) -> FineTuningCurve:
        """Fine-tune from these weights."""
        model, steps = self._model, self._second.measured_steps()
        model.load_state_dict(start)
        self._first = self._first or self._measured()
        rows = [self._first]
        seed_everything(seed)
        trained = [param for param in model.parameters() if param.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=lr)
        with closing(self._batches(seed)) as batches:
            for step in range(1, steps[-1] + 1):
                optimizer.zero_grad()
                loss = self._then.task.batch_loss(model, next(batches))
                torch.autograd.backward(loss)
                optimizer.step()
                if step in steps:
                    if not math.isfinite(loss.item()):
                        break
                    rows.append(self._measured())
        rows += [[math.nan] * _NUMBERS] * (len(steps) - len(rows))
        return FineTuningCurve(lr, steps, *zip(*rows, strict=True))

    def _batches(self, seed: int) -> Generator[Any, None, None]:
        """Yield batches of the second task without end, in the seed's order."""
        from accelerate.utils import send_to_device

        task, data = self._then.task, self._then.data
        order = torch.Generator().manual_seed(seed)
        loader = batches_for(
            self._model,
            data.train,
            self._second.batch_size,
            order=order,
            weights=data.weights,
            collate=task.collate_fn,
        )
        while True:
            with carried_state(self._model) as advance:
                part: Part
                for (part,) in loader:
                    yield send_to_device(part.batch, self._accelerator.device)
                    advance()

    def _measured(self) -> list[float]:
        """Evaluate the model; six digits of losses and scores, a study has thousands of them."""
        found = [
            evaluate(
                self._model,
                task,
                samples,
                self._accelerator,
                batch_size=size,
                sample_length=task.options.get("length") or 1,
            )
            for task, samples, size in self._evaluated
        ]
        return [float(f"{x:.6g}") for each in found for x in (each.loss, each.score)]
