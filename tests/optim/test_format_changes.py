"""Formats of the state in groups, copies and checkpoints, and when they may be changed."""

import copy
import pickle
from typing import Any

import pytest
import torch

from helpers.optimizer_configs import (
    CONFIGS,
    Config,
    equal,
    parameters,
    set_gradients,
    train,
)
from steppe.optim._options import to_plain

Format = torch.dtype | str

#: Only the first is large enough for 8 bits; its last block is not full.
SHAPES = [(17, 257), (5,), (), (0, 3)]

every_config = pytest.mark.parametrize("config", CONFIGS, ids=str)
every_format = pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"], ids=str)


@every_format
def test_groups_have_formats_of_their_own(state_dtype: Format) -> None:
    """Each as if it were alone, but for the noise, which depends on a parameter's number."""
    full, low = (parameters(torch.float32, SHAPES, seed) for seed in (0, 1))
    optimizer = Config("DualAdam")(full)
    train(optimizer, full, range(3))
    optimizer.add_param_group({"params": low, "state_dtype": state_dtype})
    for t in range(3, 6):
        set_gradients(full, t)
        set_gradients(low, t)
        optimizer.step()
    alone = parameters(torch.float32, SHAPES)
    train(Config("DualAdam")(alone), alone, range(6))
    assert equal(full, alone)
    assert optimizer.state[full[0]]["exp_avg"].dtype == torch.float32
    wanted = torch.uint8 if state_dtype == "int8" else torch.bfloat16
    assert optimizer.state[low[0]]["exp_avg"].dtype == wanted


def test_a_wrong_format_of_a_group_is_refused_and_changes_nothing() -> None:
    params = parameters()
    optimizer = Config("DualAdam")(params[:2])
    with pytest.raises(ValueError, match=r"state_dtype='int4' is not valid: expected None or"):
        optimizer.add_param_group({"params": params[2:], "state_dtype": "int4"})
    assert len(optimizer.param_groups) == 1


@every_format
@every_config
def test_gradients_cannot_flow_through_rounded_state(config: Config, state_dtype: Format) -> None:
    with pytest.raises(ValueError, match=r"state_dtype=.*differentiable=True.*state_dtype=None"):
        config(parameters(), state_dtype=state_dtype, differentiable=True)


@every_format
@pytest.mark.parametrize("config", [Config("DualAdamCM"), Config("RMSpropCG")], ids=str)
def test_copies_go_on_bitwise(config: Config, state_dtype: Format) -> None:
    params = parameters(torch.float32, SHAPES)
    optimizer = config(params, state_dtype=state_dtype)
    train(optimizer, params, range(3))
    copies = [
        copy.deepcopy((params, optimizer)),
        pickle.loads(pickle.dumps((params, optimizer))),
    ]
    train(optimizer, params, range(3, 7))
    for their_params, theirs in copies:
        train(theirs, their_params, range(3, 7))
        assert equal(their_params, params)


FORMATS: list[Format | None] = [None, torch.bfloat16, "int8"]


@pytest.mark.parametrize("saved", FORMATS, ids=str)
@pytest.mark.parametrize("own", FORMATS, ids=str)
def test_a_checkpoint_brings_its_format(saved: Format | None, own: Format | None) -> None:
    """As all options of a group do, so that the run goes on bitwise."""
    params, others = (parameters(torch.float32, SHAPES) for _ in "ab")
    optimizer = Config("AdamCM")(params, state_dtype=saved)
    train(optimizer, params, range(3))
    other = Config("AdamCM")(others, state_dtype=own)
    train(other, others, range(1))
    for p, q in zip(others, params, strict=True):
        p.data.copy_(q)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["state_dtype"] == to_plain(saved)
    for t in (optimizer, params), (other, others):
        train(*t, range(3, 6))
    assert equal(others, params)


REFUSED: dict[tuple[Any, Any], str] = {
    (None, "int8"): r"'exp_avg' is torch.float32, expected torch.uint8",
    (None, torch.bfloat16): r"'exp_avg' is torch.float32, expected torch.bfloat16",
    (torch.bfloat16, None): r"'exp_avg' is torch.bfloat16, expected torch.float32",
    (torch.bfloat16, "int8"): r"'exp_avg' is torch.bfloat16, expected torch.uint8",
    ("int8", None): r"'exp_avg' is torch.uint8, expected torch.float32",
    ("int8", torch.bfloat16): r"'exp_avg' is torch.uint8, expected torch.bfloat16",
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_state_in_another_format_than_its_group_says_is_refused(
    case: tuple[Format | None, Format | None],
) -> None:
    saved, claimed = case
    params = parameters(torch.float32, SHAPES)
    optimizer = Config("AdamCM")(params, state_dtype=saved)
    train(optimizer, params, range(3))
    checkpoint = copy.deepcopy(optimizer.state_dict())
    checkpoint["param_groups"][0]["state_dtype"] = claimed
    with pytest.raises(ValueError, match=r"parameter 0, shape \(17, 257\): " + REFUSED[case]):
        optimizer.load_state_dict(checkpoint)
    assert optimizer.param_groups[0]["state_dtype"] == to_plain(saved)


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_changing_the_format_in_mid_run_is_refused_and_can_be_undone(
    case: tuple[Format | None, Format | None],
) -> None:
    """The sum of rounded slots is not kept: with a new one of 0 nothing would be remembered."""
    made, changed = case
    params = parameters(torch.float32, SHAPES)
    optimizer = Config("AdamCM")(params, state_dtype=made)
    train(optimizer, params, range(3))
    alike = copy.deepcopy((params, optimizer))
    optimizer.param_groups[0]["state_dtype"] = changed
    with pytest.raises(RuntimeError, match=r"state_dtype=.* was changed.*set it back"):
        train(optimizer, params, range(3, 4))
    optimizer.param_groups[0]["state_dtype"] = made
    train(optimizer, params, range(3, 6))
    train(alike[1], alike[0], range(3, 6))
    assert equal(params, alike[0])
