"""Leave a model as it was found, whatever is done to it meanwhile."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def as_found(
    model: nn.Module, moved: Iterable[Tensor] = (), generators: Iterable[torch.Generator] = ()
) -> Iterator[None]:
    """Put everything back on leaving, by an exception too.

    Buffers and the parameters in ``moved`` get their values back in the storage they had, every
    module its mode, and torch its random state (on the CPU, of a model on CUDA there too).
    Gradients are not saved: take derivatives with :func:`torch.autograd.grad`, which leaves
    ``.grad`` alone.

    Parameters
    ----------
    model : nn.Module
        The model to protect.
    moved : iterable of Tensor
        The parameters that will be changed; others are not copied.
    generators : iterable of torch.Generator
        Random states beside torch's own that will be changed.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> before = model.weight.item()
    >>> with as_found(model, model.parameters()), torch.no_grad():
    ...     _ = model.eval().weight.fill_(7.0)
    >>> model.training, model.weight.item() == before
    (True, True)
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.detach().clone()) for p in moved]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not _is_expanded(buffer)
    ]
    states = [(generator, generator.get_state()) for generator in generators]
    on_cuda = any(p.device.type == "cuda" for p in model.parameters())
    # A seed is set on all of them.
    devices = range(torch.cuda.device_count() if on_cuda else 0)
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for parameter, value in parameters:
                parameter.copy_(value)
            for module, name, buffer, value in buffers:
                # To autograd every write is a change, and a graph with it may still be needed.
                if buffer.layout != torch.strided or not torch.equal(buffer, value):
                    buffer.copy_(value)
                # A forward pass may have put a new tensor in the buffer's place.
                setattr(module, name, buffer)
        for module, training in modes:
            module.training = training
        for generator, state in states:
            generator.set_state(state)


def _is_expanded(buffer: Tensor) -> bool:
    """Whether elements share memory, so that torch lets nobody write to them."""
    is_strided = buffer.layout == torch.strided
    return is_strided and any(
        step == 0 and count > 1 for step, count in zip(buffer.stride(), buffer.shape, strict=True)
    )
