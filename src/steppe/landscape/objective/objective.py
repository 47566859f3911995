"""The mean loss over all samples, as a function of a model's parameters.

Every instrument evaluates a model through an :class:`Objective`: it runs the batches, weights them
by their sizes, and restores the model afterwards.
"""

import copy
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from steppe._shared.interrupts import uninterrupted
from steppe.landscape.objective.batches import Batch, Batches, check_data, read_batch
from steppe.landscape.objective.differentiate import derivatives, flat_vector, narrowest_format
from steppe.landscape.objective.exact_passes import (
    exact_passes,
    has_renormed_embeddings,
    renormed_embeddings,
    unwrapped,
    without_gradients,
)
from steppe.landscape.objective.loss_weight import LossFunction, LossWeight, Weight, part_named
from steppe.landscape.objective.parameters import ParameterSpace
from steppe.landscape.objective.random_state import RandomState
from steppe.landscape.objective.restore_model import restore_on_exit
from steppe.landscape.objective.same_data import SameData
from steppe.landscape.objective.same_loss import SameLoss
from steppe.landscape.objective.sample_mean import SampleMean

# What follows a loader's last batch, which may be None.
_END = object()

# Random generators and torch's choice of kernels belong to the process.
_MEASURING = threading.RLock()


class MeanLoss(NamedTuple):
    """The mean loss, the number of samples, and the sum of the batches' weights."""

    loss: float
    samples: int
    weight: float


class MeanGradient(NamedTuple):
    """The gradient of the mean loss, of shape (size,) in float64, and what belongs to it."""

    gradient: Tensor
    loss: float
    samples: int
    weight: float


class Objective(ParameterSpace):
    """The mean loss over the samples of ``data``: batches are weighted by what it is a mean over.

    Under :class:`~torch.nn.parallel.DistributedDataParallel` each process has its own part of the
    data, and means are over the samples of all.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``; as ``model(*inputs)`` where a batch's inputs are a tuple or a
        list; and as ``model(**batch)`` where a batch is a mapping, as Hugging Face's are.
    loss_fn : callable or None
        ``loss_fn(outputs, targets)``, for mappings ``loss_fn(outputs, batch)``: a scalar. None
        takes ``outputs.loss``, for models that compute it.
    data : iterable
        Batches, gone through again and again: a list or a ``DataLoader``, shuffled or not. They are
        moved to the model's device.
    params : iterable of Tensor, optional
        The parameters that the loss is a function of. Default: those that require a gradient.
    train : bool, default False
        Evaluate in ``train()`` mode: batch statistics, and dropout with the same masks each time.
        Running statistics are restored. Default: ``eval()``.
    weight : str or callable, optional
        What a batch's loss has been divided by; see :func:`steppe.landscape.hessian`. Default: it
        is found out.

    Raises
    ------
    ValueError
        A parameter requires no gradient, is complex, does not belong to the model, is given twice,
        or lies on another device; no parameter is left; or the data cannot be gone through twice.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 2.0)
    >>> data = [(torch.ones(3, 1), torch.zeros(3, 1)), (torch.zeros(1, 1), torch.zeros(1, 1))]
    >>> objective = Objective(model, nn.functional.mse_loss, data)
    >>> with objective.evaluation_mode():
    ...     objective.loss()  # (3·2² + 1·0²)/4, over 4 samples
    MeanLoss(loss=3.0, samples=4, weight=4.0)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        data: Batches,
        *,
        params: Iterable[Tensor] | None = None,
        train: bool = False,
        weight: Weight | None = None,
    ) -> None:
        check_data(data)
        super().__init__(unwrapped(model), params)
        self.is_distributed = _is_distributed(model)
        self.loss_fn, self.data, self.train, self.weight = loss_fn, data, train, weight
        self._loss_weight = self._new_loss_weight()
        self.is_sum = self._loss_weight.is_sum
        self._random = RandomState(self.model, data)
        self._same_data = SameData(data)
        self._reset: Callable[[], None] = lambda: None
        self._interruptible: Callable[[], AbstractContextManager[None]] = nullcontext
        # As weights that are masked or clipped: unknown until a pass has been made.
        self._changed_by_forward: list[Tensor] | None = None
        self._compares_losses, self._same_loss = False, SameLoss()
        #: The number format of fewest bits that losses are computed in: known after a gradient.
        self.narrowest: torch.dtype | None = None

    def over(self, batches: list[Batch]) -> "Objective":
        """Return the loss over some batches alone, for use inside of this one's evaluation mode."""
        part = copy.copy(self)
        part.data, part.is_distributed = batches, False
        part._random, part._same_data = self._random.of_model(), SameData(batches)
        part._loss_weight = part._new_loss_weight()
        return part

    def _new_loss_weight(self) -> LossWeight:
        forward = None if self.train else lambda batch: self.outputs(batch)[0]
        is_single = _has_one_batch(self.data)
        return LossWeight(self.loss_fn, self.weight, forward, is_single)

    @contextmanager
    def evaluation_mode(
        self,
        moves_params: bool = False,
        moves_buffers: bool = False,
        differentiates_twice: bool = False,
    ) -> Iterator[None]:
        """Prepare the model for measuring, and restore it on leaving.

        Inside, the model is in ``train()`` or ``eval()`` mode as asked for, each forward pass of a
        batch starts from the same buffers and random numbers, and all operations can be
        differentiated twice (:func:`~steppe.landscape.objective.exact_passes.exact_passes`).
        Ctrl-C takes effect between batches only, as within one torch may have exchanged the model's
        parameters. What is changed is the process's: other threads wait until the block ends.

        Parameters
        ----------
        moves_params : bool, default False
            Whether parameters will be changed inside; they are then copied, and restored too.
        moves_buffers : bool, default False
            Whether buffers will be changed inside: forward passes start from what they are then.
        differentiates_twice : bool, default False
            Whether second derivatives will be taken, which need embeddings without ``max_norm``.
        """
        with uninterrupted() as interruptible, ExitStack() as stack:
            stack.enter_context(_only_one_thread(interruptible))
            stack.enter_context(exact_passes(self.model, self.device))
            stack.enter_context(self._random.restored())
            if differentiates_twice:
                stack.enter_context(renormed_embeddings(self.model))
            moved = {id(param): param for param in self.params} if moves_params else {}
            known = self._changed_by_forward
            guarded = list(self.model.parameters()) if known is None else known
            # Only parameters that nobody else moves tell whether the forward pass does.
            before = [(p, p.detach().clone()) for p in guarded if id(p) not in moved]
            moved |= {id(param): param for param in guarded}
            reset = stack.enter_context(restore_on_exit(self.model, moved.values()))
            self._reset = (lambda: None) if moves_buffers else reset
            self.model.train(self.train)
            self._compares_losses = moves_params and not moves_buffers
            self._interruptible = interruptible
            stack.callback(setattr, self, "_interruptible", nullcontext)
            yield
            if known is None and not moves_params:
                self._changed_by_forward = [p for p, v in before if not torch.equal(p, v)]

    @property
    def is_changed_by_forward(self) -> bool:
        """Whether forward passes change parameters, which are restored afterwards."""
        return bool(self._changed_by_forward) or has_renormed_embeddings(self.model)

    def batches(self) -> Iterator[Batch]:
        """Go through the data; inside :meth:`evaluation_mode`, which restores the random state.

        Raises
        ------
        ValueError
            A batch is neither a pair nor a mapping, or is another one than in the first pass.
        """
        # A shuffled loader with drop_last leaves out the same samples in every pass.
        self._random.begin_pass()
        source = iter(self.data)
        for position in count():
            self._random.begin_batch(position)
            with self._interruptible():
                batch = next(source, _END)
            if batch is _END:
                break
            self._same_data.batch(position, batch)
            read = read_batch(position, batch, self.device)
            if self._compares_losses:
                self._same_loss.check(position, partial(_loss_without_graph, self, read))
            yield read
        self._same_data.end(position)

    def outputs(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> tuple[Any, Any]:
        """Run the model on a copy of a batch, by default with its own parameters.

        Parameters
        ----------
        batch : Batch
            From :meth:`batches`.
        params : mapping of Tensor, optional
            Tensors to use in place of the model's parameters, by name.

        Returns
        -------
        outputs, targets
            What the model returns; and a copy of the targets, as the model has left them.
        """
        # Each vector of a block may need a forward pass of its own, with the same dropout.
        self._reset()
        self._random.begin_forward(batch.position)
        own = batch.copied()
        if params is None:
            return self.model(*own.inputs, **own.keywords), own.targets
        replaced, keywords = dict(params), dict(own.keywords)
        outputs = torch.func.functional_call(self.model, replaced, own.inputs, keywords)
        return outputs, own.targets

    def batch_loss(
        self, batch: Batch, outputs: Any, targets: Any, require_finite: bool = True
    ) -> Tensor:
        """Return the loss, without dimensions, of what :meth:`outputs` returned for a batch.

        Raises
        ------
        ValueError
            The loss is not a scalar; or it is not finite although ``require_finite``.
        """
        loss_fn = self.loss_fn
        found = part_named("loss", outputs) if loss_fn is None else loss_fn(outputs, targets)
        loss = _scalar(found)
        if require_finite:
            _check_finite(batch, loss)
        if self.narrowest is None and loss.requires_grad:
            self.narrowest = narrowest_format(loss)
        return loss

    def weighted_loss(
        self, batch: Batch, outputs: Any, targets: Any, require_finite: bool = True
    ) -> tuple[Tensor, float]:
        """Return the loss of a batch's outputs, and the batch's weight in the mean.

        ``outputs`` and ``targets`` are from :meth:`outputs`. Where all targets of a batch are
        ignored, its loss is NaN, and its weight 0.

        Raises
        ------
        ValueError
            As :meth:`batch_loss` does; or it cannot be found out what the loss is a mean over.
        """
        loss = self.batch_loss(batch, outputs, targets, require_finite=False)
        weight = self._loss_weight.of(batch, outputs, loss)
        if weight and require_finite:
            _check_finite(batch, loss)
        return loss, weight

    def loss(self, *, require_finite: bool = True) -> MeanLoss:
        """Return the mean loss at the model's present parameters.

        Parameters
        ----------
        require_finite : bool, default True
            Whether a batch's loss that is not finite raises an error. Otherwise the mean is not
            finite either.
        """
        mean = self.new_mean(0)
        empty = torch.zeros(0, self.size, dtype=torch.float64, device=self.device)
        with without_gradients(self.model):
            for batch in self.batches():
                loss, weight = self.weighted_loss(batch, *self.outputs(batch), require_finite)
                mean.add(empty, weight, batch.size, loss.item())
        return MeanLoss(*mean.result(torch.float64)[1:])

    def gradient(self, *, require_finite: bool = True) -> MeanGradient:
        """Return the gradient of the mean loss, and that loss.

        ``require_finite`` is as in :meth:`loss`.
        """
        mean = self.new_mean(1)
        for batch in self.batches():
            with torch.enable_grad():
                loss, weight = self.weighted_loss(batch, *self.outputs(batch), require_finite)
                # A variable would keep this batch's gradient alive while the next is computed.
                mean.add(
                    flat_vector(derivatives(loss, self.params)).unsqueeze(0),
                    weight,
                    batch.size,
                    loss.item(),
                )
        rows, mean_loss, samples, all_weight = mean.result(torch.float64)
        return MeanGradient(rows[0], mean_loss, samples, all_weight)

    def new_mean(self, count: int) -> SampleMean:
        """Begin a mean of ``count`` vectors over the samples of all processes."""
        reduce = self.sum_over_ranks if self.is_distributed else None
        return SampleMean((count, self.size), self.device, reduce, self.is_sum)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes; a single process returns it as it is."""
        if self.is_distributed:
            values = values.to(self.device)
            torch.distributed.all_reduce(values)
        return values


def _loss_without_graph(objective: Objective, batch: Batch) -> Tensor:
    with without_gradients(objective.model):
        return objective.batch_loss(batch, *objective.outputs(batch), require_finite=False)


@contextmanager
def _only_one_thread(interruptible: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Wait until no other thread measures; Ctrl-C ends the wait."""
    while not _MEASURING.acquire(timeout=0.1):
        with interruptible():
            pass
    try:
        yield
    finally:
        _MEASURING.release()


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(
            f"loss_fn must return a scalar, the mean over the batch's samples; got {got}: "
            "use reduction='mean'"
        )
    return loss.reshape(())


def _check_finite(batch: Batch, loss: Tensor) -> None:
    if not math.isfinite(loss.item()):
        raise ValueError(
            f"the loss of batch {batch.position} is {loss.item()}: there is no curvature where "
            "the loss is not finite; look at that batch, or at the parameters"
        )


def _has_one_batch(data: Batches) -> bool:
    try:
        return len(data) == 1  # type: ignore[arg-type]
    except TypeError:  # of an iterable data set the length is not known
        return False


def _is_distributed(model: nn.Module) -> bool:
    return any(isinstance(each, DistributedDataParallel) for each in _wrappers(model))


def _wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model and the modules that it wraps, down to the one that is measured."""
    while True:
        yield model
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return
        model = inner
