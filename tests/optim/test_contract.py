"""What users of torch.optim rely on, for every optimizer: groups, formats and copies."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steppe
from helpers.optimizer_configs import (
    NAMES,
    REPRESENTATIVE,
    Config,
    assert_same_state,
    equal,
    parameters,
    set_gradients,
    train,
    values,
)

every_config = pytest.mark.parametrize("config", REPRESENTATIVE, ids=str)
every_optimizer = pytest.mark.parametrize("config", [Config(name) for name in NAMES], ids=str)
own_scope = pytest.mark.parametrize(
    "config",
    [
        Config(c.name, {**c.options, "scope": "tensor"}) if c.has_buffer else c
        for c in REPRESENTATIVE
    ],
    ids=str,
)


# Parameter groups and parameters


@own_scope
def test_groups_keep_their_own_options(config: Config) -> None:
    together, apart = parameters(), parameters()
    slow = {"lr": 1e-3, "weight_decay": 0.0}
    train(config([{"params": together[:2]}, {"params": together[2:], **slow}]), together, range(30))
    optimizers = [config(apart[:2]), config(apart[2:], **slow)]
    for t in range(30):
        set_gradients(apart, t)
        for optimizer in optimizers:
            optimizer.step()
    assert equal(together, apart)


@own_scope
def test_add_param_group_starts_at_its_own_first_step(config: Config) -> None:
    old, new = parameters(), parameters(seed=1)
    optimizer = config(old)
    train(optimizer, old, range(8))
    optimizer.add_param_group({"params": new, "lr": 0.02})
    train(optimizer, [*old, *new], range(8, 16))

    alone = parameters(seed=1)
    fresh = config(alone, lr=0.02)
    for t in range(8, 16):
        for p, i in zip(alone, range(len(old), 2 * len(old)), strict=True):
            q = p.detach()
            p.grad = 3.0 * torch.cos(3.0 * q + i + 0.7 * t) + 0.5 * q
        fresh.step()
    assert equal(new, alone)


@own_scope
def test_a_parameter_unfrozen_late_takes_its_own_first_step(config: Config) -> None:
    params, alone = parameters(), parameters()[1:2]
    optimizer = config(params)
    for t in range(12):
        set_gradients(params, t)
        if t < 6:
            params[1].grad = None
        optimizer.step()
    fresh = config(alone)
    for t in range(6, 12):
        q = alone[0].detach()
        alone[0].grad = 3.0 * torch.cos(3.0 * q + 1 + 0.7 * t) + 0.5 * q
        fresh.step()
    assert equal(params[1:2], alone)


@every_config
def test_parameters_without_gradients_stay_as_they_are(config: Config) -> None:
    params = parameters()
    before = values(params)
    optimizer = config(params)
    assert optimizer.step() is None
    set_gradients(params, 0)
    params[0].grad = None
    optimizer.step()
    assert equal(params[:1], before[:1])
    assert params[0] not in optimizer.state
    assert not equal(params[1:], before[1:])


@every_config
def test_empty_groups_and_zero_size_tensors(config: Config) -> None:
    params = parameters(shapes=[(0, 3), (2,), ()])
    alone = parameters(shapes=[(0, 3), (2,), ()])[1:]
    optimizer = config([{"params": []}, {"params": params}])
    bare = config(alone)
    for t in range(8):
        for p, q in zip(params[1:], alone, strict=True):
            p.grad = torch.full_like(p, math.cos(t))
            q.grad = p.grad.clone()
        params[0].grad = torch.zeros(0, 3, dtype=torch.float64)
        optimizer.step()
        bare.step()
    assert equal(params[1:], alone)


@every_config
def test_memory_layout_changes_nothing(config: Config) -> None:
    base = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = base.clone().requires_grad_()
    layouts = [
        base.to(memory_format=torch.channels_last),
        base.clone().transpose(1, 3).contiguous().transpose(1, 3),
        torch.zeros(2, 3, 4, 10, dtype=torch.float64)[..., ::2].copy_(base),
    ]
    for tensor in layouts:
        param = tensor.requires_grad_()
        strides = param.stride()
        reference = plain.detach().clone().requires_grad_()
        optimizers = [config([param]), config([reference])]
        for t in range(8):
            gradient = torch.cos(3 * reference.detach() + t)
            param.grad = gradient.transpose(0, 3).contiguous().transpose(0, 3)
            reference.grad = gradient
            for optimizer in optimizers:
                optimizer.step()
        assert param.stride() == strides
        torch.testing.assert_close(param, reference, rtol=1e-13, atol=0)


# Number formats


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_config
def test_half_precision_computes_and_keeps_state_in_float32(
    config: Config, dtype: torch.dtype
) -> None:
    half = parameters(dtype)
    single = [p.detach().float().requires_grad_() for p in half]
    optimizer, truth = config(half), config(single, fused=False)
    for t in range(12):
        set_gradients(half, t)
        for p, q in zip(half, single, strict=True):
            q.data.copy_(p.detach())
            q.grad = p.grad.float()
        optimizer.step()
        truth.step()
        for p, q in zip(half, single, strict=True):
            # bfloat16 is rounded up or down, float16 to the nearest.
            error = (p.detach().double() - q.detach().double()).abs()
            spacing = torch.finfo(dtype).eps * (1.0 if dtype == torch.bfloat16 else 0.5)
            assert (error <= spacing * q.detach().abs() * (1 + 1e-6)).all()
    for state in optimizer.state.values():
        assert all(x.dtype not in (torch.float16, torch.bfloat16) for x in state.values())


@pytest.mark.parametrize("size", [1e-7, 1e-3, 1.0, 100.0])
@every_config
def test_half_precision_is_finite_from_the_first_step(config: Config, size: float) -> None:
    params = [torch.ones(3, dtype=torch.float16, requires_grad=True)]
    optimizer = config(params)
    for _ in range(3):
        params[0].grad = torch.full((3,), size, dtype=torch.float16)
        optimizer.step()
        assert torch.isfinite(params[0]).all()


@pytest.mark.parametrize("fused", [True, False])
@every_config
def test_complex_parameters_are_pairs_of_real_ones(config: Config, fused: bool) -> None:
    real = [p.detach() for p in parameters(shapes=[(3, 2), (2,)])]
    as_complex = [torch.view_as_complex(p.clone()).requires_grad_() for p in real]
    as_real = [p.clone().requires_grad_() for p in real]
    optimizers = [config(params, fused=fused) for params in (as_complex, as_real)]
    for t in range(12):
        set_gradients(as_real, t)
        for p, q in zip(as_complex, as_real, strict=True):
            # A lazily conjugated gradient, as autograd may hand over.
            p.grad = torch.view_as_complex(q.grad.clone()).conj().resolve_conj().conj()
        for optimizer in optimizers:
            optimizer.step()
    assert equal([torch.view_as_real(p.detach()) for p in as_complex], values(as_real))


@every_config
def test_sparse_gradients_are_refused_before_anything_changes(config: Config) -> None:
    params = parameters(shapes=[(2,), (3, 2)])
    optimizer = config([{"params": params[:1]}, {"params": params[1:]}])
    for steps in (0, 3):
        train(optimizer, params, range(steps))
        before, state = values(params), copy.deepcopy(optimizer.state_dict()["state"])
        set_gradients(params, steps)
        params[1].grad = params[1].grad.to_sparse()
        message = r"sparse_coo.*parameter 0 of group 1, shape \(3, 2\)"
        with pytest.raises(RuntimeError, match=message):
            optimizer.step()
        assert equal(params, before)
        assert_same_state(optimizer.state_dict()["state"], state)


@pytest.mark.parametrize("fused", [None, False], ids=["fused", "eager"])
@pytest.mark.parametrize("make", [steppe.DualAdam, steppe.AdamCM])
@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int8, torch.bool, torch.float8_e4m3fn], ids=str
)
def test_numbers_that_cannot_take_a_step_are_refused_before_anything_changes(
    make: Any, dtype: torch.dtype, fused: bool | None
) -> None:
    params = [torch.ones(4), torch.ones(4).to(dtype)]
    optimizer = make(params, lr=0.1, fused=fused)
    for param in params:
        param.grad = param.clone()
    with pytest.raises(RuntimeError, match=f"parameter 1 of group 0 is {dtype}: expected a dense"):
        optimizer.step()
    assert torch.equal(params[0], torch.ones(4))
    assert not any(optimizer.state.values())
    # Without a gradient, as quantised weights beside adapters, it is left alone.
    params[1].grad = None
    optimizer.step()
    assert (params[0] < 1).all()


# Gradients that are not finite


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "expanded": (lambda p: setattr(p, "data", torch.ones(1).expand(7)), "share memory"),
    "freed": (lambda p: p.untyped_storage().resize_(0), "no memory"),
    "negative": (lambda p: setattr(p, "data", torch._neg_view(torch.ones(7))), "negative"),
    "gradient": (lambda p: setattr(p.grad, "data", torch.ones(3)), r"its gradient \(3,\)"),
}


@pytest.mark.parametrize("fused", [None, False], ids=["fused", "eager"])
@pytest.mark.parametrize("is_stepped", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_step_adds_no_state(case: str, is_stepped: bool, fused: bool | None) -> None:
    """Neither a first step, nor one in which an option adds state, of any of the parameters."""
    change, message = REFUSED[case]
    params = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(7))]
    optimizer = steppe.DualAdam(params, fused=fused)
    if is_stepped:
        train(optimizer, params, range(1))
        optimizer.param_groups[0]["scale_free"] = True
    set_gradients(params, 1)
    before = {param: dict(state) for param, state in optimizer.state.items()}
    change(params[1])
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    # By identity: a parameter without memory cannot be shown.
    assert [*map(id, optimizer.state)] == [*map(id, before)]
    for now, then in zip(optimizer.state.values(), before.values(), strict=True):
        assert now.keys() == then.keys()
        assert all(now[name] is value for name, value in then.items())


def test_a_step_that_no_fused_engine_takes_adds_no_state() -> None:
    param = nn.Parameter(torch.ones(4, 4)[:, ::2])
    optimizer = steppe.DualAdam([param])
    optimizer.param_groups[0]["fused"] = True
    param.grad = torch.ones(4, 2)
    with pytest.raises(RuntimeError, match=r"fused=True: .* gaps"):
        optimizer.step()
    assert not optimizer.state


def test_a_differentiable_step_of_a_leaf_is_refused_before_anything_changes() -> None:
    """Autograd would refuse to change it, after its state has been changed."""
    param = nn.Parameter(torch.ones(4))
    optimizer = steppe.DualAdam([param], differentiable=True)
    param.grad = torch.ones(4)
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 0 is a leaf .* clone"):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("config", [c for c in REPRESENTATIVE if c.has_buffer], ids=str)
def test_a_broken_gradient_does_not_poison_the_buffer(config: Config, broken: float) -> None:
    params = parameters()
    optimizer = config(params)
    train(optimizer, params, range(3))
    set_gradients(params, 3)
    params[0].grad[0, 0] = broken
    before = values(params)
    optimizer.step()
    assert not torch.isfinite(params[0]).all()
    scope = config.options.get("scope", "global")
    for p in params:
        state = optimizer.state[p]
        slots = [value for name, value in state.items() if name.startswith("slot_")]
        assert not any(torch.isnan(slot).any() for slot in slots)
        if "replacements" in state:
            assert state["replacements"] == (3 if scope == "global" or p is params[0] else 4)
    # The moments are lost, as in torch, but after they are reset the keys go on as if nothing was.
    for p, value in zip(params, before, strict=True):
        p.data.copy_(value)
        for name in optimizer.state[p]:
            if not name.startswith("slot_") and name not in ("step", "replacements"):
                optimizer.state[p][name].zero_()
    train(optimizer, params, range(4, 8))
    assert all(torch.isfinite(p).all() for p in params)


@pytest.mark.parametrize("config", [Config("DualAdam"), Config("InvAdam")], ids=str)
def test_a_nan_gradient_propagates_where_it_stands(config: Config) -> None:
    params = [torch.zeros(3, requires_grad=True)]
    params[0].grad = torch.tensor([1.0, math.nan, 1.0])
    config(params).step()
    assert torch.isnan(params[0]).tolist() == [False, True, False]


# Copies


@every_config
def test_copies_go_on_bitwise(config: Config) -> None:
    params = parameters()
    optimizer = config(params)
    train(optimizer, params, range(5))
    copies = [
        copy.deepcopy((params, optimizer)),
        pickle.loads(pickle.dumps((params, optimizer))),
    ]
    train(optimizer, params, range(5, 25))
    for their_params, theirs in copies:
        train(theirs, their_params, range(5, 25))
        assert equal(their_params, params)


@every_config
def test_a_loaded_state_shares_no_tensor_with_the_dictionary(config: Config) -> None:
    params, others = parameters(), parameters()
    optimizer, other = config(params), config(others)
    train(optimizer, params, range(4))
    other.load_state_dict(optimizer.state_dict())
    saved = copy.deepcopy(optimizer.state_dict()["state"])
    train(other, others, range(4, 8))
    assert_same_state(optimizer.state_dict()["state"], saved)
