"""What users of torch.optim rely on, for every optimizer."""

import copy
import gc
import math
import pickle
import weakref
from typing import Any

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


def assert_same_state(a: dict[int, dict[str, Any]], b: dict[int, dict[str, Any]]) -> None:
    assert a.keys() == b.keys()
    for number in a:
        assert a[number].keys() == b[number].keys()
        for name, value in a[number].items():
            assert equal([value], [b[number][name]]), name


# Ways to step


@every_config
def test_closures_run_with_gradients(config: Config) -> None:
    params, stepped = parameters(), parameters()
    optimizer, plain = config(params), config(stepped)
    calls = []

    def loss_of(tensors: list[Tensor]) -> Tensor:
        for p in tensors:
            p.grad = None
        loss = sum(torch.cos(p).sum() for p in tensors)
        loss.backward()
        return loss

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        calls.append(loss_of(params))
        return calls[-1]

    for _ in range(4):
        with torch.no_grad():
            returned = optimizer.step(closure)
        assert returned is calls[-1]
        loss_of(stepped)
        plain.step()
    assert len(calls) == 4
    assert equal(params, stepped)


@every_optimizer
def test_a_compiled_step_is_the_step(config: Config) -> None:
    compiled, plain = parameters(), parameters()
    optimizer, truth = config(compiled), config(plain)
    step = torch.compile(optimizer.step, backend="eager")
    for t in range(4):
        set_gradients(compiled, t)
        set_gradients(plain, t)
        step()
        truth.step()
    assert equal(compiled, plain)


@every_config
def test_maximize_ascends(config: Config) -> None:
    up, down = parameters(), parameters()
    ascending, descending = config(up, maximize=True), config(down)
    for t in range(12):
        set_gradients(down, t)
        for p, q in zip(up, down, strict=True):
            p.grad = -q.grad
        ascending.step()
        descending.step()
    assert equal(up, down)


@every_config
def test_a_tensor_lr_is_its_number(config: Config) -> None:
    params, other = parameters(), parameters()
    lr = torch.tensor(0.02, dtype=torch.float64)
    optimizers = [config(params, lr=lr), config(other, lr=0.02)]
    for t in range(8):
        if t == 4:
            lr.fill_(0.005)
            optimizers[1].param_groups[0]["lr"] = 0.005
        for tensors, optimizer in zip((params, other), optimizers, strict=True):
            set_gradients(tensors, t)
            optimizer.step()
    assert equal(params, other)


@every_config
def test_gradients_flow_through_the_step(config: Config) -> None:
    """Against finite differences, with respect to the start, the gradients and lr."""

    def end(start: Tensor, gradient: Tensor, lr: Tensor) -> Tensor:
        p = start.clone()
        optimizer = config([p], lr=lr, differentiable=True)
        for t in range(4):
            p.grad = gradient * (1.0 + t)
            optimizer.step()
        return p

    start = torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    gradient = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(end, (start, gradient, lr))


@every_config
def test_accumulated_gradients_are_the_batch_gradient(config: Config) -> None:
    inputs = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, pieces = (torch.nn.Linear(3, 2, dtype=torch.float64) for _ in range(2))
    pieces.load_state_dict(whole.state_dict())
    optimizers = [config(whole.parameters()), config(pieces.parameters())]
    for _ in range(6):
        for optimizer in optimizers:
            optimizer.zero_grad()
        whole(inputs).square().mean().backward()
        for piece in inputs.split(2):
            (pieces(piece).square().mean() / 4).backward()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@every_config
def test_grad_scaler_unscales_and_skips(config: Config) -> None:
    """A power of two scales exactly, so the trajectory is bitwise that without a scaler."""
    scaled, plain = parameters(torch.float32), parameters(torch.float32)
    optimizer, truth = config(scaled), config(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    for t in range(6):
        set_gradients(plain, t)
        truth.step()
        for overflow in (True, False) if t == 3 else (False,):
            before = values(scaled), copy.deepcopy(optimizer.state_dict()["state"])
            set_gradients(scaled, t)
            factor = math.inf if overflow else scaler.get_scale()
            scaler.scale(torch.ones(()))  # makes the scaler ready, as loss scaling does
            for p in scaled:
                p.grad.mul_(factor)
            scaler.step(optimizer)
            scaler.update()
            if overflow:
                assert equal(values(scaled), before[0])
                assert_same_state(optimizer.state_dict()["state"], before[1])
    assert equal(scaled, plain)


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.05, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(
        o, 0.05, total_steps=12, cycle_momentum="alpha" not in o.defaults
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.StepLR(o, 2)], optimizer=o
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@every_optimizer
def test_schedulers_set_the_learning_rate(config: Config, scheduler: str) -> None:
    """The scheduled run is bitwise a run whose groups are set by hand to the same options."""
    scheduled, by_hand = parameters(), parameters()
    optimizer, manual = config(scheduled, lr=0.04), config(by_hand, lr=0.04)
    schedule = SCHEDULERS[scheduler](optimizer)
    rates = set()
    for t in range(10):
        group = optimizer.param_groups[0]
        rates.add(group["lr"])
        for name in ("lr", "betas", "momentum"):
            if name in group:
                manual.param_groups[0][name] = group[name]
        for tensors, each in ((scheduled, optimizer), (by_hand, manual)):
            set_gradients(tensors, t)
            each.step()
        schedule.step(*[1.0] * (scheduler == "ReduceLROnPlateau"))
    assert len(rates) > 1
    assert equal(scheduled, by_hand)


@every_config
def test_lr_zero_allocates_and_moves_nothing(config: Config) -> None:
    """Distributed checkpointing makes the state by such a step."""
    params = parameters()
    before = values(params)
    optimizer = config(params, lr=0.0)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step(closure=None)
    assert equal(params, before)
    other = parameters()
    trained = config(other)
    train(trained, other, range(3))
    for p, q in zip(params, other, strict=True):
        assert optimizer.state[p].keys() == trained.state[q].keys()


@every_config
def test_gradients_are_not_kept_after_the_step(config: Config) -> None:
    """They would double what gradients take while the next ones are computed."""
    params = parameters()
    optimizer = config(params)
    for t in range(2):
        set_gradients(params, t)
        kept = [weakref.ref(p.grad) for p in params]
        optimizer.step()
        optimizer.zero_grad()
        gc.collect()
        assert all(ref() is None for ref in kept)


@every_config
def test_named_parameters_are_taken(config: Config) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = config(model.named_parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


# Gradients that are not finite


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
