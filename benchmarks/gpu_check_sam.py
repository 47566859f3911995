"""SAM on a device: the time it takes around a pass, and that it moves as on the CPU."""

from typing import Any

import numpy as np
import torch
from gpu_check_sections import Found, Save
from torch import Tensor

import steppe
from steppe.bench import MODELS, Action, parameters, time_in_turn, uniform, warm_up

DIRECTIONS = ("gradient", "momentum", "random")

#: Of the perturbation's own size: p + e is rounded as p is, which is some 20 times e here.
MOST_DIFFERENCE = 1e-4


def sam(device: torch.device, small: bool, save: Save) -> Found:
    """Time perturb and restore beside a copy of GPT-2's parameters; compare with the CPU."""
    found: Found = {"directions": {}, "missed": []}
    for direction in DIRECTIONS:
        difference, is_restored = _beside_cpu(direction, device)
        timed = _timed(direction, device, small)
        found["directions"][direction] = {"difference": difference, **timed}
        if not difference <= MOST_DIFFERENCE:
            found["missed"].append(
                f"{direction}: {difference:.2g} of e from the CPU's, at most {MOST_DIFFERENCE}"
            )
        if not is_restored:
            found["missed"].append(f"{direction}: parameters are not restored bit for bit")
        save(found)
    return found


def _timed(direction: str, device: torch.device, small: bool) -> Found:
    shapes = uniform(3, 5000) if small else MODELS["gpt2"].shapes()
    params: list[Tensor] = [*parameters(shapes, device)]
    grads, copies = [p.grad for p in params], [p.detach().clone() for p in params]
    wrapped = _wrapped(direction, params)

    def around_a_pass() -> None:
        # Perturbing along the gradient clears it.
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        wrapped.perturb()
        wrapped.restore()

    def copy() -> None:
        torch._foreach_copy_(copies, [p.detach() for p in params])

    actions: list[Action] = [around_a_pass, copy]
    time_in_turn(actions, 2, device)
    ours, copying = time_in_turn(actions, 3 if small else 20, device)
    return {"seconds": float(np.median(ours)), "copy_seconds": float(np.median(copying))}


def _beside_cpu(direction: str, device: torch.device) -> tuple[float, bool]:
    """Return how far e is from the CPU's, as a part of it; and whether it was undone."""
    moves = []
    for each in (device, torch.device("cpu")):
        drawn = parameters(uniform(3, 5000), torch.device("cpu"))
        params = [p.detach().to(each).requires_grad_() for p in drawn]
        for p, q in zip(params, drawn, strict=True):
            assert q.grad is not None
            p.grad = q.grad.to(each)
        torch.manual_seed(0)
        wrapped = _wrapped(direction, params)
        before = [p.detach().clone() for p in params]
        wrapped.perturb()
        moved = [p.detach() - q for p, q in zip(params, before, strict=True)]
        moves.append(torch.cat(moved).cpu())
        wrapped.restore()
        is_restored = all(torch.equal(p.detach(), q) for p, q in zip(params, before, strict=True))
        if not is_restored:
            return float("nan"), False
    ours, theirs = moves
    return float((ours - theirs).norm() / theirs.norm()), True


def _wrapped(direction: str, params: list[Tensor]) -> Any:
    base = steppe.DualAdam(params, lr=1e-3, switch_rate=0.01)
    wrapped = steppe.SAM(base, direction=direction, required=False)  # type: ignore[arg-type]
    # Before its first steps the base has no momentum.
    warm_up(base)
    return wrapped
