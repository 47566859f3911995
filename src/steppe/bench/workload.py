"""Parameters and gradients for timing; the gradients stay as they are over all steps.

Every measured optimizer steps such parameters, warmed up before the first step that counts.
"""

from collections.abc import Iterable

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from steppe.bench.shapes import Shape

_DEVIATION = 0.01
_FIRST_STEPS = 3


def parameters(
    shapes: Iterable[Shape], device: torch.device, dtype: torch.dtype = torch.float32
) -> list[Parameter]:
    """Make parameters with gradients, all normal with mean 0 and standard deviation 0.01.

    The random numbers are the same at each call, drawn in float32 whatever ``dtype``.

    Parameters
    ----------
    shapes : iterable of tuples
        Shapes of the parameters.
    device : torch.device
        The device that holds them.
    dtype : torch.dtype, default torch.float32
        Number format of parameters and gradients.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(shape: Shape) -> torch.Tensor:
        drawn = torch.empty(shape, dtype=torch.float32, device=device)
        return drawn.normal_(0.0, _DEVIATION, generator=generator).to(dtype)

    made = []
    for shape in shapes:
        parameter = Parameter(normal(shape))
        parameter.grad = normal(shape)
        made.append(parameter)
    return made


def warm_up(optimizer: Optimizer) -> None:
    """Step until kernels are compiled, state is allocated, and buffers are full.

    Raises
    ------
    ValueError
        A step has dropped the gradients, so that the next one has nothing to do.
    """
    capacity = max(group.get("capacity", 0) for group in optimizer.param_groups)
    for _ in range(_FIRST_STEPS + capacity):
        optimizer.step()
    if any(param.grad is None for group in optimizer.param_groups for param in group["params"]):
        raise ValueError(
            f"{type(optimizer).__name__} drops the gradients in its step, and so the next step "
            "does nothing: expected an option that keeps them"
        )
