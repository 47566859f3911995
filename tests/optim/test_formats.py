"""Every optimizer with its state in bfloat16 or 8 bits, and bfloat16 parameters."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.optimizer_configs import (
    CONFIGS,
    Config,
    equal,
    parameters,
    set_gradients,
    train,
    values,
)

Format = torch.dtype | str

BLOCK = 256
#: Only the first is large enough for 8 bits; its last block is not full.
SHAPES = [(17, 257), (5,), (), (0, 3)]
ROWS = 32

every_config = pytest.mark.parametrize("config", CONFIGS, ids=str)
every_format = pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"], ids=str)
linear = pytest.mark.parametrize("config", [c for c in CONFIGS if "SGD" in c.name], ids=str)


def drift(seed: int, t: int, size: int) -> Tensor:
    """Return a row of gradients that do not depend on parameters, of sizes a decade apart."""
    generator = torch.Generator().manual_seed(1000 * seed + t)
    return (torch.randn(size, generator=generator) + 0.5) * torch.logspace(-1, 0, size)


def path(config: Config, state_dtype: Format | None, steps: int = 20) -> Tensor:
    """Train rows that are alike but for their noise; each is a block of 8 bits."""
    p = torch.linspace(-1, 1, BLOCK).expand(ROWS, -1).clone().requires_grad_()
    # The reference may run anywhere; compiling a kernel for it would take seconds.
    fused = None if state_dtype else False
    optimizer = config([p], state_dtype=state_dtype, fused=fused)
    found = [p.detach().clone()]
    for t in range(steps):
        p.grad = drift(0, t, BLOCK).expand(ROWS, -1).clone()
        optimizer.step()
        found.append(p.detach().clone())
    return torch.stack(found)


# What the state consists of


@every_format
@every_config
def test_state_has_the_formats_that_were_asked_for(config: Config, state_dtype: Format) -> None:
    """Two bytes an element, or one and a scale for 256; small tensors are not worth 8 bits."""
    params = parameters(torch.float32, SHAPES)
    full, low = config(params, fused=False), config(params, state_dtype=state_dtype)
    for optimizer in (full, low):
        train(optimizer, params, range(2))
    for p in params:
        wanted = {name: (value.shape, value.dtype) for name, value in full.state[p].items()}
        if state_dtype == torch.bfloat16 or p.numel() > 4096:
            # Their sum would take more than it saves.
            wanted.pop("slot_sum", None)
            own = {"step", "slot_keys", "slot_births", "replacements", "exp_avg_sq_mean"}
            for name in wanted.keys() - own:
                if state_dtype == torch.bfloat16:
                    wanted[name] = (p.shape, torch.bfloat16)
                else:
                    wanted[name] = (p.shape, torch.uint8)
                    wanted[f"{name}_scale"] = ((math.ceil(p.numel() / BLOCK),), torch.float32)
        found = {name: (value.shape, value.dtype) for name, value in low.state[p].items()}
        assert found == wanted


@every_format
@every_config
def test_complex_parameters_keep_their_state_in_full(config: Config, state_dtype: Format) -> None:
    ends = []
    for wanted in (None, state_dtype):
        p = torch.ones(4200, dtype=torch.complex64, requires_grad=True)
        optimizer = config([p], state_dtype=wanted)
        for t in range(3):
            p.grad = torch.polar(torch.ones(4200), torch.arange(4200.0) + t)
            optimizer.step()
        ends.append([p.detach(), *optimizer.state[p].values()])
    assert equal(*ends)


# Where the parameters go


@pytest.mark.parametrize(
    ("state_dtype", "bound", "bias"),
    [(torch.bfloat16, 0.01, 0.001), ("int8", 0.06, 0.02)],
    ids=["bfloat16", "int8"],
)
@every_config
def test_steps_are_near_those_of_full_precision(
    config: Config, state_dtype: Format, bound: float, bias: float
) -> None:
    """What is between the steps is less than a share of the path's length.

    A bfloat16 number is rounded by a standard deviation of at most half a spacing, 2⁻⁸ of it, and
    an average with β = 0.9 gathers 1/√(1 − β²) = 2.3 times that: 0.9 %. 8-bit numbers of a share x
    of their block's largest are at most 1.6 %/√x apart, which for sizes spread over a decade, 10 %
    on the whole, comes to 0.8 %·√10·2.3 = 5.8 %. The end is nearer than that, and the mean of rows
    nearer still, though not as near as chance alone would have it: √v of a rounded v is off by
    −var/8v², and signs of sums near 0 flip.
    """
    full, low = path(config, None), path(config, state_dtype)
    length = full.diff(dim=0).flatten(1).norm(dim=1).sum()
    apart = (low - full).diff(dim=0).flatten(1).norm(dim=1).sum()
    assert 0 < apart / length < bound
    end = (low - full)[-1]
    assert end.norm() / length < bound / 2
    assert end.mean(0).norm() * math.sqrt(ROWS) / length < bias


@every_format
@linear
def test_rounding_leaves_linear_methods_right_on_average(
    config: Config, state_dtype: Format
) -> None:
    """The mean of n rows that differ by their noise alone is √n times nearer than one row.

    The ratio varies by a fifth, as all numbers of a block are rounded by one random shift of the
    same lattice; were all rows wrong alike, it would be √32.
    """
    error = (path(config, state_dtype) - path(config, None))[-1]
    one, mean = error.square().mean().sqrt(), error.mean(0).square().mean().sqrt()
    assert mean * math.sqrt(ROWS) < 2 * one


@every_format
def test_slow_averages_go_on(state_dtype: Format) -> None:
    """With β2 = 0.99 each step is below half a spacing; rounded to nearest, v would stop midway.

    In 8 bits where 0.01·(1 − v) is less than 0.8 % of v, at v = 0.55; in bfloat16 at 0.8.
    """
    p = torch.zeros(ROWS, BLOCK, requires_grad=True)
    optimizer = Config("DualAdam")([p], lr=0.0, betas=(0.0, 0.99), state_dtype=state_dtype)
    size = torch.logspace(-1, 0, BLOCK).expand(ROWS, -1)
    for _ in range(300):
        p.grad = size.clone()
        optimizer.step()
    share = decoded(optimizer.state[p], "exp_avg_sq") / size.double().square().numpy()
    # One row's v wanders by 14 % in equilibrium at most; the mean of 32 by 2.5 %.
    assert np.abs(share.mean(0) - (1 - 0.99**300)).max() < 0.1
    assert share.mean() == pytest.approx(1 - 0.99**300, abs=0.01)


# Buffers


def decoded(state: dict[str, Tensor], name: str) -> np.ndarray:
    """Read state from its description: see the formats' own tests."""
    value = state[name]
    if value.dtype != torch.uint8:
        return value.double().numpy()
    codes = value.flatten().numpy()
    y = np.arange(256) / 256 if name == "exp_avg_sq" else np.arange(128) / 128
    mantissa, exponent = np.frexp(y)
    log = (exponent + 2 * mantissa - 2) * (4 if name == "exp_avg_sq" else 2)
    level = np.ldexp(1 + log - np.floor(log), np.floor(log).astype(int))
    if name != "exp_avg_sq":
        level = np.concatenate([level - 2.0**-12, -(level - 2.0**-12)])
    scale = np.repeat(state[f"{name}_scale"].double().numpy(), BLOCK)[: codes.size]
    with np.errstate(invalid="ignore"):  # scales may be infinite
        return (level[codes] * scale).reshape(value.shape)


@pytest.mark.parametrize("shrink", [1.0, 1e-3], ids=["constant", "shrinking"])
@pytest.mark.parametrize(
    ("state_dtype", "size", "steps"), [(torch.bfloat16, 100, 2000), ("int8", 4200, 700)], ids=str
)
def test_the_mean_of_rounded_slots_does_not_drift(
    state_dtype: Format, size: int, steps: int, shrink: float
) -> None:
    """A last step with κ = 1, lr = 1 and no gradient moves the parameter by the mean."""
    generator = torch.Generator().manual_seed(0)
    p = torch.zeros(size, requires_grad=True)
    optimizer = Config("SGDCM")([p], lr=0.0, momentum=0.0, state_dtype=state_dtype)
    for t in range(steps):
        p.grad = torch.randn(size, generator=generator) * shrink ** (t / steps)
        optimizer.step()
    state = optimizer.state[p]
    assert state["replacements"] > steps / 5
    mean = np.mean([decoded(state, f"slot_{i}") for i in range(5)], axis=0)
    optimizer.param_groups[0]["lr"] = 1.0
    p.grad = torch.zeros(size)
    optimizer.step()
    moved = -p.detach().double().numpy()
    assert np.linalg.norm(moved - mean) < 1e-6 * np.linalg.norm(mean)


@every_format
@pytest.mark.parametrize("config", [c for c in CONFIGS if c.has_buffer], ids=str)
def test_buffers_remember_the_same_steps_in_every_format(
    config: Config, state_dtype: Format
) -> None:
    """Priorities are the gradients' own."""
    books = []
    for wanted in (None, state_dtype):
        p = torch.zeros(17, 257, requires_grad=True)
        optimizer = config([p], state_dtype=wanted, fused=None if wanted else False)
        for t in range(8):
            p.grad = drift(1, t, 257).expand(17, -1) * (1 + math.cos(2 * t))
            optimizer.step()
        state = optimizer.state[p]
        books.append([state.get(n) for n in ("slot_keys", "slot_births", "replacements")])
    for full, low in zip(*books, strict=True):
        if full is not None:
            torch.testing.assert_close(low, full, rtol=1e-12, atol=0)


@every_format
@pytest.mark.parametrize("config", [Config("AdamCM"), Config("DualAdam")], ids=str)
def test_capturable_steps_are_the_others(config: Config, state_dtype: Format) -> None:
    """They read nothing back, and write every slot or leave it by a mask."""
    ends = []
    for capturable in (False, True):
        params = parameters(torch.float32, SHAPES[:1])
        optimizer = config(params, state_dtype=state_dtype, capturable=capturable, fused=False)
        train(optimizer, params, range(9))
        ends.append([*values(params), *optimizer.state[params[0]].values()])
    assert equal(*ends)


@every_format
@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("config", [Config("AdamCM"), Config("SGDCG")], ids=str)
def test_a_broken_gradient_breaks_the_moments_and_not_the_slots(
    config: Config, broken: float, state_dtype: Format
) -> None:
    params = parameters(torch.float32, SHAPES[:1])
    optimizer = config(params, state_dtype=state_dtype)
    train(optimizer, params, range(3))
    set_gradients(params, 3)
    params[0].grad[2, 7] = broken
    optimizer.step()
    assert not torch.isfinite(params[0][2, 7])
    state = optimizer.state[params[0]]
    for name in state:
        if name.startswith("slot_") and name[5].isdigit() and not name.endswith("_scale"):
            assert np.isfinite(decoded(state, name)).all()
    if "exp_avg" in state:
        assert not np.isfinite(decoded(state, "exp_avg")[2, 7])


# bfloat16 parameters


@every_config
def test_bfloat16_parameters_take_steps_below_their_spacing(config: Config) -> None:
    """Steps of at most a tenth of a spacing move them as far as in float32, on average."""
    size, steps = 4000, 40
    ends = {}
    for dtype in (torch.float32, torch.bfloat16):
        p = torch.full((size,), 0.75, dtype=dtype, requires_grad=True)
        optimizer = config([p], lr=2.5e-4, fused=False)
        for _ in range(steps):
            p.grad = torch.ones_like(p)
            optimizer.step()
        ends[dtype] = p.detach().double()
    moved, exact = 0.75 - ends[torch.bfloat16], 0.75 - ends[torch.float32].mean()
    assert exact > 2e-3  # a spacing is 3.9e-3
    error = moved.std() / math.sqrt(size)
    assert (moved.mean() - exact).abs() < 4.5 * error

    nearest = torch.full((size,), 0.75, dtype=torch.bfloat16, requires_grad=True)
    nearest.grad = torch.ones_like(nearest)
    torch.optim.AdamW([nearest], lr=2.5e-4).step()
    assert (nearest == 0.75).all()


def test_parameters_of_equal_shape_are_rounded_apart() -> None:
    """Two tensors, and a tensor and its own momentum, share no noise.

    The weight's decay alone makes a momentum halfway between two numbers, 2⁻⁸ and the next, and
    that takes the parameter nearly halfway from 0.75 to the next, 2⁻⁸ below.
    """
    momentum = 2.0**-8 * (1 + 2.0**-8)
    size = 1024 * BLOCK
    params = [torch.full((size,), 0.75, dtype=torch.bfloat16, requires_grad=True) for _ in "ab"]
    optimizer = Config("SGDCM")(
        params, lr=0.5, weight_decay=momentum / 0.75, state_dtype=torch.bfloat16
    )
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    ups = [p.detach() == 0.75 for p in params]
    ups += [optimizer.state[p]["momentum_buffer"] > 2.0**-8 for p in params]
    draws = torch.stack(ups).double()
    assert (draws.mean(1) - 0.5).abs().max() < 0.03
    # Lattices at a random shift correlate in each block by U(−1, 1): 1/√(3·1024) = 0.018 in all.
    assert torch.corrcoef(draws).triu(1).abs().max() < 0.08


# Layouts


@every_format
@every_config
@pytest.mark.parametrize("fused", [None, False])
def test_memory_layout_changes_nothing(
    config: Config, state_dtype: Format, fused: bool | None
) -> None:
    """Rounding follows memory: tensors that lie in the same order end bitwise alike.

    One with gaps is plain torch's.
    """
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(4, 5, 6, 40, generator=generator)
    params = [
        flat.clone(),
        flat.clone().permute(0, 3, 1, 2),  # channels last
        torch.zeros(4, 5, 6, 80)[..., ::2].copy_(flat),  # with gaps
        flat.clone().transpose(0, 2),
    ]
    back = [(0, 1, 2, 3), (0, 2, 3, 1), (0, 1, 2, 3), (2, 1, 0, 3)]
    ends = []
    for tensor, order in zip(params, back, strict=True):
        p = tensor.requires_grad_()
        has_gaps = p.untyped_storage().nbytes() > p.nbytes
        if fused is None and has_gaps:
            continue
        optimizer = config([p], state_dtype=state_dtype, fused=fused)
        for t in range(2):
            p.grad = torch.cos(3 * flat + t).permute(inverse(order))
            optimizer.step()
        state = optimizer.state[p].items()
        moments = [value.permute(order) for _, value in state if value.ndim == 4]
        ends.append([p.detach().permute(order), *moments])
    for end in ends[1:]:
        assert equal(end, ends[0])


def inverse(order: tuple[int, ...]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)
