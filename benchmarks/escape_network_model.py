"""A small network on digits with two minima and the saddle between them, all known to 1e-10.

The two minima are of different depth, and no copies of each other: between copies that differ in
the order of hidden units lie saddles where units are equal, and there no sample's gradient has a
part that would separate them. The noise along that way out is 0, and nothing escapes by it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch
from escape_walk import Array, Basin, compiled
from problems import digits
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from steppe.landscape import hessian

#: Digits that are told apart, by their images' first principal components.
CLASSES, INPUTS = (8, 9), 2
#: Targets are ± this, so that residuals are about 1 and the noise is about the curvature.
SCALE, DECAY = 2.5, 0.02
#: Initial weights that lead to the minimum where walkers begin, and to a deeper one.
SEEDS = (1, 0)

#: Learning rate and steps of the descent that shows where a walker is.
DESCENT = (0.4, 100)
_FLAT = 1e-10
_LONGEST = 0.3
# Of the copies: the first in the other order.
_SWAPPED = 4


class Network(nn.Module):
    """An MLP with two tanh units, whose outputs are followed by its parameters, for their decay.

    So that the loss of outputs and targets is all that is minimised.
    """

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(INPUTS, 2), nn.Tanh(), nn.Linear(2, 1)
        self.layers = nn.Sequential(*layers).double()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (samples, 1 + parameters)."""
        own = parameters_to_vector(self.parameters())
        return torch.cat([self.layers(inputs), own.expand(len(inputs), -1)], 1)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of half the squared error, with weight decay."""
    error, own = (outputs[:, :1] - targets).square(), outputs[:, 1:].square()
    return (error.sum(1) + DECAY * own.sum(1)).mean() / 2


@compiled
def gradient(parameters: Array, row: Array, constants: tuple[float], out: Array) -> None:
    """Add the gradient of one sample, as :func:`half_square` of a ``Network`` has it."""
    inputs = len(row) - 1
    hidden = (len(parameters) - 1) // (inputs + 2)
    biases, outer = hidden * inputs, hidden * (inputs + 1)
    active = np.empty(hidden)
    error = parameters[-1] - row[inputs]
    for j in range(hidden):
        total = parameters[biases + j]
        for i in range(inputs):
            total += parameters[j * inputs + i] * row[i]
        active[j] = math.tanh(total)
        error += parameters[outer + j] * active[j]
    for j in range(hidden):
        back = error * parameters[outer + j] * (1.0 - active[j] ** 2)
        for i in range(inputs):
            out[j * inputs + i] += back * row[i]
        out[biases + j] += back
        out[outer + j] += error * active[j]
    out[-1] += error
    out += constants[0] * parameters


@dataclass(frozen=True)
class Scene:
    """Two minima and the saddle between them, as parameters, and the data.

    Attributes
    ----------
    inputs, targets : Tensor
        All samples.
    minimum, saddle, other : Tensor
        Parameters of ``Network``: where walkers begin, what they cross, and what lies behind.
    """

    inputs: Tensor
    targets: Tensor
    minimum: Tensor
    saddle: Tensor
    other: Tensor

    @property
    def samples(self) -> list[tuple[Tensor, Tensor]]:
        """Batches of one sample, for the exact covariance of gradients."""
        return [(x[None], t[None]) for x, t in zip(self.inputs, self.targets, strict=True)]

    def loss(self, parameters: Tensor) -> float:
        """Return the loss of all samples."""
        return loss(parameters, self.inputs, self.targets)

    def basin(self, basis: Array) -> Basin:
        """Return the minimum's basin, for walkers that move in the span of a basis.

        They have left when descent ends nearer to the other minimum.
        """
        rows = torch.cat([self.inputs, self.targets], 1).numpy()
        radius = float((self.other - self.minimum).norm()) / 2.0
        return Basin(gradient, rows, (DECAY,), self.minimum.numpy(), basis, radius, DESCENT)


@cache
def scene() -> Scene:
    """Train to both minima, and find the saddle from the top of the straight path between them."""
    inputs, targets = data()
    minimum, deeper = (polished(trained(seed, inputs, targets), inputs, targets) for seed in SEEDS)
    shares = torch.linspace(0, 1, 41, dtype=torch.float64)[:, None]

    def highest(other: Tensor) -> tuple[float, Tensor]:
        points = minimum + shares * (other - minimum)
        losses = [loss(point, inputs, targets) for point in points]
        return max(losses), points[int(np.argmax(losses))]

    other = min(copies(deeper), key=lambda copy: highest(copy)[0])
    saddle = polished(highest(other)[1], inputs, targets)
    curvatures = torch.linalg.eigvalsh(dense(saddle, inputs, targets))
    if not curvatures[0] < 0.0 < curvatures[1]:
        raise ValueError(f"expected one negative curvature at the saddle, got {curvatures[:2]}")
    return Scene(inputs, targets, minimum, saddle, other)


def copies(parameters: Tensor) -> Iterator[Tensor]:
    """Yield the networks that compute the same: units in another order, or with other signs."""
    inner, biases, outer, last = torch.split(parameters, [2 * INPUTS, 2, 2, 1])
    for order, signs in product(([0, 1], [1, 0]), product((1.0, -1.0), repeat=2)):
        sign = torch.tensor(signs, dtype=torch.float64)
        weights = inner.view(2, INPUTS)[order] * sign[:, None]
        yield torch.cat([weights.flatten(), biases[order] * sign, outer[order] * sign, last])


def swapped(parameters: Tensor) -> Tensor:
    """Return the copy with the units in the other order."""
    return list(copies(parameters))[_SWAPPED]


def loss(parameters: Tensor, inputs: Tensor, targets: Tensor) -> float:
    """Return the loss of all samples."""
    return half_square(network(parameters)(inputs), targets).item()


def data() -> tuple[Tensor, Tensor]:
    """Return the images' principal components, of variance 1, and targets of ±``SCALE``."""
    images, labels = digits()
    chosen = torch.isin(labels, torch.tensor(CLASSES))
    centred = images[chosen].double()
    centred -= centred.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:INPUTS]
    inputs = centred @ axes.T
    signs = torch.where(labels[chosen] == CLASSES[0], 1.0, -1.0).double()
    return inputs / inputs.std(0), SCALE * signs[:, None]


def network(parameters: Tensor) -> Network:
    """Return a network with these parameters."""
    model = Network()
    vector_to_parameters(parameters, model.parameters())
    return model


def trained(seed: int, inputs: Tensor, targets: Tensor) -> Tensor:
    """Minimise the loss over all samples."""
    generator = torch.Generator().manual_seed(seed)
    size = 2 * (INPUTS + 2) + 1
    model = network(2.0 * torch.randn(size, generator=generator, dtype=torch.float64))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1000, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = half_square(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return parameters_to_vector(model.parameters()).detach()


def polished(parameters: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Take Newton's steps, of a limited length, until the gradient is 0."""
    for _ in range(50):
        model = network(parameters)
        found = half_square(model(inputs), targets)
        slope = parameters_to_vector(torch.autograd.grad(found, list(model.parameters())))
        if slope.norm() < _FLAT:
            return parameters
        step = torch.linalg.solve(dense(parameters, inputs, targets), slope)
        parameters = parameters - step * min(1.0, _LONGEST / float(step.norm()))
    raise ValueError(f"the gradient is {slope.norm():.3g} after Newton's steps, above {_FLAT:g}")


def dense(parameters: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the whole Hessian."""
    H = hessian(network(parameters), half_square, [(inputs, targets)])
    return H.matmat(torch.eye(len(parameters), dtype=torch.float64))
