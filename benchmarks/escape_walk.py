"""Walkers that leave a minimum of a loss of several parameters, by noisy gradients of few samples.

They are stepped by the optimizers' own rules, and may be held on a line or in a plane. A walker has
left where plain gradient descent, over all samples, leads it too far from where it began.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from steppe._engines import bind
from steppe.theory import find_method

Array = NDArray[np.float64]
#: Adds the gradient of one sample: parameters, the sample's row, constants, and where it is added.
Gradient = Callable[..., None]

# Division by zero gives infinity; Python's check for it takes time.
_jit = partial(numba.njit, nogil=True, error_model="numpy")


@dataclass(frozen=True)
class Basin:
    """A minimum, where walkers begin, and what counts as having left it.

    Attributes
    ----------
    gradient : callable
        A function compiled by Numba that adds the gradient of one sample.
    data : ndarray
        A row for each sample.
    constants : tuple of float
        Passed on to ``gradient``.
    start : ndarray
        The parameters at the minimum, (size,).
    basis : ndarray
        Orthonormal rows, (k, size): walkers move in their span, and optimizers see k coordinates.
    radius : float
        Distance from the start, after descent, from which on a walker has left.
    descent : tuple of float and int
        Learning rate and steps of the descent. Without steps the walker's own distance counts.
        It ends within half the radius, which is inside.
    """

    gradient: Gradient
    data: Array
    constants: tuple[float, ...]
    start: Array
    basis: Array
    radius: float
    descent: tuple[float, int]


@dataclass(frozen=True)
class Walk:
    """An optimizer, and how long it walks.

    Attributes
    ----------
    method : str
        "sgd", "adam" or "invadam".
    lr : float
        The learning rate.
    batch_size : int
        Samples that are drawn for each step, with replacement.
    variances : ndarray
        The second moments of the gradient's coordinates, from which Adam's averages begin.
    every : int
        Steps between two checks of whether the walker has left.
    checks : int
        Checks after which it is stopped.
    betas : tuple of float
        Adam's, for "adam" and "invadam".
    """

    method: str
    lr: float
    batch_size: int
    variances: Array
    every: int
    checks: int
    betas: tuple[float, float] = (0.9, 0.999)


def leave(basin: Basin, walk: Walk, walkers: int, seed: int) -> tuple[Array, NDArray[np.bool_]]:
    """Let walkers walk; return the steps of each, and whether it has left.

    A walker that is found outside has left between two checks: half of the interval is taken off.
    """
    method = find_method(walk.method, None)
    beta1, beta2 = walk.betas
    scalars = method.scalars(walk.lr, None, beta1=beta1, keep2=beta2, take2=1.0 - beta2)
    run = _walking(basin.gradient, method.rule, method.adaptive)
    times, left = np.zeros(walkers), np.zeros(walkers, dtype=np.bool_)
    seeds = np.random.SeedSequence(seed).generate_state(walkers)
    for walker in range(walkers):
        checks, left[walker] = run(
            basin.start, basin.basis, basin.data, basin.constants, basin.radius, *basin.descent,
            walk.variances, scalars, walk.batch_size, walk.every, walk.checks, int(seeds[walker]),
        )  # fmt: skip
        times[walker] = walk.every * (checks - 0.5 * left[walker])
    return times, left


@cache
def _slope(gradient: Gradient) -> Callable[..., None]:
    """Compile the gradient of given samples in the basis' coordinates."""

    def slope(
        at: Array, start: Array, basis: Array, data: Array, constants: Any, rows: Any,
        full: Array, out: Array,
    ) -> None:  # fmt: skip
        parameters = start + at @ basis
        full[:] = 0.0
        for row in rows:
            gradient(parameters, data[row], constants, full)
        out[:] = basis @ full / len(rows)

    return compiled(slope)


@cache
def _settling(gradient: Gradient) -> Callable[..., None]:
    slope = _slope(gradient)

    def settle(
        at: Array, start: Array, basis: Array, data: Array, constants: Any, lr: float, steps: int,
        inside: float,
    ) -> None:  # fmt: skip
        rows, full, g = np.arange(len(data)), np.empty_like(start), np.empty_like(at)
        for _ in range(steps):
            if (at**2).sum() <= inside**2:
                return
            slope(at, start, basis, data, constants, rows, full, g)
            at -= lr * g

    return compiled(settle)


@cache
def _walking(gradient: Gradient, rule: Callable[..., Any], adaptive: bool) -> Callable[..., Any]:
    slope, settle = _slope(gradient), _settling(gradient)
    move = _move(rule, adaptive)

    def walk(
        start: Array, basis: Array, data: Array, constants: Any, radius: float,
        descent_lr: float, descent_steps: int, variances: Array, scalars: Any,
        batch_size: int, every: int, checks: int, seed: int,
    ) -> tuple[int, bool]:  # fmt: skip
        np.random.seed(seed)  # noqa: NPY002 — Numba's own generator, which is not NumPy's
        at, full = np.zeros(len(basis)), np.empty_like(start)
        g, m, v = np.empty_like(at), np.zeros_like(at), variances.copy()
        rows = np.empty(batch_size, dtype=np.int64)
        for check in range(checks):
            for _ in range(every):
                for b in range(batch_size):
                    rows[b] = np.random.randint(len(data))  # noqa: NPY002
                slope(at, start, basis, data, constants, rows, full, g)
                for i in range(len(at)):
                    at[i], m[i], v[i] = move(at[i], g[i], m[i], v[i], scalars)
            settled = at.copy()
            settle(settled, start, basis, data, constants, descent_lr, descent_steps, 0.5 * radius)
            # What has overflowed is NaN, and has left.
            if not (settled**2).sum() <= radius**2:
                return check + 1, True
        return checks, False

    return compiled(walk)


def _move(rule: Callable[..., Any], adaptive: bool) -> Callable[..., Any]:
    bound = bind(rule, math, _jit)

    def adaptive_move(p: float, g: float, m: float, v: float, scalars: Any) -> Any:
        return bound(p, g, m, v, *scalars)

    def plain_move(p: float, g: float, m: float, v: float, scalars: Any) -> Any:
        return bound(p, g, *scalars)[0], m, v

    return compiled(adaptive_move if adaptive else plain_move)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for walkers."""
    found: Callable[..., Any] = _jit(function)
    return found
