"""Train one run, the same way every time."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from operator import truediv
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Subset

import steppe
from steppe._shared.optimizer_state import state_bytes
from steppe.compare.data.datasets import Data, Samples
from steppe.compare.data.loading import head, loader
from steppe.compare.metrics.curvature import batch_size_for, measure, measure_quickly
from steppe.compare.models.language_models import Recurrent, carried, columns
from steppe.compare.records.results import (
    TEST,
    Curvature,
    Epoch,
    Final,
    Outcome,
    RunCosts,
)
from steppe.compare.tasks import Task, find_task
from steppe.compare.training import checkpoint
from steppe.compare.training.run import Run, RunContext

if TYPE_CHECKING:
    from accelerate import Accelerator

_EVALUATED_TOGETHER = 500

# Far more than a run has epochs, and no multiple of what lies between seeds.
_BETWEEN_PROCESSES = 15_485_863

OnEpoch = Callable[[int, Epoch], None]


def train(
    run: Run,
    data: Data,
    place: RunContext,
    on_epoch: OnEpoch = lambda number, epoch: None,
    accelerator: "Accelerator | None" = None,
) -> Outcome:
    """Train from the seed's initial weights, in the seed's data order, and measure the result.

    Weights and order depend on the seed alone, so optimizers are compared like with like. After
    each epoch the run is kept in a file; the same run, started again, goes on from there and ends
    with the same numbers. The caller's random state, thread count and determinism setting are left
    as found.

    Parameters
    ----------
    run : Run
        What to train. The test set is looked at once, at the end, and only in the phase "test".
    data : Data
        The task's data.
    place : RunContext
        Where to train and where to leave files.
    on_epoch : callable
        Called after each epoch with its number, from 0, and how it went. What it raises ends the
        run.
    accelerator : accelerate.Accelerator, optional
        Made if not given.

    Returns
    -------
    Outcome
        A run whose loss stops being finite ends with that epoch, as diverged.
    """
    with reproducible(place):
        training = Training(run, data, place, accelerator or make_accelerator(run, place))
        training.go_on(on_epoch)
        return training.outcome()


def make_accelerator(run: Run, place: RunContext) -> "Accelerator":
    """Set up Accelerate: device, processes, mixed precision, trackers.

    Raises
    ------
    ModuleNotFoundError
        If Accelerate is not installed.
    ValueError
        If it would train elsewhere than at ``place.device``.
    """
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.state import AcceleratorState

    device = torch.device(place.device)
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)  # which is what Accelerate takes
    # It is shared by the whole process, and would refuse another precision than its first.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=run.setup.precision,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with=place.track or None,
        project_dir=place.out / "logs",
    )
    if accelerator.device.type != torch.device(place.device).type:
        raise ValueError(
            f"device {place.device} is not what Accelerate takes: {accelerator.device}"
        )
    if place.track:
        accelerator.init_trackers(
            # Of the three, TensorBoard has no projects: it is a directory for each run.
            run.label if place.track == "tensorboard" else run.setup.task,
            config={"optimizer": run.recipe.name, "seed": run.seed, **run.settings},
            init_kwargs={"mlflow": {"run_name": run.label}, "wandb": {"name": run.label}},
        )
    return accelerator


class Training:
    """One run between its first step and its last.

    Parameters
    ----------
    run, data, place
        As in :func:`train`.
    accelerator : accelerate.Accelerator
        What carries it out.
    """

    def __init__(self, run: Run, data: Data, place: RunContext, accelerator: "Accelerator") -> None:
        self.run, self.data, self.place, self.accelerator = run, data, place, accelerator
        self.task: Task = find_task(run.setup.task)
        self.curve: list[Epoch] = []
        self.diverged = False
        self._seconds: list[float] = []
        self._peak = 0.0
        self._seed(-1)
        model = self.task.make(run.setup.model)
        # Moved by hand first: an optimizer of parameters that move later may lose them. Channels
        # last halves the time of small convolutions on CPUs, and feeds tensor cores on GPUs.
        model.to(accelerator.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = run.recipe.build(trained, run.settings, run.setup.steps)
        self.bare: nn.Module = model
        self._check_processes()
        self.inner: Optimizer = optimizer
        self._base = [group["lr"] for group in optimizer.param_groups if "lr" in group]
        schedule = LambdaLR(optimizer, run.rate) if self._base else None
        self.order = torch.Generator()
        batches = [self._batches(each, run.setup.batch_size, self.order) for each in data.parts]
        self.model, self.optimizer, self.schedule, *self.batches = accelerator.prepare(
            model, optimizer, schedule, *batches
        )

    def _check_processes(self) -> None:
        parts, processes = self.run.setup.accumulate, self.accelerator.num_processes
        if isinstance(self.bare, Recurrent) and (parts > 1 or processes > 1):
            raise ValueError(
                f"{self.run.setup.model} goes on from batch to batch, which must stay whole: "
                f"accumulate and processes must be 1, got {parts} and {processes}"
            )
        fewest = min(len(self._seen(0)), len(self.data.test))
        if fewest < processes:
            raise ValueError(
                f"samples must leave one of validation and test for each of {processes} "
                f"processes, got {fewest}"
            )

    def rehearse(self) -> None:
        """Take one step and keep nothing."""
        self._step(*next(iter(self.batches[0])))

    def go_on(self, on_epoch: OnEpoch) -> None:
        """Train the epochs that are left."""
        self._resume()
        for number in range(len(self.curve), self.run.setup.epochs):
            epoch = self._epoch(number)
            self.diverged = not math.isfinite(epoch.train_loss + epoch.validation_loss)
            if self.diverged:
                return
            self.curve.append(epoch)
            self.accelerator.log(_numbers(epoch), step=number)
            self._keep()
            on_epoch(number, epoch)

    def outcome(self) -> Outcome:
        """Measure where it ended, and leave a checkpoint there."""
        final = Final() if self.diverged else self._final()
        curvature = Curvature() if self.diverged else self._curvature()
        if self.accelerator.is_main_process and self.place.keep and not self.diverged:
            checkpoint.save(self._checkpoint, self.run, self.bare, self.inner)
        if self.accelerator.is_main_process:
            self._unfinished.unlink(missing_ok=True)
        if self.place.track:
            self.accelerator.log({k: v for k, v in asdict(final).items() if v == v})
            # Not end_training(): it would part the processes, which have other runs to train.
            for tracker in self.accelerator.trackers:
                tracker.finish()
        return Outcome(tuple(self.curve), self.diverged, final, curvature, self._costs())

    def _epoch(self, number: int) -> Epoch:
        self._seed(number)
        self.order.manual_seed(_mixed(self.run.seed, number))
        if self._on_cuda:
            torch.cuda.reset_peak_memory_stats()
        started = _now(self.accelerator.device)
        total, count = torch.zeros((), device=self.accelerator.device), 0
        part = self.run.setup.part(number)
        with carried(self.bare) as advance:
            for inputs, targets in self.batches[part]:
                total += self._step(inputs, targets) * len(targets)
                count += len(targets)
                advance()
                rate = self.inner.param_groups[0].get("lr", math.nan)
                if self.schedule is not None:
                    self.schedule.step()
        self._seconds.append(_now(self.accelerator.device) - started)
        if self._on_cuda:
            self._peak = max(torch.cuda.max_memory_allocated(), self._peak)
        loss, score, tasks = self._evaluated(self._seen(part))
        return Epoch(
            float(self._summed(total)) / float(self._summed(count)),
            loss,
            score,
            lr=float(rate),
            seconds=sum(self._seconds),
            tasks=tasks,
        )

    def _batches(
        self, dataset: "Dataset[Any]", size: int, order: torch.Generator | None = None
    ) -> "DataLoader[Any]":
        """Make batches: of a recurrent model, in columns that go on from batch to batch."""
        chosen = None
        if isinstance(self.bare, Recurrent):
            chosen, order = columns(len(dataset), size), None  # type: ignore[arg-type]
        return loader(dataset, size, order=order, workers=self._loaders, batches=chosen)

    def _seen(self, part: int) -> Samples:
        """Return the validation samples of a stream's tasks up to this one; all, if it is none."""
        validation = self.data.validation
        if not self.data.stream:
            return validation
        # Not by the classes that were trained on: of few samples some may be missing.
        known = validation.targets < self.data.classes * (part + 1)
        return validation.take(known.nonzero().flatten())

    def _step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Take one step on a batch; return the loss before it.

        Everything goes through a closure, which every optimizer accepts and SAM and LBFGS need;
        ``GradScaler`` takes none, so SAM's two passes are spelled out for it. It unscales gradients
        once a step, so they are clipped after the second pass; of the first, only the direction
        matters. Without it, Accelerate's wrapper would only look for packages anew at each step,
        for a quarter of a millisecond.
        """
        losses: list[Tensor] = []

        def closure() -> Tensor:
            losses.append(self._gradients(inputs, targets))
            self._clip()
            return losses[-1]

        if self.accelerator.scaler is None:
            self.inner.step(closure)  # type: ignore[arg-type]  # its stub says float
            return losses[0]
        loss = self._gradients(inputs, targets)
        if isinstance(self.inner, steppe.SAM):
            with self.inner.perturbed():
                self._gradients(inputs, targets)
        self._clip()
        self.optimizer.step()
        return loss

    def _gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Fill the gradients of a batch, part by part; return its mean loss."""
        self.inner.zero_grad()
        parts = self.run.setup.accumulate
        pieces = list(zip(inputs.chunk(parts), targets.chunk(parts), strict=True))
        total = torch.zeros((), device=inputs.device)
        for number, (some, wanted) in enumerate(pieces, start=1):
            with self._alone(last=number == len(pieces)):
                loss = self.task.loss(self.model(some), wanted) * (len(wanted) / len(targets))
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _clip(self) -> None:
        if self.run.setup.clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.run.setup.clip)

    def _alone(self, *, last: bool) -> AbstractContextManager[Any]:
        """Leave gradients unsynchronised between processes until the batch's last part."""
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def _final(self) -> Final:
        train, last = self._evaluated(self.data.plain)[:2], self.curve[-1]
        validation = last.validation_loss, last.validation_score
        if self.run.phase != TEST:
            return Final(*train, *validation)
        return Final(*train, *validation, *self._evaluated(self.data.test)[:2])

    @torch.no_grad()
    def _evaluated(self, dataset: Samples) -> tuple[float, float, tuple[float, ...]]:
        """Return mean loss, score and its parts over all samples, each process taking its share."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        share = Subset(dataset, range(process, len(dataset), processes))
        loss = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        sums: Any = 0
        together = max(1, _EVALUATED_TOGETHER // (self.run.setup.length or 1))
        # Not the wrapped model, whose processes wait for each other: their shares may differ.
        self.bare.eval()
        with carried(self.bare) as advance:
            for inputs, targets in self._batches(share, together):
                outputs = self.bare(inputs.to(loss.device))
                wanted = targets.to(loss.device)
                loss += self.task.loss(outputs, wanted) * len(targets)
                sums = sums + self.task.score.sums(outputs, wanted)
                advance()
        self.bare.train()
        mean, sums = float(self._summed(loss)) / len(dataset), self._summed(sums)
        score = self.task.score
        return mean, score.total(sums, mean), score.parts(sums)

    def _curvature(self) -> Curvature:
        # Autocast would round second derivatives away, and evaluation is done with it.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        probe = self.task.probe
        few = head(self.data.plain, probe.samples, batch_size_for(self.bare))
        batches = [(x.to(self.accelerator.device), y.to(self.accelerator.device)) for x, y in few]
        if self.run.phase != TEST:
            if not probe.tuning:
                return Curvature()
            return measure_quickly(self.bare, self.task.loss, batches, probe)
        # Where the schedule has gone would say nothing about the lr that was trained with.
        for group, rate in zip(self.inner.param_groups, self._base, strict=False):
            group["lr"] = rate
        return measure(self.bare, self.task.loss, batches, self.inner, probe)

    def _costs(self) -> RunCosts:
        return RunCosts(
            step_ms=1e3 * median(map(truediv, self._seconds, self._steps)),
            seconds=sum(self._seconds),
            state_bytes=state_bytes_per_parameter(self.inner, self.bare),
            peak_bytes=self._peak or math.nan,
        )

    @property
    def _steps(self) -> list[int]:
        return [self.run.setup.steps_in(epoch) for epoch in range(len(self._seconds))]

    @property
    def _loaders(self) -> int:
        # On CPUs they would take from training what they save it.
        return 0 if self.accelerator.device.type == "cpu" else self.task.loaders

    @property
    def _on_cuda(self) -> bool:
        return bool(self.accelerator.device.type == "cuda")

    @property
    def _checkpoint(self) -> Path:
        return checkpoint.checkpoint_path(self.place.out, self.run)

    @property
    def _unfinished(self) -> Path:
        return checkpoint.progress_path(self.place.out, self.run)

    def _keep(self) -> None:
        if not self.accelerator.is_main_process:
            return
        content = {
            "curve": [asdict(epoch) for epoch in self.curve],
            "seconds": self._seconds,
            **{name: part.state_dict() for name, part in self._parts().items()},
        }
        checkpoint.write(self._unfinished, content)

    def _resume(self) -> None:
        """Go on from the last epoch that was kept; from the start if not all can read that."""
        from accelerate.utils import gather_object

        content: dict[str, Any] | None = None
        with suppress(FileNotFoundError, ValueError):
            content = checkpoint.read(self._unfinished, torch.device("cpu"))
        # The first process alone has kept it, in a directory that others may not share.
        epochs = gather_object([len(content["curve"]) if content else 0])
        if content is None or len(set(epochs)) > 1:
            return
        for name, part in self._parts().items():
            part.load_state_dict(content[name])
        self.curve = [Epoch(**epoch) for epoch in content["curve"]]
        self._seconds = content["seconds"]

    def _parts(self) -> dict[str, Any]:
        """Everything that a run's next epoch depends on, but for the random numbers it draws."""
        parts = {
            "model": self.bare,
            "optimizer": self.inner,
            "schedule": self.schedule,
            "scaler": self.accelerator.scaler,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _seed(self, epoch: int) -> None:
        """Draw each epoch's random numbers anew, so that a run can go on from any of them.

        The first draw, of the weights, is the same in all processes; dropout's is not.
        """
        process = 0 if epoch < 0 else self.accelerator.process_index
        torch.manual_seed(_mixed(self.run.seed, epoch) + process * _BETWEEN_PROCESSES)

    def _summed(self, value: Any) -> Any:
        """Sum over processes."""
        if self.accelerator.num_processes == 1:
            return value
        tensor = torch.as_tensor(value, device=self.accelerator.device)
        return self.accelerator.reduce(tensor, reduction="sum")


def state_bytes_per_parameter(optimizer: Optimizer, model: nn.Module) -> float:
    """Bytes of all tensors in the optimizer's state, per trainable parameter."""
    return state_bytes(optimizer) / sum(p.numel() for p in model.parameters() if p.requires_grad)


def _numbers(epoch: Epoch) -> dict[str, float]:
    """Give what trackers log: numbers, each by a name."""
    numbers = asdict(epoch)
    tasks = numbers.pop("tasks")
    return numbers | {f"validation_score_of_task_{k}": score for k, score in enumerate(tasks, 1)}


def _mixed(seed: int, epoch: int) -> int:
    """Make a seed for an epoch that no other seed's epoch has, in runs of any sensible length."""
    return seed * 1_000_003 + epoch + 1


@contextmanager
def reproducible(place: RunContext) -> Iterator[None]:
    """Compute the same numbers each time, and leave torch's settings as they were."""
    device = torch.device(place.device)
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cuda":
        # Without it cuBLAS may choose another order of sums each time, and torch refuses to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.set_num_threads(place.threads)
        torch.use_deterministic_algorithms(True)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_num_threads(threads)


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()
