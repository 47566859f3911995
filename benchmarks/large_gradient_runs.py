"""Problems whose gradients are large, optimizers, and single runs, for ``large_gradients.py``."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from mlxtend.data import autompg_data
from problems import digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from steppe import DualAdam, InvAdam

Loss = Callable[[Tensor, Tensor], Tensor]

STEPS, BATCH = 800, 32
#: Share of all samples that are held out.
HELD_OUT = 0.25
#: Share of the run in which DualAdam switches by default, and lr rises under "adamw+warmup".
SWITCH = 0.16
#: Steps of the first tenth of the run at which second moments are read.
READ_AT = tuple(STEPS * part // 50 for part in range(1, 6))
_READS_ADAM = (AdamW, DualAdam, InvAdam)


@dataclass(frozen=True)
class Problem:
    """Data, a network and a loss.

    Attributes
    ----------
    data
        All inputs and targets.
    model
        A new network, initialised by torch's random state.
    train_loss, held_out_loss
        The loss of a batch; and that by which runs are compared, a mean over samples.
    """

    data: Callable[[], tuple[Tensor, Tensor]]
    model: Callable[[], nn.Module]
    train_loss: Loss
    held_out_loss: Loss


@cache
def cars() -> tuple[Tensor, Tensor]:
    """Return 7 features of 392 cars, and their miles per gallon: 23 ± 8, not standardised."""
    rows, targets = autompg_data()
    inputs = torch.tensor(rows[:, :7], dtype=torch.float32)  # the last column is the name
    return inputs, torch.tensor(targets, dtype=torch.float32)[:, None]


def layered(*widths: int, gain: float | None = None) -> nn.Sequential:
    """Make an MLP with ReLU; with a gain, each layer multiplies the activations' size by it."""
    layers = [nn.Linear(below, above) for below, above in pairwise(widths)]
    if gain is not None:
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.weight.data.mul_(gain)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


PROBLEMS = {
    "raw targets": Problem(cars, partial(layered, 7, 32, 32, 1), F.mse_loss, F.mse_loss),
    "summed loss": Problem(
        digits,
        partial(layered, 64, 32, 10),
        partial(F.cross_entropy, reduction="sum"),
        F.cross_entropy,
    ),
    "deep network": Problem(
        digits,
        partial(layered, 64, *[32] * 12, 10, gain=1.25),
        F.cross_entropy,
        F.cross_entropy,
    ),
}


@dataclass(frozen=True)
class Contender:
    """An optimizer, and what is done beside its steps.

    Attributes
    ----------
    make
        The optimizer, from parameters and lr.
    clip
        Largest L2 norm of the gradient; infinite where it is not clipped.
    warmup
        Whether lr rises linearly over the first share ``SWITCH`` of the run.
    """

    make: Callable[..., Optimizer]
    clip: float = float("inf")
    warmup: bool = False


# No weight decay for anybody, which is not torch's default for AdamW but steppe's for all: at the
# learning rates here 1e-2 would decide the runs.
_ADAMW = partial(AdamW, weight_decay=0.0, fused=True)
_SGD = partial(SGD, momentum=0.9, fused=True)
BASELINE, CONTROL = "adamw", "adamw+warmup"
CONTENDERS = {
    BASELINE: Contender(_ADAMW),
    "adamw+clip": Contender(_ADAMW, clip=1.0),
    CONTROL: Contender(_ADAMW, warmup=True),
    "dualadam": Contender(partial(DualAdam, total_steps=STEPS)),
    "dualadam-scale-free": Contender(partial(DualAdam, total_steps=STEPS, scale_free=True)),
    "invadam": Contender(InvAdam),
    "sgd": Contender(_SGD),
    "sgd+clip": Contender(_SGD, clip=1.0),
}


def runs(problem: str, contender: str, lrs: list[float], seed: int) -> dict[str, list[float]]:
    """Train at each lr from the same start, on the same batches; return a list for each reading."""
    found = [run(PROBLEMS[problem], CONTENDERS[contender], lr, seed) for lr in lrs]
    return {name: [one[name] for one in found] for name in found[0]}


def run(problem: Problem, contender: Contender, lr: float, seed: int) -> dict[str, float]:
    """Train once; the seed draws what is held out, the first weights, and the batches.

    Returns
    -------
    dict
        ``loss`` is that of the held-out samples at the end, infinite if the run diverged;
        ``second_moments_above_1`` the share of coordinates with v̂ ≥ 1, and ``inverse_share``
        DualAdam's, both averaged over the first tenth of the run and NaN where there are none.
    """
    torch.manual_seed(seed)
    train, held_out = split(*problem.data())
    model = problem.model()
    params = list(model.parameters())
    optimizer = contender.make(params, lr=lr)
    shares = []
    for step in range(1, STEPS + 1):
        if contender.warmup:
            optimizer.param_groups[0]["lr"] = lr * min(1.0, step / (SWITCH * STEPS))
        rows = torch.randint(len(train[0]), (BATCH,))
        loss = problem.train_loss(model(train[0][rows]), train[1][rows])
        if not loss.isfinite():
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if contender.clip < float("inf"):
            nn.utils.clip_grad_norm_(params, contender.clip)
        optimizer.step()
        if step in READ_AT:
            shares.append((above_one(optimizer), inverse_share(optimizer)))
    with torch.no_grad():
        final = problem.held_out_loss(model(held_out[0]), held_out[1]).item()
    above, inverse = np.mean(shares, axis=0) if shares else (np.nan, np.nan)
    return {
        "loss": final if np.isfinite(final) else np.inf,
        "second_moments_above_1": float(above),
        "inverse_share": float(inverse),
    }


def split(inputs: Tensor, targets: Tensor) -> tuple[Any, Any]:
    """Return training and held-out samples, inputs standardised by the training samples."""
    order = torch.randperm(len(inputs))
    out, kept = order.tensor_split([round(HELD_OUT * len(inputs))])
    mean, scale = inputs[kept].mean(0), inputs[kept].std(0)
    inputs = (inputs - mean) / torch.where(scale > 0, scale, 1.0)
    return (inputs[kept], targets[kept]), (inputs[out], targets[out])


def above_one(optimizer: Optimizer) -> float:
    """Return the share of coordinates with v̂ ≥ 1, where the inverse part is the longer one."""
    if not isinstance(optimizer, _READS_ADAM):
        return float("nan")
    above = count = 0
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state[param]
            correction = 1.0 - group["betas"][1] ** float(state["step"])
            above += int((state["exp_avg_sq"] >= correction).sum())
            count += param.numel()
    return above / count


def inverse_share(optimizer: Optimizer) -> float:
    """Return the inverse part's share of DualAdam's and InvAdam's update."""
    if not isinstance(optimizer, DualAdam | InvAdam):
        return float("nan")
    return optimizer.diagnostics()["inverse_share"]
