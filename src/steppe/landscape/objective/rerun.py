"""The loss of a model that is run once more, to find out what its loss is a mean over."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from steppe.landscape.objective.batches import Batch, part_named
from steppe.landscape.objective.sample_groups import part_of

# A pass at a position so far off draws other random numbers.
_OTHER_NOISE = 1_000_003


class Rerun(Protocol):
    """Runs a model on a batch, or on a part of one, in ``eval()`` mode."""

    def __call__(self, batch: Batch, elsewhere: int = 0) -> tuple[Any, Any]:
        """Return outputs and targets.

        Parameters
        ----------
        batch : Batch
            What it is run on.
        elsewhere : int, default 0
            From 1 on it is run with other parameters, where outputs of different samples differ,
            and with others for each number.
        """


class RerunLoss:
    """Computes losses of outputs, or of inputs that the model is run on.

    Parameters
    ----------
    loss_fn : callable or None
        The loss; None takes that of the model's outputs.
    forward : Rerun or None
        Runs the model.
    """

    def __init__(self, loss_fn: Callable[[Any, Any], Tensor] | None, forward: Rerun | None) -> None:
        self._loss_fn, self._forward = loss_fn, forward
        #: Whether the loss is the one that the model has computed.
        self.is_own = False
        #: Whether the model has been run.
        self.has_run = False
        #: The number format of the last loss.
        self.dtype = torch.float32
        self._elsewhere = 0

    @property
    def can_run(self) -> bool:
        """Whether there is a model to run."""
        return self._forward is not None

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Run the model with other parameters, inside of the block."""
        self._elsewhere = 1
        try:
            yield
        finally:
            self._elsewhere = 0

    def of_outputs(self, outputs: Any, targets: Any) -> float:
        """Return the loss of outputs."""
        if self.is_own:
            found: Any = part_named("loss", outputs)
        else:
            assert self._loss_fn is not None
            found = self._loss_fn(outputs, targets)
        self.dtype = found.dtype
        return float(found)

    def of_part(self, batch: Batch, begin: int, end: int, noise: int = 0) -> float:
        """Run the model on some samples of a batch, and return their loss."""
        # A part of inputs that require a gradient requires one.
        with torch.enable_grad():
            part = part_of(batch, begin, end)
        return self.of_inputs(part, noise)

    def of_inputs(self, batch: Batch, noise: int = 0) -> float:
        """Run the model on a batch, with noise of one kind or another, and return its loss."""
        self.has_run = True
        try:
            return self._run(batch, noise)
        except RuntimeError:
            # A loss that differentiates outputs by inputs, as gradient penalties do.
            with torch.enable_grad():
                return self._run(batch, noise)

    def _run(self, batch: Batch, noise: int) -> float:
        if self._forward is None:
            raise ValueError("the model cannot be run")
        position = batch.position + noise * _OTHER_NOISE
        moved = batch._replace(position=position)
        return self.of_outputs(*self._forward(moved, elsewhere=self._elsewhere))
