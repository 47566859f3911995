"""The weights that are evaluated and saved, where these are not the ones that are trained.

That is so with an exponential moving average, and under optimizers that have modes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from steppe._shared.optimizer_modes import switch_mode

# As torch's averages take them.
_Tensors = tuple[Tensor, ...] | list[Tensor]

# The window of the average, as a share of the run's steps.
_WINDOW = 0.01


class EvaluatedWeights:
    """Keeps in a model the weights that are evaluated and saved, but for the time of training.

    An exponential moving average has the window n = max(1, round(steps / 100)). It is, after the
    first step, the weights themselves; after each further step::

        average ← (1 − 1/n)·average + 1/n·weights

    Running statistics, as of batch normalisation, are averaged with the weights that they belong
    to. Buffers of whole numbers are copied.

    Parameters
    ----------
    model : nn.Module
        The model, not wrapped, with its first weights.
    optimizer : Optimizer
        Its optimizer. If that has modes, it is switched.
    steps : int
        Steps of the whole run.
    ema : bool
        Whether an average is evaluated.

    Attributes
    ----------
    average : AveragedModel or None
        Whichever weights the model does not hold: outside of training, those of training.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, steps: int, *, ema: bool) -> None:
        self._model, self._optimizer = model, optimizer
        self.average: AveragedModel | None = None
        if ema:
            mean = _moving_average(max(1, round(_WINDOW * steps)))
            self.average = AveragedModel(model, multi_avg_fn=mean, use_buffers=True)

    @property
    def bytes(self) -> int:
        """Memory of the average."""
        return sum(tensor.nbytes for tensor in _tensors(self.average.module)) if self.average else 0

    @contextmanager
    def training(self) -> Iterator[None]:
        """Hold the weights of training in the block."""
        self._exchange()
        switch_mode(self._optimizer, "train")
        yield
        # Only now, and not around each evaluation: switching rounds, and a run that is stopped and
        # resumed must switch as often as one that is not.
        switch_mode(self._optimizer, "eval")
        self._exchange()

    def update(self) -> None:
        """Take the weights of a step into the average."""
        if self.average is not None:
            self.average.update_parameters(self._model)

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange the model's weights with those beside it, in place: optimizers hold them."""
        if self.average is None:
            return
        for held, kept in zip(_tensors(self._model), _tensors(self.average.module), strict=True):
            before = held.clone()
            held.copy_(kept)
            kept.copy_(before)


def _moving_average(window: int) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    average = get_ema_multi_avg_fn(1 - 1 / window)  # type: ignore[no-untyped-call]  # torch's has no types

    def update(averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            average(averaged, current, count)
        else:
            # torch would round the mean of a counter, or of an index, down to a whole number.
            torch._foreach_copy_(averaged, current)

    return update


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())
