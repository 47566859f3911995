"""What tests of SAM have in common: bases, a network, and a loss with a known gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import steppe

Make = Callable[..., Optimizer]

BASES: dict[str, Make] = {
    "DualAdam": lambda ps: steppe.DualAdam(ps, lr=1e-2, switch_rate=0.3),
    "InvAdam": lambda ps: steppe.InvAdam(ps, lr=1e-2),
    "AdamCM": lambda ps: steppe.AdamCM(ps, lr=1e-2, capacity=2),
    "DualAdamCM": lambda ps: steppe.DualAdamCM(ps, lr=1e-2, capacity=2, switch_rate=0.3),
    "SGDCM": lambda ps: steppe.SGDCM(ps, lr=1e-2, capacity=2),
    "SGDCG": lambda ps: steppe.SGDCG(ps, lr=1e-2, capacity=2, momentum=0.5),
    "AdamCG": lambda ps: steppe.AdamCG(ps, lr=1e-2, capacity=2),
    "RMSpropCG": lambda ps: steppe.RMSpropCG(ps, lr=1e-2, capacity=2),
    "torch.AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-2),
    "torch.AdamW fused": lambda ps: torch.optim.AdamW(ps, lr=1e-2, fused=True),
    "torch.SGD": lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.5, dampening=-0.5),
    "torch.RMSprop": lambda ps: torch.optim.RMSprop(ps, lr=1e-2, centered=True),
    "torch.Adadelta": lambda ps: torch.optim.Adadelta(ps, rho=0.8),
    "torch.Adafactor": lambda ps: torch.optim.Adafactor(ps, lr=1e-2),
}


every_base = pytest.mark.parametrize("make", BASES.values(), ids=BASES)
either_form = pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "adaptive"])


def network(dtype: torch.dtype = torch.float32, norm: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), norm or nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def batch(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(1)).to(dtype)


def closure_of(model: Any, opt: Optimizer, inputs: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    return closure


def train(model: nn.Module, opt: Optimizer, steps: int = 4) -> None:
    """Take steps; each base and SAM accept a closure."""
    inputs = batch(next(model.parameters()).dtype)
    for _ in range(steps):
        opt.step(closure_of(model, opt, inputs))


def values(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in model.state_dict().values()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Bit for bit, NaN included."""
    pairs = zip(left, right, strict=True)
    return all(bits(a) == bits(b) and a.dtype == b.dtype for a, b in pairs)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


STARTS = (np.array([[0.3, -1.2, 2.0], [0.7, 0.1, -0.4]]), np.array([1.5, -0.2]))


def leaves(starts: Sequence[np.ndarray] = STARTS, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return tensors that no module can hold, so that SAM searches for none."""
    return [torch.tensor(p, dtype=dtype, requires_grad=True) for p in starts]


def gradient(p: np.ndarray) -> np.ndarray:
    """Gradient of Σ sin(3p) + p⁴/4, which is not convex."""
    return np.asarray(3 * np.cos(3 * p) + p**3)


def wavy(params: list[Tensor]) -> Tensor:
    return sum(((3 * p).sin() + p**4 / 4).sum() for p in params)  # type: ignore[return-value]


def wavy_closure(params: list[Tensor], opt: Optimizer, sign: int = 1) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = sign * wavy(params)
        loss.backward()
        return loss

    return closure


def radius(name: str) -> str:
    return "sam_rho" if name == "torch.Adadelta" else "rho"


def bits_of_state(sam: steppe.SAM) -> list[Any]:
    state = [
        (k, bits(v) if isinstance(v, Tensor) else v)
        for s in sam.state.values()
        for k, v in s.items()
    ]
    options = [{k: v for k, v in g.items() if k != "params"} for g in sam.param_groups]
    return [state, options]
