"""Torch's default device and number format change nothing of what is measured."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.instruments import INSTRUMENTS
from helpers.torch_defaults import DEFAULTS, torch_default
from steppe.landscape import (
    Trajectory,
    barrier,
    ggn,
    hessian,
    plane,
    sharpness,
    top_eigenvalues,
    trace,
)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))


def batches() -> list[Any]:
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
    return list(zip(inputs.split(15), (torch.arange(40) % 2).split(15), strict=True))


# As long as the default is the usual one.
MODELS = tuple(network(seed) for seed in range(3))
ARGUMENTS = MODELS[0], F.cross_entropy, batches()
LINEAR = nn.Linear(3, 2), F.mse_loss, [(x, x[:, :2]) for x, _ in batches()]


def walk() -> Trajectory:
    path = Trajectory()
    for model in MODELS:
        path.record(model)
    return path


def products(**options: Any) -> dict[str, Any]:
    return top_eigenvalues(hessian(*ARGUMENTS, **options), 2).to_dict()


MEASURE: dict[str, Callable[[], Any]] = {
    **{name: partial(measure, *ARGUMENTS) for name, measure in INSTRUMENTS.items()},
    "eigenvalues": products,
    "forward over reverse": lambda: products(product="forward-over-reverse"),
    "finite differences": lambda: products(product="finite-differences"),
    "ggn": lambda: top_eigenvalues(ggn(*ARGUMENTS), 1).to_dict(),
    **{
        name: lambda name=name: trace(hessian(*ARGUMENTS), products=20, method=name).to_dict()
        for name in ("hutch++", "hutchinson", "xtrace")
    },
    "sharpness": lambda: sharpness(*ARGUMENTS).to_dict(),
    "plane of a trajectory": lambda: plane(*ARGUMENTS, points=3, directions=walk()).to_dict(),
    "no records": lambda: str(Trajectory().points),
    "barrier": lambda: barrier(MODELS[0], MODELS[1], *ARGUMENTS[1:], points=3).to_dict(),
    "no curvature": lambda: trace(hessian(*LINEAR), products=12).to_dict(),
}


@pytest.mark.parametrize("default", DEFAULTS, ids=str)
@pytest.mark.parametrize("name", MEASURE)
def test_no_measurement_depends_on_them(name: str, default: Any) -> None:
    usual = str(MEASURE[name]())
    with torch_default(default):
        found = str(MEASURE[name]())
    # Printed tensors name a format that is not the default.
    assert found.replace(", dtype=torch.float32", "") == usual
