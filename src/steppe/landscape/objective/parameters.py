"""Write the parameters that a loss is a function of as vectors.

:class:`~steppe.landscape.objective.objective.Objective` is a function of them.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from steppe.landscape.objective.batches import widened
from steppe.landscape.objective.differentiate import flat_vector
from steppe.landscape.objective.parameter_choice import Params, checked_params


class ParameterSpace:
    """Some parameters of a model, and the vectors of their elements.

    Parameters
    ----------
    model : nn.Module
        The model.
    params : optional
        Which of its parameters; see :func:`~steppe.landscape.hessian`. Default: those that require
        a gradient.
    """

    def __init__(self, model: nn.Module, params: Params | None) -> None:
        self.model, self.params = model, checked_params(model, params)

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
        """Copy a vector of shape (size,) into the parameters.

        Raises
        ------
        ValueError
            Two parameters of the model, or elements of one, share memory.
        """
        self._check_apart()
        with torch.no_grad():
            for param, part in zip(self.params, self.split(vector), strict=True):
                param.copy_(part)

    def _check_apart(self) -> None:
        """Refuse parameters of which one would move when another is moved."""
        places = []
        for name, param in self.model.named_parameters():
            last = sum((n - 1) * s for n, s in zip(param.shape, param.stride(), strict=True))
            if 0 < last + 1 < param.numel():
                raise ValueError(
                    f"elements of parameter {name!r} share memory, so that none can be moved "
                    "alone: call param.data = param.data.clone()"
                )
            # Views with gaps may lie between each other.
            if last + 1 == param.numel() and not param.is_meta:
                begin = param.data_ptr()
                places.append((begin, begin + param.numel() * param.element_size(), name))
        for (_, end, one), (begin, _, other) in pairwise(sorted(places)):
            if begin < end:
                first, second = sorted((one, other))
                raise ValueError(
                    f"parameters {first!r} and {second!r} share memory, so that each moves with "
                    "the other: let them be one nn.Parameter, or call "
                    "param.data = param.data.clone()"
                )

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


def scatter(model: nn.Module, seed: int) -> None:
    """Put other parameters into a model's modules: its own, with random numbers added.

    Half precision becomes float32, in which losses can be compared; so it does in buffers. The own
    ones are left as they are, as graphs refer to them: to put them back is the caller's.
    """
    generator = torch.Generator().manual_seed(seed)
    others: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = widened(buffer)
        for name, param in list(module._parameters.items()):
            if param is None or not param.is_floating_point() or param.dtype.itemsize < 2:
                continue
            if id(param) not in others:
                wide = widened(param.detach())
                noise = torch.randn(param.shape, generator=generator) * _width(param)
                others[id(param)] = nn.Parameter(wide + noise.to(wide), param.requires_grad)
            setattr(module, name, others[id(param)])


def _width(param: Tensor) -> float:
    """Return the size of noise by which outputs come to differ by about 1."""
    if param.ndim < 2:
        return 0.3
    return math.sqrt(len(param) / max(1, param.numel()))


def check_module(name: str, model: nn.Module) -> None:
    """Refuse what is no module.

    Raises
    ------
    TypeError
        It is none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must be a module, got {type(model).__name__}")
