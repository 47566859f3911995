"""The mean loss over all samples, as a function of a model's parameters.

Every instrument evaluates a model through an :class:`Objective`: it runs the batches, weights them
by their sizes, and restores the model afterwards.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from steppe.landscape.objective.batches import (
    Batch,
    Batches,
    check_data,
    read_batch,
    shuffle_generators,
)
from steppe.landscape.objective.restore_model import restore_on_exit
from steppe.landscape.objective.sample_mean import SampleMean, nonzero_samples

#: ``loss_fn(outputs, targets)``, or for mappings ``loss_fn(outputs, batch)``: a scalar, the mean
#: over the batch's samples.
LossFunction = Callable[[Any, Any], Tensor]


class Objective:
    """The mean loss over the samples of ``data``: batches are weighted by their sizes.

    Under :class:`~torch.nn.parallel.DistributedDataParallel` each process has its own part of the
    data, and means are over the samples of all.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``; as ``model(*inputs)`` where a batch's inputs are a tuple or a
        list; and as ``model(**batch)`` where a batch is a mapping, as Hugging Face's are.
    loss_fn : callable or None
        ``loss_fn(outputs, targets)``, for mappings ``loss_fn(outputs, batch)``: a scalar that is
        the mean over the batch's samples. None takes ``outputs.loss``, for models that compute it.
    data : iterable
        Batches, gone through again and again: a list or a ``DataLoader``, shuffled or not. They are
        moved to the model's device.
    params : iterable of Tensor, optional
        The parameters that the loss is a function of. Default: those that require a gradient.
    train : bool, default False
        Evaluate in ``train()`` mode: batch statistics, and dropout with the same masks each time.
        Running statistics are restored. Default: ``eval()``.

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
    (3.0, 4)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        data: Batches,
        *,
        params: Iterable[Tensor] | None = None,
        train: bool = False,
    ) -> None:
        self.is_distributed = isinstance(model, DistributedDataParallel)
        # DDP's hooks would average gradients that are being differentiated.
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.loss_fn, self.data, self.train = loss_fn, data, train
        self.params = _checked_params(self.model, params)
        check_data(data)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.params[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of vectors: the parameters' widest, at least float32."""
        widest = torch.float32
        for param in self.params:
            widest = torch.promote_types(widest, param.dtype)
        return widest

    @property
    def size(self) -> int:
        """Number of elements of all parameters, the length of vectors."""
        return sum(param.numel() for param in self.params)

    @property
    def names(self) -> list[str]:
        """Names of the parameters in the model."""
        name_of = {id(param): name for name, param in self.model.named_parameters()}
        return [name_of[id(param)] for param in self.params]

    @contextmanager
    def evaluation_mode(self, moves_params: bool = False) -> Iterator[None]:
        """Prepare the model for measuring, and restore it on leaving.

        Inside, the model is in ``train()`` or ``eval()`` mode as asked for, and attention runs by
        the math kernel, because torch's fused kernels have no second derivative ("derivative for
        aten::_scaled_dot_product_flash_attention_for_cpu_backward is not implemented").

        Parameters
        ----------
        moves_params : bool, default False
            Whether parameters will be changed inside; they are then copied, and restored too.
        """
        moved, generators = self.params if moves_params else (), shuffle_generators(self.data)
        with restore_on_exit(self.model, moved, generators), sdpa_kernel(SDPBackend.MATH):
            self.model.train(self.train)
            yield

    def batches(self) -> Iterator[Batch]:
        """Go through the data; inside :meth:`evaluation_mode`, which restores the random state.

        Raises
        ------
        ValueError
            A batch is neither a pair nor a mapping.
        """
        # All passes must measure one function: with the same dropout masks, and with the same
        # samples where a shuffled loader with drop_last leaves some out.
        self._seed(0)
        for generator in shuffle_generators(self.data):
            generator.manual_seed(0)
        for index, batch in enumerate(self.data):
            yield read_batch(index, batch, self.device)

    def outputs(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> Any:
        """Run the model on a batch, by default with its own parameters.

        Parameters
        ----------
        batch : Batch
            From :meth:`batches`.
        params : mapping of Tensor, optional
            Tensors to use in place of the model's parameters, by name.
        """
        if self.train:
            # Each vector of a block may need a forward pass of its own, with the same dropout.
            self._seed(1 + batch.position)
        if params is None:
            return self.model(*batch.inputs, **batch.keywords)
        return torch.func.functional_call(
            self.model, dict(params), batch.inputs, dict(batch.keywords)
        )

    def batch_loss(self, batch: Batch, outputs: Any, require_finite: bool = True) -> Tensor:
        """Return the loss of a batch's outputs, a tensor without dimensions.

        Raises
        ------
        ValueError
            The loss is not a scalar; or it is not finite although ``require_finite``.
        """
        if self.loss_fn is None:
            loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs.loss
        else:
            loss = self.loss_fn(outputs, batch.targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise ValueError(
                f"loss_fn must return a scalar, the mean over the batch's samples; got {got}: "
                "use reduction='mean'"
            )
        if require_finite and not math.isfinite(loss.item()):
            raise ValueError(
                f"the loss of batch {batch.position} is {loss.item()}: there is no curvature where "
                "the loss is not finite; look at that batch, or at the parameters"
            )
        return loss.reshape(())

    def loss(self, *, require_finite: bool = True) -> tuple[float, int]:
        """Return the mean loss at the model's present parameters, and the number of samples.

        Parameters
        ----------
        require_finite : bool, default True
            Whether a batch's loss that is not finite raises an error. Otherwise the mean is not
            finite either.
        """
        total, samples = 0.0, 0
        with torch.no_grad():
            for batch in self.batches():
                loss = self.batch_loss(batch, self.outputs(batch), require_finite)
                total += loss.item() * batch.size
                samples += batch.size
        sums = self.sum_over_ranks(torch.tensor([total, samples], dtype=torch.float64))
        return sums[0].item() / nonzero_samples(sums[1].item()), int(sums[1].item())

    def gradient(self, *, require_finite: bool = True) -> tuple[Tensor, float, int]:
        """Return the gradient of shape (size,) in float64, the mean loss, and the sample count.

        ``require_finite`` is as in :meth:`loss`.
        """
        mean = self.new_mean(1)
        for batch in self.batches():
            with torch.enable_grad():
                loss = self.batch_loss(batch, self.outputs(batch), require_finite)
                # Passed on without a variable: a variable would keep this batch's gradient alive
                # while the next is computed.
                mean.add(
                    flat_vector(derivatives(loss, self.params)).unsqueeze(0),
                    batch.size,
                    loss.item(),
                )
        rows, mean_loss, samples = mean.result(torch.float64)
        return rows[0], mean_loss, samples

    def new_mean(self, count: int) -> SampleMean:
        """Begin a mean of ``count`` vectors over the samples of all processes."""
        reduce = self.sum_over_ranks if self.is_distributed else None
        return SampleMean((count, self.size), self.device, reduce)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes; a single process returns it as it is."""
        if self.is_distributed:
            on_device = values.to(self.device)
            torch.distributed.all_reduce(on_device)
            return on_device
        return values

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector of shape (size,) into tensors of the parameters' shapes and formats."""
        parts = torch.split(vector, [param.numel() for param in self.params])
        return [
            part.reshape(param.shape).to(param.dtype)
            for part, param in zip(parts, self.params, strict=True)
        ]

    def parameter_vector(self) -> Tensor:
        """Return a copy of the parameters as a vector of shape (size,)."""
        return flat_vector([param.detach() for param in self.params]).to(self.dtype)

    def set_parameters(self, vector: Tensor) -> None:
        """Copy a vector of shape (size,) into the parameters."""
        with torch.no_grad():
            for param, part in zip(self.params, self.split(vector), strict=True):
                param.copy_(part)

    def check_precision(self, instrument: str) -> None:
        """Refuse parameters in which a small step would be lost to rounding.

        Raises
        ------
        ValueError
            A parameter is narrower than float32; the error names the instrument.
        """
        for name, param in zip(self.names, self.params, strict=True):
            if param.dtype.itemsize < 4:
                raise ValueError(
                    f"{instrument} needs parameters in float32 or float64, and {name!r} is "
                    f"{param.dtype}: rounding would hide the change; call model.float()"
                )

    def _seed(self, seed: int) -> None:
        # torch.manual_seed would also seed devices whose state restore_on_exit does not keep.
        torch.default_generator.manual_seed(seed)
        for device in {param.device for param in self.model.parameters()}:
            if device.type == "cuda":
                torch.cuda.default_generators[device.index].manual_seed(seed)


def derivatives(
    loss: Tensor, params: Sequence[Tensor], create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Differentiate a loss by parameters: zeros for those that it does not depend on.

    Raises
    ------
    ValueError
        The loss depends on none of them.
    """
    if not loss.requires_grad:
        raise ValueError(
            "the loss does not depend on the parameters: was it detached, or made under no_grad?"
        )
    return torch.autograd.grad(
        loss, params, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def flat_vector(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate the elements of tensors; unlike torch's ``parameters_to_vector``, of any strides.

    Examples
    --------
    >>> flat_vector([torch.ones(1, 2), torch.zeros(1)])
    tensor([1., 1., 0.])
    """
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _checked_params(model: nn.Module, params: Iterable[Tensor] | None) -> list[Tensor]:
    known = {id(param): name for name, param in model.named_parameters()}
    every: Iterable[Tensor] = (p for p in model.parameters() if p.requires_grad)
    chosen = list(every if params is None else params)
    if not chosen:
        raise ValueError("no parameter of the model requires a gradient: there is nothing to vary")
    seen: set[int] = set()
    for position, param in enumerate(chosen):
        if id(param) not in known:
            raise ValueError(f"params[{position}] is not a parameter of the model")
        if id(param) in seen:
            raise ValueError(f"parameter {known[id(param)]!r} is in params twice")
        seen.add(id(param))
        if param.is_complex():
            raise ValueError(
                f"parameter {known[id(param)]!r} is {param.dtype}: expected real parameters; "
                "torch.view_as_real turns a complex one into real ones"
            )
        if not param.requires_grad:
            raise ValueError(
                f"parameter {known[id(param)]!r} does not require a gradient: "
                "call requires_grad_(True), or leave it out of params"
            )
        if param.device != chosen[0].device:
            raise ValueError(
                f"parameter {known[id(param)]!r} lies on {param.device}, others on "
                f"{chosen[0].device}: choose params on one device"
            )
    return chosen
