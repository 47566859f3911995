"""Parameters that take their steps in the backward pass, and free their gradients."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

import steppe
from helpers.optimizer_configs import CONFIGS, REPRESENTATIVE, Config, equal

every_config = pytest.mark.parametrize("config", CONFIGS, ids=str)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(70, 80), nn.Tanh(), nn.Linear(80, 5), nn.Tanh()).to(dtype)


def made(config: Config, model: nn.Module, **options: Any) -> Any:
    """Make an optimizer that goes by no norm of all gradients."""
    own = {"scope": "tensor"} if config.has_buffer else {}
    return config(model.parameters(), **own, **options)


def loss_of(model: nn.Module, t: int) -> Tensor:
    inputs = torch.linspace(-1, 1, 4 * 70).view(4, 70) * (1 + t)
    return model(inputs.to(next(model.parameters()).dtype)).float().square().mean()


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for t in steps:
        optimizer.zero_grad()
        loss_of(model, t).backward()
        optimizer.step()


def values(model: nn.Module, optimizer: Any) -> list[Tensor]:
    params = [*model.parameters()]
    return [p.detach() for p in params] + [
        value for p in params for value in optimizer.state[p].values()
    ]


# The same numbers


@every_config
@pytest.mark.parametrize("fused", [None, False])
def test_steps_are_those_of_all_gradients_at_once(config: Config, fused: bool | None) -> None:
    ends = []
    for is_released in (False, True):
        model = network()
        optimizer = made(config, model, fused=fused)
        if is_released:
            optimizer.release_gradients(model)
        train(model, optimizer, range(6))
        ends.append(values(model, optimizer))
    assert equal(*ends)


@pytest.mark.parametrize("config", REPRESENTATIVE, ids=str)
def test_rounded_numbers_are_the_same_too(config: Config) -> None:
    """Noise goes by a parameter's number among all."""
    ends = []
    for is_released in (False, True):
        model = network(torch.bfloat16)
        optimizer = made(config, model, state_dtype="int8", param_error="int8")
        if is_released:
            optimizer.release_gradients(model)
        train(model, optimizer, range(4))
        ends.append(values(model, optimizer))
    assert equal(*ends)


def test_a_run_goes_on_with_it_and_without() -> None:
    """Also with options that change, groups that differ, and a checkpoint in between."""
    ends = []
    for released_until in (0, 3, 6):
        model = network()
        first, second = model[0].parameters(), model[2].parameters()
        optimizer = steppe.DualAdam(
            [{"params": first, "lr": 0.01}, {"params": second, "weight_decay": 0.1}],
            scale_free=True,
        )
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        handle = optimizer.release_gradients(model) if released_until else None
        for t in range(6):
            if t == 3:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            if t == released_until and handle is not None:
                handle.remove()
            optimizer.zero_grad()
            loss_of(model, t).backward()
            optimizer.step()
            schedule.step()
        ends.append(values(model, optimizer))
    assert equal(ends[0], ends[1])
    assert equal(ends[0], ends[2])


def test_a_moment_reset_between_steps_takes_its_kept_mean_along() -> None:
    """``scale_free`` keeps the mean of v, which the next step then computes anew."""
    ends = []
    for is_released in (False, True):
        model = network()
        optimizer = steppe.DualAdam(model.parameters(), scale_free=True)
        if is_released:
            optimizer.release_gradients(model)
        train(model, optimizer, range(3))
        optimizer.state[model[0].weight]["exp_avg_sq"].zero_()
        saved = optimizer.state_dict()["state"]
        assert ["exp_avg_sq_mean" in saved[i] for i in range(4)] == [False, True, True, True]
        train(model, optimizer, range(3, 5))
        ends.append(values(model, optimizer))
    assert equal(*ends)


def test_a_tied_weight_steps_once() -> None:
    ends = []
    for is_released in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(70, 70), nn.Tanh(), nn.Linear(70, 70))
        model[2].weight = model[0].weight
        optimizer = steppe.DualAdam(model.parameters())
        if is_released:
            optimizer.release_gradients(model)
        train(model, optimizer, range(3))
        assert optimizer.state[model[0].weight]["step"] == 3
        ends.append(values(model, optimizer))
    assert equal(*ends)


# No gradients


def test_no_two_gradients_are_there_at_once() -> None:
    """When a parameter steps, those of the layers behind it have no gradient any more."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(70, 70) for _ in range(5)))
    held = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: held.append(sum(type(q.grad) is Tensor for q in model.parameters()))
        )
    optimizer = steppe.DualAdam(model.parameters())
    optimizer.release_gradients(model)
    loss_of(model, 0).backward()
    assert held == [1] * 10
    for p in model.parameters():
        with pytest.raises(RuntimeError, match="invalid python storage"):
            p.grad.untyped_storage().data_ptr()
    optimizer.step()
    assert all(p.grad is None for p in model.parameters())


def backward_again(model: nn.Module, optimizer: Any) -> None:
    loss_of(model, 1).backward()


def clip(model: nn.Module, optimizer: Any) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def clip_values(model: nn.Module, optimizer: Any) -> None:
    torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)


def unscale(model: nn.Module, optimizer: Any) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    scaler.unscale_(optimizer)


def read(model: nn.Module, optimizer: Any) -> None:
    (model[2].weight.grad * 2).sum()


@pytest.mark.parametrize("use", [backward_again, clip, clip_values, unscale, read])
def test_who_needs_a_gradient_is_told_that_there_is_none(use: Any) -> None:
    """It would be taken for zero, and a second backward pass for one of a step of its own."""
    model = network()
    optimizer = steppe.DualAdam(model.parameters())
    optimizer.release_gradients(model)
    loss_of(model, 0).backward()
    before = values(model, optimizer)
    with pytest.raises(RuntimeError, match=r"parameter \d of group 0, shape .*, was released"):
        use(model, optimizer)
    assert equal(values(model, optimizer), before)
    optimizer.step()
    train(model, optimizer, range(1, 2))
    assert optimizer.state[model[0].weight]["step"] == 2


def test_a_scaler_that_leaves_it_to_the_step_is_refused() -> None:
    model = network()
    optimizer = steppe.DualAdam(model.parameters(), fused=True)
    optimizer.release_gradients(model)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model, 0)).backward()
    with pytest.raises(RuntimeError, match=r"was released.*to unscale them"):
        scaler.step(optimizer)


def test_values_are_clipped_by_hooks_of_parameters() -> None:
    ends = []
    for is_released in (False, True):
        model = network()
        optimizer = steppe.InvAdam(model.parameters(), lr=1.0)
        for p in model.parameters():
            p.register_hook(lambda grad: grad.clamp(-1e-3, 1e-3))
        if is_released:
            optimizer.release_gradients(model)
        train(model, optimizer, range(3))
        ends.append(values(model, optimizer))
    assert equal(*ends)


# What is refused


@pytest.fixture
def process_group() -> Iterator[None]:
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    distributed.destroy_process_group()


def test_gradients_that_are_summed_up_later_are_refused(process_group: None) -> None:
    model = network()
    optimizer = steppe.DualAdam(model.parameters())
    with pytest.raises(TypeError, match=r"DistributedDataParallel.*fully_shard"):
        optimizer.release_gradients(DistributedDataParallel(model))
    train(model, optimizer, range(1))


@pytest.mark.parametrize("name", ["AdamCM", "SGDCM", "SGDCG", "AdamCG", "RMSpropCG"])
def test_a_norm_of_all_gradients_is_refused_by_name(name: str) -> None:
    model = network()
    optimizer = getattr(steppe, name)(model.parameters())
    with pytest.raises(ValueError, match=rf"scope='global' of {name} .* use scope='tensor'"):
        optimizer.release_gradients(model)
    optimizer.param_groups[0]["scope"] = "tensor"
    optimizer.release_gradients(model)
    train(model, optimizer, range(2))
    optimizer.param_groups[0]["scope"] = "global"
    with pytest.raises(ValueError, match=r"scope='global'"):
        train(model, optimizer, range(2, 3))


def test_other_models_and_second_releases_are_refused() -> None:
    model = network()
    optimizer = steppe.DualAdam(model.parameters())
    with pytest.raises(ValueError, match=r"parameter 0 of group 0, shape \(80, 70\), is not one"):
        optimizer.release_gradients(network())
    with pytest.raises(TypeError, match="model="):
        optimizer.release_gradients(model.parameters())
    with optimizer.release_gradients(model):
        with pytest.raises(RuntimeError, match="released already"):
            optimizer.release_gradients(model)
        train(model, optimizer, range(1))
    train(model, optimizer, range(1, 2))
    assert all(type(p.grad) is Tensor for p in model.parameters())
    optimizer.release_gradients(model)


def test_wrappers_refuse_by_name() -> None:
    model = network()
    sam = steppe.SAM(steppe.DualAdam(model.parameters()))
    away = steppe.optim.Offload(network().parameters(), steppe.DualAdam)
    for wrapper in (sam, away):
        with pytest.raises(TypeError, match=f"{type(wrapper).__name__} needs all gradients"):
            wrapper.release_gradients(model)


def test_an_option_out_of_its_range_stops_the_backward_pass() -> None:
    model = network()
    optimizer = steppe.DualAdam(model.parameters())
    optimizer.release_gradients(model)
    optimizer.param_groups[0]["eps"] = -1.0
    before = values(model, optimizer)
    with pytest.raises(ValueError, match=r"eps=-1\.0"):
        loss_of(model, 0).backward()
    assert equal(values(model, optimizer), before)


# Parameters that come and go


def test_a_parameter_that_is_taken_out_is_named() -> None:
    model = network()
    optimizer = steppe.DualAdam(model.parameters())
    optimizer.release_gradients(model)
    optimizer.param_groups = [{**optimizer.param_groups[0], "params": [model[0].weight]}]
    with pytest.raises(RuntimeError, match=r"parameter 3 of group 0 is in no group any more"):
        loss_of(model, 0).backward()


def test_frozen_parameters_and_groups_added_later() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    late = nn.Linear(5, 5)
    optimizer = steppe.DualAdam(model.parameters())
    optimizer.release_gradients(model)
    optimizer.add_param_group({"params": late.parameters()})
    whole = nn.Sequential(model, late)
    train(whole, optimizer, range(3))
    assert model[0].bias not in optimizer.state
    assert optimizer.state[late.weight]["step"] == 3
    assert optimizer.state[model[0].weight]["step"] == 3


def test_a_copy_of_the_optimizer_has_no_hooks() -> None:
    model = network()
    optimizer = steppe.DualAdam(model.parameters())
    optimizer.release_gradients(model)
    train(model, optimizer, range(1))
    other, own = copy.deepcopy((model, optimizer))
    train(other, own, range(1, 2))
    assert all(type(p.grad) is Tensor for p in other.parameters())
    own.release_gradients(other)
    train(other, own, range(2, 3))
    assert own.state[other[0].weight]["step"] == 3
    assert optimizer.state[model[0].weight]["step"] == 1
