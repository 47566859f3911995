"""What a step accepts in a group, a checkpoint accepts; the rest is refused when it is set."""

import copy
import math
import pickle
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

from helpers.optimizer_configs import (
    NAMES,
    REPRESENTATIVE,
    Config,
    equal,
    parameters,
    train,
    values,
)

every_optimizer = pytest.mark.parametrize("name", NAMES)


class Pair(Sequence[float]):
    """A sequence of a configuration library, such as OmegaConf's ListConfig."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = numbers

    def __getitem__(self, index: Any) -> Any:
        return self.numbers[index]

    def __len__(self) -> int:
        return len(self.numbers)


class Indexed:
    """A sequence by what it can do only."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = numbers

    def __getitem__(self, index: int) -> float:
        return self.numbers[index]

    def __len__(self) -> int:
        return len(self.numbers)


PAIRS: dict[str, Callable[[float, float], Any]] = {
    "list": lambda a, b: [a, b],
    "sequence": Pair,
    "indexed": Indexed,
    "deque": lambda a, b: deque([a, b]),
    "array": lambda a, b: array("d", [a, b]),
    "ndarray": lambda a, b: np.array([a, b]),
    "ndarray of float32": lambda a, b: np.array([a, b], dtype=np.float32),
    "NumPy scalars": lambda a, b: (np.float32(a), np.float64(b)),
    "arrays": lambda a, b: [np.array(a), np.array([b])],
    "tensor": lambda a, b: torch.tensor([a, b]),
    "tensors": lambda a, b: (torch.tensor(a), torch.tensor([[b]])),
}
NUMBERS: dict[str, Callable[[float], Any]] = {
    "float16": np.float16,
    "float32": np.float32,
    "float64": np.float64,
    "longdouble": np.longdouble,
    "array": np.array,
    "array of float32": lambda x: np.array(x, dtype=np.float32),
    "array of one": lambda x: np.array([x]),
}
#: For each option of a number, one that all formats hold.
AMOUNTS = {
    "lr": 0.0625,
    "eps": 0.0009765625,
    "weight_decay": 0.125,
    "momentum": 0.5,
    "dampening": 0.25,
    "alpha": 0.75,
    "switch_rate": 0.03125,
    "kappa": 0.5,
    "priority_decay": 0.75,
}


def same_as(plain: dict[str, Any], given: dict[str, Any], name: str) -> None:
    """Train with options in the constructor, in a group, and set in mid-run; then resume."""
    truth = parameters()
    reference = Config(name)(truth)
    train(reference, truth, range(2))
    reference.param_groups[0].update(plain)
    saved_at: dict[str, Any] = {}

    params = parameters()
    optimizer = Config(name)(params)
    train(optimizer, params, range(2))
    optimizer.param_groups[0].update(given)
    for each, tensors in ((reference, truth), (optimizer, params)):
        train(each, tensors, range(2, 4))
    assert equal(params, truth)
    saved_at = pickle.loads(pickle.dumps(optimizer.state_dict()))
    others = [p.detach().clone().requires_grad_() for p in params]
    resumed = Config(name)(others)
    resumed.load_state_dict(saved_at)
    for each, tensors in ((reference, truth), (optimizer, params), (resumed, others)):
        train(each, tensors, range(4, 6))
    assert equal(params, truth)
    assert equal(others, truth)

    starts = [parameters() for _ in range(3)]
    made = [
        Config(name)(starts[0], **plain),
        Config(name)(starts[1], **given),
        Config(name)([{"params": starts[2], **given}]),
    ]
    for each, tensors in zip(made, starts, strict=True):
        train(each, tensors, range(3))
    assert equal(starts[1], starts[0])
    assert equal(starts[2], starts[0])


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("name", ["AdamCM", "DualAdam", "RMSpropCG", "SGDCM"])
def test_numpys_numbers_are_numbers(name: str, kind: str) -> None:
    defaults = Config(name)(parameters()).defaults
    plain = {option: value for option, value in AMOUNTS.items() if option in defaults}
    same_as(plain, {option: NUMBERS[kind](value) for option, value in plain.items()}, name)


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint16, np.array])
def test_numpys_integers_and_truths_are_pythons(kind: Any) -> None:
    plain = {"capacity": 2, "amsgrad": True, "lr": 1, "scope": "tensor", "maximize": False}
    given = {
        "capacity": kind(2),
        "amsgrad": np.bool_(True),
        "lr": kind(1),
        "scope": np.str_("tensor"),
        "maximize": np.array(False),
    }
    starts = [parameters() for _ in range(2)]
    optimizers = [Config("AdamCM")(starts[0], **plain), Config("AdamCM")(starts[1], **given)]
    for optimizer, params in zip(optimizers, starts, strict=True):
        train(optimizer, params, range(3))
    assert equal(*starts)
    assert optimizers[0].state_dict()["param_groups"] == optimizers[1].state_dict()["param_groups"]


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("name", ["DualAdam", "AdamCG"])
def test_any_sequence_of_two_is_betas(name: str, kind: str) -> None:
    same_as({"betas": (0.75, 0.9375)}, {"betas": PAIRS[kind](0.75, 0.9375)}, name)


@pytest.mark.parametrize("option", ["lr", "eps", "weight_decay"])
@pytest.mark.parametrize("name", ["DualAdam", "AdamCM", "AdamCG", "RMSpropCG"])
def test_a_tensor_of_one_number_is_read_by_every_step(name: str, option: str) -> None:
    params, others = parameters(), parameters()
    number = torch.tensor(AMOUNTS[option])
    optimizers = Config(name)(params, **{option: number}), Config(name)(others)
    for t, value in enumerate((0.5, 0.25, 0.125)):
        number.fill_(value)
        optimizers[1].param_groups[0][option] = value
        for optimizer, tensors in zip(optimizers, (params, others), strict=True):
            train(optimizer, tensors, range(t, t + 1))
    assert equal(params, others)


@pytest.mark.parametrize("bad", [{0.9, 0.99}, {0: 0.9, 1: 0.99}, "ab", (0.9, 0.99, 0.999), ()])
def test_what_is_no_pair_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"betas=.* is not valid: expected two numbers in"):
        Config("AdamCM")(parameters(), betas=bad)


NO_NUMBER = torch.tensor(0.5, device="meta")
#: What no step takes, of each kind of option.
SET_WRONGLY: dict[str, list[Any]] = {
    "lr": [math.nan, math.inf, "0.1", None, torch.ones(2), 1j, True, [0.1], NO_NUMBER],
    "betas": [(1.0, 0.9), (0.9, 2.0), 0.9, "ab", None, (0.9, None), np.ones(2), (0.9, NO_NUMBER)],
    "eps": [-1e-3, math.nan, np.float32(-1), NO_NUMBER],
    "weight_decay": [math.inf, "none", NO_NUMBER],
    "momentum": [-0.5, torch.tensor(0.5)],
    "dampening": [1.5, NO_NUMBER],
    "alpha": [1.0],
    "switch_rate": [-0.5, 2],
    "kappa": [-1.0, np.float64("nan")],
    "capacity": [-1, 2.5, None],
    "priority_decay": [0.0, 1.5],
    "scope": ["model"],
    "replacement": [0],
    "variant": [None],
    "aggregation": ["max"],
    "integration_order": [4, 1.0],
    "integration_rate": [1.0, "0.5"],
    "scale_free": [1],
    "amsgrad": ["no"],
    "centered": [0],
    "maximize": [None],
    "capturable": ["yes"],
    "differentiable": [1],
    "fused": [0],
    "state_dtype": ["int4"],
    "param_error": ["bfloat16"],
}


@every_optimizer
def test_what_is_out_of_range_is_refused_by_the_step_and_changes_nothing(name: str) -> None:
    params, truth = parameters(), parameters()
    optimizer, reference = Config(name)([{"params": params[:2]}, {"params": params[2:]}]), None
    reference = Config(name)([{"params": truth[:2]}, {"params": truth[2:]}])
    for each, tensors in ((optimizer, params), (reference, truth)):
        train(each, tensors, range(2))
    before, group = values(params), optimizer.param_groups[1]
    for option in optimizer.defaults:
        right = group[option]
        for wrong in SET_WRONGLY[option]:
            group[option] = wrong
            expected = rf"^{option}=.* is not valid in group 1: expected "
            with pytest.raises(ValueError, match=expected):
                train(optimizer, params, range(2, 3))
            with pytest.raises(ValueError, match=expected):
                optimizer.engine  # noqa: B018
        group[option] = right
    assert equal(params, before)
    for each, tensors in ((optimizer, params), (reference, truth)):
        train(each, tensors, range(2, 4))
    assert equal(params, truth)


def test_options_that_contradict_each_other_are_refused_by_the_step() -> None:
    params = parameters()
    optimizer = Config("DualAdam")(params, scale_free=True)
    train(optimizer, params, range(1))
    optimizer.param_groups[0]["eps"] = 0.0
    with pytest.raises(ValueError, match=r"eps=0 is not valid with scale_free=True in group 0"):
        train(optimizer, params, range(1, 2))
    optimizer.param_groups[0].update(eps=1e-8, differentiable=True, state_dtype="int8")
    with pytest.raises(ValueError, match=r"state_dtype='int8' is not valid with differentiable"):
        train(optimizer, params, range(1, 2))


@pytest.mark.parametrize("value", [-1e-12, -0.01, np.float32(-1e-9)])
@pytest.mark.parametrize("option", ["lr", "weight_decay"])
@every_optimizer
def test_a_schedule_may_end_below_zero_as_in_torch(name: str, option: str, value: Any) -> None:
    params = parameters()
    optimizer = Config(name)(params)
    optimizer.param_groups[0][option] = value
    train(optimizer, params, range(2))
    others = [p.detach().clone().requires_grad_() for p in params]
    resumed = Config(name)(others)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, tensors in ((optimizer, params), (resumed, others)):
        train(each, tensors, range(2, 4))
    assert equal(params, others)


def test_a_tensor_lr_that_became_negative_resumes() -> None:
    params, lr = parameters(), torch.tensor(0.1)
    optimizer = Config("AdamCM")(params, lr=lr)
    train(optimizer, params, range(1))
    lr.fill_(-1e-9)
    train(optimizer, params, range(1, 2))
    Config("AdamCM")(parameters()).load_state_dict(optimizer.state_dict())


@every_optimizer
def test_schedules_of_numpys_numbers_are_saved_without_numpy(name: str, tmp_path: Path) -> None:
    params = parameters()
    optimizer = Config(name)(params, lr=np.float32(0.5))
    schedule = lr_scheduler.LambdaLR(optimizer, lambda t: np.float32(0.5))
    for t in range(3):
        train(optimizer, params, range(t, t + 1))
        schedule.step()
    optimizer.param_groups[0]["lr_scale"] = np.float64(2)
    torch.save(optimizer.state_dict(), tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    Config(name)(parameters()).load_state_dict(saved)
    assert saved["param_groups"][0]["lr"] == 0.25


#: An option that adds state, what it is before and after.
SWITCHED_ON = {
    "DualAdam scale_free": ("DualAdam", {"scale_free": False}, {"scale_free": True}),
    "MIAdam order": ("MIAdam", {"integration_order": 1}, {"integration_order": 3}),
    "AdamCM amsgrad": ("AdamCM", {"amsgrad": False}, {"amsgrad": True}),
    "AdamCM capacity": ("AdamCM", {"capacity": 0}, {"capacity": 3}),
    "AdamCM authors": ("AdamCM", {"amsgrad": False}, {"amsgrad": True, "variant": "authors"}),
    "DualAdamCM amsgrad": ("DualAdamCM", {"amsgrad": False}, {"amsgrad": True}),
    "DualAdamCM capacity": ("DualAdamCM", {"capacity": 0}, {"capacity": 2}),
    "SGDCM capacity": ("SGDCM", {"capacity": 0}, {"capacity": 2}),
    "SGDCM momentum": ("SGDCM", {"momentum": 0.0}, {"momentum": 0.9}),
    "SGDCG momentum": ("SGDCG", {"momentum": 0.0}, {"momentum": 0.9}),
    "SGDCG capacity": ("SGDCG", {"capacity": 0}, {"capacity": 2, "momentum": 0.9}),
    "AdamCG amsgrad": ("AdamCG", {"amsgrad": False}, {"amsgrad": True}),
    "AdamCG capacity": ("AdamCG", {"capacity": 0}, {"capacity": 2}),
    "RMSpropCG momentum": ("RMSpropCG", {"momentum": 0.0}, {"momentum": 0.9}),
    "RMSpropCG centered": ("RMSpropCG", {"centered": False}, {"centered": True}),
    "RMSpropCG both": ("RMSpropCG", {"capacity": 0}, {"centered": True, "momentum": 0.5}),
}


@pytest.mark.thorough
@pytest.mark.parametrize(("frozen", "saved_after"), [(False, 2), (True, 0)])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("case", SWITCHED_ON)
def test_an_option_that_adds_state_may_be_switched_on(
    case: str, state_dtype: str | None, frozen: bool, saved_after: int
) -> None:
    """The run goes on, and resumes from before and after the next step, as it would have."""
    name, before, after = SWITCHED_ON[case]
    shapes = [(70, 80), (3,)]
    params = parameters(torch.float32, shapes)
    optimizer = Config(name)(params, state_dtype=state_dtype, **before)
    train(optimizer, params, range(3))
    optimizer.param_groups[0].update(after)
    assert optimizer.engine == "cpu"
    assert all(torch.isfinite(p).all() for p in optimizer.preconditioner().values())
    if hasattr(optimizer, "diagnostics"):
        optimizer.diagnostics()

    def go_on(each: torch.optim.Optimizer, tensors: list[Tensor], steps: range) -> None:
        for t in steps:
            frozen_now = frozen and t < 6
            train(each, tensors, range(0))
            for i, p in enumerate(tensors):
                p.grad = None if frozen_now and i else torch.cos(p.detach() + t)
            each.step()

    go_on(optimizer, params, range(3, 3 + saved_after))
    saved = copy.deepcopy(optimizer.state_dict())
    others = [p.detach().clone().requires_grad_() for p in params]
    resumed = Config(name)(others, state_dtype=state_dtype, **{**before, **after})
    resumed.load_state_dict(saved)
    for each, tensors in ((optimizer, params), (resumed, others)):
        go_on(each, tensors, range(3 + saved_after, 9))
    assert equal(params, others)


def test_an_option_that_a_group_has_lost_takes_its_default() -> None:
    params, truth = parameters(), parameters()
    optimizer, reference = Config("AdamCM")(params), Config("AdamCM")(truth)
    for option in ("kappa", "fused", "state_dtype", "amsgrad"):
        train(optimizer, params, range(1))
        train(reference, truth, range(1))
        del optimizer.param_groups[0][option]
    assert optimizer.engine == "cpu"
    assert optimizer.diagnostics() == reference.diagnostics()


@pytest.mark.parametrize("config", REPRESENTATIVE, ids=str)
def test_a_pickle_from_before_an_option_takes_its_default(config: Config) -> None:
    plain = {"kappa", "capacity", "state_dtype", "scope", "maximize"} - config.options.keys()
    params = parameters()
    optimizer = config(params)
    train(optimizer, params, range(2))
    state = optimizer.__getstate__()
    for option in plain & optimizer.defaults.keys():
        del state["defaults"][option]
        del state["param_groups"][0][option]
    older = type(optimizer).__new__(type(optimizer))
    older.__setstate__(copy.copy(state))
    truth = parameters()
    reference = config(truth)
    train(reference, truth, range(4))
    train(older, params, range(2, 4))
    assert equal(params, truth)
