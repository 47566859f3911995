"""How much the loss rises within a small ball around the parameters."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from steppe._shared.progress import progress
from steppe.landscape._groups import groups
from steppe.landscape._objective import Batches, LossFunction, Objective, counted_samples
from steppe.landscape._result import Result

Kind = Literal["worst", "average"]


@dataclass(frozen=True)
class Sharpness(Result):
    """What :func:`sharpness` measured.

    Attributes
    ----------
    value : float
        The rise, ``perturbed_loss - loss``, in the loss's own unit.
    loss : float
        Mean loss over the samples at the parameters as they are.
    perturbed_loss : float
        The same at the perturbed ones, averaged over groups or draws; infinite if it overflows.
    rho : float
        The radius, in the parameters' unit; of ``adaptive``, in units of their size.
    samples : int
        How many samples the means are over.
    stderr : float or None
        Standard error of ``value`` over draws, or over groups; None where there is one only.
    kind, adaptive, m, ascent_steps, train
        As they were asked for.
    draws : int or None
        How many random perturbations were taken; None of ``kind="worst"``.
    complete : bool
        False if an interrupt left out draws or groups.
    """

    value: float
    loss: float
    perturbed_loss: float
    rho: float
    samples: int
    stderr: float | None
    kind: Kind
    adaptive: bool
    m: int | None
    ascent_steps: int
    train: bool
    draws: int | None
    complete: bool


def sharpness(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    m: int | None = None,
    ascent_steps: int = 1,
    kind: Kind = "worst",
    draws: int = 10,
    params: Iterable[Tensor] | None = None,
    train: bool = False,
    seed: int = 0,
) -> Sharpness:
    r"""Sharpness at radius ρ: SAM's worst case, its adaptive form, m-sharpness, or the average.

    .. math::
        \text{worst:}\quad L(w + ρ \, T^2∇L / ‖T∇L‖_2) - L(w) \qquad
        \text{average:}\quad E_u \, L(w + ρ \, T u) - L(w)

    with T = 1, for ``adaptive`` the diagonal matrix of |w|, and u uniform on the unit sphere.
    The ball is ‖T⁻¹e‖₂ ≤ ρ: the adaptive one does not change when layers are rescaled in a way
    that leaves the function unchanged.

    L and ∇L are means over samples: batches count by their size, so a ragged last batch is right.
    Losses, the gradient and its norm are summed in float64. The model is left as found:
    parameters, buffers, gradients, modes and random state.

    Parameters
    ----------
    model, loss_fn, data, params, train
        As in :func:`~steppe.landscape.hessian`; only ``params`` are perturbed.
    rho : float, default 0.05
        ρ, in the parameters' unit. The default is SAM's; ASAM's own is 0.5.
    adaptive : bool, default False
        Measure distances relative to each parameter's size.
    m : int, optional
        m-sharpness: the mean over groups of m samples, each with an ascent of its own, weighted
        by their sizes. Samples are grouped in the order the data gives them, whatever its
        batches; the last group may be smaller. Default: one group of all. Under
        ``DistributedDataParallel`` each process groups its own samples.
    ascent_steps : int, default 1
        With k steps, each is ρ/k long, along the gradient at the point reached. They cannot
        leave the ball.
    kind : {"worst", "average"}
        Along the gradient, or in random directions.
    draws : int, default 10
        How many directions ``kind="average"`` takes.
    seed : int, default 0
        Of the directions.

    Returns
    -------
    Sharpness
        Where the gradient is zero there is no direction to go: the worst ``value`` is 0. An
        interrupt ends it with the groups or draws done so far, and ``complete=False``.

    Raises
    ------
    ValueError
        ``rho``, ``m``, ``ascent_steps``, ``draws`` or ``kind`` is out of its range, ``m`` or
        ``ascent_steps`` is given for ``kind="average"``, the data is empty or cannot be gone
        through twice, no parameter requires a gradient, one is narrower than float32, or the loss
        or its gradient is not finite.

    References
    ----------
    Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*,
    arXiv 2010.01412, equation 2. Kwon et al., *ASAM*, arXiv 2102.11600. Andriushchenko and
    Flammarion, *Towards Understanding Sharpness-Aware Minimization*, arXiv 2206.06232, on m and
    on several steps.

    Examples
    --------
    For L = w²/2 the rise is ρ·|w| + ρ²/2, and the average ρ²/2:

    >>> model = nn.Linear(1, 1, bias=False).double()
    >>> _ = nn.init.constant_(model.weight, 2.0)
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> batch = (torch.ones(4, 1).double(), torch.zeros(4, 1).double())
    >>> result = sharpness(model, half_square, [batch], rho=0.1)
    >>> round(result.value, 6), result.samples
    (0.205, 4)
    >>> average = sharpness(model, half_square, [batch], rho=0.1, kind="average", draws=500)
    >>> abs(average.value - 0.005) < 3 * average.stderr
    True
    """
    _check(rho, m, ascent_steps, kind, draws)
    objective = Objective(model, loss_fn, data, params=params, train=train)
    objective.check_width("sharpness")
    average = kind == "average"
    with objective.at_work(moves=True):
        ball = _Ball.around(objective, rho, adaptive)
        if average:
            rises = _in_random_directions(objective, ball, draws, seed)
        elif m is None:
            rises = iter([_up_the_gradient(objective, ball, ascent_steps)])
        else:
            rises = _group_by_group(objective, ball, ascent_steps, m)
        done, complete = _collected(rises, draws if average else None)
    # Groups are each process's own; all else is over the samples of all processes already.
    mean = _mean(done, objective if m is not None else None)
    return Sharpness(
        value=mean.perturbed_loss - mean.loss,
        loss=mean.loss,
        perturbed_loss=mean.perturbed_loss,
        rho=rho,
        samples=done[0].samples if average else mean.samples,
        stderr=mean.stderr,
        kind=kind,
        adaptive=adaptive,
        m=m,
        ascent_steps=ascent_steps,
        train=train,
        draws=len(done) if average else None,
        complete=complete,
    )


def _check(rho: float, m: int | None, ascent_steps: int, kind: str, draws: int) -> None:
    if kind not in ("worst", "average"):
        raise ValueError(f'kind={kind!r} is not one of "worst", "average"')
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"rho must be a finite number above 0, got {rho}")
    for name, count in {"m": m, "ascent_steps": ascent_steps, "draws": draws}.items():
        if count is not None and not (isinstance(count, Integral) and count >= 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {count}")
    if kind == "average" and (m is not None or ascent_steps != 1):
        raise ValueError(
            'kind="average" follows no gradient: m and ascent_steps belong to kind="worst", got '
            f"m={m}, ascent_steps={ascent_steps}"
        )


class _Ball(NamedTuple):
    """The points w + e with ‖T⁻¹e‖ ≤ ρ, T being |w| or 1; in float64."""

    center: Tensor
    scale: Tensor | float
    rho: float

    @classmethod
    def around(cls, objective: Objective, rho: float, adaptive: bool) -> "_Ball":
        center = objective.position().double()
        return cls(center, center.abs() if adaptive else 1.0, rho)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the e on the boundary along which a linear function rises most: ρT²g/‖Tg‖."""
        scaled = self.scale * gradient
        norm = scaled.norm().item()
        if not math.isfinite(norm):
            raise ValueError(f"the gradient of the loss is not finite (norm {norm})")
        return self.scale * scaled * (self.rho / norm if norm else 0.0)


class _Rise(NamedTuple):
    loss: float
    perturbed_loss: float
    samples: int


def _up_the_gradient(objective: Objective, ball: _Ball, steps: int) -> _Rise:
    objective.place(ball.center)
    gradient, loss, samples = objective.gradient()
    offset = ball.steepest(gradient) / steps
    for _ in range(1, steps):
        objective.place(ball.center + offset)
        gradient, reached, _ = objective.gradient(finite=False)
        if not math.isfinite(reached):
            break
        offset += ball.steepest(gradient) / steps
    objective.place(ball.center + offset)
    return _Rise(loss, objective.loss(finite=False)[0], samples)


def _group_by_group(objective: Objective, ball: _Ball, steps: int, m: int) -> Iterator[_Rise]:
    for group in groups(objective.batches(), m):
        of_group = Objective(
            objective.model,
            objective.loss_fn,
            group,
            params=objective.params,
            train=objective.train,
        )
        yield _up_the_gradient(of_group, ball, steps)


def _in_random_directions(
    objective: Objective, ball: _Ball, draws: int, seed: int
) -> Iterator[_Rise]:
    loss, samples = objective.loss()
    # Drawn on the CPU: a seed means the same directions on every device.
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        direction = torch.randn(objective.size, generator=generator, dtype=torch.float64)
        unit = direction.div_(direction.norm()).to(objective.device)
        objective.place(ball.center + ball.scale * unit * ball.rho)
        yield _Rise(loss, objective.loss(finite=False)[0], samples)


def _collected(rises: Iterator[_Rise], total: int | None) -> tuple[list[_Rise], bool]:
    """Return what an iterator gives, and whether it came to its end."""
    done: list[_Rise] = []
    try:
        with progress("sharpness", total) as advance:
            for rise in rises:
                done.append(rise)
                advance(1)
    except KeyboardInterrupt:
        if not done:
            raise
        return done, False
    return done, True


class _Mean(NamedTuple):
    loss: float
    perturbed_loss: float
    samples: int
    stderr: float | None


def _mean(rises: list[_Rise], own: Objective | None) -> _Mean:
    """Weigh rises by their samples; ``own`` is given where other processes have more of them."""

    def total(values: Tensor) -> Tensor:
        return values if own is None else own.over_ranks(values)

    columns = torch.tensor(rises, dtype=torch.float64).reshape(-1, len(_Rise._fields))
    losses, perturbed, samples = columns.T
    counted = torch.stack([samples.sum(), torch.tensor(len(rises)).double()])
    all_samples, count = total(counted).tolist()
    weights = samples / counted_samples(all_samples)
    loss, perturbed_loss = total(torch.stack([weights @ losses, weights @ perturbed])).tolist()
    deviations = weights * (perturbed - losses - (perturbed_loss - loss))
    spread = total(deviations.square().sum()).item()
    stderr = math.sqrt(spread * count / (count - 1)) if count > 1 else None
    return _Mean(loss, perturbed_loss, int(all_samples), stderr)
