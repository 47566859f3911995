"""SAM around every optimizer: what it computes, what it leaves alone, and how it is used."""

import copy
import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.optim import Optimizer, lr_scheduler, swa_utils

import steppe
from reference import reference, sam_perturbation
from steppe import SAM, rules

Make = Callable[..., Optimizer]

BASES: dict[str, Make] = {
    "DualAdam": lambda ps: steppe.DualAdam(ps, lr=1e-2, switch_rate=0.3),
    "InvAdam": lambda ps: steppe.InvAdam(ps, lr=1e-2),
    "AdamCM": lambda ps: steppe.AdamCM(ps, lr=1e-2, capacity=2),
    "DualAdamCM": lambda ps: steppe.DualAdamCM(ps, lr=1e-2, capacity=2, switch_rate=0.3),
    "SGDCM": lambda ps: steppe.SGDCM(ps, lr=1e-2, capacity=2),
    "SGDCG": lambda ps: steppe.SGDCG(ps, lr=1e-2, capacity=2, momentum=0.5),
    "AdamCG": lambda ps: steppe.AdamCG(ps, lr=1e-2, capacity=2),
    "RMSpropCG": lambda ps: steppe.RMSpropCG(ps, lr=1e-2, capacity=2),
    "torch.AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-2),
    "torch.AdamW fused": lambda ps: torch.optim.AdamW(ps, lr=1e-2, fused=True),
    "torch.SGD": lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.5, dampening=-0.5),
    "torch.RMSprop": lambda ps: torch.optim.RMSprop(ps, lr=1e-2, centered=True),
    "torch.Adadelta": lambda ps: torch.optim.Adadelta(ps, rho=0.8),
    "torch.Adafactor": lambda ps: torch.optim.Adafactor(ps, lr=1e-2),
}


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    """Save what tests on small tensors and models need not pay for.

    Threads that wait for each other take longer than the arithmetic, and SAM's search for layers
    need not pass over what was there before the test.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


every_base = pytest.mark.parametrize("make", BASES.values(), ids=BASES)
either_form = pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "adaptive"])


def network(dtype: torch.dtype = torch.float32, norm: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), norm or nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def batch(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(1)).to(dtype)


def closure_of(model: Any, opt: Optimizer, inputs: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    return closure


def train(model: nn.Module, opt: Optimizer, steps: int = 4) -> None:
    """Take steps; each base and SAM accept a closure."""
    inputs = batch(next(model.parameters()).dtype)
    for _ in range(steps):
        opt.step(closure_of(model, opt, inputs))


def values(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in model.state_dict().values()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Bit for bit, NaN included."""
    pairs = zip(left, right, strict=True)
    return all(bits(a) == bits(b) and a.dtype == b.dtype for a, b in pairs)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# --- what it computes ---

STARTS = (np.array([[0.3, -1.2, 2.0], [0.7, 0.1, -0.4]]), np.array([1.5, -0.2]))


def gradient(p: np.ndarray) -> np.ndarray:
    """Gradient of Σ sin(3p) + p⁴/4, which is not convex."""
    return np.asarray(3 * np.cos(3 * p) + p**3)


def wavy(params: list[nn.Parameter]) -> Tensor:
    return sum(((3 * p).sin() + p**4 / 4).sum() for p in params)  # type: ignore[return-value]


def wavy_closure(params: list[nn.Parameter], opt: Optimizer, sign: int = 1) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = sign * wavy(params)
        loss.backward()
        return loss

    return closure


@either_form
@pytest.mark.parametrize("rho", [None, 0.3])
@pytest.mark.parametrize("name", ["AdamCM", "AdamCG", "SGDCM", "RMSpropCG"])
def test_equals_the_float64_reference(name: str, rho: float | None, adaptive: bool) -> None:
    params = [nn.Parameter(torch.tensor(p)) for p in STARTS]
    sam = SAM(getattr(steppe, name)(params, lr=1e-2), rho, adaptive=adaptive)
    ref = reference(name, STARTS, lr=1e-2)
    for _ in range(20):
        sam.step(wavy_closure(params, sam))
        e = sam_perturbation(ref.params, [gradient(p) for p in ref.params], rho, adaptive)
        ref.step([gradient(p + x) for p, x in zip(ref.params, e, strict=True)])
        for p, expected in zip(params, ref.params, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-11, atol=1e-15)


@either_form
def test_perturbation_in_single_precision(adaptive: bool) -> None:
    params = [nn.Parameter(torch.tensor(p, dtype=torch.float32)) for p in STARTS]
    sam = SAM(torch.optim.SGD(params), 0.3, adaptive=adaptive)
    wavy_closure(params, sam)()
    starts = [p.detach().double().numpy() for p in params]
    expected = sam_perturbation(starts, [p.grad.numpy() for p in params], 0.3, adaptive)  # type: ignore[union-attr]
    sam.perturb()
    for p, start, e in zip(params, starts, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), start + e, rtol=3e-7)
        assert p.grad is None


def test_groups_have_their_own_radius_and_form() -> None:
    starts = [*STARTS, np.array([0.5])]
    params = [nn.Parameter(torch.tensor(p)) for p in starts]
    groups: list[dict[str, Any]] = [
        {"params": params[:1], "rho": 0.2},
        {"params": params[1:2], "adaptive": True},
    ]
    sam = SAM(torch.optim.SGD(groups, lr=0.1), rho=0.4)
    sam.add_param_group({"params": params[2:], "rho": 0.0})
    sam.step(wavy_closure(params, sam))

    g = [gradient(p) for p in starts]
    lengths = [g[0], np.abs(starts[1]) * g[1], g[2]]
    norm = np.sqrt(sum(np.sum(x**2) for x in lengths)) + 1e-12
    e = [0.2 * g[0] / norm, 0.4 * starts[1] ** 2 * g[1] / norm, np.zeros(1)]
    for p, start, x in zip(params, starts, e, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), start - 0.1 * gradient(start + x), 1e-12)


def test_complex_parameters_are_pairs_of_real_ones() -> None:
    start = np.array([1 + 2j, -0.5 + 0.3j])
    slope = np.array([0.2 - 1j, 2 + 0j])
    for adaptive in (False, True):
        p = nn.Parameter(torch.tensor(start))
        # The gradient of this loss is the slope, as a conjugate that is not yet computed.
        (p.conj() * torch.tensor(slope)).sum().real.backward()
        assert p.grad is not None
        assert p.grad.is_conj()
        SAM(torch.optim.SGD([p]), 0.3, adaptive=adaptive).perturb()
        pairs = [x.view(np.float64) for x in (start, slope)]
        (e,) = sam_perturbation(pairs[:1], pairs[1:], 0.3, adaptive)
        np.testing.assert_allclose(p.detach().numpy().view(np.float64), pairs[0] + e, 1e-12)


@either_form
@every_base
def test_maximising_is_minimising_minus_the_objective(make: Make, adaptive: bool) -> None:
    ends = []
    for sign in (1, -1):
        params = [nn.Parameter(torch.tensor(p, dtype=torch.float32)) for p in STARTS]
        base = make([{"params": params, "maximize": sign < 0}])
        sam = SAM(base, 0.3, adaptive=adaptive)
        run = wavy_closure(params, sam, sign)
        for _ in range(3):
            sam.step(run)
        ends.append(params)
    assert same(*ends)


def test_groups_that_minimise_and_maximise() -> None:
    params = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    sam = SAM(torch.optim.SGD([{"params": params[:1]}, {"params": params[1:], "maximize": True}]))
    for p, slope in zip(params, (3.0, 4.0), strict=True):
        p.grad = torch.full((1,), slope)
    sam.perturb()
    torch.testing.assert_close([p.item() for p in params], [1 + 0.03, 1 - 0.04])


@every_base
def test_zero_radius_is_the_base_optimizer(make: Make) -> None:
    plain, wrapped = network(), network()
    train(plain, make(plain.parameters()))
    train(wrapped, SAM(make(wrapped.parameters()), rho=0.0))
    assert same(values(plain), values(wrapped))


@every_base
def test_wraps_every_optimizer(make: Make) -> None:
    plain, wrapped = network(), network()
    train(plain, make(plain.parameters()), steps=20)
    sam = SAM(make(wrapped.parameters()), rho=0.05)
    before = closure_of(wrapped, sam, batch())().item()
    train(wrapped, sam, steps=20)
    after = closure_of(wrapped, sam, batch())().item()
    assert after < before
    assert not same(values(plain), values(wrapped))


# --- one optimizer, not two ---


@every_base
def test_groups_state_and_defaults_are_the_bases_own(make: Make) -> None:
    model = network()
    base = make(model.parameters())
    sam = SAM(base)
    assert sam.param_groups is base.param_groups
    assert sam.defaults is base.defaults
    train(model, sam)
    assert sam.state is base.state
    assert sam.state
    sam.load_state_dict(sam.state_dict())
    assert sam.param_groups is base.param_groups
    assert sam.state is base.state


def test_engine_and_diagnostics_are_the_bases() -> None:
    model = network()
    sam = SAM(steppe.DualAdam(model.parameters()))
    train(model, sam)
    assert sam.engine == sam.base_optimizer.engine != "torch.optim"  # type: ignore[attr-defined]
    assert sam.diagnostics() == sam.base_optimizer.diagnostics()  # type: ignore[operator]
    sgd = SAM(torch.optim.SGD(model.parameters()))
    assert sgd.engine == "torch.optim"
    assert sgd.diagnostics() == {}


def test_added_parameters_are_trained_and_perturbed() -> None:
    model, late = network(torch.float64), nn.Parameter(torch.ones(2, dtype=torch.float64))
    sam = SAM(steppe.AdamCM(model.parameters(), lr=0.1), rho=0.3)
    sam.add_param_group({"params": [late], "lr": 0.2})
    assert sam.base_optimizer.param_groups[1]["rho"] == 0.3
    late.square().sum().backward()
    sam.perturb()
    torch.testing.assert_close(late.detach(), torch.full_like(late, 1 + 0.3 * 0.5**0.5))
    late.sum().backward()
    sam.step()
    torch.testing.assert_close(late.detach(), torch.full_like(late, 0.8))


def test_adadelta_keeps_its_own_rho() -> None:
    p, late = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    sam = SAM(torch.optim.Adadelta([p], rho=0.8), rho=0.25)
    sam.add_param_group({"params": [late]})
    assert [(g["rho"], g["sam_rho"]) for g in sam.param_groups] == [(0.8, 0.25)] * 2
    p.grad = torch.ones(1)
    sam.perturb()
    assert p.item() == 1.25


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-1, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.5, anneal_epochs=3),
}


def scheduled(opt: Optimizer, name: str, params: list[nn.Parameter]) -> list[Any]:
    """Rates and momenta after each of five steps of the optimizer and its scheduler."""
    scheduler = SCHEDULERS[name](opt)
    seen = []
    for _ in range(5):
        opt.step(wavy_closure(params, opt))
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        seen.append([(g["lr"], g["betas"]) for g in opt.param_groups])
    return seen


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_act_on_both(name: str) -> None:
    plain, wrapped = ([nn.Parameter(torch.tensor(p)) for p in STARTS] for _ in range(2))
    expected = scheduled(torch.optim.AdamW(plain, lr=1e-2), name, plain)
    sam = SAM(steppe.AdamCM(wrapped, lr=1e-2), rho=0.0)
    assert scheduled(sam, name, wrapped) == expected
    assert len({str(step) for step in expected}) > 1
    assert sam.base_optimizer.param_groups[0]["lr"] == expected[-1][0][0]


def test_all_schedulers_of_torch_are_tried() -> None:
    assert {n for n in lr_scheduler.__all__ if n != "LRScheduler"} <= SCHEDULERS.keys()


def test_a_scheduler_of_the_base_sees_its_steps() -> None:
    params = [nn.Parameter(torch.tensor(p)) for p in STARTS]
    base = torch.optim.AdamW(params, lr=0.1)
    scheduler = lr_scheduler.ExponentialLR(base, 0.5)
    sam = SAM(base)
    # A scheduler that steps before its optimizer warns, and warnings are errors here.
    sam.step(wavy_closure(params, sam))
    scheduler.step()
    assert sam.param_groups[0]["lr"] == 0.05


def test_step_hooks_run_once_a_step() -> None:
    model, seen = network(), []
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    start = values(model)
    sam.register_step_pre_hook(lambda o, _, __: seen.append((o, same(start, values(model)))))
    sam.register_step_post_hook(lambda o, _, __: seen.append((o, same(start, values(model)))))
    train(model, sam, steps=1)
    assert seen == [(sam, True), (sam, False)]


def test_checkpoint_hooks_run() -> None:
    model, seen = network(), []
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    sam.register_state_dict_pre_hook(lambda _: seen.append("before saving"))
    sam.register_state_dict_post_hook(lambda _, saved: {**saved, "note": 1})
    sam.register_load_state_dict_pre_hook(lambda _, saved: seen.append(saved["note"]))
    sam.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    sam.load_state_dict(sam.state_dict())
    assert seen == ["before saving", 1, "loaded"]


# --- checkpoints and copies ---


def save(path: Path) -> None:
    """Train each base inside SAM and save it."""
    saved = {}
    for name, make in BASES.items():
        model = network()
        sam = SAM(make(model.parameters()), 0.2, adaptive=True)
        train(model, sam)
        saved[name] = [model.state_dict(), sam.state_dict()]
    torch.save(saved, path)


def resume(path: Path) -> dict[str, list[Tensor]]:
    """Load what :func:`save` saved and train on."""
    ends = {}
    for name, (weights, options) in torch.load(path, weights_only=True).items():
        model = network()
        sam = SAM(BASES[name](model.parameters()), rho=0.1)
        model.load_state_dict(weights)
        sam.load_state_dict(options)
        assert [sam.param_groups[0][k] for k in (radius(name), "adaptive")] == [0.2, True]
        train(model, sam)
        ends[name] = values(model)
    return ends


def radius(name: str) -> str:
    return "sam_rho" if name == "torch.Adadelta" else "rho"


def test_resumes_bit_for_bit_in_a_new_process(tmp_path: Path) -> None:
    save(tmp_path / "saved")
    command = [sys.executable, __file__, str(tmp_path / "saved"), str(tmp_path / "ends")]
    where = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": where})
    ends = torch.load(tmp_path / "ends", weights_only=True)
    for name, make in BASES.items():
        model = network()
        train(model, SAM(make(model.parameters()), 0.2, adaptive=True), steps=8)
        assert same(ends[name], values(model)), name


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@every_base
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_copies_go_on_alike_and_apart(make: Make, duplicate: Callable[[Any], Any]) -> None:
    model = network(norm=nn.BatchNorm1d(4))
    sam = SAM(make(model.parameters()), 0.2, adaptive=True)
    train(model, sam)
    other, other_sam = duplicate((model, sam))
    assert other_sam.param_groups is other_sam.base_optimizer.param_groups
    assert other_sam.param_groups[0]["params"][0] is other[0].weight
    train(model, sam)
    assert not same(values(model), values(other))
    train(other, other_sam)
    assert same(values(model), values(other))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_a_perturbed_sam_is_not_copied(duplicate: Callable[[Any], Any]) -> None:
    p = nn.Parameter(torch.ones(2))
    sam = SAM(torch.optim.SGD([p], lr=1.0))
    p.grad = torch.ones(2)
    with sam.perturbed(), pytest.raises(RuntimeError, match=r"restore\(\) first"):
        duplicate(sam)
    assert torch.equal(duplicate(sam).param_groups[0]["params"][0], torch.ones(2))


@every_base
def test_misfit_checkpoints_are_refused_and_change_nothing(make: Make) -> None:
    model = network()
    sam = SAM(make(model.parameters()))
    train(model, sam)
    rho = "sam_rho" if "sam_rho" in sam.defaults else "rho"
    good = copy.deepcopy(sam.state_dict())
    before = bits_of_state(sam)
    misfits: dict[str, dict[str, Any]] = {
        f"option '{rho}' of group 0 is missing": make(network().parameters()).state_dict(),
        f"rho={-1.0!r} is not valid": edited(good, rho, -1.0),
        "adaptive=1 is not valid": edited(good, "adaptive", 1),
        "'param_groups' is missing": {"state": good["state"]},
    }
    for message, misfit in misfits.items():
        with pytest.raises(ValueError, match=message):
            sam.load_state_dict(misfit)
        assert bits_of_state(sam) == before
    with pytest.raises(ValueError, match=r"group"):  # the base's own refusal
        sam.load_state_dict({**good, "param_groups": good["param_groups"] * 2})
    assert bits_of_state(sam) == before


def edited(saved: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    saved = copy.deepcopy(saved)
    saved["param_groups"][0][name] = value
    return saved


def bits_of_state(sam: SAM) -> list[Any]:
    state = [
        (k, bits(v) if isinstance(v, Tensor) else v)
        for s in sam.state.values()
        for k, v in s.items()
    ]
    options = [{k: v for k, v in g.items() if k != "params"} for g in sam.param_groups]
    return [state, options]


# --- exact restore ---

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64]


@either_form
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_restores_every_bit_in_place(dtype: torch.dtype, adaptive: bool) -> None:
    torch.manual_seed(0)
    shapes = [(5, 3), (), (2, 3, 4, 4)]
    params = [nn.Parameter(torch.randn(s, dtype=dtype)) for s in shapes]
    params[2].data = params[2].data.to(memory_format=torch.channels_last)
    params.append(nn.Parameter(torch.randn(4, 3, dtype=dtype).t()))
    params.append(nn.Parameter(torch.zeros(0, 2, dtype=dtype)))
    for p in params:
        p.grad = torch.randn_like(p)
    before = [(p.data_ptr(), p.stride(), bits(p)) for p in params]
    sam = SAM(torch.optim.SGD(params), rho=3.0, adaptive=adaptive)
    for _ in range(2):
        with sam.perturbed():
            moved = [bits(p) for p in params]
            assert all(m != b[2] for m, b in zip(moved[:4], before, strict=False))
            for p in params:
                p.grad = torch.randn_like(p)
        assert [(p.data_ptr(), p.stride(), bits(p)) for p in params] == before


@either_form
def test_half_precision_perturbation_is_computed_in_single_precision(adaptive: bool) -> None:
    # The norm of these gradients, 2.6e5, and their products with p are beyond half precision.
    p = nn.Parameter(torch.full((64,), 4.0, dtype=torch.float16))
    p.grad = torch.full_like(p, 32768.0)
    SAM(torch.optim.SGD([p]), rho=8.0, adaptive=adaptive).perturb()
    assert torch.equal(p.detach(), torch.full_like(p, 8.0 if adaptive else 5.0))


def test_restores_when_the_second_pass_raises() -> None:
    model = network(norm=nn.BatchNorm1d(4))
    sam = SAM(steppe.AdamCM(model.parameters()))
    train(model, sam)
    inputs, calls = batch(), []

    def closure() -> Tensor:
        calls.append(1)
        loss = closure_of(model, sam, inputs)()
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loss

    expected = copy.deepcopy(model)
    expected(inputs)
    state = bits_of_state(sam)
    pointers = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        sam.step(closure)
    assert same(values(model), values(expected))
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert bits_of_state(sam) == state


def test_restores_when_the_perturbation_itself_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    sam = SAM(torch.optim.SGD(model.parameters()), rho=1.0)
    closure_of(model, sam, batch())()
    before, calls, ascent = values(model), [], rules.sam_ascent

    def fails_later(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return ascent(*arguments)

    monkeypatch.setattr(rules, "sam_ascent", fails_later)
    with pytest.raises(MemoryError):
        sam.perturb()
    assert same(values(model), before)


def test_a_perturbation_left_behind_is_undone_by_the_next() -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    sam = SAM(torch.optim.SGD([p]), rho=0.1)
    for slope in ([3.0, 4.0], [0.0, 1.0]):
        p.grad = torch.tensor(slope)
        sam.perturb()
    torch.testing.assert_close(p.detach(), torch.tensor([1.0, 2.1]))
    for _ in range(2):
        sam.restore()
        assert torch.equal(p.detach(), torch.tensor([1.0, 2.0]))


def test_a_parameter_twice_in_its_group_is_restored() -> None:
    p = nn.Parameter(torch.ones(3))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        sam = SAM(torch.optim.SGD([p, p]), rho=1.0)
    p.grad = torch.ones(3)
    with sam.perturbed():
        assert p[0] > 1
    assert torch.equal(p.detach(), torch.ones(3))


# --- three ways to use it ---


@torch.no_grad()
def test_step_calls_the_closure_twice_and_returns_the_first_loss() -> None:
    model = network()
    sam = SAM(steppe.DualAdam(model.parameters()), rho=0.5)
    losses: list[float] = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        loss = closure_of(model, sam, batch())()
        losses.append(loss.item())
        return loss

    loss = sam.step(closure)
    assert len(losses) == 2
    assert loss.item() == losses[0] != losses[1]
    assert not torch.is_grad_enabled()


def test_two_calls_are_one_step_with_a_closure() -> None:
    one, two = network(norm=nn.BatchNorm1d(4)), network(norm=nn.BatchNorm1d(4))
    train(one, SAM(steppe.AdamCM(one.parameters()), rho=0.3))
    sam = SAM(steppe.AdamCM(two.parameters()), rho=0.3)
    for _ in range(4):
        closure_of(two, sam, batch())()
        sam.perturb()
        two(batch()).square().mean().backward()
        assert sam.step() is None
    assert same(values(one), values(two))


@every_base
def test_a_step_alone_is_the_base_s(make: Make) -> None:
    one, two = network(), network()
    plain, sam = make(one.parameters()), SAM(make(two.parameters()), rho=1.0)
    for model, opt in ((one, plain), (two, sam)):
        closure_of(model, opt, batch())()
        assert opt.step() is None
    assert same(values(one), values(two))


def test_accumulation_over_small_batches_is_the_whole_batch() -> None:
    one, two = network(torch.float64), network(torch.float64)
    train(one, SAM(steppe.AdamCM(one.parameters()), rho=0.3))
    sam = SAM(steppe.AdamCM(two.parameters()), rho=0.3)

    def accumulate() -> None:
        for part in batch(torch.float64).chunk(4):
            (two(part).square().mean() / 4).backward()

    for _ in range(4):
        sam.zero_grad()
        accumulate()
        with sam.perturbed():
            accumulate()
        sam.step()
    torch.testing.assert_close(values(one), values(two), rtol=1e-12, atol=0)


def scaled_step(
    model: nn.Module, sam: SAM, scaler: torch.amp.GradScaler, factors: tuple[float, float]
) -> None:
    """One step with scaled losses; a factor of infinity makes that pass overflow."""
    sam.zero_grad()
    scaler.scale(model(batch()).square().mean() * factors[0]).backward()
    with sam.perturbed():
        scaler.scale(model(batch()).square().mean() * factors[1]).backward()
    scaler.step(sam)
    scaler.update()


@either_form
def test_grad_scaler_changes_nothing(adaptive: bool) -> None:
    one, two = network(), network()
    train(one, SAM(steppe.AdamCM(one.parameters(), lr=0.1), 0.3, adaptive=adaptive))
    sam = SAM(steppe.AdamCM(two.parameters(), lr=0.1), 0.3, adaptive=adaptive)
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(4):
        scaled_step(two, sam, scaler, (1.0, 1.0))
    torch.testing.assert_close(values(one), values(two), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factors", [(1.0, torch.inf), (torch.inf, torch.inf)])
def test_a_step_that_grad_scaler_skips_changes_nothing(factors: tuple[float, float]) -> None:
    model = network()
    sam = SAM(steppe.AdamCM(model.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled_step(model, sam, scaler, (1.0, 1.0))
    before, state = values(model), bits_of_state(sam)
    pointers = [p.data_ptr() for p in model.parameters()]
    scaled_step(model, sam, scaler, factors)
    assert same(values(model), before)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert bits_of_state(sam) == state
    assert scaler.get_scale() == 512.0
    scaled_step(model, sam, scaler, (1.0, 1.0))
    assert not same(values(model), before)


def test_overflow_in_the_first_pass_alone_leaves_the_base_step() -> None:
    one, two = network(), network()
    train(one, torch.optim.SGD(one.parameters(), lr=0.1), steps=1)
    sam = SAM(torch.optim.SGD(two.parameters(), lr=0.1))
    scaled_step(two, sam, torch.amp.GradScaler("cpu", init_scale=1024.0), (torch.inf, 1.0))
    assert same(values(one), values(two))


def test_one_autocast_region_around_both_passes() -> None:
    """Autocast keeps the weights that it has cast, which must not outlive the perturbation."""
    ends = []
    for outside in (False, True):
        model = network()
        sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0)
        inside = torch.autocast("cpu", torch.bfloat16, enabled=not outside)
        run = closure_of(model, sam, batch())

        def closure(run: Any = run, inside: Any = inside) -> Tensor:
            with inside:
                return run()

        if outside:
            with torch.autocast("cpu", torch.bfloat16):
                sam.step(run)
                after = model(batch())
        else:
            sam.step(closure)
            with torch.autocast("cpu", torch.bfloat16):
                after = model(batch())
        ends.append([*values(model), after])
    assert same(*ends)


# --- buffers ---


class Average(nn.Module):
    """Counts the passes and averages what it sees, as codebooks and observers do.

    ``how`` says how it writes: in place, past autograd's version count, or to a new tensor.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("passes", torch.zeros((), dtype=torch.long), persistent=False)
        self.register_buffer("unset", None)
        self.register_buffer("sparse", torch.eye(4).to_sparse())
        self.register_buffer("expanded", torch.ones(1).expand(4))
        with torch.inference_mode():
            self.register_buffer("inference", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        new = (0.9 * self.mean + 0.1 * x.mean(0)).detach()
        if self.how == "assigned":
            self.mean, self.passes = new, self.passes + 1
        else:
            (self.mean.data if self.how == "data" else self.mean).copy_(new)
            self.passes += 1
        return x - self.mean.clone()


LAYERS = {
    "batch": lambda: nn.BatchNorm1d(4),
    "batch, cumulative": lambda: nn.BatchNorm1d(4, momentum=None),
    "batch, no parameters": lambda: nn.BatchNorm1d(4, affine=False),
    "batch, lazy": lambda: nn.LazyBatchNorm1d(),
    "batch, no statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "batch, frozen": lambda: nn.BatchNorm1d(4).requires_grad_(False).eval(),
    "instance": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    ),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "spectral, by hook": lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
    "average, in place": lambda: Average("in place"),
    "average, data": lambda: Average("data"),
    "average, assigned": lambda: Average("assigned"),
}


def dense(model: nn.Module) -> list[Tensor]:
    return [buffer.to_dense().clone() for buffer in model.buffers()]


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_buffers_are_the_first_pass_s(layer: Callable[[], nn.Module]) -> None:
    model = network(norm=layer())
    model(batch())
    modes = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    sam = SAM(steppe.AdamCM([p for p in model.parameters() if p.requires_grad], lr=0.1), rho=1.0)
    run, after = closure_of(model, sam, batch()), []

    def closure() -> Tensor:
        loss = run()
        after.append(dense(model))
        return loss

    for _ in range(3):
        buffers = list(model.buffers())
        sam.step(closure)
        assert same(dense(model), after[-2])
        if layer is not LAYERS["average, assigned"]:
            assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))
        assert [
            (m.training, getattr(m, "track_running_stats", None)) for m in model.modules()
        ] == modes


def test_layers_that_are_not_in_training_are_not_written_to() -> None:
    model = network(norm=nn.BatchNorm1d(4).eval())
    whole = nn.ModuleList([model, nn.LazyBatchNorm1d(affine=False)])
    versions = [buffer._version for buffer in model[1].buffers()]
    train(model, SAM(torch.optim.SGD(whole.parameters(), lr=0.1)))
    assert [buffer._version for buffer in model[1].buffers()] == versions


def test_a_buffer_assigned_in_the_second_pass_is_the_old_tensor_again() -> None:
    model = network(norm=Average("assigned"))
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    closure_of(model, sam, batch())()
    mean = model[1].mean
    with sam.perturbed():
        model(batch())
        assert model[1].mean is not mean
    assert model[1].mean is mean


def test_a_buffer_that_is_a_view_of_a_parameter_does_not_undo_the_restoration() -> None:
    model = network()
    model[0].register_buffer("view", model[0].weight.detach())
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0)
    closure_of(model, sam, batch())()
    before = values(model)
    with sam.perturbed():
        assert not same(values(model), before)
    assert same(values(model), before)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_cache_that_grows_in_the_second_pass_stays(in_place: bool) -> None:
    model = network()
    model.register_buffer("cache", torch.arange(2.0))
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    closure_of(model, sam, batch())()
    with sam.perturbed():
        if in_place:
            model.cache.resize_(3).fill_(1.0)
        else:
            model.cache = torch.ones(3)
    assert torch.equal(model.cache, torch.ones(3))


def test_graphs_through_other_layers_of_the_model_stay_usable() -> None:
    generator, critic = network(norm=nn.BatchNorm1d(4)), nn.Linear(2, 1)
    whole = nn.ModuleList([generator, critic])
    sam = SAM(torch.optim.SGD(critic.parameters(), lr=0.1))
    made = generator(batch())
    sam.step(closure_of(critic, sam, made.detach()))
    made.sum().backward()
    assert all(p.grad is not None for p in whole[0].parameters())


def test_the_second_pass_uses_its_own_batch_statistics() -> None:
    model, double = network(norm=nn.BatchNorm1d(4)), network(norm=nn.BatchNorm1d(4))
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0)
    closure_of(model, sam, batch())()
    sam.perturb()
    double.load_state_dict(model.state_dict())
    assert torch.equal(model(batch()), double(batch()))


def test_statistics_of_a_layer_that_was_replaced() -> None:
    model = network(norm=nn.BatchNorm1d(4))
    sam = SAM(steppe.AdamCM(model.parameters()))
    train(model, sam)
    new = nn.BatchNorm1d(4)
    new.weight, new.bias = model[1].weight, model[1].bias
    model[1] = new
    gc.collect()
    train(model, sam, steps=3)
    assert new.num_batches_tracked == 3


def test_statistics_of_layers_added_later() -> None:
    model, head = network(), nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    sam = SAM(steppe.AdamCM(model.parameters()))
    train(model, sam)
    sam.add_param_group({"params": head[1].parameters()})
    for _ in range(3):
        sam.step(closure_of(lambda x: head(model(x)), sam, batch()))
    assert head[0].num_batches_tracked == 3


def test_of_tensors_that_no_module_can_hold_no_layers_are_sought(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise AssertionError("the search takes its time")

    param = torch.ones(2, requires_grad=True)
    param.grad = torch.ones(2)
    monkeypatch.setattr(gc, "get_objects", refuse)
    with SAM(torch.optim.SGD([param])).perturbed():
        assert not torch.equal(param, torch.ones(2))


def test_no_hook_is_ever_set_on_all_modules() -> None:
    model = network(norm=nn.BatchNorm1d(4))
    sam = SAM(torch.optim.SGD(model.parameters()))
    closure_of(model, sam, batch())()
    with sam.perturbed():
        assert not torch_module._has_any_global_hook()


@pytest.mark.parametrize("how", ["module", "function", "in place"])
def test_statistics_of_compiled_modules(how: str) -> None:
    torch.compiler.reset()
    model, plain = network(norm=nn.BatchNorm1d(4)), network(norm=nn.BatchNorm1d(4))
    run: Any = model
    if how == "module":
        run = torch.compile(model, backend="eager", fullgraph=True)
    elif how == "function":
        run = torch.compile(lambda x: model(x), backend="eager", fullgraph=True)
    else:
        model.compile(backend="eager")
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(3):
        sam.step(closure_of(run, sam, batch()))
    train(plain, SAM(torch.optim.SGD(plain.parameters(), lr=0.1)), steps=3)
    torch.testing.assert_close(values(model), values(plain))


# --- gradients that are missing, zero, broken or sparse ---


def test_parameters_without_gradients_stay_and_do_not_count() -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    params[1].requires_grad_(False)
    sam = SAM(steppe.AdamCM(params), rho=1.0)
    params[0].grad = torch.tensor([3.0, 4.0])
    with sam.perturbed():
        torch.testing.assert_close(params[0].detach(), torch.tensor([1.6, 1.8]))
        assert all(torch.equal(p.detach(), torch.ones(2)) for p in params[1:])
        params[0].grad = torch.ones(2)
    sam.step()
    assert all(torch.equal(p.detach(), torch.ones(2)) for p in params[1:])
    assert list(sam.state) == params[:1]


def test_no_gradients_at_all() -> None:
    model = network()
    before = values(model)
    sam = SAM(steppe.AdamCM(model.parameters()))
    with sam.perturbed():
        assert same(values(model), before)
    sam.step()
    assert same(values(model), before)


@either_form
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_gradients_that_give_no_direction(value: float, adaptive: bool) -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    sam = SAM(torch.optim.SGD(params, lr=1.0), adaptive=adaptive)
    params[0].grad = torch.tensor([value, 0.0])
    params[1].grad = torch.zeros(2) if value == 0 else torch.ones(2)
    with sam.perturbed():
        assert all(torch.equal(p.detach(), torch.ones(2)) for p in params)


def test_nan_reaches_the_base() -> None:
    p, plain = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    sam = SAM(torch.optim.AdamW([p]))

    def closure() -> None:
        p.grad = torch.tensor([torch.nan, 1.0])

    sam.step(closure)
    plain.grad = p.grad
    torch.optim.AdamW([plain]).step()
    assert p[0].isnan()
    assert same([p], [plain])


def test_sparse_gradients_are_refused_before_anything_has_changed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Embedding(4, 3, sparse=True))
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0)
    before = values(model)

    def closure() -> None:
        sam.zero_grad()
        model[0](model[1](torch.tensor([1, 2]))).square().sum().backward()

    with pytest.raises(RuntimeError, match=r"sparse.*shape \(4, 3\).*sparse=False"):
        sam.step(closure)
    assert same(values(model), before)
    assert all(p.grad is not None for p in model.parameters())


# --- arguments ---


@pytest.mark.parametrize("wrong", [torch.optim.SGD, [nn.Parameter(torch.ones(1))], None])
def test_only_optimizers_are_wrapped(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"base_optimizer=(.|\n)* is not an optimizer"):
        SAM(wrong)


@pytest.mark.parametrize("with_scheduler", [False, True])
def test_a_base_whose_step_needs_a_closure_is_refused(with_scheduler: bool) -> None:
    base = torch.optim.LBFGS(network().parameters())
    if with_scheduler:
        lr_scheduler.ExponentialLR(base, 0.5)
    options = copy.copy(base.defaults)
    with pytest.raises(TypeError, match="base_optimizer=LBFGS needs closure in every step"):
        SAM(base)
    assert base.defaults == options


class Delegating(torch.optim.SGD):
    def step(self, *args: Any, **kwargs: Any) -> Any:
        return super().step(*args, **kwargs)


class Compiled(torch.optim.SGD):
    step: Any = dict.update  # has no signature, as steps of extension modules may not


@pytest.mark.parametrize("kind", [Delegating, Compiled])
def test_other_steps_are_not_refused(kind: Any) -> None:
    base = kind([nn.Parameter(torch.ones(2, 2))], lr=0.1)
    lr_scheduler.ExponentialLR(base, 0.5)
    SAM(base)


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf"), "0.1", True])
def test_rho_out_of_range_is_refused(rho: Any) -> None:
    p = nn.Parameter(torch.ones(1))
    for base in (torch.optim.SGD([p]), torch.optim.Adadelta([p])):
        options = copy.copy(base.defaults)
        with pytest.raises(ValueError, match=r"rho=.* is not valid: expected a finite number ≥ 0"):
            SAM(base, rho=rho)
        assert base.defaults == options
    sam = SAM(torch.optim.SGD([p]))
    with pytest.raises(ValueError, match="rho="):
        sam.add_param_group({"params": [nn.Parameter(torch.ones(1))], "rho": rho})
    assert len(sam.param_groups) == 1
    with pytest.raises(ValueError, match="rho="):
        SAM(torch.optim.SGD([{"params": [p], "rho": rho}]))
    with pytest.raises(ValueError, match="adaptive="):
        SAM(torch.optim.SGD([p]), adaptive=1)  # type: ignore[arg-type]


def test_a_sam_is_not_wrapped_again() -> None:
    base = steppe.DualAdam(network().parameters())
    sam = SAM(base, rho=0.1)
    for twice in (sam, base):
        with pytest.raises(ValueError, match="a SAM or in one already"):
            SAM(twice, rho=0.2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()
    torch.save(resume(Path(sys.argv[1])), sys.argv[2])
