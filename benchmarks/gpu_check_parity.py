"""Parity of the fused engine with plain torch on one device: every configuration and format.

Each step begins from equal state, so that differences do not grow from step to step. They are in
units of the format: of its spacing at the number's size, or at the size of the whole tensor or a
third of its gradient's if that is larger, as where terms cancel, their rounding is relative to
them. Codes of 8 bits differ by steps.
"""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from typing import Any, NamedTuple

import torch
from gpu_check_sections import Found, Save
from torch import Tensor

from helpers.optimizer_configs import CONFIGS, parameters, step_from_equal_state
from steppe._engines import BIRTHS, KEYS, MEAN, PARAM_ERROR, SQUARES
from steppe._shared.messages import first_line

SHAPES = [(4500,), (70, 3), (), (0,)]
STEPS = 3

#: Of numbers that are rounded once, after arithmetic in their own format, and of those that are
#: rounded from a wider one: another last digit there turns some of these.
MOST_UNITS = {"wide": 16.0, "narrow": 2.0}
MOST_TURNED = 0.01

_BOOKS = frozenset({KEYS, BIRTHS, MEAN})
# Processes that compile kernels side by side; each takes half a GB of the device.
_MOST_PROCESSES = 12


class Format(NamedTuple):
    """Number formats of parameters and state.

    Attributes
    ----------
    dtype
        The parameters'.
    options
        The optimizer's.
    """

    dtype: torch.dtype
    options: dict[str, Any]


FORMATS = {
    "float32": Format(torch.float32, {}),
    "bfloat16": Format(torch.bfloat16, {}),
    "float16": Format(torch.float16, {}),
    "float64": Format(torch.float64, {}),
    "state bfloat16": Format(torch.float32, {"state_dtype": torch.bfloat16}),
    "state int8": Format(torch.float32, {"state_dtype": "int8"}),
    "24 bits": Format(torch.bfloat16, {"param_error": "int8", "state_dtype": "int8"}),
}
#: What a CPU tries: one configuration in each format.
_SMALL_CONFIGS = 1


def parity(device: torch.device, small: bool, save: Save) -> Found:
    """Compare the engines in all cases; "missed" lists those that differ by too much."""
    configs = range(_SMALL_CONFIGS if small else len(CONFIGS))
    cases = list(product(configs, FORMATS))
    found: Found = {"planned": len(cases), "cases": {}, "missed": []}
    for (config, form), result in _results(cases, device, is_spread=not small):
        name = f"{CONFIGS[config]}, {form}"
        found["cases"][name] = result
        if why := _objection(result):
            found["missed"].append(f"{name}: {why}")
        save(found)
    return found


def compare(config: int, form: str, device: torch.device) -> Found:
    """Return how far a configuration's steps are from plain torch's, or the error."""
    try:
        return _compare(config, form, device)
    except Exception as error:
        return {"error": first_line(error)}


def _compare(config: int, form: str, device: torch.device) -> Found:
    (dtype, options), make = FORMATS[form], CONFIGS[config]
    ours, theirs = (parameters(dtype, SHAPES, device=device) for _ in range(2))
    fused = make(ours, fused=True, **options)
    eager = make(theirs, fused=False, **options)
    units: dict[str, float] = {"wide": 0.0, "narrow": 0.0}
    turned, numbers = 0, 0
    for t in range(STEPS):
        step_from_equal_state(fused, eager, ours, theirs, t)
        for kind, difference in _differences(fused, eager, ours, theirs):
            if difference.numel():
                largest = difference.nan_to_num(nan=float("inf")).max()
                units[kind] = max(units[kind], float(largest))
            if kind == "narrow":
                turned += int((difference > 0).sum())
                numbers += difference.numel()
    return {"engine": fused.engine, "units": units, "turned": turned / max(numbers, 1)}


def _differences(
    fused: Any, eager: Any, ours: list[Tensor], theirs: list[Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield differences in units, of each parameter and each tensor of its state."""
    whole = fused.master_params(), eager.master_params()
    for p, q in zip(ours, theirs, strict=True):
        assert p.grad is not None
        floor = 0.3 * _size(p.grad)
        has_error = PARAM_ERROR in fused.state[p]
        spacing = 2.0**-15 if has_error else torch.finfo(p.dtype).eps
        kind = "narrow" if has_error or p.dtype.itemsize == 2 else "wide"
        yield kind, _in_units(whole[0][p], whole[1][q], spacing, floor)
        for name, value in fused.state[p].items():
            other = eager.state[q][name]
            if name == PARAM_ERROR:
                continue
            if value.dtype == torch.uint8:
                squares = name in SQUARES
                yield "narrow", (_codes(value, squares) - _codes(other, squares)).abs()
            elif value.is_floating_point():
                # Sums of squares are taken in another order.
                like = torch.float32 if name in _BOOKS else value.dtype
                kind = "narrow" if like.itemsize == 2 else "wide"
                yield kind, _in_units(value, other, torch.finfo(like).eps, floor)
            else:
                yield "narrow", (value.double() - other.double()).abs()


def _in_units(ours: Tensor, theirs: Tensor, spacing: float, floor: float) -> Tensor:
    a, b = (torch.nan_to_num(x.detach().double(), neginf=-1.0) for x in (ours, theirs))
    unit = spacing * b.abs().clamp(min=max(_size(b), floor, 1e-30))
    return (a - b).abs() / unit


def _size(tensor: Tensor) -> float:
    """Return the root mean square of a tensor's numbers, and of those of an empty one 0."""
    return float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0


def _codes(value: Tensor, squares: bool) -> Tensor:
    """Return the steps that codes of 8 bits count; of signed ones the least is 2, for zero."""
    codes = value.double()
    return codes if squares else (codes % 128 - 2) * torch.where(codes < 128, 1.0, -1.0)


def _objection(result: Found) -> str | None:
    if "error" in result:
        return str(result["error"])
    for kind, most in MOST_UNITS.items():
        if not result["units"][kind] <= most:
            return f"{result['units'][kind]:.3g} units of {kind} formats, at most {most:.0f}"
    if result["turned"] > MOST_TURNED:
        return f"{100 * result['turned']:.2g} % of narrow numbers differ, at most 1 %"
    return None


def _results(
    cases: list[tuple[int, str]], device: torch.device, *, is_spread: bool
) -> Iterator[tuple[tuple[int, str], Found]]:
    """Yield results as cases end. A kernel is compiled in seconds, each on a core of its own."""
    if not is_spread:
        yield from ((case, compare(*case, device)) for case in cases)
        return
    # A forked process cannot use CUDA.
    context = multiprocessing.get_context("spawn")
    count = min(_MOST_PROCESSES, os.cpu_count() or 1)
    with ProcessPoolExecutor(count, context, torch.set_num_threads, (1,)) as pool:
        jobs = {pool.submit(compare, *case, device): case for case in cases}
        yield from ((jobs[job], job.result()) for job in as_completed(jobs))
