"""What is stepped: parameters with gradients that stay as they are."""

from collections.abc import Iterable

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from steppe.bench.shapes import Shape

_DEVIATION = 0.01
_FIRST_STEPS = 3


def parameters(shapes: Iterable[Shape], device: torch.device) -> list[Parameter]:
    """Make parameters and gradients: normal numbers of deviation 0.01, the same ones each time."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(shape: Shape) -> torch.Tensor:
        return torch.empty(shape, device=device).normal_(0.0, _DEVIATION, generator=generator)

    made = []
    for shape in shapes:
        parameter = Parameter(normal(shape))
        parameter.grad = normal(shape)
        made.append(parameter)
    return made


def warm_up(optimizer: Optimizer) -> None:
    """Step until kernels are compiled, state is allocated, and buffers are full."""
    capacity = max(group.get("capacity", 0) for group in optimizer.param_groups)
    for _ in range(_FIRST_STEPS + capacity):
        optimizer.step()
