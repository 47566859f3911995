"""Train one run, the same way every time."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steppe.compare import checkpoint
from steppe.compare.curvature import Curvature, in_batches, measure
from steppe.compare.data import Data
from steppe.compare.run import Epoch, Outcome, Run


def train(
    run: Run,
    data: Data,
    on_epoch: Callable[[], None] = lambda: None,
    directory: Path | None = None,
) -> Outcome:
    """Train from the seed's initial weights, in the seed's data order, and measure the result.

    Weights and order depend on the seed alone, so optimizers are compared like with like. The
    caller's random state, thread count and determinism setting are left as found.

    Parameters
    ----------
    run : Run
        What to train.
    data : Data
        The task's data on the run's device.
    on_epoch : callable
        Called after each epoch.
    directory : Path, optional
        Where to leave the trained model and its optimizer, see :mod:`steppe.compare.checkpoint`.

    Returns
    -------
    Outcome
        A run whose loss stops being finite ends there, as diverged.
    """
    setup, loss_fn = run.setup, run.setup.task.loss
    with _reproducible(run):
        model = setup.task.model().to(setup.device)
        optimizer = run.recipe.build(model.parameters(), setup.lr, setup.switch_rate)
        schedule = run.recipe.schedule(optimizer, setup.switch_rate)
        order = torch.Generator().manual_seed(run.seed)
        curve: list[Epoch] = []
        times: list[float] = []
        diverged = False
        for _ in range(setup.epochs):
            for inputs, targets in _shuffled(data, setup.batch_size, order):
                started = _now(setup.device)
                loss = step(model, optimizer, loss_fn, inputs, targets)
                if schedule is not None:
                    schedule.step()
                times.append(_now(setup.device) - started)
                if not math.isfinite(loss):
                    break
            epoch = _evaluate(model, loss_fn, data)
            diverged = not math.isfinite(loss + epoch.train_loss + epoch.test_loss)
            if diverged:
                break
            curve.append(epoch)
            on_epoch()
        if directory is not None and not diverged:
            checkpoint.save(checkpoint.checkpoint_path(directory, run), run, model, optimizer)
        samples = data.train_inputs, data.train_targets
        return Outcome(
            curve=tuple(curve),
            diverged=diverged,
            curvature=Curvature() if diverged else measure(model, loss_fn, *samples, optimizer),
            step_ms=1e3 * median(times),
            state_bytes=state_bytes(optimizer, model),
        )


def step(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
) -> float:
    """One training step on a batch.

    Everything goes through a closure, which every optimizer accepts and SAM and LBFGS need.

    Returns
    -------
    float
        The loss before the step.
    """
    losses: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]  # its stub says float, it wants the tensor
    return losses[0]


def state_bytes(optimizer: Optimizer, model: nn.Module) -> float:
    """Bytes of all tensors in the optimizer's saved state, per trainable parameter."""
    state = {k: v for k, v in optimizer.state_dict().items() if k != "param_groups"}
    size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state))
    return size / sum(p.numel() for p in model.parameters() if p.requires_grad)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for branch in tree.values():
            yield from _tensors(branch)
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from _tensors(branch)


@contextmanager
def _reproducible(run: Run) -> Iterator[None]:
    device = run.setup.device
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cuda":
        # Without it cuBLAS may choose another order of sums each time, and torch refuses to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.set_num_threads(run.setup.threads)
        torch.use_deterministic_algorithms(True)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(run.seed)
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_num_threads(threads)


def _shuffled(
    data: Data, batch_size: int, order: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    permutation = torch.randperm(len(data.train_targets), generator=order)
    for rows in torch.split(permutation.to(data.train_targets.device), batch_size):
        yield data.train_inputs[rows], data.train_targets[rows]


def _evaluate(model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], data: Data) -> Epoch:
    model.eval()
    train_loss, _ = _loss_and_accuracy(model, loss_fn, data.train_inputs, data.train_targets)
    test_loss, accuracy = _loss_and_accuracy(model, loss_fn, data.test_inputs, data.test_targets)
    model.train()
    return Epoch(train_loss, test_loss, accuracy)


@torch.no_grad()
def _loss_and_accuracy(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
) -> tuple[float, float]:
    loss, correct = 0.0, 0
    for batch, wanted in in_batches(inputs, targets):
        outputs = model(batch)
        loss += loss_fn(outputs, wanted).item() * len(wanted)
        correct += int((outputs.argmax(dim=1) == wanted).sum())
    return loss / len(targets), correct / len(targets)


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()
