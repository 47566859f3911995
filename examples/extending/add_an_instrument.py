"""Add an instrument: the stable rank of the Hessian, in how many directions a minimum is sharp.

An instrument is a function of an ``Operator``, which is a symmetric matrix known by its products,
or of a model, a loss function and batches. In the package it is a file of src/steppe/landscape and
a name in that room's ``__init__``. It needs nothing private::

    python examples/extending/add_an_instrument.py
"""

import math
from dataclasses import dataclass

import torch

from steppe import landscape
from steppe.landscape import Operator


@dataclass(frozen=True)
class StableRank:
    """What :func:`stable_rank` measured.

    Attributes
    ----------
    value : float
        ‖H‖_F²/λ_max², between 1 and the number of parameters.
    stderr : float
        Its standard error over the random vectors, λ_max taken as exact.
    products : int
        How many products with H it took.
    """

    value: float
    stderr: float
    products: int


def stable_rank(H: Operator, *, products: int = 100, seed: int = 0) -> StableRank:
    """Estimate ‖H‖_F²/λ_max²: for random signs z, ‖Hz‖² is ‖H‖_F² on average.

    Parameters
    ----------
    H : Operator
        A symmetric matrix such as :func:`steppe.landscape.hessian` returns, of shape (n, n).
    products : int, default 100
        Random vectors for the Frobenius norm; at least 2.
    seed : int, default 0
        Same seed, same answer.

    Raises
    ------
    ValueError
        ``products`` is less than 2.
    """
    if products < 2:
        raise ValueError(f"products={products} must be at least 2: the error is over products")
    before = H.products
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(0, 2, (H.size, products), generator=generator)
    signs = 2.0 * draws.to(H.device, H.dtype) - 1.0  # (n, products)
    with H.held():
        squares = (H @ signs).double().square().sum(0)  # (products,)
        largest = landscape.top_eigenvalues(H, k=1).values[0]
    ranks = squares / largest**2
    stderr = ranks.std().item() / math.sqrt(products)
    return StableRank(ranks.mean().item(), stderr, H.products - before)


def main() -> None:
    """Measure a matrix whose stable rank is known, and the Hessian of a network."""
    diagonal = torch.tensor([4.0, 2.0, 2.0, 2.0, 2.0] + 95 * [0.0])
    known = stable_rank(Operator(100, lambda rows: rows * diagonal))
    assert abs(known.value - 2.0) < 1e-4  # (16 + 4·4)/16; of a diagonal matrix without error

    torch.manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(100, 100))
    matrix = rotation * diagonal @ rotation.T
    turned = stable_rank(Operator(100, lambda rows: rows @ matrix), products=400)
    assert abs(turned.value - 2.0) < 3 * turned.stderr

    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    batches = [(torch.randn(64, 8), torch.randint(3, (64,)))]
    found = stable_rank(landscape.hessian(model, torch.nn.CrossEntropyLoss(), batches))
    parameters = sum(p.numel() for p in model.parameters())
    assert 1 <= found.value < parameters
    print(f"stable rank {found.value:.1f} ± {found.stderr:.1f} of {parameters}")


if __name__ == "__main__":
    main()
