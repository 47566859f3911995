"""Compile the CPU kernels of all optimizers ahead: ``steppe doctor --warm``."""

from collections.abc import Iterator
from inspect import signature
from itertools import product
from time import perf_counter
from typing import Any

import torch
from torch import nn

from steppe._engines import RESUM_EVERY, SMALL, kernel_directory, unkept_kernels
from steppe._shared.optimizer_classes import available
from steppe.optim import AdamCM

# Values of the options that select a rule; other options only change its scalars.
_SELECTING: dict[str, tuple[Any, ...]] = {
    "scale_free": (False, True),
    "integration_order": (1, 2, 3),
    "variant": ("consistent", "authors"),
    "amsgrad": (False, True),
    "centered": (False, True),
    "momentum": (0.0, 0.9),
}

# Formats of parameters, and options that choose those of the state.
_FORMATS: tuple[tuple[torch.dtype, dict[str, Any]], ...] = (
    (torch.float32, {"state_dtype": None}),
    (torch.float32, {"state_dtype": torch.bfloat16}),
    (torch.float32, {"state_dtype": "int8"}),
    (torch.bfloat16, {"state_dtype": None}),
    (torch.bfloat16, {"state_dtype": "int8", "param_error": "int8"}),
)


def warm_kernels() -> None:
    """Take steps with all optimizers, so that later processes find their kernels.

    Raises
    ------
    SystemExit
        Kernels cannot be compiled, or not be kept; it says why.
    """
    start = perf_counter()
    try:
        directory = kernel_directory()
    except OSError as error:
        raise SystemExit(f"steppe: kernels cannot be kept: {error}") from None
    choices = list(_choices())
    for i, (cls, options, dtype) in enumerate(choices, start=1):
        described = ", ".join(f"{name}={value}" for name, value in options.items())
        print(f"{i}/{len(choices)} {cls.__name__}: parameters in {dtype}, {described}", flush=True)
        try:
            _take_steps(cls, options, dtype)
        except RuntimeError as error:
            raise SystemExit(f"steppe: kernels cannot be compiled: {error}") from None
    # The sum of a buffer's slots is formed anew after so many of its items have been replaced.
    _take_steps(AdamCM, {"replacement": "fifo"}, torch.float32, RESUM_EVERY + 1)
    if unkept_kernels:
        raise SystemExit(f"steppe: kernels were not kept: {next(iter(unkept_kernels.values()))}")
    seconds = perf_counter() - start
    print(f"{directory} has the CPU kernels of all optimizers, after {seconds:.0f} s")


def _take_steps(
    cls: type[Any], options: dict[str, Any], dtype: torch.dtype, steps: int = 1
) -> None:
    # Smaller tensors keep their state in full precision.
    parameter = nn.Parameter(torch.ones(SMALL + 1, dtype=dtype))
    parameter.grad = torch.ones_like(parameter)
    optimizer = cls([parameter], fused=True, **options)
    for _ in range(steps):
        optimizer.step()


def _choices() -> Iterator[tuple[type[Any], dict[str, Any], torch.dtype]]:
    """Walk through all classes, options that select a kernel, and formats of parameters."""
    for cls in available().values():
        if not cls.__module__.startswith("steppe."):
            continue
        names = [name for name in _SELECTING if name in signature(cls).parameters]
        for values in product(*(_SELECTING[name] for name in names)):
            options = dict(zip(names, values, strict=True))
            for dtype, formats in _FORMATS:
                yield cls, {**options, **formats}, dtype
