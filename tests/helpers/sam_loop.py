"""SAM written out as a plain loop, which every framework's run is held against."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import steppe

#: SAM's family: options, and what is in the way of one or two passes.
KINDS: dict[str, dict[str, Any]] = {
    "sam": {"rho": 0.3},
    "asam": {"rho": 0.5, "metric": "adaptive"},
    "msam": {"rho": 0.3, "direction": "momentum"},
    "random": {"rho": 0.2, "direction": "random"},
    "late": {"rho": 0.3, "start": 0.5, "total_steps": 6},
}


def data(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, :3].sum(1) > 0).long()


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def make_sam(params: Any, kind: str) -> steppe.SAM:
    torch.manual_seed(7)  # Random perturbations are that of torch's seed.
    return steppe.SAM(params, torch.optim.AdamW, lr=0.05, **KINDS[kind])


def train(
    model: nn.Module,
    sam: steppe.SAM,
    batches: Sequence[Any],
    loss_of: Callable[[nn.Module, Any], Tensor],
    *,
    accumulate: int = 1,
    clip: float | None = None,
    bf16: bool = False,
    whole_windows: bool = True,
) -> None:
    """Take a step for every so many batches, whose losses are averaged.

    ``whole_windows``: whether the loss of a last window that is shorter is divided by its length
    or, as Accelerate and Lightning do, by that of the others.
    """
    for begin in range(0, len(batches), accumulate):
        window = batches[begin : begin + accumulate]
        count = len(window) if whole_windows else accumulate

        def run(window: Sequence[Any] = window, count: int = count) -> None:
            for batch in window:
                with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                    loss = loss_of(model, batch)
                (loss / count).backward()

        sam.zero_grad()
        if sam.has_two_passes:
            run()
        if not sam.has_two_passes or sam.is_active:
            with sam.perturbed():
                run()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        sam.step()


def same(left: nn.Module, right: nn.Module, *, bf16: bool = False) -> None:
    """Assert that two models ended alike: to rounding, which autocast's is."""
    for one, other in zip(left.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4 if bf16 else 1e-6)
