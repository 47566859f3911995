"""Checkpoints go on bitwise, and those that do not fit are refused whole."""

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import steppe
from helpers.optimizer_configs import (
    CONFIGS,
    REPRESENTATIVE,
    Config,
    assert_same_state,
    equal,
    parameters,
    set_gradients,
    train,
    values,
)
from helpers.warm_python import run
from steppe.optim import _checkpoint

pytestmark = pytest.mark.thorough

SAVED_AT = (1, 3, 21)
END = 40

#: What is rounded knows nothing of rules: with and without a buffer, of squares and of signs.
ROUNDED = [c for c in REPRESENTATIVE if c.name in ("DualAdam", "DualAdamCM", "SGDCG", "AdamCG")]

#: One tensor large enough for 8 bits, with a block that is not full.
FORMATTED = [(17, 257), (), (0, 3)]


def test_resume_in_a_new_process_is_bitwise(tmp_path: Path) -> None:
    """From several steps: with the buffer not yet full, full, and between two fresh sums."""
    assert_resumes(tmp_path, CONFIGS, lambda: parameters(torch.float32), SAVED_AT, END)


@pytest.mark.parametrize("name", ["float64", "bfloat16", "float16"])
def test_resume_in_other_formats_is_bitwise_too(name: str, tmp_path: Path) -> None:
    def start() -> list[Tensor]:
        return parameters(getattr(torch, name))

    assert_resumes(tmp_path, REPRESENTATIVE, start, SAVED_AT, END)


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"])
def test_rounded_state_resumes_bitwise_too(state_dtype: torch.dtype | str, tmp_path: Path) -> None:
    """The noise of a resumed run is that of the run that was not stopped."""

    def start() -> list[Tensor]:
        return [*parameters(torch.float32, FORMATTED), *parameters(torch.bfloat16, [(4, 3)])]

    assert_resumes(tmp_path, ROUNDED, start, (5,), 8, state_dtype=state_dtype)


def assert_resumes(
    folder: Path,
    configs: list[Config],
    start: Callable[[], list[Tensor]],
    saved_at: tuple[int, ...],
    end: int,
    **options: Any,
) -> None:
    ends = {}
    for number, config in enumerate(CONFIGS):
        if config not in configs:
            continue
        params = start()
        optimizer = config(params, **options)
        for begin, stop in pairwise((0, *saved_at, end)):
            train(optimizer, params, range(begin, stop))
            if stop != end:
                saved = {"params": values(params), "optimizer": optimizer.state_dict()}
                torch.save(saved, folder / f"{number}-{stop}.start.pt")
        ends[number] = values(params)
    run(Path(__file__).with_name("resume.py"), folder, str(end))
    for number, expected in ends.items():
        for step in saved_at:
            resumed = torch.load(folder / f"{number}-{step}.end.pt", weights_only=True)
            assert equal(resumed, expected), (CONFIGS[number], step)


def test_step_counts_and_keys_are_not_rounded_to_the_parameters_format() -> None:
    """torch.optim casts what it loads: step counts of a bfloat16 model would read 1001 as 1000."""
    params = [torch.ones(2, dtype=torch.bfloat16, requires_grad=True)]
    optimizer = Config("AdamCM")(params)
    params[0].grad = torch.full_like(params[0], 1 / 3)
    optimizer.step()
    state = optimizer.state[params[0]]
    state["step"].fill_(1001.0)
    state["replacements"].fill_(1001)
    other = Config("AdamCM")(params)
    other.load_state_dict(optimizer.state_dict())
    for name, value in other.state[params[0]].items():
        assert value.dtype == state[name].dtype, name
        assert torch.equal(value, state[name]), name


def _without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["state"][0].pop(key)


def _reshaped(key: str) -> Callable[[dict[str, Any]], None]:
    def change(saved: dict[str, Any]) -> None:
        saved["state"][0][key] = torch.zeros(7)

    return change


def _number(saved: dict[str, Any]) -> None:
    saved["state"][0]["exp_avg"] = 3


def _step(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["state"][0].update(step=value)


def _option(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(saved: dict[str, Any]) -> None:
        saved["param_groups"][0][name] = value

    return change


UNFIT = {
    "missing state": (_without("exp_avg"), r"parameter 0, shape \(3, 4\): 'exp_avg' is missing"),
    "missing slot": (_without("slot_2"), r"parameter 0.*'slot_2' is missing"),
    "missing keys": (_without("slot_keys"), r"parameter 0.*'slot_keys' is missing"),
    "missing step": (_without("step"), r"parameter 0.*'step' is missing"),
    "shape": (
        _reshaped("exp_avg"),
        r"parameter 0.*'exp_avg' has shape \(7,\), expected \(3, 4\)",
    ),
    "slot's shape": (_reshaped("slot_1"), r"'slot_1' has shape \(7,\), expected \(3, 4\)"),
    "capacity": (_option("capacity", 4), r"parameter 0.*'slot_3' is missing"),
    "type": (_number, r"parameter 0.*'exp_avg' is int, expected a tensor"),
    "half a step": (_step(2.5), r"parameter 0.*'step' is 2.5, expected a whole number"),
    "a step back": (_step(torch.tensor(-1.0)), r"parameter 0.*'step' is -1.0, expected a whole"),
    "more steps than float64 counts": (_step(10**400), r"'step' is 10+, expected a whole number"),
    "no step": (_step("3"), r"parameter 0.*'step' is '3', expected a whole number"),
    "two steps": (_step(torch.ones(2)), r"parameter 0.*'step' has shape \(2,\), expected \(\)"),
    "option's range": (_option("kappa", -1.0), r"kappa=-1.0 is not valid"),
    "groups": (lambda s: s["param_groups"].pop(), r"0 parameter groups, expected 1"),
    "parameters": (
        lambda s: s["param_groups"][0]["params"].pop(),
        r"group 0 has 3 parameters, expected 4",
    ),
    "no parameters": (
        lambda s: s["param_groups"][0].pop("params"),
        r"'params' of group 0 is missing",
    ),
    "names for numbers": (
        lambda s: s.update(state={str(k): v for k, v in s["state"].items()}),
        r"state of '0' belongs to no parameter",
    ),
    "integers": (
        lambda s: s["state"][0].update(exp_avg=torch.zeros(3, 4, dtype=torch.int64)),
        r"'exp_avg' is torch.int64, expected torch.float64",
    ),
    "complex": (
        lambda s: s["state"][0].update(slot_1=torch.zeros(3, 4, dtype=torch.complex64)),
        r"'slot_1' is torch.complex64, expected torch.float64",
    ),
    "8 bits": (
        lambda s: s["state"][0].update(exp_avg_sq=torch.zeros(3, 4).to(torch.float8_e4m3fn)),
        r"'exp_avg_sq' is torch.float8_e4m3fn, expected torch.float64",
    ),
    "no numbers": (
        lambda s: s["state"][0].update(exp_avg=torch.zeros(3, 4, device="meta")),
        r"'exp_avg' is on the meta device, expected a tensor with numbers",
    ),
    "no number": (_step(torch.tensor(2.0, device="meta")), r"'step' is on the meta device"),
    "another number": (
        lambda s: s["state"].update({7: s["state"].pop(0)}),
        r"state of 7 belongs to no parameter",
    ),
    "state's type": (
        lambda s: s["state"].update({0: [1]}),
        r"state of parameter 0 is list, expected a dictionary",
    ),
    "group's type": (
        lambda s: s["param_groups"].__setitem__(0, 5),
        r"group 0 is int, expected a dictionary",
    ),
    "no state": (lambda s: s.pop("state"), r"'state' is missing"),
    "a number for state": (lambda s: s.update(state=3), r"'state' is int, expected a dictionary"),
    "a number for groups": (
        lambda s: s.update(param_groups=3),
        r"'param_groups' is int, expected a list",
    ),
    "None for parameters": (
        _option("params", None),
        r"'params' of group 0 is NoneType, expected a list",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_refused_and_changes_nothing(case: str) -> None:
    spoil, message = UNFIT[case]
    params = parameters()
    optimizer = Config("AdamCM", {"capacity": 3})(params)
    train(optimizer, params, range(4))
    before = copy.deepcopy(optimizer.state_dict())
    saved = copy.deepcopy(optimizer.state_dict())
    train_one_more = copy.deepcopy((params, optimizer))
    spoil(saved)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for number, state in before["state"].items():
        for name, value in state.items():
            assert torch.equal(after["state"][number][name], value)
    train(optimizer, params, range(4, 8))
    train(train_one_more[1], train_one_more[0], range(4, 8))
    assert equal(params, train_one_more[0])


@pytest.mark.parametrize("call", [1, 30])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_stops_while_it_is_loaded_changes_nothing(
    error: type[BaseException], call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = parameters()
    optimizer = Config("AdamCM", {"capacity": 3})(params, lr=0.1)
    train(optimizer, params, range(4))
    before, calls = copy.deepcopy(optimizer.state_dict()), []
    other = Config("AdamCM", {"capacity": 3})(params, lr=0.2)
    train(other, params, range(2))

    def copied(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == call:
            raise error
        return copied_to_device(*arguments)

    copied_to_device = _checkpoint.copied_to_device
    monkeypatch.setattr(_checkpoint, "copied_to_device", copied)
    with pytest.raises(error):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    assert_same_state(optimizer.state_dict()["state"], before["state"])


def test_named_parameters_in_another_order_are_refused() -> None:
    """Where shapes are alike each would go on with another's state."""
    named = [(name, torch.nn.Parameter(torch.ones(3))) for name in "abc"]
    optimizer = Config("AdamCM")(named)
    train(optimizer, [p for _, p in named], range(2))
    saved = optimizer.state_dict()
    turned = Config("AdamCM")(named[::-1])
    with pytest.raises(ValueError, match=r"group 0 has the same .* another order: 'a' .* of 'c'"):
        turned.load_state_dict(saved)
    assert not turned.state
    renamed = Config("AdamCM")([(f"module.{name}", p) for name, p in named])
    renamed.load_state_dict(saved)
    assert len(renamed.state) == 3


def test_users_hooks_see_and_change_what_is_loaded() -> None:
    params = parameters(torch.bfloat16)
    optimizer = Config("DualAdam")(params)
    train(optimizer, params, range(2))
    saved = optimizer.state_dict()
    other = Config("DualAdam")(params)

    def double(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        changed = copy.deepcopy(state_dict)
        changed["state"][0]["exp_avg"] *= 2
        return changed

    seen = []
    other.register_load_state_dict_pre_hook(double)
    other.register_load_state_dict_post_hook(lambda o: seen.append(o.state[params[0]]["exp_avg"]))
    other.load_state_dict(saved)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], 2 * saved["state"][0]["exp_avg"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_scales_of_8_bits_are_not_taken_for_those_of_another_memory_format(tmp_path: Path) -> None:
    """Blocks follow the memory; distributed checkpoints know elements by their indices alone."""
    plain, last = torch.contiguous_format, torch.channels_last
    for memory_format in (plain, last):
        place = tmp_path / str(memory_format)
        dcp.save(convolution(memory_format, 3), checkpoint_id=place)
    for saved in (plain, last):
        for loaded in (plain, last):
            found = convolution(loaded, 0)
            if saved == loaded:
                dcp.load(found, checkpoint_id=tmp_path / str(saved))
                expected = convolution(loaded, 3)["state"]["weight"]
                state = found["state"]["weight"]
                assert all(torch.equal(state[name], expected[name]) for name in expected)
            else:
                with pytest.raises(dcp.CheckpointException, match="Size mismatch"):
                    dcp.load(found, checkpoint_id=tmp_path / str(saved))


def test_8_bits_load_from_what_knows_how_it_lay() -> None:
    """Into any memory format, also after the parameters have been laid out anew."""
    plain, last = torch.contiguous_format, torch.channels_last
    for saved, loaded in ((plain, last), (last, plain)):
        layers = [kernel(saved), kernel(loaded)]
        first, second = (
            steppe.AdamCM(layer.parameters(), capacity=2, state_dtype="int8") for layer in layers
        )
        descend(layers[0], first, 3)
        layers[0].to(memory_format=loaded)
        layers[1].load_state_dict(layers[0].state_dict())
        second.load_state_dict(first.state_dict())
        expected, found = (
            optimizer.preconditioner()[layer.weight]
            for optimizer, layer in zip((first, second), layers, strict=True)
        )
        assert torch.equal(found, expected)
        again = second.state_dict()["state"][0]
        assert all(
            torch.equal(value, again[name])
            for name, value in first.state_dict()["state"][0].items()
        )


def kernel(memory_format: torch.memory_format) -> nn.Module:
    torch.manual_seed(0)
    layer: nn.Module = nn.Conv2d(20, 24, 3, bias=False).to(memory_format=memory_format)
    return layer


def convolution(memory_format: torch.memory_format, steps: int) -> dict[str, Any]:
    """Return the state after some steps, as distributed checkpoints have it."""
    layer = kernel(memory_format)
    optimizer = steppe.AdamCM(layer.parameters(), capacity=2, state_dtype="int8")
    descend(layer, optimizer, steps)
    return get_optimizer_state_dict(layer, optimizer)


def descend(layer: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for t in range(steps):
        (p,) = layer.parameters()
        sizes = 10.0 ** (torch.arange(p.numel()).view(p.shape) % 17 - 8)
        p.grad = torch.empty_like(p).copy_(torch.cos(p.detach() * 50 + t) * sizes)
        optimizer.step()
    optimizer.zero_grad()


def test_changing_capacity_in_mid_run_is_refused_and_can_be_undone() -> None:
    """Also where a parameter without a buffer yet comes before one that has it."""
    params = parameters()
    optimizer = Config("AdamCM")(params)
    set_gradients(params, 0)
    params[0].grad = None
    optimizer.step()
    before = values(params)
    optimizer.param_groups[0]["capacity"] = 7
    with pytest.raises(RuntimeError, match=r"capacity=7 was changed.*5 slots"):
        train(optimizer, params, range(1, 2))
    assert equal(params, before)
    optimizer.param_groups[0]["capacity"] = 5
    train(optimizer, params, range(1, 2))
    assert not equal(params, before)
