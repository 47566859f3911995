"""Restore a model after it has been measured: parameters, buffers, modes and random state.

Used by every instrument through :meth:`Objective.evaluation_mode`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def restore_on_exit(
    model: nn.Module, moved: Iterable[Tensor] = (), generators: Iterable[torch.Generator] = ()
) -> Iterator[None]:
    """Restore a model when the block ends, by an exception too.

    Buffers and the parameters in ``moved`` get their values back in the storage they had, every
    module gets its mode back, and torch its random state (on the CPU, and for a model on CUDA there
    too). Gradients are not saved: take derivatives with :func:`torch.autograd.grad`, which does not
    touch ``.grad``.

    Parameters
    ----------
    model : nn.Module
        The model to protect.
    moved : iterable of Tensor
        The parameters that the block changes; others are not copied.
    generators : iterable of torch.Generator
        Generators other than torch's own whose state the block changes.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> before = model.weight.item()
    >>> with restore_on_exit(model, model.parameters()), torch.no_grad():
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
    # Objective seeds every device that holds a parameter.
    devices = range(torch.cuda.device_count() if on_cuda else 0)
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for parameter, value in parameters:
                parameter.copy_(value)
            for module, name, buffer, value in buffers:
                # A write raises the version that autograd checks: a graph which saved the buffer
                # could no longer be differentiated, even where the value stays the same.
                if buffer.layout != torch.strided or not torch.equal(buffer, value):
                    buffer.copy_(value)
                # A forward pass may have assigned a new tensor to the buffer's name.
                setattr(module, name, buffer)
        for module, training in modes:
            module.training = training
        for generator, state in states:
            generator.set_state(state)


def _is_expanded(buffer: Tensor) -> bool:
    """Whether elements share memory, in which case torch refuses in-place writes."""
    is_strided = buffer.layout == torch.strided
    return is_strided and any(
        step == 0 and count > 1 for step, count in zip(buffer.stride(), buffer.shape, strict=True)
    )
