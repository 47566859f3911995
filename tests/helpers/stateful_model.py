"""A model that changes at every call, and all that must be as it was afterwards."""

import torch
from torch import Tensor, nn


class Restless(nn.Module):
    """Changes a buffer, replaces another, and draws random numbers at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.last = torch.rand(())
        return self.body(inputs)


def restless() -> Restless:
    """Return one that has gradients, and a layer in another mode than the rest."""
    torch.manual_seed(0)
    model = Restless()
    model(torch.randn(6, 3)).sum().backward()
    model.body[1].eval()
    return model


def snapshot(model: nn.Module) -> list[object]:
    """Return values, storage, gradients, modes and torch's random state."""
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [tensor.tolist() for tensor in tensors],
        [tensor.data_ptr() for tensor in tensors],
        [tensor.requires_grad for tensor in tensors],
        [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_rng_state().tolist(),
    ]
