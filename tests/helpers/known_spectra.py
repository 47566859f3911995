"""Matrices and networks whose curvature is known."""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from steppe.landscape import Operator

Loss = Callable[[Tensor, Tensor], Tensor]


def matrix(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """Return a symmetric matrix with these eigenvalues and random eigenvectors, in float64."""
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    random = torch.randn(size, size, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(random).Q
    return (basis * eigenvalues.double()) @ basis.T


def operator(dense: Tensor, dtype: torch.dtype = torch.float64) -> Operator:
    dense = dense.to(dtype)
    return Operator(len(dense), lambda rows: rows @ dense, dtype=dtype)


def interrupting(H: Operator, after: int) -> Operator:
    """Return the same operator, with Ctrl-C once so many products have been taken."""

    def product(rows: Tensor) -> Tensor:
        if H.products >= after:
            raise KeyboardInterrupt
        return H.rows(rows)

    return Operator(H.size, product, dtype=H.dtype)


@cache
def small_network() -> tuple[nn.Module, Loss, list[tuple[Tensor, Tensor]]]:
    """Train 610 parameters on digits, in float64: 64 pixels, 8 units with tanh, 10 classes."""
    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = torch.from_numpy(pixels / 16.0), torch.from_numpy(labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)).double()
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, loss_fn, list(zip(inputs.split(500), targets.split(500), strict=True))


@cache
def dense_hessian() -> Tensor:
    """Return the small network's Hessian, by torch's own nested derivatives, in one batch."""
    model, loss_fn, data = small_network()
    inputs, targets = (torch.cat(part) for part in zip(*data, strict=True))
    names = [name for name, _ in model.named_parameters()]
    shapes = [param.shape for param in model.parameters()]

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        params = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return loss_fn(torch.func.functional_call(model, params, (inputs,)), targets)

    start = torch.cat([param.detach().reshape(-1) for param in model.parameters()])
    return torch.autograd.functional.hessian(loss, start)


def outermost(dense: Tensor, k: int, which: str) -> np.ndarray:
    values = np.linalg.eigvalsh(dense.numpy())
    key = {"LM": -np.abs(values), "LA": -values, "SA": values}[which]
    return values[np.argsort(key, kind="stable")][:k]
