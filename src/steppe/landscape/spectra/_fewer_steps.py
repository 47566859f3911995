"""What a shorter run of Lanczos' method would have found, from the quadrature of a longer one.

By it a density tells how far the number of steps has moved what is computed from it.
"""

import numpy as np

from steppe._shared.array_types import Floats


def with_half_the_steps(nodes: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return the quadrature that half of the steps would have given.

    Lanczos' method on the nodes, from the weights' roots, finds the tridiagonal matrix again.
    """
    kept = weights > 0
    nodes, vector = nodes[kept], np.sqrt(weights[kept])
    steps = max(1, len(nodes) // 2)
    basis = np.zeros((steps, len(nodes)))
    for step in range(steps):
        basis[step] = vector / np.linalg.norm(vector)
        vector = nodes * basis[step]
        for _ in range(2):
            vector -= basis[: step + 1].T @ (basis[: step + 1] @ vector)
    found, vectors = np.linalg.eigh((basis * nodes) @ basis.T)
    return found, vectors[0] ** 2
