"""P^½HP^½ against dense matrices, thresholds against recursions and running optimizers."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steppe
from helpers.float64_reference import reference
from helpers.optimizer_configs import CONFIGS, Config
from steppe._engines.base.method import KEYS, MEAN
from steppe.landscape import Operator, Preconditioned, hessian, preconditioned

Optimizer = torch.optim.Optimizer


def small_net() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, torch.randn(12, 3).double(), torch.randint(2, (12,))


def gradients(model: nn.Module, inputs: Tensor, targets: Tensor) -> list[np.ndarray]:
    """Set the gradients, and return them."""
    model.zero_grad()
    F.cross_entropy(model(inputs), targets).backward()
    return [p.grad.numpy().copy() for p in model.parameters()]


def dense_hessian(model: nn.Module, inputs: Tensor, targets: Tensor) -> np.ndarray:
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    sizes = [p.numel() for p in model.parameters()]

    def loss(vector: Tensor) -> Tensor:
        parts = [x.view(s) for x, s in zip(vector.split(sizes), shapes, strict=True)]
        values = dict(zip(names, parts, strict=True))
        return F.cross_entropy(torch.func.functional_call(model, values, (inputs,)), targets)

    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return torch.autograd.functional.hessian(loss, start).numpy()


def dense(operator: Operator) -> np.ndarray:
    return operator.matmat(torch.eye(operator.size, dtype=operator.dtype)).numpy()


def assert_is_the_spectrum(operator: Operator, p: list[np.ndarray], h: np.ndarray) -> None:
    """Compare eigenvalues of P^½HP^½."""
    root = np.sqrt(np.concatenate([x.ravel() for x in p]))
    expected = np.linalg.eigvalsh(root[:, None] * h * root)
    found = np.linalg.eigvalsh(dense(operator))
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


def p_of(config: Config, ref: Any, i: int) -> np.ndarray:
    """P as the methods' definitions have it, of the reference's moments."""
    if config.name.startswith("SGD"):
        p = np.ones_like(ref.params[i])
    elif config.name == "RMSpropCG":
        mean = ref.grad_avg[i] if ref.centered else 0.0
        p = 1 / (np.sqrt(ref.square_avg[i] - mean**2) + ref.eps)
    else:
        v = ref.v_max[i] if getattr(ref, "amsgrad", False) else ref.v[i]
        v_hat = v / (1 - ref.betas[1] ** ref.t[i])
        d, eps = np.sqrt(v_hat) + ref.eps, ref.eps
        alpha = 1.0 if config.name == "InvAdam" else 0.0
        if hasattr(ref, "switch_rate"):
            alpha = max(0.0, 1 - ref.switch_rate * ref.t[i])
        if config.name == "MIAdam":
            assert ref.t[i] < ref.zeta
            p = ref.lr ** (ref.order - 1) / (1 + ref.rate) ** ref.order / d
        elif getattr(ref, "scale_free", False):
            r = np.sqrt(np.mean(v_hat)) + eps
            p = ((1 - alpha) / (d / r) + alpha * d / r) / r
        else:
            p = (1 - alpha) / d + alpha * d
    if hasattr(ref, "aggregation"):
        n = len(ref.buffers[i].slots)
        assert n == min(6, ref.buffers[i].capacity)
        own = {"sum": 1.0, "mean": 1 / (n + 1), "mid": 0.5 if n else 1.0}
        p = p * own[ref.aggregation]
    return p


def threshold_of(config: Config) -> float:
    """2(1 + β)/(lr·gain)."""
    lr, momentum = config.options["lr"], config.options.get("momentum", 0.9)
    if config.name == "RMSpropCG" or momentum == 0.0:
        return 2 * (1 + momentum) / lr
    if config.name == "SGDCG" and "momentum" not in config.options:
        return 2 / lr
    if config.name.startswith("SGD"):
        return 2 * 1.9 / (lr * (1 - config.options["dampening"]))
    return 38 / lr


MORE = [
    # A second moment that forgets fast, so that its maximum lies in the past.
    *(
        Config(name, {"lr": 0.01, "amsgrad": True, "betas": (0.9, 0.1), "kappa": 0.0})
        for name in ("AdamCM", "AdamCG")
    ),
    *(
        Config("SGDCG", {"lr": 0.01, "aggregation": kind, "capacity": 0})
        for kind in ("sum", "mean", "mid")
    ),
]


@pytest.mark.parametrize("config", [*CONFIGS, *MORE], ids=str)
def test_of_every_optimizer_of_this_library(config: Config) -> None:
    model, inputs, targets = small_net()
    optimizer = config(model.parameters(), fused=False)
    ref = reference(config.name, [p.detach().numpy() for p in model.parameters()], **config.options)
    for _ in range(6):
        ref.step(gradients(model, inputs, targets))
        optimizer.step()
    operator = preconditioned(hessian(model, F.cross_entropy, [(inputs, targets)]), optimizer)
    expected = [p_of(config, ref, i) for i in range(4)]
    assert_is_the_spectrum(operator, expected, dense_hessian(model, inputs, targets))
    assert operator.threshold == pytest.approx(threshold_of(config))
    assert operator.learning_rate == 0.01
    assert isinstance(operator, Preconditioned)
    np.testing.assert_allclose(
        operator.diagonal, np.concatenate([x.ravel() for x in expected]), rtol=1e-9
    )


def second_moments(grads: list[np.ndarray], decay: float) -> np.ndarray:
    v = np.zeros_like(grads[0])
    for g in grads:
        v = decay * v + (1 - decay) * g**2
    return v


def adam(g: list[np.ndarray], decay: float = 0.999) -> np.ndarray:
    return 1 / (np.sqrt(second_moments(g, decay) / (1 - decay ** len(g))) + 1e-8)


def adam_with_maximum(g: list[np.ndarray]) -> np.ndarray:
    v = np.max([second_moments(g[: t + 1], 0.5) for t in range(len(g))], axis=0)
    return 1 / (np.sqrt(v / (1 - 0.5 ** len(g))) + 1e-8)


def rmsprop(g: list[np.ndarray], centered: bool = False) -> np.ndarray:
    mean = sum(0.99 ** (len(g) - 1 - t) * 0.01 * x for t, x in enumerate(g)) if centered else 0.0
    return 1 / (np.sqrt(second_moments(g, 0.99) - mean**2) + 1e-8)


def adagrad(g: list[np.ndarray]) -> np.ndarray:
    return 1 / (np.sqrt(sum(x**2 for x in g)) + 1e-10)


class Derived(torch.optim.Adam):
    """Somebody's own."""


torch_optim = torch.optim
TORCHS: dict[str, tuple[Callable[..., Optimizer], Callable[[list[np.ndarray]], np.ndarray]]] = {
    "SGD": (lambda p: torch_optim.SGD(p, lr=0.1, momentum=0.5), lambda g: np.ones_like(g[0])),
    "Adam": (lambda p: torch_optim.Adam(p, lr=0.1), adam),
    "derived from Adam": (lambda p: Derived(p, lr=0.1), adam),
    "Adam, AMSGrad": (
        lambda p: torch_optim.Adam(p, lr=0.1, betas=(0.9, 0.5), amsgrad=True),
        adam_with_maximum,
    ),
    "AdamW": (lambda p: torch_optim.AdamW(p, lr=torch.tensor(0.1), foreach=False), adam),
    "NAdam": (lambda p: torch_optim.NAdam(p, lr=0.1), adam),
    "RMSprop": (lambda p: torch_optim.RMSprop(p, lr=0.1), rmsprop),
    "RMSprop, centered": (
        lambda p: torch_optim.RMSprop(p, lr=0.1, centered=True),
        lambda g: rmsprop(g, centered=True),
    ),
    "Adagrad": (lambda p: torch_optim.Adagrad(p, lr=0.1), adagrad),
}


@pytest.mark.parametrize("name", TORCHS)
def test_of_torchs_optimizers(name: str) -> None:
    model, inputs, targets = small_net()
    make, p_from = TORCHS[name]
    optimizer = make(model.parameters())
    history = []
    for _ in range(5):
        history.append(gradients(model, inputs, targets))
        optimizer.step()
    operator = preconditioned(hessian(model, F.cross_entropy, [(inputs, targets)]), optimizer)
    p = [p_from([grads[i] for grads in history]) for i in range(4)]
    assert_is_the_spectrum(operator, p, dense_hessian(model, inputs, targets))
    assert operator.learning_rate == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["Adam", "DualAdam"])
def test_around_it_sam_changes_nothing(name: str) -> None:
    model, inputs, targets = small_net()
    library = torch.optim if name == "Adam" else steppe
    base = getattr(library, name)(model.parameters(), lr=0.1)
    sam = steppe.SAM(base, required=False)
    gradients(model, inputs, targets)
    sam.step()
    H = hessian(model, F.cross_entropy, [(inputs, targets)])
    assert np.array_equal(dense(preconditioned(H, sam)), dense(preconditioned(H, base)))
    if name == "DualAdam":
        assert sam.preconditioner().keys() == base.preconditioner().keys()
    else:
        with pytest.raises(AttributeError, match="Adam has no preconditioner"):
            sam.preconditioner()


@pytest.mark.parametrize("name", ["AdamW", "SGD", "DualAdam"])
def test_offloading_changes_nothing(name: str) -> None:
    model, inputs, targets = small_net()
    kind = getattr(steppe if name == "DualAdam" else torch.optim, name)
    beside = copy.deepcopy(model)
    offloaded = steppe.optim.Offload(model.parameters(), kind, lr=0.1)
    plain = kind(beside.parameters(), lr=0.1)
    for each, optimizer in ((model, offloaded), (beside, plain)):
        gradients(each, inputs, targets)
        optimizer.step()
    found, expected = (
        dense(preconditioned(hessian(each, F.cross_entropy, [(inputs, targets)]), optimizer))
        for each, optimizer in ((model, offloaded), (beside, plain))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    if name != "DualAdam":
        with pytest.raises(AttributeError, match=f"{name} has no preconditioner"):
            offloaded.preconditioner()


def test_is_over_the_parameters_of_h() -> None:
    model, inputs, targets = small_net()
    optimizer = torch.optim.Adam(model.parameters())
    gradients(model, inputs, targets)
    optimizer.step()
    chosen = [model[2].bias, model[0].weight]
    H = hessian(model, F.cross_entropy, [(inputs, targets)], params=chosen)
    operator = preconditioned(H, optimizer)
    moments = [optimizer.state[p]["exp_avg_sq"].ravel() / 0.001 for p in chosen]
    np.testing.assert_allclose(operator.diagonal, 1 / (torch.cat(moments).sqrt() + 1e-8))
    assert operator.params is H.params
    assert (operator.products, H.products) == (0, 0)
    operator.matvec(torch.ones(operator.size, dtype=torch.float64))
    assert (operator.products, H.products) == (1, 1)


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"])
def test_reads_decoded_state(state_dtype: Any) -> None:
    """Gradients of ±2 and ±4 alone, so that all formats hold their squares' averages closely."""
    torch.manual_seed(0)
    p, q = (torch.zeros(5000, requires_grad=True) for _ in range(2))
    low = steppe.AdamCM([p], state_dtype=state_dtype, fused=False)
    full = steppe.AdamCM([q], fused=False)
    for _ in range(4):
        p.grad = q.grad = 2.0 ** torch.randint(1, 3, (5000,))
        low.step()
        full.step()
    kind = torch.uint8 if state_dtype == "int8" else torch.bfloat16
    assert low.state[p]["exp_avg_sq"].dtype == kind
    found, expected = low.preconditioner()[p], full.preconditioner()[q]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.0)
    assert not torch.equal(found, expected)


# Thresholds: first the recursion of (m, p) that torch's documentation gives, as a 2×2 matrix.


def step_of(optimizer: Optimizer, m: float, g: float) -> tuple[float, float]:
    """Return the new m, and the step in units of P·lr, at constant P and faded corrections."""
    options: dict[str, Any] = optimizer.param_groups[0]
    if "betas" not in options:
        damped = 1 - options.get("dampening", 0.0)
        m = options["momentum"] * m + damped * g
        return m, g + options["momentum"] * m if options.get("nesterov") else m
    beta = options["betas"][0]
    m = beta * m + (1 - beta) * g
    if "momentum_decay" not in options:
        return m, m
    (state,) = optimizer.state.values()
    t, psi = state["step"].item(), options["momentum_decay"]
    now, later = (beta * (1 - 0.5 * 0.96 ** (n * psi)) for n in (t, t + 1))
    return m, (1 - now) * g + later * m


def spectral_radius(optimizer: Optimizer, h: float) -> float:
    columns = []
    for m, p in ((1.0, 0.0), (0.0, 1.0)):
        new, step = step_of(optimizer, m, h * p)
        columns.append([new, p - optimizer.param_groups[0]["lr"] * step])
    return max(abs(np.linalg.eigvals(np.array(columns).T)))


def methods(p: list[Tensor]) -> Iterator[Optimizer]:
    for beta in (0.0, 0.5, 0.9, 0.99):
        yield torch.optim.SGD(p, lr=0.1, momentum=beta)
        yield torch.optim.Adam(p, lr=0.1, betas=(beta, 0.99))
        yield torch.optim.RMSprop(p, lr=0.1, momentum=beta)
        yield torch.optim.NAdam(p, lr=0.1, betas=(beta, 0.99), momentum_decay=0.1)
        yield steppe.DualAdam(p, lr=0.1, betas=(beta, 0.99), fused=False)
        yield steppe.SGDCM(p, lr=0.1, momentum=beta, fused=False)
        if beta:
            yield torch.optim.SGD(p, lr=0.1, momentum=beta, dampening=0.7)
            yield torch.optim.SGD(p, lr=0.1, momentum=beta, nesterov=True)
            yield steppe.SGDCG(p, lr=0.1, momentum=beta, dampening=beta, fused=False)


def curvature(matrix: Tensor, params: list[Tensor]) -> Operator:
    return Operator(len(matrix), lambda rows: rows @ matrix, dtype=torch.float64, params=params)


def test_thresholds_are_where_the_recursions_leave_the_unit_circle() -> None:
    p = torch.ones(1, dtype=torch.float64, requires_grad=True)
    H = curvature(torch.eye(1, dtype=torch.float64), [p])
    for optimizer in methods([p]):
        for _ in range(7):
            p.grad = torch.ones_like(p)
            optimizer.step()
        threshold = preconditioned(H, optimizer).threshold
        assert spectral_radius(optimizer, 0.9999 * threshold) < 1, optimizer
        assert spectral_radius(optimizer, threshold) == pytest.approx(1, abs=1e-6), optimizer
        assert spectral_radius(optimizer, 1.0001 * threshold) > 1, optimizer


def test_the_threshold_of_adam_is_38_over_lr() -> None:
    p = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.Adam([p], lr=0.01)
    p.grad = torch.ones(1)
    optimizer.step()
    H = Operator(1, lambda rows: rows, params=[p])
    assert preconditioned(H, optimizer).threshold == pytest.approx(38 / 0.01)


# Then the optimizers themselves, on a quadratic so flat that it leaves P alone.

SPREAD = torch.tensor([1.0, 2.0, 5.0, 0.3], dtype=torch.float64)
LATE = 1e14  # corrections have faded, and steps in float32 stand still
STILL = 1 - 1e-12  # second moments stand still, and LATE steps are enough to have filled them


def freeze(optimizer: Optimizer, step: float = LATE) -> None:
    """Take three steps on gradients of zero, which fill buffers; then set second moments."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for p in params:
        state = optimizer.state[p]
        spread = SPREAD[: p.numel()]
        for name in ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"):
            if name in state:
                state[name].copy_(spread)
        if "grad_avg" in state:
            state["grad_avg"].copy_(spread.sqrt() / 2)
        if "step" in state:
            state["step"].fill_(step)
        if MEAN in state:
            state[MEAN].fill_(spread.mean())
        if KEYS in state:
            state[KEYS].fill_(1e300)


FROZEN: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "SGD, dampening": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.6),
    "SGD, Nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, STILL)),
    "AdamW": lambda p: torch.optim.AdamW(
        p, lr=0.1, betas=(0.8, 0.5), amsgrad=True, weight_decay=0.0
    ),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1, betas=(0.9, STILL)),
    "NAdam, no schedule": lambda p: torch.optim.NAdam(
        p, lr=0.1, betas=(0.9, STILL), momentum_decay=0.0
    ),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=1.0, momentum=0.9),
    "RMSprop, centered": lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=1.0, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=1e-14),
    "InvAdam": lambda p: steppe.InvAdam(p, lr=0.1, betas=(0.9, STILL), fused=False),
    "DualAdam": lambda p: steppe.DualAdam(
        p, lr=0.1, betas=(0.9, STILL), switch_rate=0.4 / LATE, fused=False
    ),
    "DualAdam, scale_free": lambda p: steppe.DualAdam(
        p, lr=0.1, betas=(0.9, STILL), switch_rate=0.4 / LATE, scale_free=True, fused=False
    ),
    # With momentum beneath the integral, or two of them, complex roots leave the circle earlier.
    "MIAdam": lambda p: steppe.MIAdam(
        p,
        lr=0.1,
        betas=(0.0, STILL),
        switch_rate=0.4 / LATE,
        integration_order=1,
        integration_rate=0.6,
        fused=False,
    ),
    "MIAdam, switched": lambda p: steppe.MIAdam(
        p, lr=0.1, betas=(0.9, STILL), switch_rate=1.0, fused=False
    ),
    "AdamCM": lambda p: steppe.AdamCM(
        p, lr=0.1, betas=(0.9, STILL), capacity=2, priority_decay=1.0, fused=False
    ),
    "AdamCM, authors": lambda p: steppe.AdamCM(
        p, lr=0.1, amsgrad=True, variant="authors", capacity=2, priority_decay=1.0, fused=False
    ),
    "DualAdamCM": lambda p: steppe.DualAdamCM(
        p, lr=0.1, betas=(0.9, STILL), switch_rate=0.4 / LATE, capacity=0, fused=False
    ),
    "SGDCM": lambda p: steppe.SGDCM(p, lr=0.1, momentum=0.9, capacity=0, fused=False),
    "SGDCG, mid": lambda p: steppe.SGDCG(
        p, lr=0.1, aggregation="mid", capacity=2, priority_decay=1.0, fused=False
    ),
    "AdamCG, mean": lambda p: steppe.AdamCG(
        p, lr=0.1, amsgrad=True, capacity=2, priority_decay=1.0, fused=False
    ),
    "RMSpropCG, sum": lambda p: steppe.RMSpropCG(
        p,
        lr=0.1,
        alpha=STILL,
        momentum=0.8,
        aggregation="sum",
        capacity=2,
        priority_decay=1.0,
        fused=False,
    ),
}


def coupled(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return root @ root.T + torch.eye(size, dtype=torch.float64)


def growth(optimizer: Optimizer, params: list[Tensor], matrix: Tensor) -> float:
    """Return by what 100 steps of a copy of the optimizer multiply the distance from 0."""
    params, optimizer = copy.deepcopy((params, optimizer))
    generator = torch.Generator().manual_seed(1)
    for p in params:
        p.data.copy_(1e-14 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    start = torch.cat([p.detach() for p in params]).norm()
    for _ in range(100):
        slopes = matrix @ torch.cat([p.detach() for p in params])
        for p, g in zip(params, slopes.split([p.numel() for p in params]), strict=True):
            p.grad = g
        optimizer.step()
    return (torch.cat([p.detach() for p in params]).norm() / start).item()


def assert_gets_unstable_at_the_threshold(optimizer: Optimizer, params: list[Tensor]) -> None:
    matrix = coupled(sum(p.numel() for p in params))
    operator = preconditioned(curvature(matrix, params), optimizer)
    scale = operator.threshold / np.linalg.eigvalsh(dense(operator))[-1]
    assert growth(optimizer, params, 0.98 * scale * matrix) < 0.5
    assert growth(optimizer, params, 1.02 * scale * matrix) > 5.0


@pytest.mark.parametrize("name", FROZEN)
def test_the_optimizer_gets_unstable_at_its_threshold(name: str) -> None:
    params = [torch.zeros(4, dtype=torch.float64, requires_grad=True)]
    optimizer = FROZEN[name](params)
    freeze(optimizer)
    assert_gets_unstable_at_the_threshold(optimizer, params)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_groups_of_different_rates_have_one_threshold(kind: str) -> None:
    sizes = (2, 3)
    params = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in sizes]
    groups: list[dict[str, Any]] = [{"params": [p]} for p in params]
    options: dict[str, Any] = {"lr": 0.1}
    if kind == "SGD":
        # Dampening counts too: gains of 1 and 0.5.
        options["momentum"], groups[1]["lr"], groups[1]["dampening"] = 0.9, 0.7, 0.5
    else:
        options["betas"], groups[1]["lr"] = (0.9, STILL), 0.01
    optimizer = getattr(torch.optim, kind)(groups, **options)
    freeze(optimizer)
    assert_gets_unstable_at_the_threshold(optimizer, params)


# What is refused.


def stepped(make: Callable[[list[Any]], Optimizer], *params: Tensor) -> Optimizer:
    optimizer = make(list(params))
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer


def pair() -> tuple[Tensor, Tensor, Operator]:
    p, q = (torch.zeros(2, requires_grad=True) for _ in range(2))
    return p, q, Operator(4, lambda rows: rows, params=[p, q])


def test_refuses_an_operator_that_is_not_a_models() -> None:
    p, _, _ = pair()
    with pytest.raises(ValueError, match="H does not say which parameters"):
        preconditioned(Operator(2, lambda rows: rows), torch.optim.SGD([p], lr=0.1))


def test_refuses_parameters_that_are_not_the_optimizers() -> None:
    p, _, H = pair()
    with pytest.raises(ValueError, match=r"parameter 1 of H, of shape \(2,\), is not among"):
        preconditioned(H, stepped(torch.optim.Adam, p))


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.NAdam, steppe.AdamCM])
def test_refuses_an_optimizer_without_state(make: Any) -> None:
    p, q, H = pair()
    optimizer = make([p, q])
    p.grad = torch.ones(2)
    optimizer.step()
    with pytest.raises(ValueError, match=r"parameter 1, as .*: leave it out, by params"):
        preconditioned(H, optimizer)


def test_refuses_an_optimizer_it_does_not_know() -> None:
    p, q, H = pair()
    with pytest.raises(ValueError, match=r"RAdam has no diagonal preconditioner .* SGD, Adam"):
        preconditioned(H, stepped(torch.optim.RAdam, p, q))


def test_refuses_groups_of_different_momentum() -> None:
    p, q, H = pair()
    groups = [{"params": [p], "momentum": 0.9}, {"params": [q], "momentum": 0.5}]
    with pytest.raises(ValueError, match="parameters 0 and 1 of H differ in momentum"):
        preconditioned(H, torch.optim.SGD(groups, lr=0.1))


def test_refuses_different_places_on_nadams_schedule() -> None:
    p, q, H = pair()
    optimizer = stepped(torch.optim.NAdam, p, q)
    q.grad = None
    optimizer.step()
    with pytest.raises(ValueError, match="parameters 0 and 1 of H differ in momentum"):
        preconditioned(H, optimizer)


def test_refuses_a_learning_rate_of_zero() -> None:
    p, q, H = pair()
    with pytest.raises(ValueError, match="learning rate of H's first parameter is 0"):
        preconditioned(H, torch.optim.SGD([p, q], lr=0.0))


def test_refuses_maximising() -> None:
    p, q, H = pair()
    with pytest.raises(ValueError, match="the optimizer maximises"):
        preconditioned(H, torch.optim.SGD([p, q], lr=0.1, maximize=True))


def test_refuses_a_preconditioner_that_is_not_finite() -> None:
    p, q, H = pair()
    optimizer = torch.optim.Adam([p, q], eps=0.0)
    p.grad, q.grad = torch.ones(2), torch.tensor([1.0, 0.0])
    optimizer.step()
    with pytest.raises(ValueError, match="preconditioner of parameter 1 is not finite"):
        preconditioned(H, optimizer)
