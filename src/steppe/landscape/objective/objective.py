"""The mean loss over all samples, as a function of a model's parameters.

Every instrument evaluates a model through an :class:`Objective`: it runs the batches, weights them
by their sizes, and restores the model afterwards.
"""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from steppe.landscape.objective.batches import Batch, Batches, in_full_precision, part_named
from steppe.landscape.objective.differentiate import derivatives, flat_vector, narrowest_format
from steppe.landscape.objective.exact_passes import unwrapped, without_gradients
from steppe.landscape.objective.loss_weight import LossFunction, LossWeight, Weight
from steppe.landscape.objective.parameter_choice import Params
from steppe.landscape.objective.parameters import check_module
from steppe.landscape.objective.passes import RepeatedPasses
from steppe.landscape.objective.same_loss import SameLoss
from steppe.landscape.objective.sample_mean import SampleMean

_T = TypeVar("_T")


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


class Objective(RepeatedPasses):
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
    params : optional
        The parameters that the loss is a function of, chosen as in
        :func:`~steppe.landscape.hessian`. Default: those that require a gradient.
    train : bool, default False
        Evaluate in ``train()`` mode: batch statistics, and dropout with the same masks each time.
        Running statistics are restored. Default: ``eval()``.
    weight : str or callable, optional
        What a batch's loss has been divided by; see :func:`steppe.landscape.hessian`. Default: it
        is found out.

    Raises
    ------
    TypeError
        ``model`` is no module, or ``loss_fn`` no function.
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
        params: Params | None = None,
        train: bool = False,
        weight: Weight | None = None,
    ) -> None:
        check_module("model", model)
        if loss_fn is not None and (not callable(loss_fn) or isinstance(loss_fn, type)):
            raise TypeError(
                f"loss_fn must be a function of outputs and targets, or None, got {loss_fn!r}"
            )
        super().__init__(unwrapped(model), loss_fn, data, params, train)
        self.is_distributed = _is_distributed(model)
        self.loss_fn, self.weight = loss_fn, weight
        self._loss_weight = self._new_loss_weight()
        self.is_sum = self._loss_weight.is_sum
        self._same_loss = SameLoss()
        # As a penalty on the gradient by parameters, or a model that is adapted in its forward.
        self._takes_derivatives = False
        #: The number format of fewest bits that losses are computed in: known after a gradient.
        self.narrowest: torch.dtype | None = None

    def over(self, batches: list[Batch]) -> "Objective":
        """Return the loss over some batches alone, for use inside of this one's evaluation mode."""
        part = copy.copy(self)
        part.take_batches(batches)
        part.is_distributed = False
        part._loss_weight = part._new_loss_weight(is_part=True)
        return part

    def _new_loss_weight(self, is_part: bool = False) -> LossWeight:
        is_single = _has_one_batch(self.data) and not self.is_distributed
        return LossWeight(self.loss_fn, self.weight, self._outputs_in_eval, is_single, is_part)

    def _outputs_in_eval(self, batch: Batch, elsewhere: int = 0) -> tuple[Any, Any]:
        """Run the model on a part of a batch, where its statistics would be others than all's."""
        with self.eval_instead(elsewhere):
            return self.outputs(in_full_precision(batch) if elsewhere else batch)

    def batches(self) -> Iterator[Batch]:
        """Go through the data; inside :meth:`evaluation_mode`, which restores the random state.

        Raises
        ------
        ValueError
            A batch is neither a pair nor a mapping, or is another one than in the first pass; or
            losses are compared, and one changes by itself.
        """
        for batch in super().batches():
            if self.compares_losses:
                self._same_loss.check(batch.position, partial(self._loss_of, batch))
            yield batch

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
        for batch in self.batches():
            loss, weight = self.without_graph(
                lambda batch=batch: self.weighted_loss(  # type: ignore[misc]
                    batch, *self.outputs(batch), require_finite
                )
            )
            mean.add(empty, weight, batch.size, loss.item())
        return MeanLoss(*mean.result(torch.float64)[1:])

    def without_graph(self, compute: Callable[[], _T]) -> _T:
        """Compute without a graph for derivatives, unless model or loss take some themselves."""
        if not self._takes_derivatives:
            try:
                with without_gradients(self.model):
                    return compute()
            except RuntimeError as error:
                if "does not require grad" not in str(error):
                    raise
                self._takes_derivatives = True
        with torch.enable_grad():
            return compute()

    def _loss_of(self, batch: Batch) -> Tensor:
        return self.without_graph(
            lambda: self.batch_loss(batch, *self.outputs(batch), require_finite=False)
        )

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


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(
            f"loss_fn must return a scalar, the mean over the batch's samples; got {got}: "
            "use reduction='mean'"
        )
    if loss.is_complex():
        raise ValueError(f"loss_fn must return a real number, got {loss.dtype}")
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
    except Exception:  # of an iterable data set the length is not known
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
