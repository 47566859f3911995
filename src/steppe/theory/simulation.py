"""Walkers in a well, stepped by the optimizers' own rules."""

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
from steppe.landscape import (
    Result,
)
from steppe.theory.escape_methods import Method, Scalars, check_curvatures, find_method
from steppe.theory.formula import Noise, noise_variances

SecondMoment = Literal["local", "frozen", "ema"]

_SECOND_MOMENTS = ("local", "frozen", "ema")

# Walkers that a thread steps side by side, in the lanes of vector instructions; steps between two
# looks at who is out, whose noise fits into the second-level cache.
_LANES = 32
_BLOCK = 1024

# Division by zero gives infinity, as in C: a check in the loop would keep it from being vectorised.
_jit = partial(numba.njit, nogil=True, error_model="numpy")


@dataclass(frozen=True, eq=False)
class Simulation(Result):
    """What :func:`simulate_escape` found.

    Attributes
    ----------
    mean : float
        Steps until escape: all steps walked over the number of escapes. That is the plain mean if
        all got out, and else the likeliest mean of an exponential law, given that some had not got
        out when they were stopped; infinite if none did.
    standard_error : float
        mean/√escaped: that of the mean of exponential times. NaN if none escaped.
    times : ndarray
        Steps that each walker walked, shape (walkers,).
    out : ndarray
        Whether it got out at the end of them, or was stopped, shape (walkers,).
    survival_times : ndarray
        Times at which some escaped, in order.
    survival : ndarray
        Share that is still in the well after each (Kaplan and Meier's estimate).
    complete : bool
        Whether all walkers walked to their end; Ctrl-C stops them earlier.
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
        """Number of those that got out."""
        return int(self.out.sum())


@dataclass(frozen=True)
class _Walk:
    """What all walkers have in common."""

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
    r"""Let walkers escape from a one-dimensional well, by the rules that the optimizers step by.

    The loss is a parabola of curvature ``h_min`` about the minimum, and from the joint on an
    inverted one of curvature −``h_saddle`` about the top; they meet in value and slope, so that
    s = :func:`path_coefficient` exactly. A gradient is the slope plus √C·ξ, with C = noise·\|h\|/B
    of the parabola that the walker is on and ξ standard normal. Walkers start at the minimum.

    Ask :func:`escape_time` first: walkers take its ``steps`` each. Where these are far above
    ``max_steps`` none gets out, and 400 walkers of 10⁸ steps keep two cores busy for minutes.

    Parameters
    ----------
    method, lr, batch_size, barrier, h_min, h_saddle, alpha, noise
        As in :func:`escape_time`.
    second_moment : str, default "local"
        Adam's v: "local" is C where the walker is, "frozen" is C at the minimum, "ema" is the
        average of squared gradients with ``beta2``, from C at the minimum. SGD has none. The first
        two are the ``regime`` of :func:`escape_time`, whose examples show both with one mapping.
    beta1 : float, default 0.0
        Of Adam's momentum; from 0 to below 1.
    beta2 : float, optional
        Of "ema"; above 0, below 1.
    walkers : int, default 400
        At least 1. The relative standard error of the mean is 1/√walkers.
    max_steps : int, default 100_000_000
        Where a walker that is still in the well is stopped.
    past : float, default 2.0
        How far behind the top a walker is out, in distances from the joint to the top. At 0, half
        of those that get there would fall back and the mean is half of τ; from 1 on it does not
        matter where the saddle's term of E is 3 or more.
    seed : int, default 0
        Each walker has a random stream of its own: same seed, same answer, whatever the number of
        threads, and the first of many walkers walk as if they were alone.
    threads : int, optional
        Default: as many as torch uses.

    Returns
    -------
    Simulation
        On Ctrl-C what there is so far: walkers under way count as stopped.

    Raises
    ------
    TypeError
        An argument is no number, no integer, no name, or no pair.
    ValueError
        A name is unknown, a number is out of its range, lr·P·h_min is 2 or more, so that the
        minimum itself is unstable.

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
    _check_averages(method, found, second_moment, beta1, beta2)
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
    return _result(*_walked(walk, walkers, threads, method))


def _check_averages(
    name: str, method: Method, second_moment: str, beta1: float, beta2: float | None
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
    """Return curvatures, and where the joint, the top and the end lie; the minimum is at 0."""
    top = math.sqrt(2.0 * barrier * (1.0 / h_min + 1.0 / h_saddle))
    joint = top * h_saddle / (h_min + h_saddle)
    return h_min, h_saddle, joint, top, top + past * (top - joint)


@cache
def _kernel(method: Method) -> Callable[..., None]:
    """Compile a block of steps of the method's rule."""
    rule = bind(method.rule, math, _jit)
    move = _adaptive(rule) if method.adaptive else _plain(rule)

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
                # One whose position has overflowed has left, too.
                still_in = stayed[lane] == step and here <= end
                stayed[lane] = step + 1 if still_in else stayed[lane]

    return _compiled(walk)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = _jit(function)
    return compiled


def _adaptive(rule: Callable[..., Any]) -> Callable[..., Any]:
    def move(p: float, g: float, m: float, v: float, scalars: Scalars) -> Any:
        return rule(p, g, m, v, *scalars)

    return _compiled(move)


def _plain(rule: Callable[..., Any]) -> Callable[..., Any]:
    def move(p: float, g: float, m: float, v: float, scalars: Scalars) -> Any:
        return rule(p, g, *scalars)[0], m, v

    return _compiled(move)


def _walked(walk: _Walk, walkers: int, threads: int, method: str) -> tuple[Integers, Flags, bool]:
    """Let all walk; return how far, whether they got out, and whether all came to an end."""
    times, out = np.zeros(walkers, dtype=np.int64), np.zeros(walkers, dtype=bool)
    waiting, stop = iter(range(walkers)), threading.Event()
    with progress(f"escape, {method}", walkers) as advance, ThreadPoolExecutor(threads) as pool:
        jobs = []
        try:
            # Ctrl-C may come while a thread is being started, with walkers under way already.
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
    """Step walkers side by side; where one is done, the next that waits takes its lane."""
    p, m, v = np.zeros((3, _LANES))
    stayed = np.zeros(_LANES, dtype=np.int64)
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
