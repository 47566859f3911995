"""With ``scale_free`` the mean that is kept beside v is v's, whatever a user does to v."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steppe

State = dict[str, Tensor]
MEAN, MOMENT = "exp_avg_sq_mean", "exp_avg_sq"
KEPT = torch.arange(400) >= 200


def replace(param: nn.Parameter, state: State) -> None:
    state[MOMENT] = torch.zeros_like(param.data)


def replace_in_bfloat16(param: nn.Parameter, state: State) -> None:
    state[MOMENT] = torch.zeros_like(param.data, dtype=torch.bfloat16)


def write(param: nn.Parameter, state: State) -> None:
    state[MOMENT].zero_()
    if f"{MOMENT}_scale" in state:
        state[f"{MOMENT}_scale"].zero_()


def prune(param: nn.Parameter, state: State) -> None:
    param.data = param.data[KEPT]
    for name in ("exp_avg", MOMENT):
        state[name] = state[name][KEPT]


def prune_the_data(param: nn.Parameter, state: State) -> None:
    param.data = param.data[KEPT]
    for name in ("exp_avg", MOMENT):
        state[name].data = state[name].data[KEPT]


def optimizer_of(param: nn.Parameter, **options: Any) -> Any:
    return steppe.DualAdam([param], scale_free=True, switch_rate=1e-5, **options)


def take_step(optimizer: Any, scale: Tensor | float = 1.0) -> None:
    (param,) = optimizer.param_groups[0]["params"]
    generator = torch.Generator().manual_seed(len(param))
    param.grad = scale * torch.randn(len(param), generator=generator)
    optimizer.step()


def stepped(**options: Any) -> Any:
    """Return an optimizer whose v is large where it will be pruned, after some steps."""
    optimizer = optimizer_of(nn.Parameter(torch.zeros(400)), **options)
    for _ in range(3):
        take_step(optimizer, torch.where(KEPT, 1.0, 1000.0))
    return optimizer


def loaded(optimizer: Any) -> Any:
    (param,) = optimizer.param_groups[0]["params"]
    fresh = optimizer_of(nn.Parameter(param.detach().clone()))
    fresh.load_state_dict(optimizer.state_dict())
    return fresh


def only(optimizer: Any) -> tuple[nn.Parameter, State]:
    (param,) = optimizer.param_groups[0]["params"]
    return param, optimizer.state[param]


CHANGES = (replace, replace_in_bfloat16, write, prune, prune_the_data)
COPIES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda optimizer: optimizer,
    "copied": copy.deepcopy,
    "pickled": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "loaded": loaded,
}


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", COPIES)
@pytest.mark.parametrize("after", COPIES)
def test_follows_a_moment_that_is_changed(
    before: str, after: str, change: Callable[..., None], fused: bool | None
) -> None:
    optimizer = COPIES[before](stepped(fused=fused))
    change(*only(optimizer))
    optimizer = COPIES[after](optimizer)
    take_step(optimizer)
    _, state = only(optimizer)
    assert state[MEAN].item() == pytest.approx(state[MOMENT].mean().item(), rel=1e-5)


def enlarge(param: nn.Parameter, state: State) -> None:
    state[MOMENT].mul_(4.0)


def prune_by_hand(param: nn.Parameter, state: State) -> None:
    for name in ("exp_avg", MOMENT):
        state[name] = state[name][KEPT]


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("change", [replace, replace_in_bfloat16, write, enlarge, prune_by_hand])
def test_follows_a_moment_that_is_edited_in_a_checkpoint(
    change: Callable[..., None], fused: bool | None, state_dtype: str | None
) -> None:
    checkpoint = copy.deepcopy(stepped(fused=fused, state_dtype=state_dtype).state_dict())
    state = checkpoint["state"][0]
    change(nn.Parameter(torch.zeros(400)), state)
    optimizer = optimizer_of(nn.Parameter(torch.zeros(len(state[MOMENT]))))
    optimizer.load_state_dict(checkpoint)
    expected = state[MOMENT].double().mean().item()
    take_step(optimizer)
    param, state = only(optimizer)
    expected = 0.999 * expected + 1e-3 * param.grad.square().double().mean().item()
    assert state[MEAN].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("size", [1e-25, 1e-19, 1.0, 1e25, float("nan")])
def test_a_mean_that_only_rounding_parts_from_its_moment_is_loaded_to_the_last_bit(
    size: float, fused: bool | None, state_dtype: str | None
) -> None:
    """Where v rounds, underflows or overflows, and the mean in float64 does not."""
    optimizer = optimizer_of(nn.Parameter(torch.zeros(4096)), fused=fused, state_dtype=state_dtype)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        take_step(optimizer, size * torch.rand(4096, generator=generator) ** 4)
    resumed = loaded(optimizer)
    assert torch.equal(
        only(resumed)[1][MEAN].view(torch.int64), only(optimizer)[1][MEAN].view(torch.int64)
    )


def test_a_mean_edited_together_with_its_moment_stays() -> None:
    checkpoint = copy.deepcopy(stepped().state_dict())
    for name in (MOMENT, MEAN):
        checkpoint["state"][0][name].fill_(2.0)
    optimizer = optimizer_of(nn.Parameter(torch.zeros(400)))
    optimizer.load_state_dict(checkpoint)
    assert only(optimizer)[1][MEAN].item() == 2.0


def test_a_mean_below_zero_is_no_mean_of_squares() -> None:
    checkpoint = copy.deepcopy(stepped().state_dict())
    checkpoint["state"][0][MOMENT].zero_()
    checkpoint["state"][0][MEAN].fill_(-2.0)
    optimizer = optimizer_of(nn.Parameter(torch.zeros(400)))
    optimizer.load_state_dict(checkpoint)
    take_step(optimizer)
    param, state = only(optimizer)
    assert state[MEAN].item() == pytest.approx(1e-3 * param.grad.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("change", [replace, write])
def test_follows_a_moment_in_8_bits(change: Callable[..., None]) -> None:
    optimizer = stepped(state_dtype="int8")
    change(*only(optimizer))
    take_step(optimizer)
    param, state = only(optimizer)
    # Of this one gradient alone, (1 − β2)·g², before it is rounded.
    assert state[MEAN].item() == pytest.approx(1e-3 * param.grad.square().mean().item(), rel=1e-5)


def test_follows_it_in_a_state_that_was_assigned() -> None:
    optimizer = stepped()
    param, state = only(optimizer)
    optimizer.state[param] = {**state, MOMENT: torch.zeros_like(param)}
    take_step(optimizer)
    _, state = only(optimizer)
    assert state[MEAN].item() == pytest.approx(state[MOMENT].mean().item(), rel=1e-5)


def test_what_the_preconditioner_goes_by() -> None:
    found = []
    for both in (False, True):
        optimizer = stepped()
        param, state = only(optimizer)
        state[MOMENT].mul_(4.0)
        if both:
            state[MEAN].mul_(4.0)
        found.append(optimizer.preconditioner()[param])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("fused", [None, False])
def test_is_kept_to_the_last_bit_where_nobody_changes_it(fused: bool | None) -> None:
    straight, resumed = stepped(fused=fused), stepped(fused=fused)
    for copied in COPIES.values():
        resumed = copied(resumed)
        take_step(straight)
        take_step(resumed)
        resumed.preconditioner()
    for name, tensor in only(straight)[1].items():
        assert torch.equal(tensor, only(resumed)[1][name])


def test_a_mean_that_comes_with_its_moment_stays() -> None:
    """As :mod:`torch.distributed.checkpoint` does, which loads into the tensors that are there."""
    optimizer = stepped()
    _, state = only(optimizer)
    with torch.no_grad():
        state[MOMENT].fill_(2.0)
        state[MEAN].fill_(3.0)
    take_step(optimizer)
    param, state = only(optimizer)
    taken = 1e-3 * (param.grad.square().double().mean().item() - 3.0)
    assert state[MEAN].item() == pytest.approx(3.0 + taken, rel=1e-9)


def test_a_refused_step_leaves_it() -> None:
    optimizer = stepped()
    _, state = only(optimizer)
    state[MOMENT] = state[MOMENT][KEPT]
    with pytest.raises(RuntimeError, match="exp_avg_sq"):
        take_step(optimizer)
    assert MEAN in state


@pytest.mark.parametrize("look", [lambda o: o.state_dict(), copy.deepcopy, pickle.dumps])
def test_who_looks_changes_nothing(look: Callable[[Any], Any]) -> None:
    """Another thread may do so in the middle of a step."""
    optimizer = stepped()
    (param,) = optimizer.param_groups[0]["params"]
    replace(param, optimizer.state[param])
    before = dict(optimizer.state[param])
    look(optimizer)
    after = optimizer.state[param]
    assert before.keys() == after.keys()
    assert all(tensor is after[name] for name, tensor in before.items())
