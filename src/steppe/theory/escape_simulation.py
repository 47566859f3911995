"""Simulate escapes from a well: many one-dimensional walkers, stepped by the optimizers' own rules.

It checks :func:`escape_time`, and shows what the formula leaves out.
"""

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numba
import numpy as np
import torch

from steppe._engines import bind
from steppe._shared.array_types import Flags, Floats, Integers
from steppe._shared.names import check_name
from steppe._shared.progress import progress
from steppe._shared.validation import check_integer, check_number, check_positive
from steppe.landscape import Result
from steppe.theory.escape_formula import Noise, noise_variances
from steppe.theory.escape_methods import EscapeMethod, Scalars, check_curvatures, find_method

SecondMoment = Literal["local", "frozen", "ema"]

_SECOND_MOMENTS = ("local", "frozen", "ema")

# Walkers that a thread steps side by side, in the lanes of vector instructions.
_LANES = 32
# Steps between two checks of which walkers have escaped. The noise for so many steps, 256 KiB, fits
# into the second-level cache.
_BLOCK = 1024

# error_model="numpy": division by zero gives infinity. Python's check for it would keep the loop
# from being vectorised.
_jit = partial(numba.njit, nogil=True, error_model="numpy")


@dataclass(frozen=True, eq=False)
class Simulation(Result):
    """The result of :func:`simulate_escape`.

    Attributes
    ----------
    mean : float
        Mean number of steps until escape: the steps of all walkers over the number of escapes. If
        some were stopped before they escaped, it is the maximum-likelihood estimate for exponential
        times; infinite if none escaped.
    standard_error : float
        mean/√escaped, the standard error for exponential times; NaN if none escaped.
    times : ndarray
        Number of steps of each walker, shape (walkers,).
    out : ndarray
        Whether each walker escaped after them, and was not stopped, shape (walkers,).
    survival_times : ndarray
        The different times of escapes, ascending, shape (times,).
    survival : ndarray
        Share of walkers still in the well after each of them (Kaplan and Meier's estimate), shape
        (times,).
    complete : bool
        Whether all walkers escaped or reached ``max_steps``; Ctrl-C stops them earlier.
    """

    mean: float
    standard_error: float
    times: Integers
    out: Flags
    survival_times: Integers
    survival: Floats
    complete: bool

    @property
    def walkers(self) -> int:
        """Number of walkers."""
        return len(self.times)

    @property
    def escaped(self) -> int:
        """Number of walkers that escaped."""
        return int(self.out.sum())


@dataclass(frozen=True)
class _Walk:
    """The settings that all walkers share."""

    kernel: Callable[..., None]
    scalars: Scalars
    well: tuple[float, ...]
    follows: bool
    start: float
    max_steps: int
    seed: int

    def generator(self, walker: int) -> np.random.Generator:
        seeds = np.random.SeedSequence(self.seed, spawn_key=(walker,))
        return np.random.Generator(np.random.SFC64(seeds))


def simulate_escape(
    method: str,
    *,
    lr: float,
    batch_size: float,
    barrier: float,
    h_min: float,
    h_saddle: float,
    alpha: float | None = None,
    noise: Noise = 1.0,
    second_moment: SecondMoment = "local",
    beta1: float = 0.0,
    beta2: float | None = None,
    walkers: int = 400,
    max_steps: int = 100_000_000,
    past: float = 2.0,
    seed: int = 0,
    threads: int | None = None,
) -> Simulation:
    r"""Simulate walkers that escape from a one-dimensional well, by the optimizers' own rules.

    The loss is a parabola of curvature ``h_min`` about the minimum, joined in value and slope to an
    inverted parabola of curvature −``h_saddle`` about the top, so that s = :func:`path_coefficient`
    exactly. A gradient is the slope plus √C·ξ, with C = noise·\|h\|/B of the parabola that the
    walker is on and ξ standard normal. Walkers start at the minimum.

    Ask :func:`escape_time` first: each walker takes about its ``steps``. Where these are far above
    ``max_steps`` no walker escapes, and 400 walkers of 10⁸ steps keep two cores busy for minutes.

    Parameters
    ----------
    method, lr, batch_size, barrier, h_min, h_saddle, alpha, noise
        As in :func:`escape_time`.
    second_moment : str, default "local"
        Adam's v. "local": C of the parabola that the walker is on. "frozen": C at the minimum.
        "ema": the average of squared gradients with ``beta2``, which starts as C at the minimum.
        SGD has no v. The first two are the ``regime`` of :func:`escape_time`, whose examples show
        both with one mapping.
    beta1 : float, default 0.0
        Decay of Adam's momentum; at least 0 and below 1.
    beta2 : float, optional
        Decay of "ema"'s average; above 0 and below 1.
    walkers : int, default 400
        Number of walkers, at least 1. The relative standard error of the mean is 1/√walkers.
    max_steps : int, default 100_000_000
        Number of steps after which a walker that is still in the well is stopped.
    past : float, default 2.0
        Distance behind the top at which a walker counts as escaped, in distances from the joint to
        the top. At 0, half of the walkers there would fall back, and the mean is half of τ; from 1
        on the distance has no effect if the saddle's term of E is 3 or more.
    seed : int, default 0
        Seed of the noise. Each walker has a random stream of its own: the same seed gives the same
        result for any number of threads, and the first walkers do not depend on how many follow.
    threads : int, optional
        Number of threads. Default: as many as torch uses.

    Returns
    -------
    Simulation
        On Ctrl-C the result so far: walkers that have not escaped count as stopped.

    Raises
    ------
    TypeError
        An argument that should be a number, an integer, a name or a pair is not.
    ValueError
        A name is unknown, a number is out of its range, or lr·P·h_min is 2 or more, so that the
        minimum itself is unstable.

    References
    ----------
    Kaplan and Meier, *Nonparametric estimation from incomplete observations*, Journal of the
    American Statistical Association 53 (1958), for ``survival``.

    Examples
    --------
    >>> well = dict(lr=0.02, batch_size=1.0, barrier=0.07, h_min=1.0, h_saddle=1.0)
    >>> found = simulate_escape("sgd", **well, walkers=100)
    >>> from steppe.theory import escape_time
    >>> abs(found.mean - escape_time("sgd", **well, s=0.5).steps) < 3 * found.standard_error
    True
    """
    found = find_method(method, alpha)
    check_name("second_moment", second_moment, _SECOND_MOMENTS)
    check_positive(lr=lr, batch_size=batch_size, barrier=barrier)
    check_curvatures(h_min, h_saddle)
    threads = torch.get_num_threads() if threads is None else threads
    check_integer(walkers=walkers, max_steps=max_steps, threads=threads)
    check_integer(least=0, seed=seed)
    check_number(past=past)
    if not 0 <= past < math.inf:
        raise ValueError(f"past must be 0 or a positive number, got {past}")
    _check_decays(method, found, second_moment, beta1, beta2)
    C = noise_variances((h_min, h_saddle), batch_size, noise)
    if lr * (P := found.preconditioner(C[0], alpha)) * h_min >= 2.0:
        raise ValueError(
            f"lr={lr} is unstable at the minimum: take less than {2.0 / (P * h_min):.3g}"
        )
    averages = {"keep2": 1.0, "take2": 0.0}
    if beta2 is not None:
        averages = {"keep2": beta2, "take2": 1.0 - beta2}
    walk = _Walk(
        kernel=_kernel(found),
        scalars=found.scalars(lr, alpha, beta1=beta1, **averages),
        well=(*_well(barrier, h_min, h_saddle, past), *C, *map(math.sqrt, C)),
        follows=second_moment == "local",
        start=C[0],
        max_steps=max_steps,
        seed=seed,
    )
    return _result(*_walk_all(walk, walkers, threads, method))


def _check_decays(
    name: str, method: EscapeMethod, second_moment: str, beta1: float, beta2: float | None
) -> None:
    check_number(beta1=beta1)
    if not method.adaptive and (second_moment != "local" or beta1):
        raise ValueError(f"{name!r} keeps no averages: leave out second_moment and beta1")
    if not 0.0 <= beta1 < 1.0:
        raise ValueError(f"beta1 must be from 0 to below 1, got {beta1}")
    if second_moment != "ema":
        if beta2 is not None:
            raise ValueError(f"beta2={beta2} is given: it needs second_moment='ema'")
        return
    if beta2 is None:
        raise ValueError("beta2=None: second_moment='ema' needs it")
    check_number(beta2=beta2)
    if not 0.0 < beta2 < 1.0:
        raise ValueError(f"beta2 must lie between 0 and 1, got {beta2}")


def _well(barrier: float, h_min: float, h_saddle: float, past: float) -> tuple[float, ...]:
    """Return the curvatures and the positions of joint, top and end; the minimum is at 0."""
    top = math.sqrt(2.0 * barrier * (1.0 / h_min + 1.0 / h_saddle))
    joint = top * h_saddle / (h_min + h_saddle)
    return h_min, h_saddle, joint, top, top + past * (top - joint)


@cache
def _kernel(method: EscapeMethod) -> Callable[..., None]:
    """Compile a function that steps all lanes by a block of steps of the method's rule."""
    rule = bind(method.rule, math, _jit)
    move = _adaptive_move(rule) if method.adaptive else _sgd_move(rule)

    def walk(
        p: Floats, m: Floats, v: Floats, stayed: Integers, noise: Floats,
        well: tuple[float, ...], follows: bool, scalars: Scalars,
    ) -> None:  # fmt: skip
        h_min, h_saddle, joint, top, end, c_min, c_saddle, sd_min, sd_saddle = well
        for step in range(_BLOCK):
            for lane in range(_LANES):
                here = p[lane]
                at_min = here < joint
                slope = h_min * here if at_min else h_saddle * (top - here)
                c = c_min if at_min else c_saddle
                g = slope + (sd_min if at_min else sd_saddle) * noise[step, lane]
                v_here = c if follows else v[lane]
                here, m[lane], v[lane] = move(here, g, m[lane], v_here, scalars)
                p[lane] = here
                # A position that has overflowed is NaN or infinite, and counts as escaped.
                still_in = stayed[lane] == step and here <= end
                stayed[lane] = step + 1 if still_in else stayed[lane]

    return _compiled(walk)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = _jit(function)
    return compiled


def _adaptive_move(rule: Callable[..., Any]) -> Callable[..., Any]:
    def move(p: float, g: float, m: float, v: float, scalars: Scalars) -> Any:
        return rule(p, g, m, v, *scalars)

    return _compiled(move)


def _sgd_move(rule: Callable[..., Any]) -> Callable[..., Any]:
    def move(p: float, g: float, m: float, v: float, scalars: Scalars) -> Any:
        return rule(p, g, *scalars)[0], m, v

    return _compiled(move)


def _walk_all(walk: _Walk, walkers: int, threads: int, method: str) -> tuple[Integers, Flags, bool]:
    """Return the steps of each walker, whether it escaped, and whether none was interrupted."""
    times, out = np.zeros(walkers, dtype=np.int64), np.zeros(walkers, dtype=bool)
    waiting, stop = iter(range(walkers)), threading.Event()
    with progress(f"escape, {method}", walkers) as advance, ThreadPoolExecutor(threads) as pool:
        jobs = []
        try:
            # Inside try: Ctrl-C may come while a thread is being started, and others run already.
            for _ in range(threads):
                jobs.append(pool.submit(_walk_lanes, walk, waiting, times, out, stop, advance))
            wait(jobs, return_when=FIRST_EXCEPTION)
            complete = True
        except KeyboardInterrupt:
            complete = False
        stop.set()
        for job in jobs:
            job.result()
    if not complete and not out.any():
        raise KeyboardInterrupt
    has_walked = times > 0
    return times[has_walked], out[has_walked], complete


def _walk_lanes(
    walk: _Walk,
    waiting: Iterator[int],
    times: Integers,
    out: Flags,
    stop: threading.Event,
    advance: Callable[[int], None],
) -> None:
    """Step walkers side by side; where one is done, the next waiting walker takes its lane."""
    p, m, v = np.zeros((3, _LANES))
    stayed = np.zeros(_LANES, dtype=np.int64)  # steps of the block before the escape
    draws, noise = np.zeros((_LANES, _BLOCK)), np.zeros((_BLOCK, _LANES))
    taken: dict[int, tuple[int, np.random.Generator]] = {}
    while not stop.is_set():
        for lane in range(_LANES):
            if lane not in taken and (walker := next(waiting, None)) is not None:
                taken[lane] = walker, walk.generator(walker)
                p[lane], m[lane], v[lane] = 0.0, 0.0, walk.start
        if not taken:
            return
        for lane, (_, generator) in taken.items():
            generator.standard_normal(out=draws[lane])
        noise[:] = draws.T
        stayed[:] = 0
        walk.kernel(p, m, v, stayed, noise, walk.well, walk.follows, walk.scalars)
        for lane, (walker, _) in list(taken.items()):
            escaped = bool(stayed[lane] < _BLOCK)
            walked = int(times[walker] + stayed[lane] + escaped)
            times[walker] = min(walked, walk.max_steps)
            out[walker] = escaped and walked <= walk.max_steps
            if not escaped and walked < walk.max_steps:
                continue
            del taken[lane]
            advance(1)


def _result(times: Integers, out: Flags, complete: bool) -> Simulation:
    escaped = int(out.sum())
    mean = float(times.sum() / escaped) if escaped else math.inf
    moments, leaving = np.unique(times[out], return_counts=True)
    at_risk = len(times) - np.searchsorted(np.sort(times), moments)
    return Simulation(
        mean=mean,
        standard_error=mean / math.sqrt(escaped) if escaped else math.nan,
        times=times,
        out=out,
        survival_times=moments,
        survival=np.cumprod(1.0 - leaving / at_risk, dtype=np.float64),
        complete=complete,
    )
