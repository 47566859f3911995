"""The small trained networks whose curvature ``benchmarks/landscape.py`` measures."""

from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from libraries import Data, Library
from sklearn.datasets import load_digits
from torch import Tensor, nn

from steppe import landscape

CRITERION = nn.CrossEntropyLoss()


@dataclass(frozen=True)
class Problem:
    """A trained network and all its data."""

    name: str
    model: nn.Module
    data: Data

    def gradient(self) -> tuple[Tensor, ...]:
        """Return the gradient over all data, whose time is the unit of all costs."""
        inputs, targets = self.data[0]
        loss = CRITERION(self.model(inputs), targets)
        return torch.autograd.grad(loss, list(self.model.parameters()))

    def operator(self, library: Library) -> Any:
        """Return a library's Hessian."""
        return library.operator(self.model, CRITERION, self.data)


def mlp() -> Problem:
    """Make an MLP of 85 002 parameters."""
    return trained("MLP", layered(64, 256, 256, 10))


def small() -> Problem:
    """Make an MLP of 610 parameters, whose Hessian fits in memory; it learns more slowly."""
    return trained("small MLP", layered(64, 8, 10), epochs=50)


def cnn() -> Problem:
    """Make a CNN of 101 626 parameters."""
    return trained("CNN", convolutional(32, 64, 80))


def convolutional(first: int, second: int, hidden: int) -> nn.Sequential:
    """Make a CNN of two convolutions with so many channels, and a hidden layer, from seed 0."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, first, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * second, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


def layered(*widths: int) -> nn.Sequential:
    """Make an MLP with ReLU between layers of these widths."""
    torch.manual_seed(0)
    layers = [nn.Linear(below, above) for below, above in pairwise(widths)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


def digits() -> tuple[Tensor, Tensor]:
    """Return all 1 797 images of 8×8 pixels as rows, and their classes."""
    found = load_digits()
    return torch.tensor(found.data / 16.0, dtype=torch.float32), torch.tensor(found.target)


def trained(name: str, model: nn.Module, epochs: int = 10) -> Problem:
    """Train with Adam on digits, as the curvature of untrained networks is of no interest."""
    inputs, targets = digits()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(inputs)), 100):
            optimizer.zero_grad()
            CRITERION(model(inputs[chosen]), targets[chosen]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return Problem(name, model, [(inputs, targets)])


def dense(problem: Problem) -> Tensor:
    """Return the whole Hessian, from products in float64."""
    inputs, targets = problem.data[0]
    H = landscape.hessian(deepcopy(problem.model).double(), CRITERION, [(inputs.double(), targets)])
    return H.matmat(torch.eye(H.size, dtype=torch.float64)).float()
