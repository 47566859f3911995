"""FSDP2 and DDP on one device: with one process they take the steps that one takes alone."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed
from gpu_check_sections import Found, Save
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import steppe
from steppe._shared.messages import first_line

_STEPS = 3

Make = Callable[..., Optimizer]
MAKERS: dict[str, tuple[torch.dtype, Make]] = {
    "DualAdam": (torch.float32, partial(steppe.DualAdam, lr=0.01, switch_rate=0.1)),
    "DualAdam, scale_free": (
        torch.float32,
        partial(steppe.DualAdam, lr=0.01, switch_rate=0.1, scale_free=True),
    ),
    "AdamCM": (torch.float32, partial(steppe.AdamCM, lr=0.01, capacity=2)),
    "AdamCM, state int8": (
        torch.float32,
        partial(steppe.AdamCM, lr=0.01, capacity=2, state_dtype="int8"),
    ),
    "DualAdam, 24 bits": (
        torch.bfloat16,
        partial(steppe.DualAdam, lr=0.01, param_error="int8", state_dtype="int8"),
    ),
    "SAM": (torch.float32, lambda params: steppe.SAM(steppe.DualAdam(params, lr=0.01))),
}


def processes(device: torch.device, small: bool, save: Save) -> Found:
    """Train alone, with FSDP2 and with DDP; "missed" lists what is not the same."""
    found: Found = {"largest_difference": {}, "missed": []}
    with _group_of_one(device):
        for name, (dtype, make) in MAKERS.items():
            alone = _trained(_network(dtype, device), make, device)
            for kind, wrap in (("FSDP2", _sharded), ("DDP", _replicated)):
                case = f"{name}, {kind}"
                try:
                    others = _trained(wrap(_network(dtype, device), device), make, device)
                except Exception as error:
                    found["missed"].append(f"{case}: {first_line(error)}")
                    continue
                # Nothing is summed or averaged with others: not even rounding may differ.
                largest = max(
                    float((a - b).abs().max()) for a, b in zip(alone, others, strict=True)
                )
                found["largest_difference"][case] = largest
                if largest != 0:
                    found["missed"].append(f"{case}: weights differ by up to {largest:.2g}")
                save(found)
    return found


@contextmanager
def _group_of_one(device: torch.device) -> Iterator[None]:
    """Be a group of one process. It needs neither a port nor a file."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    # Also without a network NCCL and gloo look for an interface.
    os.environ.setdefault(f"{backend.upper()}_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        backend,
        store=torch.distributed.HashStore(),  # type: ignore[attr-defined]
        rank=0,
        world_size=1,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _network(dtype: torch.dtype, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    # More numbers than tensors have whose state stays in full precision.
    layers = nn.Linear(48, 100), nn.Tanh(), nn.Linear(100, 5)
    return nn.Sequential(*layers).to(device, dtype)


def _sharded(model: nn.Module, device: torch.device) -> nn.Module:
    mesh = init_device_mesh(device.type, (1,))
    fully_shard(model, mesh=mesh)
    return model


def _replicated(model: nn.Module, device: torch.device) -> nn.Module:
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def _trained(model: nn.Module, make: Make, device: torch.device) -> list[Tensor]:
    """Return the weights after some steps on samples that do not change."""
    optimizer: Any = make(model.parameters())
    dtype = next(model.parameters()).dtype
    inputs = torch.linspace(-2, 2, 8 * 48, device=device, dtype=dtype).reshape(8, 48).sin()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(inputs).square().mean()
        torch.autograd.backward(loss)
        return loss

    for _ in range(_STEPS):
        optimizer.step(closure)
    found = [p.detach() for p in model.parameters()]
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in found]
    return [p.double().cpu() for p in whole]
