"""A step goes one way through the files: each is entered once, and none after a later one.

Whoever reads a step can read one file after the other. Files of ``_shared`` do not count.
Tensors that share no launch, as in several number formats, are batches of their own: those go
through engine, scalars and rules one after the other, since each batch's numbers are its own.
Every 64th replacement the sum of a buffer's slots is made afresh, after the step.
"""

import sys
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import steppe
from helpers.optimizer_configs import Config, parameters, set_gradients

SOURCE = Path(steppe.__file__).parent
STEPS = 5


def files_of_a_step(optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the files that a step's calls enter, in their order, without repeats in a row."""
    entered: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(SOURCE):
            file = path.relative_to(SOURCE).as_posix()
            entered.extend([] if file.startswith("_shared/") else [file])

    sys.setprofile(note)
    try:
        optimizer.step()
    finally:
        sys.setprofile(None)
    return [file for file, _ in groupby(entered)]


def steady_step(
    config: Config, shapes: list[tuple[int, ...]], scale: float = 1.0, **options: Any
) -> list[str]:
    """Return the files of a step whose gradients are ``scale`` times as large as before."""
    params = parameters(torch.float32, shapes)
    optimizer = config(params, **options)
    for t in range(STEPS):
        set_gradients(params, t)
        optimizer.step()
    set_gradients(params, STEPS)
    for p in params:
        p.grad *= scale
    return files_of_a_step(optimizer)


OPTIMIZER = [
    "optim/_base.py",
    "optim/_step_planner.py",
    "optim/_group_options.py",
    "optim/_step_checks.py",
]
ENGINE = [
    "_engines/base/plan.py",
    "_engines/base/held_tensors.py",
    "_engines/dispatch.py",
    "_engines/cpu/tensor_reader.py",
    "_engines/base/tensor_facts.py",
    "_engines/cpu/engine.py",
]
SCALARS = ["_engines/base/scalars.py", "rules.py"]
NORMS = ["_engines/base/norms.py"]


@pytest.mark.parametrize("shapes", [[(30,)], [(30,), (4, 5), ()]], ids=["one", "several"])
@pytest.mark.parametrize(
    ("config", "scale", "expected"),
    [
        (Config("DualAdam"), 1.0, [*ENGINE, *SCALARS]),
        (Config("DualAdam", {"scale_free": True}), 1.0, [*ENGINE, *NORMS, *SCALARS]),
        # The larger gradient is remembered, and the smaller one is not.
        (Config("AdamCM", {"capacity": 2}), 1e3, [*ENGINE, *NORMS, *SCALARS]),
        (Config("AdamCM", {"capacity": 2}), 1e-3, [*ENGINE, *NORMS, *SCALARS]),
        (Config("AdamCM", {"capacity": 2, "scope": "tensor"}), 1e3, [*ENGINE, *SCALARS]),
        (Config("SGDCM", {"capacity": 2}), 1e3, [*ENGINE, *NORMS, *SCALARS]),
    ],
    ids=str,
)
def test_each_file_is_entered_once(
    config: Config, scale: float, expected: list[str], shapes: list[tuple[int, ...]]
) -> None:
    assert steady_step(config, shapes, scale) == [*OPTIMIZER, *expected]


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"], ids=str)
@pytest.mark.parametrize("name", ["DualAdam", "AdamCM"])
def test_number_formats_take_no_other_way(name: str, state_dtype: Any) -> None:
    files = steady_step(Config(name), [(70, 61), (5000,)], state_dtype=state_dtype)
    assert len(files) == len(set(files))


def test_groups_with_options_of_their_own_take_no_other_way() -> None:
    params = parameters(torch.float32)
    optimizer = steppe.AdamCM([{"params": [p], "lr": 0.1**i} for i, p in enumerate(params)])
    for t in range(STEPS):
        set_gradients(params, t)
        optimizer.step()
    files = files_of_a_step(optimizer)
    assert len(files) == len(set(files))


@pytest.mark.parametrize("name", ["DualAdam", "AdamCM"])
def test_plain_torch_does_not_go_back_above_it(name: str) -> None:
    """It takes one tensor after the other, each loaded, advanced and stored: files then alternate.

    Those above it are still entered once. Sharded parameters, whose sums other processes add to
    while the step goes on, also go back to the norms; a step of theirs needs several processes.
    """
    files = steady_step(Config(name), [(30,), (4, 5)], fused=False)
    above = [file for file in files if file.startswith("optim/") or file == "_engines/dispatch.py"]
    assert above == [*OPTIMIZER, "_engines/dispatch.py"]
    assert files[:7] == [*OPTIMIZER, *ENGINE[:3]]
