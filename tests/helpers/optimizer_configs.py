"""The configurations that every test of the torch contract walks through."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import steppe


@dataclass(frozen=True)
class Config:
    """An optimizer with options that select one of its rules."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, params: Any, **more: Any) -> torch.optim.Optimizer:
        return getattr(steppe, self.name)(params, **{**self.options, **more})

    @property
    def cls(self) -> type:
        return getattr(steppe, self.name)

    @property
    def has_buffer(self) -> bool:
        return self.name.endswith(("CM", "CG"))

    def __str__(self) -> str:
        chosen = [f"{k}={v}" for k, v in self.options.items() if k not in ("lr", "weight_decay")]
        return "-".join([self.name, *chosen])


def _configs() -> Iterator[Config]:
    adam = {"lr": 0.01, "weight_decay": 0.1}
    yield Config("InvAdam", adam)
    for scale_free in (False, True):
        yield Config("DualAdam", {**adam, "switch_rate": 0.01, "scale_free": scale_free})
    for variant in ("consistent", "authors"):
        for amsgrad in (False, True):
            choice = {**adam, "variant": variant, "amsgrad": amsgrad, "capacity": 3}
            yield Config("AdamCM", choice)
            yield Config("DualAdamCM", {**choice, "switch_rate": 0.01})
    yield Config("AdamCM", {**adam, "replacement": "fifo"})
    yield Config("AdamCM", {**adam, "scope": "tensor"})
    yield Config("AdamCM", {**adam, "capacity": 0})
    for order, rate in ((1, 0.5), (2, 0.9), (3, 0.7)):
        integrals = {"integration_order": order, "integration_rate": rate}
        yield Config("MIAdam", {**adam, **integrals, "switch_rate": 0.1})
    sgd = {"lr": 0.01, "weight_decay": 0.1}
    yield Config("SGDCM", {**sgd, "momentum": 0.0, "dampening": 0.3})
    yield Config("SGDCM", {**sgd, "dampening": 0.3})
    yield Config("SGDCG", sgd)
    yield Config("SGDCG", {**sgd, "momentum": 0.9, "dampening": 0.3, "aggregation": "mid"})
    for amsgrad in (False, True):
        yield Config("AdamCG", {**adam, "amsgrad": amsgrad, "capacity": 3})
    yield Config("AdamCG", {**adam, "aggregation": "sum", "scope": "tensor", "kappa": 0.5})
    for centered in (False, True):
        for momentum in (0.0, 0.9):
            yield Config("RMSpropCG", {**sgd, "centered": centered, "momentum": momentum})


CONFIGS = list(_configs())
#: One or two of each optimizer, with each value of each option that selects a rule: for what all
#: rules share. What a rule computes is asked of all.
REPRESENTATIVE = [
    config
    for config in CONFIGS
    if str(config)
    in (
        "InvAdam",
        "DualAdam-switch_rate=0.01-scale_free=True",
        "MIAdam-integration_order=2-integration_rate=0.9-switch_rate=0.1",
        "AdamCM-variant=consistent-amsgrad=False-capacity=3",
        "AdamCM-replacement=fifo",
        "AdamCM-scope=tensor",
        "DualAdamCM-variant=authors-amsgrad=True-capacity=3-switch_rate=0.01",
        "SGDCM-dampening=0.3",
        "SGDCG-momentum=0.9-dampening=0.3-aggregation=mid",
        "AdamCG-amsgrad=True-capacity=3",
        "AdamCG-aggregation=sum-scope=tensor-kappa=0.5",
        "RMSpropCG-centered=True-momentum=0.9",
    )
]
assert len(REPRESENTATIVE) == 12
NAMES = sorted({config.name for config in CONFIGS})
SHAPES = [(3, 4), (5,), (), (2, 3, 2)]


def parameters(
    dtype: torch.dtype = torch.float64,
    shapes: list[tuple[int, ...]] = SHAPES,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Leaf parameters drawn from a fixed seed, the same on each device."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [value.to(dtype).to(device).requires_grad_() for value in values]


def set_gradients(params: list[Tensor], t: int) -> None:
    """Give each parameter the gradient of a wavy bowl that shifts with the step ``t``."""
    for i, p in enumerate(params):
        q = p.detach().double()
        gradient = 3.0 * torch.cos(3.0 * q + i + 0.7 * t) + 0.5 * q
        p.grad = gradient.to(p.dtype)


def train(optimizer: torch.optim.Optimizer, params: list[Tensor], steps: range) -> None:
    for t in steps:
        set_gradients(params, t)
        optimizer.step()


def step_from_equal_state(
    leader: torch.optim.Optimizer,
    follower: torch.optim.Optimizer,
    params: list[Tensor],
    copies: list[Tensor],
    t: int,
) -> None:
    """Take the step ``t`` with both, from the parameters, gradients and state of the leader."""
    set_gradients(params, t)
    for p, q in zip(params, copies, strict=True):
        q.data.copy_(p.detach())
        q.grad = p.grad.clone()
        for name, value in leader.state[p].items():
            follower.state[q][name].copy_(value)
    leader.step()
    follower.step()


def values(params: list[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    """Bitwise equality, NaN equal to itself."""
    return len(a) == len(b) and all(
        x.dtype == y.dtype and torch.equal(torch.nan_to_num(x), torch.nan_to_num(y))
        for x, y in zip(a, b, strict=True)
    )


def assert_close(ours: list[Tensor], theirs: list[Tensor], gradients: list[Tensor] = ()) -> None:
    """Compare norms, so that an element near zero need not be right to its own last digit.

    Where terms cancel, their rounding is relative to them: the gradient's size stands for theirs.
    """
    a, b, g = (
        torch.cat([torch.nan_to_num(x.detach().double(), neginf=-1.0).ravel() for x in tensors])
        for tensors in (ours, theirs, gradients or theirs)
    )
    assert (a - b).norm() <= 1e-6 * max(b.norm(), 0.3 * g.norm())


def assert_same_state(a: dict[int, dict[str, Any]], b: dict[int, dict[str, Any]]) -> None:
    """Assert that two states of optimizers hold the same tensors and numbers."""
    assert a.keys() == b.keys()
    for number in a:
        assert a[number].keys() == b[number].keys()
        for name, value in a[number].items():
            assert equal([value], [b[number][name]]), name
