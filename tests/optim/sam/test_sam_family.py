"""SAM along the momentum, at random, in other metrics and late, against what the papers say."""

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import steppe
from helpers.float64_reference import Array, norm, reference
from helpers.sam_cases import STARTS, batch, closure_of, gradient, leaves, network, same, values
from helpers.sam_cases import wavy as loss_of
from steppe import SAM
from steppe.optim import _sam_batches

METRICS = ["euclidean", "adaptive", "preconditioned"]
Perturbation = Callable[[Any], list[Array]]


def along(
    ref: Any, directions: Sequence[Array], metric: str, rho: float, diagonal: Sequence[Array]
) -> list[Array]:
    """Return e = ρ·s²d/(‖s·d‖ + 1e-12)."""
    ones = [np.ones_like(p) for p in ref.params]
    roots = {
        "euclidean": ones,
        "adaptive": [np.abs(p) for p in ref.params],
        "preconditioned": [np.sqrt(x) for x in diagonal],
    }[metric]
    length = norm([s * d for s, d in zip(roots, directions, strict=True)]) + 1e-12
    return [rho * s**2 * d / length for s, d in zip(roots, directions, strict=True)]


def adam_diagonal(ref: Any) -> list[Array]:
    """Return 1/(√v̂ + ε), and 1 before the first step: the metric is Euclidean then."""
    if not any(ref.t):
        return [np.ones_like(p) for p in ref.params]
    beta2 = ref.betas[1]
    return [1 / (np.sqrt(v / (1 - beta2**t)) + ref.eps) for v, t in zip(ref.v, ref.t, strict=True)]


def aggregates(ref: Any) -> list[Array]:
    """Return m̂ + κ·mean(slots) of AdamCM, m + κ·mean(slots) of SGDCM, m of Adam and SGD."""
    found = []
    for i, m in enumerate(ref.m):
        if hasattr(ref, "betas") and hasattr(ref, "buffers") and ref.t[i]:
            m = m / (1 - ref.betas[0] ** ref.t[i])
        found.append(ref.with_mean(i, m) if hasattr(ref, "buffers") else m)
    return found


BASES: dict[str, tuple[Callable[[Any], Any], tuple[str, dict[str, Any]]]] = {
    "torch.AdamW": (
        lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1),
        ("DualAdam", {"lr": 1e-2, "switch_rate": 1.0, "weight_decay": 0.1}),
    ),
    "AdamCM": (lambda ps: steppe.AdamCM(ps, lr=1e-2), ("AdamCM", {"lr": 1e-2})),
    "torch.SGD": (
        lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.9),
        ("SGDCM", {"lr": 1e-2, "capacity": 0}),
    ),
    "SGDCM": (lambda ps: steppe.SGDCM(ps, lr=1e-2), ("SGDCM", {"lr": 1e-2})),
}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("direction", ["gradient", "momentum"])
def test_equals_the_float64_reference(name: str, metric: str, direction: str) -> None:
    if metric == "preconditioned" and "SGD" in name:
        pytest.skip("SGD has no preconditioner")
    make, (like, options) = BASES[name]
    params = leaves()
    sam = SAM(make(params), rho=0.3, direction=direction, metric=metric)
    ref = reference(like, STARTS, **options)
    for step in range(20):
        if direction == "gradient":
            directions = [gradient(p) for p in ref.params]
        else:
            directions = [-m for m in aggregates(ref)]
        diagonal = adam_diagonal(ref) if metric == "preconditioned" else []
        e = along(ref, directions, metric, 0.3, diagonal)
        if direction == "momentum" and step == 0:
            assert not any(x.any() for x in e)
        if direction == "momentum" and step % 2:
            with sam.perturbed():
                loss_of(params).backward()
            sam.step()
            sam.zero_grad()
        else:
            sam.step(closure(params, sam))
        ref.step([gradient(p + x) for p, x in zip(ref.params, e, strict=True)])
        for p, expected in zip(params, ref.params, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-10, atol=1e-13)
        assert sam.diagnostics()["perturbation_norm"] == pytest.approx(norm(e), rel=1e-9)


def closure(params: list[Tensor], sam: SAM, calls: list[int] | None = None) -> Any:
    def run() -> Tensor:
        if calls is not None:
            calls.append(1)
        sam.zero_grad()
        loss = loss_of(params)
        loss.backward()
        return loss

    return run


def test_negative_radius_goes_against_the_momentum() -> None:
    ends = []
    for sign in (1, -1):
        params = leaves()
        base = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        sam = SAM(base, rho=0.3 * sign, direction="momentum")
        sam.step(closure(params, sam))
        starts = [p.detach().numpy().copy() for p in params]
        m = [base.state[p]["momentum_buffer"].numpy() for p in params]
        with sam.perturbed():
            for p, start, x in zip(params, starts, m, strict=True):
                moved = start - 0.3 * sign * x / norm(m)
                np.testing.assert_allclose(p.detach().numpy(), moved, rtol=1e-12)
            loss_of(params).backward()
        sam.step()
        ends.append(params)
    assert not same(*ends)
    for direction in ("gradient", "random"):
        with pytest.raises(
            ValueError, match=r"rho=-0.3 is not valid: expected a finite number ≥ 0"
        ):
            SAM(torch.optim.SGD(leaves()), rho=-0.3, direction=direction)


def lowbias32(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def drawn(count: int, seed: int, number: int, step: int) -> Array:
    """Return Box and Muller's normal numbers of hashed words, two of each pair of elements."""
    key = lowbias32(lowbias32(lowbias32(seed) ^ number) ^ step)
    uniform = [((lowbias32(key ^ lowbias32(i)) >> 8) + 0.5) / 2**24 for i in range(count + 1)]
    found = []
    for i in range(count):
        first, second = uniform[i & ~1], uniform[i | 1]
        turn = math.cos if i % 2 == 0 else math.sin
        found.append(math.sqrt(-2 * math.log(first)) * turn(2 * math.pi * second))
    return np.array(found)


@pytest.mark.parametrize("metric", ["euclidean", "adaptive"])
def test_random_perturbations_are_those_of_the_seed_alone(metric: str) -> None:
    torch.manual_seed(2**40 + 7)
    params = leaves()
    sam = SAM(torch.optim.SGD(params, lr=0.1), rho=0.3, direction="random", metric=metric)
    for step in range(3):
        starts = [p.detach().numpy().copy() for p in params]
        with sam.perturbed():
            for number, (p, start) in enumerate(zip(params, starts, strict=True)):
                xi = drawn(start.size, 7, number, step).reshape(start.shape)
                size = start if metric == "adaptive" else start.std()
                np.testing.assert_allclose(p.detach().numpy(), start + 0.3 * size * xi, rtol=1e-12)
            loss_of(params).backward()
        state = torch.get_rng_state()
        sam.step()
        assert torch.equal(torch.get_rng_state(), state)
        sam.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("metric", ["euclidean", "adaptive"])
def test_random_perturbations_do_not_depend_on_what_moves_together(
    metric: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, however a tensor lies in memory."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(7,), (3, 5), (), (2, 3, 4, 4), (301, 100), (9,), (33, 1001), (4,)]
    tensors = [torch.randn(s, generator=generator).to(dtype) for s in shapes]
    tensors[3] = tensors[3].to(memory_format=torch.channels_last)
    tensors.append(torch.randn((6, 5), generator=generator).to(dtype).t())
    ends = []
    for room in (_sam_batches.PIECE, 0):
        monkeypatch.setattr(_sam_batches, "PIECE", room)
        params = [x.clone().requires_grad_() for x in tensors]
        torch.manual_seed(5)
        SAM(torch.optim.SGD(params), rho=1.0, direction="random", metric=metric).perturb()
        ends.append([p.detach() for p in params])
    assert same(*ends)
    assert not same(ends[0], tensors)


def test_random_numbers_are_normal_and_independent() -> None:
    p = torch.arange(400_000, dtype=torch.float32).reshape(400, 1000).requires_grad_()
    sam = SAM(torch.optim.SGD([p]), rho=1.0, direction="random")
    before = p.detach().clone()
    xi = []
    for step in range(2):
        sam._passes.steps = step
        sam.perturb()
        xi.append((p.detach().double() - before.double()) / before.double().std(correction=0))
        sam.restore()
    flat = xi[0].flatten()
    assert abs(flat.mean()) < 5 / 400_000**0.5
    assert abs(flat.var() - 1) < 5 * (2 / 400_000) ** 0.5
    assert abs((flat**4).mean() - 3) < 5 * (96 / 400_000) ** 0.5
    bound = 5 / 400_000**0.5
    for lag in (1, 2, 3, 1000, 2**16, 2**17):
        assert abs((flat[lag:] * flat[:-lag]).mean()) < bound * 1.2
    assert abs((xi[0] * xi[1]).mean()) < bound
    cumulative = 0.5 * (1 + torch.erf(flat.sort().values / 2**0.5))
    expected = (torch.arange(flat.numel()) + 0.5) / flat.numel()
    assert (cumulative - expected).abs().max() < 1.95 / 400_000**0.5  # Kolmogorov, p = 0.001


@pytest.mark.parametrize("direction", ["momentum", "random"])
def test_a_step_takes_one_pass(direction: str) -> None:
    params, calls = leaves(), []
    sam = SAM(torch.optim.AdamW(params, lr=0.1), rho=0.3, direction=direction)
    losses = [sam.step(closure(params, sam, calls)) for _ in range(3)]
    assert len(calls) == 3
    assert losses[2] != loss_of(params)


@pytest.mark.parametrize("direction", ["momentum", "random"])
def test_passes_of_one_step_add_up(direction: str) -> None:
    """Several under perturbed() are one over all batches; those outside of it do not count."""
    ends = []
    for together in (True, False):
        params = leaves()
        base = torch.optim.AdamW(params, lr=0.1)
        torch.manual_seed(0)
        sam = SAM(base, rho=0.3, direction=direction)
        for step in range(3):
            if step == 1:
                loss_of(params).backward()
            if together:
                with sam.perturbed():
                    (loss_of(params) / 2).backward()
                    (loss_of(params) / 2).backward()
            else:
                for _ in range(2):
                    with sam.perturbed():
                        (loss_of(params) / 2).backward()
            sam.step()
            if step != 1:
                sam.zero_grad()  # Gradients of the step before do not count either.
        ends.append([p.detach() for p in params])
    assert same(*ends)


@pytest.mark.parametrize("direction", ["momentum", "random"])
def test_a_pass_that_clears_gradients_itself_is_perturbed_all_the_same(direction: str) -> None:
    """Also where nothing moves, as before the first momentum."""
    params = leaves()
    sam = SAM(torch.optim.AdamW(params, lr=0.1), rho=0.3, direction=direction)
    for _ in range(2):
        with sam.perturbed():
            sam.zero_grad()
            loss_of(params).backward()
        sam.step()


@pytest.mark.parametrize("direction", ["momentum", "random"])
def test_an_unperturbed_pass_is_refused(direction: str) -> None:
    params = leaves()
    sam = SAM(torch.optim.AdamW(params, lr=0.1), direction=direction)
    before = [p.detach().clone() for p in params]
    loss_of(params).backward()
    with pytest.raises(RuntimeError, match="without a perturbed pass would be the base optimizer"):
        sam.step()
    assert same(before, [p.detach() for p in params])
    sam.zero_grad()
    sam.step(closure(params, sam))
    loss_of(params).backward()
    with pytest.raises(RuntimeError, match="the closure added to gradients"):
        sam.step(lambda: loss_of(params).backward())
    sam.required = False
    sam.step()


def test_second_passes_one_after_the_other_are_refused() -> None:
    params = leaves()
    sam = SAM(torch.optim.AdamW(params, lr=0.1))
    for _ in range(2):
        loss_of(params).backward()
        if any(sam._passes._left):
            with pytest.raises(RuntimeError, match="would leave that pass out: call step"):
                sam.perturb()
            break
        with sam.perturbed():
            loss_of(params).backward()
    # After a step that a scaler has skipped, whichever way gradients are cleared.
    for clear in (sam.zero_grad, lambda: [setattr(p, "grad", None) for p in params]):
        clear()
        loss_of(params).backward()
        with sam.perturbed():
            loss_of(params).backward()


@pytest.mark.parametrize("direction", ["momentum", "random"])
def test_an_only_pass_updates_running_statistics(direction: str) -> None:
    model = network(norm=nn.BatchNorm1d(4))
    sam = SAM(torch.optim.AdamW(model.parameters()), direction=direction)
    for count in range(3):
        assert model[1].num_batches_tracked == count
        sam.step(closure_of(model, sam, batch()))


@pytest.mark.parametrize("direction", ["gradient", "momentum", "random"])
def test_it_begins_late(direction: str) -> None:
    params, plain, calls = leaves(), leaves(), []
    torch.manual_seed(0)
    late = {"start": 0.75, "total_steps": 8}
    sam = SAM(torch.optim.AdamW(params, lr=0.1), rho=0.3, direction=direction, **late)
    base = torch.optim.AdamW(plain, lr=0.1)
    for step in range(8):
        assert sam.is_active == (step >= 6)
        if step == 3:  # Not refused before it has begun.
            sam.zero_grad()
            loss_of(params).backward()
            sam.step()
        elif step == 4:  # A loop of two passes goes on, and p stays where it is.
            sam.zero_grad()
            loss_of(params).backward()
            before = [p.detach().clone() for p in params]
            with sam.perturbed():
                assert same(before, [p.detach() for p in params])
                loss_of(params).backward()
            sam.step()
        else:
            sam.step(closure(params, sam, calls))
        if step < 6:
            base.zero_grad()
            loss_of(plain).backward()
            base.step()
            assert same([p.detach() for p in plain], [p.detach() for p in params])
            assert sam.diagnostics()["ascents"] == 0
    assert sam.diagnostics()["ascents"] == 2
    assert len(calls) == (4 + 2 * 2 if direction == "gradient" else 6)


EVERY = [
    {"direction": "gradient", "metric": "preconditioned"},
    {"direction": "momentum"},
    {"direction": "momentum", "metric": "adaptive", "rho": -0.1},
    {"direction": "momentum", "metric": "preconditioned"},
    {"direction": "random"},
    {"direction": "random", "metric": "adaptive"},
    {"direction": "gradient", "start": 0.5, "total_steps": 9},
]


def trained(sam: SAM, model: nn.Module, steps: int) -> None:
    for _ in range(steps):
        sam.step(closure_of(model, sam, batch()))


@pytest.mark.parametrize("options", EVERY, ids=str)
@pytest.mark.parametrize("base", ["torch", "AdamCM", "int8"])
def test_resumes_bit_for_bit(options: dict[str, Any], base: str) -> None:
    def made(seed: int) -> tuple[nn.Module, SAM]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 1500), nn.Tanh(), nn.Linear(1500, 2))
        kinds = {"torch": torch.optim.AdamW, "AdamCM": steppe.AdamCM, "int8": steppe.DualAdam}
        extra = {"state_dtype": "int8"} if base == "int8" else {}
        return model, SAM(model.parameters(), kinds[base], lr=1e-2, **extra, **options)

    torch.manual_seed(3)
    model, sam = made(0)
    trained(sam, model, 4)
    saved = copy.deepcopy([model.state_dict(), sam.state_dict()])
    duplicate = pickle.loads(pickle.dumps((model, sam)))
    trained(sam, model, 3)
    resumed, again = made(1)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    for other_model, other in ((resumed, again), duplicate):
        trained(other, other_model, 3)
        assert same(values(other_model), values(model))
        assert other.diagnostics() == sam.diagnostics()


def test_checkpoints_from_before_there_were_metrics_load() -> None:
    model = network()
    sam = SAM(torch.optim.AdamW(model.parameters()), adaptive=True)
    trained(sam, model, 2)
    saved = sam.state_dict()
    kept = {"steps", "seed", "metric"}
    groups = [{k: v for k, v in g.items() if k not in kept} for g in saved["param_groups"]]
    old = {**saved, "param_groups": [{**group, "adaptive": True} for group in groups]}
    other = SAM(torch.optim.AdamW(network().parameters()))
    other.load_state_dict(old)
    assert other.param_groups[0]["metric"] == "adaptive"
    assert "adaptive" not in other.param_groups[0]
    assert other.diagnostics()["ascents"] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("options", EVERY, ids=str)
def test_takes_every_number_format(options: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    params = [torch.randn(4, 3).to(dtype).requires_grad_() for _ in range(2)]
    sam = SAM(steppe.DualAdam(params, lr=1e-2), **{"rho": 3.0, **options})
    wide = [p.detach().to(torch.promote_types(p.dtype, torch.float32)) for p in params]
    twin = [p.clone().requires_grad_() for p in wide]
    other = SAM(steppe.DualAdam(twin, lr=1e-2), **{"rho": 3.0, **options})
    generator = torch.Generator().manual_seed(1)
    for step in range(8):
        grads = [torch.randn(p.shape, generator=generator).to(dtype) for p in params]
        for optimizer, held in ((sam, params), (other, twin)):
            if optimizer.has_two_passes:
                for p, g in zip(held, grads, strict=True):
                    p.grad = g.to(p.dtype)
            with optimizer.perturbed():
                for p, g in zip(held, grads, strict=True):
                    p.grad = g.to(p.dtype)
            if step < 7:
                optimizer.step()
    for optimizer in (sam, other):
        optimizer.zero_grad()
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        for p, g in zip(twin, grads, strict=True):
            p.grad = g.to(p.dtype)
        optimizer.perturb()
    for p, q in zip(params, twin, strict=True):
        tolerance = 1e-5 if dtype.is_complex else 0.06
        torch.testing.assert_close(p.to(q.dtype), q, rtol=tolerance, atol=tolerance)


def test_makes_its_base_of_parameters() -> None:
    params = leaves()
    assert type(SAM(params).base_optimizer) is torch.optim.AdamW
    sam = SAM(params, torch.optim.SGD, lr=0.3, momentum=0.5, rho=0.2)
    assert sam.param_groups[0]["momentum"] == 0.5
    assert (sam.param_groups[0]["lr"], sam.param_groups[0]["rho"]) == (0.3, 0.2)
    groups = [{"params": params[:1], "rho": 0.5, "lr": 0.1}, {"params": params[1:]}]
    sam = SAM(groups, base="steppe.AdamCM", lr=0.2, capacity=3)
    assert type(sam.base_optimizer) is steppe.AdamCM
    assert [group["rho"] for group in sam.param_groups] == [0.5, 0.05]
    assert [group["lr"] for group in sam.param_groups] == [0.1, 0.2]
    named = SAM(network().named_parameters(), lambda ps, **options: torch.optim.Adam(ps, **options))
    assert named.param_groups[0]["param_names"][0] == "0.weight"


def test_the_base_gets_the_length_of_the_run() -> None:
    sam = SAM(leaves(), steppe.DualAdam, total_steps=450, start=0.5)
    assert sam.param_groups[0]["switch_rate"] == pytest.approx(1 / 72)
    assert sam.first_step == 225
    sam = SAM(leaves(), torch.optim.SGD, total_steps=450, start=0.5)
    assert "total_steps" not in sam.param_groups[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"direction": "up"}, ValueError, "direction='up' is not valid: expected 'gradient' or"),
        ({"metric": "other"}, ValueError, "metric='other' is not valid: expected 'euclidean' or"),
        (
            {"start": 1.0, "total_steps": 5},
            ValueError,
            r"start=1.0 is not valid: expected a number",
        ),
        ({"start": 0.5}, ValueError, "start=0.5 is not valid without total_steps"),
        ({"start": 0.5, "total_steps": 0}, ValueError, "total_steps=0 is not valid"),
        ({"adaptive": True, "metric": "preconditioned"}, ValueError, "adaptive=True is not valid"),
        (
            {"direction": "random", "metric": "preconditioned"},
            ValueError,
            "metric='preconditioned' is not valid with direction='random'",
        ),
        ({"base": 0.05}, TypeError, "base=0.05 is not valid: expected the class of an optimizer"),
        ({"base": "torch.optim.No"}, ValueError, "base='torch.optim.No' is not valid: expected a"),
        ({"base": "SGD"}, ValueError, "base='SGD' is not valid: expected a class, or its path"),
        ({"base": dict}, TypeError, "base made .* which is not an optimizer"),
        (
            {"base": torch.optim.SGD, "direction": "momentum", "lr": 0.1},
            ValueError,
            "direction='momentum' is not valid for SGD, whose group 0 has none: expected",
        ),
        (
            {"base": torch.optim.Adagrad, "direction": "momentum"},
            ValueError,
            "direction='momentum' is not valid for Adagrad",
        ),
        (
            {"base": steppe.SGDCM, "metric": "preconditioned"},
            ValueError,
            "metric='preconditioned' is not valid for SGDCM: expected an optimizer of this library",
        ),
        (
            {"base": torch.optim.Adamax, "metric": "preconditioned"},
            ValueError,
            "metric='preconditioned' is not valid for Adamax",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    params: Any = [{"x": torch.ones(1)}] if options.get("base") is dict else leaves()
    if options.get("base") is dict:
        params = [("a", torch.ones(1))]
    with pytest.raises(error, match=message):
        SAM(params, **options)


def test_beside_an_optimizer_no_other_is_made() -> None:
    base = torch.optim.SGD(leaves())
    for options, error, message in (
        ({"base": torch.optim.Adam}, ValueError, "is not valid beside an optimizer: expected it"),
        ({"lr": 0.1}, TypeError, "lr=0.1 is not valid beside an optimizer: expected it among"),
    ):
        with pytest.raises(error, match=message):
            SAM(base, **options)
    with pytest.raises(ValueError, match=r"base=0.05 is not valid beside an optimizer"):
        SAM(base, 0.05)
    assert "rho" not in base.defaults
    assert "rho" not in base.param_groups[0]


def test_states_without_a_moment_are_refused_before_anything_changes() -> None:
    class Odd(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"betas": (0.9, 0.99)})

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["odd"] = torch.ones(1)

    params = leaves()
    sam = SAM(Odd(params), direction="momentum")
    sam.step(closure(params, sam))
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="does not fit Odd: the state of a parameter of shape"):
        sam.step(closure(params, sam))
    assert same(before, [p.detach() for p in params])


def test_frozen_parameters_stay() -> None:
    for direction in ("momentum", "random"):
        params = leaves()
        sam = SAM(torch.optim.AdamW(params, lr=0.1), direction=direction, rho=1.0)
        sam.step(closure(params, sam))
        params[0].requires_grad_(False)
        before = params[0].detach().clone()
        with sam.perturbed():
            assert torch.equal(params[0], before)
            assert not torch.equal(params[1].detach(), torch.zeros_like(params[1]))
            loss_of(params[1:]).backward()


@pytest.mark.parametrize("options", EVERY[1:6], ids=str)
def test_one_pass_under_a_grad_scaler(options: dict[str, Any]) -> None:
    ends = []
    for scaled in (False, True):
        torch.manual_seed(0)
        params = leaves()
        sam = SAM(torch.optim.AdamW(params, lr=0.1), **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
        for _ in range(4):
            sam.zero_grad()
            with sam.perturbed():
                scaler.scale(loss_of(params)).backward()
            scaler.step(sam)
            scaler.update()
        ends.append([p.detach() for p in params])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
