"""Bytes by hand, per number in float32."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import Parameter
from torch.optim import Optimizer

import steppe
from steppe._shared.optimizer_state import state_bytes
from steppe.bench.optimizers import find_measured
from steppe.bench.traffic import items_stored, least_bytes
from steppe.bench.workload import parameters, warm_up

SHAPES = [(100, 10), (24,)]
NUMBERS = 1024


def stepped(cls: type[Optimizer], dtype: torch.dtype = torch.float32, **options) -> Optimizer:
    made = parameters(SHAPES, torch.device("cpu"))
    for parameter in made:
        parameter.data, grad = parameter.data.to(dtype), parameter.grad
        parameter.grad = grad.to(dtype)
    optimizer = cls(made, **options)
    warm_up(optimizer)
    return optimizer


@pytest.mark.parametrize(
    ("cls", "options", "storing", "expected"),
    [
        (torch.optim.SGD, {"lr": 0.1}, 0.0, 12),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, 0.0, 20),
        (torch.optim.AdamW, {"fused": True}, 0.0, 28),
        (torch.optim.AdamW, {"amsgrad": True}, 0.0, 36),
        (steppe.DualAdam, {}, 0.0, 28),
        (steppe.DualAdam, {"scale_free": True}, 0.0, 28),
        (steppe.InvAdam, {}, 0.0, 28),
        (steppe.AdamCM, {}, 0.0, 32),
        (steppe.AdamCM, {}, 1.0, 44),
        (steppe.AdamCM, {}, 0.25, 35),
        (steppe.AdamCM, {"capacity": 20}, 0.0, 32),
        (steppe.AdamCM, {"capacity": 0}, 0.0, 28),
        (steppe.SGDCM, {"lr": 0.1}, 0.0, 24),
        (steppe.SGDCM, {"lr": 0.1}, 1.0, 36),
    ],
)
def test_least_bytes_of_a_step(
    cls: type[Optimizer], options: dict, storing: float, expected: float
) -> None:
    assert least_bytes(stepped(cls, **options), storing) == expected * NUMBERS


def test_float64_moves_twice_as_much() -> None:
    assert least_bytes(stepped(steppe.DualAdam, torch.float64), 0.0) == 56 * NUMBERS


def test_half_precision_parameters_move_less_than_their_state() -> None:
    # p read and written, g read: 6; two moments in float32: 16
    assert least_bytes(stepped(steppe.DualAdam, torch.bfloat16), 0.0) == 22 * NUMBERS


def in_blocks(name: str, size: int) -> dict[str, torch.Tensor]:
    """Make state of one byte a number, and a scale for every block of 256."""
    codes = torch.zeros(size, dtype=torch.int8)
    return {name: codes, f"{name}_scale": torch.zeros(size // 256)}


def with_state(**state: torch.Tensor) -> Optimizer:
    parameter = Parameter(torch.zeros(NUMBERS))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.state[parameter] = {"step": torch.zeros(()), **state}
    return optimizer


def test_codes_and_their_scales_are_read_and_written() -> None:
    optimizer = with_state(**in_blocks("exp_avg", NUMBERS), **in_blocks("exp_avg_sq", NUMBERS))
    # p and g: 12; two moments of 1 + 4/256, read and written
    assert least_bytes(optimizer, 0.0) == (12 + 4 * (1 + 4 / 256)) * NUMBERS
    assert state_bytes(optimizer) == 2 * (1 + 4 / 256) * NUMBERS + 4


class InTwo(torch.Tensor):
    """A tensor of one byte a number and a scale, which says that it is float32, as torchao's."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> "InTwo":
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self) -> tuple[list[str], list[object]]:
        return ["codes", "scale"], []

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride) -> "InTwo":
        return cls(inner["codes"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(function)


def codes_and_scales() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(NUMBERS, dtype=torch.int8), torch.zeros(NUMBERS // 256)


def test_other_packages_state_is_counted_as_it_lies_in_memory() -> None:
    codes, scales = codes_and_scales()
    states = [
        {"exp_avg": InTwo(codes, scales)},
        {0: {"exp_avg": codes, "exp_avg_scale": scales, "is_initialized": {1}}},
        {"exp_avg": SimpleNamespace(_quantized=codes, _scales=scales, data=None, sqrt=True)},
    ]
    for state in states:
        optimizer = with_state()
        (param,) = optimizer.state
        optimizer.state[param] = state
        assert state_bytes(optimizer) == (1 + 4 / 256) * NUMBERS
        assert least_bytes(optimizer, 0.0) == (12 + 2 * (1 + 4 / 256)) * NUMBERS


def test_weights_of_24_bits_move_their_errors_too() -> None:
    # Smaller tensors keep moments in float32.
    optimizer = find_measured("dualadam-24bit").build([(8192,)], torch.device("cpu"))
    warm_up(optimizer)
    # p and g in bfloat16: 6; an error of a byte, and two moments of one byte and their scales.
    least = (6 + 2 * (3 + 2 * 4 / 256)) * 8192
    assert least_bytes(optimizer, 0.0) == pytest.approx(least, rel=0.02)


def test_without_a_sum_all_slots_are_read_and_one_is_written() -> None:
    slots = in_blocks("slot_0", NUMBERS) | in_blocks("slot_1", NUMBERS)
    optimizer = with_state(**slots, slot_keys=torch.zeros(2), slot_births=torch.zeros(2))
    slot = 1 + 4 / 256
    assert least_bytes(optimizer, 0.0) == (12 + 2 * slot) * NUMBERS
    assert least_bytes(optimizer, 1.0) == (12 + 3 * slot) * NUMBERS


def test_state_bytes_are_all_of_the_state() -> None:
    # two moments, five slots and their sum; step count, five keys and births, one counter
    assert state_bytes(stepped(steppe.AdamCM)) == 32 * NUMBERS + 2 * (8 + 5 * 8 + 5 * 8 + 8)
    assert state_bytes(stepped(torch.optim.SGD, lr=0.1)) == 0


def test_items_stored() -> None:
    assert items_stored(stepped(steppe.AdamCM, replacement="fifo")) == 3 + 5
    assert items_stored(stepped(steppe.DualAdam)) == 0
