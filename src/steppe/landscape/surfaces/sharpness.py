"""How much the loss rises within a small ball around the parameters: SAM's and ASAM's sharpness."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from steppe._shared.progress import progress
from steppe._shared.validation import check_number, checked_seed
from steppe.landscape.objective.batches import Batch, Batches
from steppe.landscape.objective.exact_passes import without_gradients
from steppe.landscape.objective.loss_weight import LossFunction, Weight
from steppe.landscape.objective.objective import Objective
from steppe.landscape.objective.parameter_choice import Params
from steppe.landscape.objective.sample_groups import part_of, sample_groups
from steppe.landscape.objective.sample_mean import NothingWeighsError, nonzero_weight
from steppe.landscape.result import Result

SharpnessKind = Literal["worst", "average"]


@dataclass(frozen=True)
class Sharpness(Result):
    """The result of :func:`sharpness`.

    Attributes
    ----------
    value : float
        The rise, ``perturbed_loss - loss``, in the loss's own unit.
    loss : float
        Mean loss over the samples at the model's own parameters.
    perturbed_loss : float
        Mean loss at the perturbed parameters, averaged over groups or draws; infinite if it
        overflows.
    rho : float
        The radius, in the parameters' unit; if ``adaptive``, relative to each parameter's size.
    samples : int
        How many samples the means are over.
    stderr : float or None
        Standard error of ``value`` over draws, or over groups; None where there is only one.
    kind, adaptive, m, ascent_steps, train
        The arguments of the call.
    draws : int or None
        Number of random perturbations; None for ``kind="worst"``.
    complete : bool
        False if Ctrl-C left out draws or groups.
    """

    value: float
    loss: float
    perturbed_loss: float
    rho: float
    samples: int
    stderr: float | None
    kind: SharpnessKind
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
    kind: SharpnessKind = "worst",
    draws: int = 10,
    params: Params | None = None,
    train: bool = False,
    weight: Weight | None = None,
    seed: int = 0,
) -> Sharpness:
    r"""Measure sharpness at radius ρ: SAM's worst case, ASAM's, m-sharpness, or the average.

    .. math::
        \text{worst:}\quad L(w + ρ \, T^2∇L / ‖T∇L‖_2) - L(w) \qquad
        \text{average:}\quad E_u \, L(w + ρ \, T u) - L(w)

    with u uniform on the unit sphere, and T = 1, or for ``adaptive`` the diagonal matrix of |w|.
    Perturbations e lie in the ball ‖T⁻¹e‖₂ ≤ ρ. Adaptive sharpness does not change when layers are
    rescaled in a way that leaves the model's function unchanged.

    L and ∇L are means over samples: batches are weighted by their sizes, so a smaller last batch is
    treated correctly. Losses, the gradient and its norm are summed in float64. The model is
    restored afterwards: parameters, buffers, gradients, modes and random state.

    Parameters
    ----------
    model, loss_fn, data, params, train, weight
        As in :func:`~steppe.landscape.hessian`; only ``params`` are perturbed.
    rho : float, default 0.05
        ρ, in the parameters' unit. The default is the SAM paper's; the ASAM paper takes 0.5.
    adaptive : bool, default False
        Measure distances relative to each parameter's size (ASAM).
    m : int, optional
        m-sharpness: the mean over groups of m samples, each with an ascent of its own, weighted
        as batches are. Samples are the first dimension of inputs and targets. They are grouped in
        the data's order, independently of its batches; the last group may be smaller. Default: one
        group of all samples. Under ``DistributedDataParallel`` each process groups its own samples.
    ascent_steps : int, default 1
        Number k of steps up the gradient. Each is ρ/k long, along the gradient at the point
        reached, so that they stay in the ball.
    kind : {"worst", "average"}, default "worst"
        Perturb along the gradient, or in random directions.
    draws : int, default 10
        Number of random directions for ``kind="average"``.
    seed : int, default 0
        Seed of the random directions: the same seed gives the same ones on every device.

    Returns
    -------
    Sharpness
        Where the gradient is zero, ``value`` of the worst case is 0. On Ctrl-C the mean over the
        groups or draws done so far, with ``complete=False``.

    Raises
    ------
    ValueError
        ``rho``, ``m``, ``ascent_steps``, ``draws`` or ``kind`` is out of its range; ``m`` or
        ``ascent_steps`` is given for ``kind="average"``; the data is empty or cannot be gone
        through twice; no parameter requires a gradient, or one is narrower than float32; or the
        loss or its gradient is not finite.

    References
    ----------
    Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*,
    arXiv 2010.01412, equation 2. Kwon et al., *ASAM*, arXiv 2102.11600. Andriushchenko and
    Flammarion, *Towards Understanding Sharpness-Aware Minimization*, arXiv 2206.06232, on m and
    on several steps.

    Examples
    --------
    For L = w²/2 the worst rise is ρ·|w| + ρ²/2, and the average rise ρ²/2:

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
    _check_arguments(rho, m, ascent_steps, kind, draws)
    objective = Objective(model, loss_fn, data, params=params, train=train, weight=weight)
    objective.check_precision("sharpness")
    average = kind == "average"
    with objective.evaluation_mode(moves_params=True):
        ball = _Ball.around(objective, rho, adaptive)
        if average:
            rises = _random_directions(objective, ball, draws, seed)
        elif m is None:
            rises = iter([_gradient_ascent(objective, ball, ascent_steps)])
        else:
            rises = _ascent_per_group(objective, ball, ascent_steps, m)
        done, complete = _collect(rises, draws if average else None)
    # Each process has its own groups. Without groups, rises are means over all processes already.
    mean = _mean_rise(done, objective if m is not None else None)
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


def _check_arguments(rho: float, m: int | None, ascent_steps: int, kind: str, draws: int) -> None:
    if kind not in ("worst", "average"):
        raise ValueError(f'kind={kind!r} is not one of "worst", "average"')
    check_number(rho=rho)
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"rho must be a finite number above 0, got {rho}")
    for name, count in {"m": m, "ascent_steps": ascent_steps, "draws": draws}.items():
        if count is not None and not (
            isinstance(count, Integral) and not isinstance(count, bool) and count >= 1
        ):
            raise ValueError(f"{name} must be a whole number of at least 1, got {count}")
    if kind == "average" and (m is not None or ascent_steps != 1):
        raise ValueError(
            'kind="average" follows no gradient: m and ascent_steps belong to kind="worst", got '
            f"m={m}, ascent_steps={ascent_steps}"
        )


class _Ball(NamedTuple):
    """The points w + e with ‖T⁻¹e‖ ≤ ρ, T being |w| or 1, in float64."""

    center: Tensor
    scale: Tensor | float
    rho: float

    @classmethod
    def around(cls, objective: Objective, rho: float, adaptive: bool) -> "_Ball":
        center = objective.parameter_vector().double()
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
    weight: float


def _gradient_ascent(objective: Objective, ball: _Ball, steps: int) -> _Rise:
    objective.set_parameters(ball.center)
    gradient, loss, samples, weight = objective.gradient()
    offset = ball.steepest(gradient) / steps
    for _ in range(1, steps):
        objective.set_parameters(ball.center + offset)
        gradient, reached, *_ = objective.gradient(require_finite=False)
        if not math.isfinite(reached):
            break
        offset += ball.steepest(gradient) / steps
    objective.set_parameters(ball.center + offset)
    return _Rise(loss, _loss_or_overflow(objective), samples, weight)


def _loss_or_overflow(objective: Objective) -> float:
    """Return the mean loss; an overflow shows as NaN too, where infinities have been subtracted."""
    loss = objective.loss(require_finite=False).loss
    return math.inf if math.isnan(loss) else loss


def _checked(objective: Objective) -> Iterator[Batch]:
    """Yield batches, and refuse the first if samples cannot be taken out of it: its outputs tell.

    Half of the time steps of eight samples have eight outputs still. A sequence's second half is
    read otherwise without the first.
    """
    for batch in objective.batches():
        half = batch.size // 2
        if batch.position == 0 and half > 1:
            whole, part = _outputs(objective, batch), _outputs(objective, part_of(batch, 0, half))
            if _rows(whole) == batch.size and _rows(part) == batch.size:
                raise ValueError(
                    f"of {half} samples that were taken out of batch 0 the model has "
                    f"{batch.size} outputs: the first dimension of its inputs is not that of "
                    "samples; put them first, and let the model transpose"
                )
            _check_apart(objective, batch, whole, half)
        yield batch


def _check_apart(objective: Objective, batch: Batch, whole: Any, half: int) -> None:
    """Refuse time steps in the place of samples, where a layer takes time first."""
    takes_time_first = any(
        isinstance(layer, nn.RNNBase | nn.MultiheadAttention) and not layer.batch_first
        for layer in objective.model.modules()
    )
    if not takes_time_first or objective.train or _rows(whole) != batch.size:
        return
    second = _outputs(objective, part_of(batch, half, batch.size))
    if _rows(second) == batch.size - half and not torch.allclose(
        second, whole[half:], rtol=1e-2, atol=1e-2 * float(whole.abs().max())
    ):
        raise ValueError(
            f"the outputs of samples {half} to {batch.size - 1} of batch 0 change when the others "
            "are left out, and the model has layers with batch_first=False: the first dimension is "
            "that of time, not of samples; put samples first, and let the model transpose"
        )


def _outputs(objective: Objective, batch: Batch) -> Any:
    with without_gradients(objective.model):
        return objective.outputs(batch)[0]


def _rows(outputs: Any) -> int | None:
    return len(outputs) if isinstance(outputs, Tensor) and outputs.ndim else None


def _ascent_per_group(objective: Objective, ball: _Ball, steps: int, m: int) -> Iterator[_Rise]:
    for group in sample_groups(_checked(objective), m):
        try:
            yield _gradient_ascent(objective.over(group), ball, steps)
        except NothingWeighsError:
            # All targets of the group are ignored.
            continue


def _random_directions(objective: Objective, ball: _Ball, draws: int, seed: int) -> Iterator[_Rise]:
    loss, samples, weight = objective.loss()
    # Drawn on the CPU, so that a seed gives the same directions on every device.
    generator = torch.Generator().manual_seed(checked_seed(seed))
    for _ in range(draws):
        direction = torch.randn(
            objective.size, generator=generator, dtype=torch.float64, device="cpu"
        )
        unit = direction.div_(direction.norm()).to(objective.device)
        objective.set_parameters(ball.center + ball.scale * unit * ball.rho)
        yield _Rise(loss, _loss_or_overflow(objective), samples, weight)


def _collect(rises: Iterator[_Rise], total: int | None) -> tuple[list[_Rise], bool]:
    """Return the rises of an iterator until Ctrl-C, and whether these are all."""
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


class _MeanRise(NamedTuple):
    loss: float
    perturbed_loss: float
    samples: int
    stderr: float | None


def _mean_rise(rises: list[_Rise], groups: Objective | None) -> _MeanRise:
    """Average rises by their weights; those of groups of samples also over all processes.

    Groups' rises are added up where the loss is a sum over samples.
    """

    def total(values: Tensor) -> Tensor:
        return values if groups is None else groups.sum_over_ranks(values)

    table = torch.tensor(rises, dtype=torch.float64, device="cpu")
    losses, perturbed, samples, weights = table.reshape(-1, 4).T
    is_sum = groups is not None and groups.is_sum
    if is_sum:
        weights = torch.ones_like(weights)
    counted = torch.stack([samples.sum(), weights.sum(), samples.new_tensor(len(rises))])
    all_samples, all_weight, count = total(counted).tolist()
    shares = weights / nonzero_weight(all_samples, all_weight)
    loss, perturbed_loss = total(torch.stack([shares @ losses, shares @ perturbed])).tolist()
    factor = count if is_sum else 1.0
    if math.isinf(perturbed_loss):
        # Nothing is known of how far it goes.
        stderr = math.inf if count > 1 else None
        return _MeanRise(factor * loss, perturbed_loss, int(all_samples), stderr)
    deviations = shares * (perturbed - losses - (perturbed_loss - loss))
    spread = total(deviations.square().sum()).item()
    stderr = factor * math.sqrt(spread * count / (count - 1)) if count > 1 else None
    return _MeanRise(factor * loss, factor * perturbed_loss, int(all_samples), stderr)
