"""Weights of 24 bits: parameters in bfloat16, and their errors in the state."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import steppe
from helpers.optimizer_configs import (
    CONFIGS,
    REPRESENTATIVE,
    Config,
    assert_close,
    equal,
    parameters,
    set_gradients,
    step_from_equal_state,
    train,
)

#: Of more than a block and of less, of one number and of none.
SHAPES = [(17, 257), (5,), (), (0, 3)]

every_config = pytest.mark.parametrize("config", CONFIGS, ids=str)
some_configs = pytest.mark.parametrize("config", REPRESENTATIVE, ids=str)


def half(shapes: list[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    return parameters(torch.bfloat16, shapes)


def weights(params: list[Tensor], optimizer: torch.optim.Optimizer) -> np.ndarray:
    """Read weights by their description, in float64: a bfloat16, and 256ths of its last place."""
    found = []
    for p in params:
        word = p.detach().view(torch.int16).long().numpy().ravel() & 0xFFFF
        error = optimizer.state[p]["param_error"].long().numpy().ravel()
        size, sign = (word & 0x7FFF) * 256 + error, np.where(word >> 15, -1.0, 1.0)
        exponent, fraction = size >> 15, (size & 0x7FFF) / 2**15
        exact = np.ldexp(fraction + (exponent > 0), np.maximum(exponent, 1) - 127)
        found.append(sign * np.where(size >> 8 == 0, np.maximum(exact, 0), exact))
    return np.concatenate(found)


# What it is for


def path_length(config: Config, lr: float, steps: int) -> float:
    """Return how far equal gradients take a weight: in proportion to lr, or nearly so (MIAdam)."""
    p = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = config([p], lr=lr, weight_decay=0.0, fused=False)
    for _ in range(steps):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return 1 - p.item()


@every_config
def test_updates_of_a_4096th_are_as_in_float32(config: Config) -> None:
    """1 000 of them, to 1e-3 of what they come to; bfloat16's are 32 times too small to be seen.

    Rounded to 24 bits a weight is off by up to 2⁻¹⁶ in a step and right on average: it ends up to
    √1000·2⁻¹⁷ from the exact one, 2.4e-4, as a standard deviation.
    """
    steps = 1000
    lr = steps * 2.0**-12 / path_length(config, 1.0, steps)
    ends = {}
    for dtype, error in ((torch.float32, None), (torch.bfloat16, "int8")):
        p = torch.ones(16, 256, dtype=dtype, requires_grad=True)
        optimizer = config([p], lr=lr, weight_decay=0.0, param_error=error)
        for _ in range(steps):
            p.grad = torch.ones_like(p)
            optimizer.step()
        ends[dtype] = 1 - optimizer.master_params()[p].double()
    moved, exact = ends[torch.bfloat16], ends[torch.float32].mean()
    assert exact == pytest.approx(steps * 2.0**-12, rel=0.1)
    assert (moved.mean() - exact).abs() < 1e-3 * exact
    assert (moved - exact).square().mean().sqrt() < math.sqrt(steps) * 2.0**-17


@every_config
def test_paths_are_those_of_float32(config: Config) -> None:
    """Of a wavy bowl, whose gradients follow the weights: nearer than bfloat16 can be by far."""
    ends = []
    for dtype, error in ((torch.float32, None), (torch.bfloat16, "int8"), (torch.bfloat16, None)):
        p = half([(32, 256)])[0].detach().to(dtype).requires_grad_()
        optimizer = config([p], lr=1e-3, param_error=error)
        for t in range(30):
            exact = optimizer.master_params()[p]
            p.grad = torch.cos(3 * exact + t).bfloat16().to(dtype)
            optimizer.step()
        ends.append(optimizer.master_params()[p])
    full, kept, lost = ends
    assert (kept - full).norm() < 0.02 * (lost - full).norm()
    assert (kept - full).abs().max() < 30 * 2.0**-15 * full.abs().max()


# What it consists of


@some_configs
@pytest.mark.parametrize("fused", [None, False])
def test_a_weight_is_the_nearest_bfloat16_and_its_error(config: Config, fused: bool | None) -> None:
    params = half()
    optimizer = config(params, param_error="int8", fused=fused)
    train(optimizer, params, range(4))
    found = torch.cat([optimizer.master_params()[p].ravel() for p in params])
    np.testing.assert_array_equal(found.double().numpy(), weights(params, optimizer))
    nearest = torch.cat([p.detach().ravel() for p in params])
    places = 2.0 ** (torch.frexp(found)[1] - 8.0)  # a bfloat16's last place
    assert ((nearest - found).abs() <= places / 2).all()
    for p in params:
        assert optimizer.state[p]["param_error"].dtype == torch.int8
        assert optimizer.state[p]["param_error"].shape == p.shape


@every_config
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16, "int8"], ids=str)
def test_the_kernels_round_as_plain_torch_does(config: Config, state_dtype: Any) -> None:
    ours, theirs = half(), half()
    fused = config(ours, param_error="int8", state_dtype=state_dtype, fused=True)
    eager = config(theirs, param_error="int8", state_dtype=state_dtype, fused=False)
    for optimizer, params in ((fused, ours), (eager, theirs)):
        train(optimizer, params, range(1))
    for t in range(1, 4):
        step_from_equal_state(fused, eager, ours, theirs, t)
        grads = [p.grad for p in ours]
        found = [[each.master_params()[p] for p in params] for each, params in (
            (fused, ours), (eager, theirs)
        )]  # fmt: skip
        # A number next to another one's rounding may fall to the other side, 2⁻¹⁵ of it away; near
        # 0 it is the difference of larger ones.
        for a, b in zip(*found, strict=True):
            assert ((a - b).abs() <= 2.0**-15 * b.abs() + 1e-6).all()
            assert (a != b).sum() <= 2e-3 * a.numel() + 1
        for p, q in zip(ours, theirs, strict=True):
            names = [name for name in fused.state[p] if name.startswith("exp_avg")]
            if state_dtype is None and names:
                assert_close(
                    [fused.state[p][name] for name in names],
                    [eager.state[q][name] for name in names],
                    grads,
                )


def test_a_weight_set_to_zero_is_zero_whatever_its_error() -> None:
    """As pruning masks do after each step; in both engines."""
    for fused in (None, False):
        (p,) = half([(300,)])
        optimizer = steppe.DualAdam([p], lr=1e-3, param_error="int8", fused=fused)
        mask = torch.arange(300) % 3 > 0
        for t in range(5):
            set_gradients([p], t)
            p.grad *= mask
            optimizer.step()
            assert (optimizer.state[p]["param_error"] < 0).any()
            with torch.no_grad():
                p.mul_(mask)
            assert (optimizer.master_params()[p][~mask] == 0).all()


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_comes_through(broken: float, fused: bool | None) -> None:
    p = torch.ones(300, dtype=torch.bfloat16, requires_grad=True)
    optimizer = steppe.SGDCM([p], lr=1.0, momentum=0.0, param_error="int8", fused=fused)
    p.grad = torch.zeros_like(p)
    p.grad[7] = broken
    optimizer.step()
    exact = optimizer.master_params()[p]
    for found in (p.detach(), exact):
        assert torch.isfinite(found).sum() == 299
        assert not torch.isfinite(found[7])
    if math.isnan(broken):
        assert p[7].isnan()
        assert exact[7].isnan()


# Which parameters have one


def test_parameters_in_full_need_no_error() -> None:
    params = [
        torch.ones(300, dtype=dtype, requires_grad=True)
        for dtype in (torch.float32, torch.float64, torch.complex64, torch.bfloat16)
    ]
    ends = []
    for error in (None, "int8"):
        own = [p.detach().clone().requires_grad_() for p in params]
        optimizer = steppe.AdamCM(own, param_error=error)
        train_alike(optimizer, own)
        assert [("param_error" in optimizer.state[p]) for p in own] == [False] * 3 + [bool(error)]
        ends.append([p.detach() for p in own[:3]])
        for p, exact in optimizer.master_params().items():
            if p.dtype != torch.bfloat16:
                assert torch.equal(exact, torch.view_as_real(p) if p.is_complex() else p.detach())
    assert equal(*ends)


def train_alike(optimizer: torch.optim.Optimizer, params: list[Tensor], steps: int = 3) -> None:
    for t in range(steps):
        for p in params:
            p.grad = torch.full_like(p, 0.1 + t)
        optimizer.step()


def test_float16_is_refused_by_name_before_anything_changes() -> None:
    fine, other = *half([(3,)]), torch.ones(4, dtype=torch.float16, requires_grad=True)
    optimizer = steppe.DualAdam([{"params": [fine]}, {"params": [other]}], param_error="int8")
    for p in (fine, other):
        p.grad = torch.ones_like(p)
    before = fine.detach().clone()
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 1 is torch.float16.*bfloat16"):
        optimizer.step()
    assert torch.equal(fine.detach(), before)
    assert not optimizer.state
    optimizer.param_groups[1]["param_error"] = None
    optimizer.step()
    assert "param_error" in optimizer.state[fine]


@pytest.mark.parametrize("value", ["bfloat16", torch.int8, 8, True])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"param_error=.* is not valid: expected None or 'int8'"):
        steppe.DualAdam(half(), param_error=value)


def test_gradients_cannot_flow_through_it() -> None:
    with pytest.raises(ValueError, match=r"param_error='int8' is not valid with differentiable"):
        steppe.DualAdam(half(), param_error="int8", differentiable=True)


# A run that is stopped, copied, or changed


@some_configs
@pytest.mark.parametrize("state_dtype", [None, "int8"], ids=str)
@pytest.mark.parametrize("way", ["saved", "pickled"])
def test_a_run_goes_on_bitwise(config: Config, state_dtype: Any, way: str, tmp_path: Path) -> None:
    options = {"param_error": "int8", "state_dtype": state_dtype}
    params = half()
    whole = config(params, **options)
    train(whole, params, range(3))
    copies = [p.detach().clone().requires_grad_() for p in params]
    if way == "pickled":
        resumed = pickle.loads(pickle.dumps(whole))
        copies = resumed.param_groups[0]["params"]
    else:
        torch.save(whole.state_dict(), tmp_path / "run.pt")
        resumed = config(copies)
        resumed.load_state_dict(torch.load(tmp_path / "run.pt", weights_only=True))
    for optimizer, own in ((whole, params), (resumed, copies)):
        train(optimizer, own, range(3, 6))
    assert equal([p.detach() for p in params], [p.detach() for p in copies])
    for p, q in zip(params, copies, strict=True):
        assert whole.state[p].keys() == resumed.state[q].keys()
        assert equal([*whole.state[p].values()], [*resumed.state[q].values()])


def test_a_run_without_it_goes_on_with_it_and_back() -> None:
    """Switched on, weights begin as their parameters are; switched off, bfloat16 rounds alone."""
    params = half()
    optimizer = steppe.DualAdam(params)
    train(optimizer, params, range(2))
    before = [p.detach().float() for p in params]
    optimizer.param_groups[0].update(param_error="int8", lr=0.0)
    train(optimizer, params, range(2, 3))
    assert all(optimizer.state[p]["param_error"].count_nonzero() == 0 for p in params)
    assert equal([optimizer.master_params()[p] for p in params], before)
    optimizer.param_groups[0]["lr"] = 1e-3
    train(optimizer, params, range(3, 4))
    assert optimizer.state[params[0]]["param_error"].count_nonzero() > 0
    optimizer.param_groups[0]["param_error"] = None
    train(optimizer, params, range(4, 5))
    assert all("param_error" not in optimizer.state[p] for p in params)
    assert equal(
        [optimizer.master_params()[p] for p in params], [p.detach().float() for p in params]
    )


def test_checkpoints_of_torchs_adam_begin_without_an_error() -> None:
    params = half()
    adam = torch.optim.AdamW(params)
    train(adam, params, range(2))
    optimizer = steppe.DualAdam(params, param_error="int8")
    optimizer.load_state_dict(adam.state_dict())
    assert all(optimizer.state[p]["param_error"].count_nonzero() == 0 for p in params)
    train(optimizer, params, range(2, 3))


@pytest.mark.parametrize("bad", ["shape", "format"])
def test_an_error_that_does_not_fit_is_refused_by_name(bad: str) -> None:
    params = half()
    optimizer = steppe.DualAdam(params, param_error="int8")
    train(optimizer, params, range(2))
    saved = optimizer.state_dict()
    error = saved["state"][0]["param_error"]
    saved["state"][0]["param_error"] = error[:-1] if bad == "shape" else error.float()
    with pytest.raises(ValueError, match=r"state of parameter 0.*'param_error'"):
        steppe.DualAdam(half(), param_error="int8").load_state_dict(saved)


@some_configs
def test_offloaded_steps_are_those_of_the_cpu(config: Config) -> None:
    ours, theirs = half(), half()
    plain = config(ours, param_error="int8")
    away = steppe.optim.Offload(theirs, config.cls, **config.options, param_error="int8")
    train(plain, ours, range(3))
    train(away, theirs, range(3))
    assert equal([p.detach() for p in ours], [p.detach() for p in theirs])
    assert equal(
        [plain.master_params()[p] for p in ours], [away.master_params()[p] for p in theirs]
    )


def test_sam_passes_leave_the_error_alone() -> None:
    """The weights are perturbed and restored as bfloat16; the base's step is from the weight."""
    params = half()
    sam = steppe.SAM(steppe.DualAdam(params, lr=1e-4, param_error="int8"), rho=0.05)

    def loss() -> Tensor:
        sam.zero_grad()
        total = sum((p.float() ** 2).sum() for p in params)
        total.backward()
        return total

    for _ in range(3):
        sam.step(loss)
    exact = sam.master_params()
    for p in params:
        places = 2.0 ** (torch.frexp(exact[p])[1] - 8.0)
        assert ((p.detach() - exact[p]).abs() <= places / 2).all()


@pytest.mark.parametrize(("state_dtype", "expected"), [("int8", 5.03125), (None, 11)], ids=str)
def test_what_it_holds_is_what_is_counted(state_dtype: Any, expected: float) -> None:
    """2 bytes of a weight, 1 of its error and 2 of moments, with .03 of scales."""
    size = (64, 256)
    with torch.device("meta"):
        counted = steppe.optim.footprint(
            [size],
            lambda p: steppe.DualAdam(p, param_error="int8", state_dtype=state_dtype),
            1,
            dtype=torch.bfloat16,
        )
    held = counted.ddp.device
    (p,) = half([size])
    optimizer = steppe.DualAdam([p], param_error="int8", state_dtype=state_dtype)
    train(optimizer, [p], range(1))
    state = sum(x.nbytes for name, x in optimizer.state[p].items() if name != "step")
    assert (p.nbytes + state) / p.numel() == expected
    assert held.parameters + held.optimizer - 8 == p.nbytes + state
