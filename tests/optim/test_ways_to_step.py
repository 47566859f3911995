"""Every way to take a step: closures, schedulers, scalers, compiled and differentiable steps."""

import copy
import math
import weakref

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

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
@pytest.mark.parametrize("config", [Config(n) for n in ("DualAdam", "AdamCM", "SGDCM")], ids=str)
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
        assert all(ref() is None for ref in kept)


@every_config
def test_named_parameters_are_taken(config: Config) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = config(model.named_parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
