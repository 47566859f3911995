"""CUDA graphs and synchronisation: replayed steps, bit for bit, and steps that wait for nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from gpu_check_parity import FORMATS
from gpu_check_sections import Found, Save
from torch import Tensor

from helpers.no_synchronisation import no_synchronisation
from helpers.optimizer_configs import (
    REPRESENTATIVE,
    Config,
    equal,
    parameters,
    set_gradients,
)
from steppe._shared.messages import first_line

SHAPES = [(4500,), (64, 3, 7, 7), (70, 3), ()]
_WARM_UP, _REPLAYS = 3, 4

#: Of each optimizer float32, and of these all formats, too.
_IN_ALL_FORMATS = (
    Config("DualAdam", {"lr": 0.01, "switch_rate": 0.01}),
    Config("AdamCM", {"lr": 0.01, "capacity": 2}),
)
_FORMATS = ("state bfloat16", "state int8", "24 bits")


def graphs(device: torch.device, small: bool, save: Save) -> Found:
    """Capture a step of each optimizer; "missed" lists those that differ or synchronise."""
    cases = [(config, "float32") for config in REPRESENTATIVE[: 2 if small else None]]
    cases += [(config, form) for config in _IN_ALL_FORMATS for form in _FORMATS]
    found: Found = {"planned": len(cases), "cases": {}, "missed": []}
    for config, form in cases:
        name, wrong = f"{config}, {form}", []
        for ask in (replays_differently, synchronises):
            # A case that fails must not keep the others from being asked.
            try:
                why = ask(config, form, device)
            except Exception as error:
                why = first_line(error)
            if why is not None:
                wrong.append(f"{name}: {why}")
        found["cases"][name] = not wrong
        found["missed"] += wrong
        save(found)
    return found


def replays_differently(config: Config, form: str, device: torch.device) -> str | None:
    """Say how replayed steps differ from those without a graph; None if they do not."""
    ours, theirs = (_leaves(form, device) for _ in range(2))
    captured, plain = (_make(config, form, params, capturable=True) for params in (ours, theirs))
    with _beside(device):
        _train(captured, ours, range(_WARM_UP))
    _train(plain, theirs, range(_WARM_UP))
    replay = _captured(captured.step, device)
    for t in range(_WARM_UP, _WARM_UP + _REPLAYS):
        refill(ours, t)
        replay()
        refill(theirs, t)
        plain.step()
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        if not equal([p.detach()], [q.detach()]):
            return f"parameter {i} differs after {_REPLAYS} replays"
        for name, value in captured.state[p].items():
            if not equal([value], [plain.state[q][name]]):
                return f"{name} of parameter {i} differs after {_REPLAYS} replays"
    return None


def synchronises(config: Config, form: str, device: torch.device) -> str | None:
    """Raise if a step waits for the device, whether it could be captured or not."""
    for capturable in (False, True):
        params = _leaves(form, device)
        optimizer = _make(config, form, params, capturable=capturable)
        _train(optimizer, params, range(_WARM_UP))
        refill(params, _WARM_UP)
        # As a schedule does: the options are sent anew.
        optimizer.param_groups[0]["lr"] *= 0.5
        with no_synchronisation() if device.type == "cuda" else nullcontext():
            optimizer.step()
    return None


def refill(params: list[Tensor], t: int) -> None:
    """Write the gradients of step ``t`` where those before it lie: a graph reads them there."""
    kept = [p.grad for p in params]
    set_gradients(params, t)
    for p, grad in zip(params, kept, strict=True):
        if grad is not None:
            assert p.grad is not None
            grad.copy_(p.grad)
            p.grad = grad


def _train(optimizer: torch.optim.Optimizer, params: list[Tensor], steps: range) -> None:
    for t in steps:
        refill(params, t)
        optimizer.step()


def _captured(step: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Return what takes a captured step; on a CPU, which has no graphs, the step itself."""
    if device.type != "cuda":
        return step
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], Any] = graph.replay
    return replay


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """Run on a stream of its own, as a step must before it is captured.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def _make(config: Config, form: str, params: list[Tensor], **more: Any) -> torch.optim.Optimizer:
    # The CPU's engine takes no step that could be captured: plain torch stands in for it.
    fused = True if params[0].is_cuda else None
    options = {**FORMATS[form].options, **more}
    made: torch.optim.Optimizer = config(params, fused=fused, **options)
    return made


def _leaves(form: str, device: torch.device) -> list[Tensor]:
    found: list[Tensor] = parameters(FORMATS[form].dtype, SHAPES, device=device)
    return found
