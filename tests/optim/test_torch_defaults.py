"""Torch's default device and number format change no step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steppe
from helpers.optimizer_configs import REPRESENTATIVE, Config
from helpers.torch_defaults import DEFAULTS, torch_default


def stepped(params: list[nn.Parameter], optimizer: Any, gradients: list[list[Tensor]]) -> list[Any]:
    """Return all numbers after some steps, a checkpoint's round trip between them."""
    for step, drawn in enumerate(gradients):
        for param, gradient in zip(params, drawn, strict=True):
            param.grad = gradient.clone()
        optimizer.step()
        if step == 1:
            optimizer.load_state_dict(optimizer.state_dict())
    states = [[*optimizer.state[param].values()] for param in params]
    assert {tensor.device.type for state in states for tensor in state} == {"cpu"}
    return [
        [(tensor.dtype, tensor.tolist()) for tensor in state] for state in [params, *states]
    ] + [optimizer.diagnostics() if hasattr(optimizer, "diagnostics") else None]


@pytest.mark.parametrize("default", DEFAULTS, ids=str)
@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("state_dtype", [None, "int8"])
@pytest.mark.parametrize("config", REPRESENTATIVE, ids=str)
def test_no_step_depends_on_them(
    config: Config, state_dtype: str | None, fused: bool | None, default: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [[torch.randn(n, generator=generator) for n in (300, 3)] for _ in range(4)]

    def run() -> list[Any]:
        params = [nn.Parameter(2 * tensor) for tensor in drawn[0]]
        return stepped(params, config(params, state_dtype=state_dtype, fused=fused), drawn)

    usual = run()
    with torch_default(default):
        assert run() == usual


@pytest.mark.parametrize("default", DEFAULTS, ids=str)
@pytest.mark.parametrize("kind", ["SAM", "Offload"])
def test_no_step_of_a_wrapper_depends_on_them(kind: str, default: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [[torch.randn(n, generator=generator) for n in (300, 3)] for _ in range(4)]

    def run() -> list[Any]:
        params = [nn.Parameter(2 * tensor) for tensor in drawn[0]]
        if kind == "Offload":
            return stepped(params, steppe.optim.Offload(params, steppe.AdamCM), drawn)
        sam = steppe.SAM(steppe.DualAdam(params), required=False)
        for param, gradient in zip(params, drawn[0], strict=True):
            param.grad = gradient.clone()
        with sam.perturbed():
            for param, gradient in zip(params, drawn[1], strict=True):
                param.grad = gradient.clone()
        return stepped(params, sam, drawn)

    usual = run()
    with torch_default(default):
        assert run() == usual
