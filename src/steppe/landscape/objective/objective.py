"""The mean loss over all samples, as a function of a model's parameters."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from steppe.landscape._as_found import as_found

#: ``loss_fn(outputs, targets)``, or for mappings ``loss_fn(outputs, batch)``: a scalar, the mean
#: over the batch's samples.
LossFunction = Callable[[Any, Any], Tensor]

#: ``(inputs, targets)`` pairs, or mappings of keyword arguments.
Batches = Iterable[Any]

# Elements of each row that are added at a time.
_PIECE = 1 << 18


class Batch(NamedTuple):
    """One batch: how the model is called, what the loss compares with, and its samples."""

    number: int
    inputs: tuple[Any, ...]
    keywords: Mapping[str, Any]
    targets: Any
    size: int


class Objective:
    """The mean loss over the samples of ``data``: batches count by their size.

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
        moved to the model's device; a :class:`Batch` is there already.
    params : iterable of Tensor, optional
        The parameters it is a function of. Default: those that require a gradient.
    train : bool
        Evaluate in ``train()`` mode: batch statistics, and dropout with the same masks each time.
        Running statistics stay as they are. Default: ``eval()``.

    Raises
    ------
    ValueError
        A parameter requires no gradient, is complex, is not the model's, is there twice, or lies
        on another device; there are none; or the data cannot be gone through twice.
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
        # Its hooks would average gradients that are being differentiated.
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.loss_fn, self.data, self.train = loss_fn, data, train
        self.params = _chosen(self.model, params)
        _check_data(data)

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.params[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Format of vectors: the parameters' widest, at least float32."""
        widest = torch.float32
        for param in self.params:
            widest = torch.promote_types(widest, param.dtype)
        return widest

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(param.numel() for param in self.params)

    @property
    def names(self) -> list[str]:
        """Names of the parameters in the model."""
        name_of = {id(param): name for name, param in self.model.named_parameters()}
        return [name_of[id(param)] for param in self.params]

    @contextmanager
    def at_work(self, moves: bool = False) -> Iterator[None]:
        """Set the mode, and kernels that can be differentiated twice; then leave all as found.

        Parameters
        ----------
        moves
            Whether parameters will be changed meanwhile; they are put back.
        """
        moved, shuffles = self.params if moves else (), _generators(self.data)
        with as_found(self.model, moved, shuffles), sdpa_kernel(SDPBackend.MATH):
            self.model.train(self.train)
            yield

    def batches(self) -> Iterator[Batch]:
        """Go through the data; inside :meth:`at_work`, which puts the random state back.

        Raises
        ------
        ValueError
            A batch is neither a pair nor a mapping.
        """
        # One function is measured: in every pass dropout's masks must be the same, and what a
        # shuffled loader with drop_last leaves out.
        self._seed(0)
        for generator in _generators(self.data):
            generator.manual_seed(0)
        for number, batch in enumerate(self.data):
            yield self._read(number, batch)

    def outputs(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> Any:
        """Run the model on a batch, with other tensors in the place of parameters if given."""
        if self.train:
            # A block's vectors are multiplied in turn, each with a forward pass of its own.
            self._seed(1 + batch.number)
        if params is None:
            return self.model(*batch.inputs, **batch.keywords)
        return torch.func.functional_call(
            self.model, dict(params), batch.inputs, dict(batch.keywords)
        )

    def loss_of(self, batch: Batch, outputs: Any, finite: bool = True) -> Tensor:
        """Return the loss of a batch's outputs.

        Raises
        ------
        ValueError
            It is not a scalar; or not finite, unless it need not be.
        """
        if self.loss_fn is None:
            loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs.loss
        else:
            loss = self.loss_fn(outputs, batch.targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise ValueError(
                f"loss_fn must return a scalar, the mean over the batch's samples; got {what}: "
                "reduction='mean' does it"
            )
        if finite and not math.isfinite(loss.item()):
            raise ValueError(
                f"the loss of batch {batch.number} is {loss.item()}: there is no curvature where "
                "the loss is not finite; look at that batch, or at the parameters"
            )
        return loss.reshape(())

    def loss(self, *, finite: bool = True) -> tuple[float, int]:
        """Return the mean loss and the number of samples, as the model is.

        Parameters
        ----------
        finite
            Whether a loss that is not finite is an error; else the mean is not finite either.
        """
        total, samples = 0.0, 0
        with torch.no_grad():
            for batch in self.batches():
                total += self.loss_of(batch, self.outputs(batch), finite).item() * batch.size
                samples += batch.size
        sums = self.over_ranks(torch.tensor([total, samples], dtype=torch.float64))
        return sums[0].item() / counted_samples(sums[1].item()), int(sums[1].item())

    def gradient(self, *, finite: bool = True) -> tuple[Tensor, float, int]:
        """Return the gradient in float64, the mean loss, and the number of samples.

        ``finite`` is as in :meth:`loss`.
        """
        mean = Mean(self, 1)
        for batch in self.batches():
            with torch.enable_grad():
                loss = self.loss_of(batch, self.outputs(batch), finite)
                # Under no name here: it would stand beside the next batch's.
                mean.add(flat(derivatives(loss, self.params)).unsqueeze(0), batch.size, loss.item())
        return mean.rows(torch.float64)[0], mean.loss, mean.samples

    def over_ranks(self, values: Tensor) -> Tensor:
        """Sum over processes; a single process has it already."""
        if self.is_distributed:
            on_device = values.to(self.device)
            torch.distributed.all_reduce(on_device)
            return on_device
        return values

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector into tensors of the parameters' shapes and formats."""
        parts = torch.split(vector, [param.numel() for param in self.params])
        return [
            part.reshape(param.shape).to(param.dtype)
            for part, param in zip(parts, self.params, strict=True)
        ]

    def position(self) -> Tensor:
        """Return a copy of the parameters as a vector."""
        return flat([param.detach() for param in self.params]).to(self.dtype)

    def place(self, vector: Tensor) -> None:
        """Put the parameters where a vector says."""
        with torch.no_grad():
            for param, part in zip(self.params, self.split(vector), strict=True):
                param.copy_(part)

    def check_width(self, what: str) -> None:
        """Refuse parameters that a small step would not change.

        Raises
        ------
        ValueError
            A parameter is narrower than float32; it names ``what`` cannot be done.
        """
        for name, param in zip(self.names, self.params, strict=True):
            if param.dtype.itemsize < 4:
                raise ValueError(
                    f"{what} needs parameters in float32 or float64, and {name!r} is "
                    f"{param.dtype}: rounding would be all there is; model.float() helps"
                )

    def _seed(self, seed: int) -> None:
        """Seed what :func:`as_found` puts back; ``torch.manual_seed`` reaches, and takes, more."""
        torch.default_generator.manual_seed(seed)
        for device in {param.device for param in self.model.parameters()}:
            if device.type == "cuda":
                torch.cuda.default_generators[device.index].manual_seed(seed)

    def _read(self, number: int, batch: Any) -> Batch:
        if isinstance(batch, Batch):
            return batch
        if isinstance(batch, Mapping):
            keywords = {name: _on(value, self.device) for name, value in batch.items()}
            return Batch(number, (), keywords, keywords, _size(number, list(keywords.values())))
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                f"batch {number} is {type(batch).__name__}, expected (inputs, targets) or a mapping"
            )
        inputs, targets = (_on(part, self.device) for part in batch)
        size = _size(number, [targets, inputs])
        if isinstance(inputs, Mapping):
            return Batch(number, (), inputs, targets, size)
        positional = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        return Batch(number, positional, {}, targets, size)


class Mean:
    """A mean of rows over samples, summed in float64, over all processes.

    The first batch is kept as it comes: where it is the only one nothing has to be added up.
    """

    def __init__(self, objective: Objective, count: int) -> None:
        self._objective, self._count = objective, count
        self._sum: Tensor | None = None
        self._first_size = 0
        self._losses = 0.0
        self.samples = 0

    def add(self, rows: Tensor, size: int, loss: float = 0.0) -> None:
        """Add a batch's rows, which are means over ``size`` samples."""
        self._losses += loss * size
        self.samples += size
        if self._sum is None:
            self._sum, self._first_size = rows, size
            return
        if self._first_size:
            self._sum, self._first_size = self._sum.double().mul_(self._first_size), 0
        # In pieces: torch converts what is added as a whole, to a second sum's memory.
        totals, pieces = (torch.split(whole, _PIECE, dim=1) for whole in (self._sum, rows))
        for total, piece in zip(totals, pieces, strict=True):
            total.add_(piece, alpha=size)

    def rows(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the mean, by default in the vectors' format; then the counts are of all too."""
        objective = self._objective
        shape = self._count, objective.size
        total = self._sum
        if total is None:
            total = torch.zeros(shape, dtype=torch.float64, device=objective.device)
        alone = bool(self._first_size) and not objective.is_distributed
        if self._first_size and not alone:
            total = total.double().mul_(self._first_size)
        total = objective.over_ranks(total)
        counted = torch.tensor([self.samples, self._losses], dtype=torch.float64)
        samples, losses = objective.over_ranks(counted).tolist()
        self.samples, self.loss = int(samples), losses / counted_samples(samples)
        mean = total if alone else total.div_(samples)
        return mean.to(dtype or objective.dtype)


def counted_samples(samples: float) -> float:
    """Return the number of samples to divide by.

    Raises
    ------
    ValueError
        There is none.
    """
    if samples == 0:
        raise ValueError("data is empty: there is no loss to take the mean of")
    return samples


def derivatives(
    loss: Tensor, params: Sequence[Tensor], create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Differentiate a loss: zeros for a parameter that plays no part.

    Raises
    ------
    ValueError
        None plays a part.
    """
    if not loss.requires_grad:
        raise ValueError(
            "the loss does not depend on the parameters: was it detached, or made under no_grad?"
        )
    return torch.autograd.grad(
        loss, params, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def flat(parts: Sequence[Tensor]) -> Tensor:
    """Lay tensors end to end."""
    return torch.cat([part.reshape(-1) for part in parts])


def _check_data(data: Any) -> None:
    if isinstance(data, Iterator):
        raise ValueError(
            "data is an iterator, which can be gone through only once: pass a list or a DataLoader"
        )
    # A Dataset has no __iter__: Python would go through its samples as if they were batches.
    if not isinstance(data, Iterable):
        raise ValueError(
            f"data is a {type(data).__name__}, expected batches: pass a list or a DataLoader"
        )


def _generators(data: Any) -> list[torch.Generator]:
    """Return what a DataLoader shuffles with, unless it is torch's own random state."""
    owners = data, getattr(data, "sampler", None)
    found = (getattr(owner, "generator", None) for owner in owners)
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def _chosen(model: nn.Module, params: Iterable[Tensor] | None) -> list[Tensor]:
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
                "torch.view_as_real makes two of a complex one"
            )
        if not param.requires_grad:
            raise ValueError(
                f"parameter {known[id(param)]!r} does not require a gradient: "
                "requires_grad_(True) makes it, or leave it out of params"
            )
        if param.device != chosen[0].device:
            raise ValueError(
                f"parameter {known[id(param)]!r} lies on {param.device}, others on "
                f"{chosen[0].device}: choose params on one device"
            )
    return chosen


def _on(value: Any, device: torch.device) -> Any:
    """Move tensors, in tuples, lists and mappings too."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _on(part, device) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [_on(part, device) for part in value]
    return value


def _size(number: int, values: list[Any]) -> int:
    """Return how many samples a batch has: the first dimension of its first tensor."""
    first = next((part for part in _tensors(values) if part.ndim), None)
    if first is None:
        raise ValueError(f"batch {number} has no tensor whose first dimension could be its samples")
    return len(first)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)
