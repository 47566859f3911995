"""The Triton engine: parity with plain torch, on a GPU if there is one, else interpreted."""

import functools
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import Shard

from helpers.optimizer_configs import (
    CONFIGS,
    Config,
    equal,
    parameters,
    set_gradients,
    step_from_equal_state,
    train,
    values,
)
from steppe._engines import dispatch
from steppe._engines.base import norms, param_row
from steppe._engines.base.method import REPLACEMENTS, RESUM_EVERY
from steppe._engines.base.sharding import LocalShard, local_shard_of
from steppe._engines.gpu import engine as gpu
from steppe._engines.gpu.table import CHUNK, SPAN
from steppe.optim import _state as state_of_params

pytestmark = pytest.mark.thorough

interpreter = pytest.importorskip("triton.runtime.interpreter")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(301,), (3, 4), (), (0,)]
LARGE = [(4500,), (70, 3)]
FEW = [
    Config("DualAdam", {"lr": 0.01, "weight_decay": 0.1, "switch_rate": 0.01}),
    Config("DualAdam", {"lr": 0.01, "switch_rate": 0.01, "scale_free": True}),
    Config("AdamCM", {"lr": 0.01, "capacity": 2}),
    Config("AdamCG", {"lr": 0.01, "amsgrad": True, "capacity": 2, "scope": "tensor"}),
]
ADAM, SCALE_FREE, CRITICAL, OWN_NORMS = FEW


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Leave no other fused engine, and count launches by kernel."""
    monkeypatch.setattr(gpu, "DEVICES", (DEVICE,))
    monkeypatch.setattr(dispatch, "FUSED", (gpu,))
    found: Counter[str] = Counter()
    patched: set[str] = set()
    launch, patch = gpu._launch, interpreter._patch_lang

    def counted(kernel: Any, *arguments: Any, **constants: Any) -> None:
        found[kernel.__name__] += 1
        patched.clear()
        launch(kernel, *arguments, **constants)

    def patch_once(function: Callable[..., Any]) -> Any:
        """Patch what a module sees of Triton once in a launch.

        The interpreter does so in every call of a kernel's functions: most of its time.
        """
        if function.__module__ in patched:
            return None
        patched.add(function.__module__)
        return patch(function)

    monkeypatch.setattr(gpu, "_launch", counted)
    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
    return found


def leaves(dtype: torch.dtype, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    return parameters(dtype, shapes, device=DEVICE)


class Pair:
    """One optimizer by this engine and one in plain torch, on equal parameters."""

    def __init__(
        self,
        config: Callable[..., torch.optim.Optimizer],
        dtype: torch.dtype = torch.float32,
        shapes: list[tuple[int, ...]] = SHAPES,
        **options: Any,
    ) -> None:
        self.ours, self.theirs = (leaves(dtype, shapes) for _ in range(2))
        self.fused = config(self.ours, fused=True, **options)
        self.eager = config(self.theirs, fused=False, **options)

    def step(self, t: int) -> None:
        """Take the step ``t`` from equal state, and compare."""
        step_from_equal_state(self.fused, self.eager, self.ours, self.theirs, t)
        self.compare()

    def compare(self) -> None:
        """Compare norms, so that an element near zero need not be right to its own last digit."""
        for p, q in zip(self.ours, self.theirs, strict=True):
            assert_close(p, q, p.grad)
            for name, value in self.fused.state[p].items():
                assert_close(value, self.eager.state[q][name], p.grad)


def assert_close(ours: Tensor, theirs: Tensor, gradient: Tensor) -> None:
    """Where terms cancel, their rounding is relative to them: the gradient's size stands for it."""
    a, b = (torch.nan_to_num(x.detach().double(), neginf=-1.0) for x in (ours, theirs))
    assert (a - b).norm() <= 1e-6 * max(b.norm(), 0.3 * gradient.double().norm())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_each_step_is_plain_torchs(config: Config) -> None:
    pair = Pair(config)
    for t in range(4):  # one more than there are slots
        pair.step(t)


@pytest.mark.parametrize(
    ("config", "dtype", "state"),
    [
        *((config, torch.float32, state) for config in FEW for state in (torch.bfloat16, "int8")),
        *((CRITICAL, dtype, None) for dtype in (torch.float64, torch.bfloat16, torch.float16)),
        *((ADAM, dtype, "int8") for dtype in (torch.float64, torch.bfloat16, torch.float16)),
        (CRITICAL, torch.bfloat16, torch.bfloat16),
        (SCALE_FREE, torch.bfloat16, torch.bfloat16),
        (Config("MIAdam", {"switch_rate": 0.5, "integration_order": 3}), torch.float32, "int8"),
    ],
    ids=str,
)
def test_number_formats_are_plain_torchs(config: Config, dtype: torch.dtype, state: Any) -> None:
    """Rounding is stochastic, by the same noise."""
    pair = Pair(config, dtype, LARGE, state_dtype=state)
    for t in range(3):
        pair.step(t)


@pytest.mark.parametrize("state", [None, torch.bfloat16, "int8"], ids=str)
@pytest.mark.parametrize("config", FEW, ids=str)
def test_weights_of_24_bits_are_plain_torchs(config: Config, state: Any) -> None:
    """The parameters, the nearest bfloat16, and their errors, which may differ by a rounding."""
    pair = Pair(config, torch.bfloat16, LARGE, state_dtype=state, param_error="int8")
    for t in range(3):
        step_from_equal_state(pair.fused, pair.eager, pair.ours, pair.theirs, t)
        found = pair.fused.master_params(), pair.eager.master_params()
        for p, q in zip(pair.ours, pair.theirs, strict=True):
            a, b = found[0][p], found[1][q]
            assert ((a - b).abs() <= 2.0**-15 * b.abs() + 1e-6).all()
            assert (a != b).sum() <= 2e-3 * a.numel() + 1
            assert (pair.fused.state[p]["param_error"] != 0).any()


class Mesh:
    """Two processes, of which this is one that nobody answers."""

    device_type = DEVICE

    def size(self, dim: int) -> int:
        return 2

    def get_coordinate(self) -> list[int]:
        return [0]


#: Of each: the whole's shape, along which dimension it is cut, and what of it is here.
PARTS = [
    ((9, 700), 0, slice(2, 8)),
    ((7, 1300), 1, slice(325, 975)),
    ((4, 2048), 1, slice(1024)),
]


@pytest.mark.parametrize(("shape", "dim", "here"), PARTS, ids=str)
@pytest.mark.parametrize("state", [torch.bfloat16, "int8"], ids=str)
def test_parts_are_rounded_as_in_the_whole(
    state: Any,
    shape: tuple[int, ...],
    dim: int,
    here: slice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tuple(here if i == dim else slice(None) for i in range(2))
    (whole,) = leaves(torch.float32, [shape])
    part = whole.detach()[place].clone().contiguous().requires_grad_()
    offsets = tuple((at.start or 0) for at in place)
    share = LocalShard(shape, whole.stride(), offsets, tuple(part.shape), Mesh(), (Shard(dim),))
    for module in (param_row, state_of_params):
        held = functools.partial(
            lambda p, known: share if p is part else known(p), known=local_shard_of
        )
        monkeypatch.setattr(module, "local_shard_of", held)
    monkeypatch.setattr(norms, "_begin_sum", lambda values, mesh: lambda: values)
    for p in (whole, part):
        train(CRITICAL([p], fused=True, state_dtype=state, replacement="fifo"), [p], range(2))

    cell = torch.arange(whole.numel(), device=DEVICE).view(shape) // 256
    inside, outside = cell[place].unique(), torch.ones(shape, dtype=torch.bool, device=DEVICE)
    outside[place] = False
    is_cut = torch.isin(inside, cell[outside]) if state == "int8" else inside < 0
    kept = ~torch.isin(cell[place], inside[is_cut])
    assert kept.any()
    assert torch.equal(part[kept], whole[place][kept])


@pytest.mark.parametrize(("config", "more"), [(ADAM, []), (CRITICAL, [SPAN + 3])], ids=str)
def test_tensors_of_any_size(config: Config, more: list[int]) -> None:
    sizes = [1, 255, 256, 257, 1024, CHUNK - 1, CHUNK, CHUNK + 1, *more]
    pair = Pair(config, shapes=[(size,) for size in sizes])
    for t in range(2):
        pair.step(t)


@pytest.mark.parametrize("config", [ADAM, SCALE_FREE, CRITICAL, OWN_NORMS], ids=str)
def test_one_update_and_where_needed_one_reduction(config: Config, launches: Counter[str]) -> None:
    params = leaves(torch.float32, [(3,)] * 12)
    groups = [{"params": [p], "lr": 0.01 * i} for i, p in enumerate(params)]
    train(config(groups, fused=True), params, range(2))
    assert launches == {"update": 2} | ({} if config is ADAM else {"reduce": 2})


def test_groups_differ_in_options() -> None:
    def config(params: list[Tensor], **more: Any) -> torch.optim.Optimizer:
        groups = [
            {"params": params[:1], "maximize": True, "betas": (0.5, 0.7)},
            {"params": params[1:2], "capacity": 4, "scope": "tensor", "kappa": 0.3},
            {"params": params[2:], "lr": torch.tensor(0.05, device=DEVICE)},
        ]
        return CRITICAL(groups, **more)

    pair = Pair(config)
    for t in range(4):
        for optimizer in (pair.fused, pair.eager):
            optimizer.param_groups[1]["lr"] = 0.1 / (t + 1)
            optimizer.param_groups[2]["lr"].mul_(0.5)
        pair.step(t)


@pytest.mark.parametrize("config", FEW, ids=str)
def test_capturable_steps_count_on_the_device(config: Config) -> None:
    pair = Pair(config, capturable=True)
    for t in range(3):
        pair.step(t)


def test_the_sum_of_the_slots_is_renewed() -> None:
    pair = Pair(CRITICAL, capturable=False, replacement="fifo")
    for t in range(3):
        pair.step(t)
    for p in pair.ours:
        pair.fused.state[p][REPLACEMENTS].fill_(RESUM_EVERY - 1)
        pair.fused.state[p]["slot_sum"].add_(1.0)
    set_gradients(pair.ours, 3)
    pair.fused.step()
    for p in pair.ours:
        state = pair.fused.state[p]
        assert state[REPLACEMENTS] == RESUM_EVERY
        assert torch.equal(state["slot_sum"], state["slot_0"] + state["slot_1"])


def test_layouts() -> None:
    """Unaligned parameters, gradients in another order, gaps of size 1."""
    base = torch.randn(4 * CHUNK + 1, device=DEVICE)
    ours = [base[1 : CHUNK + 2], base[5000:5024].view(2, 3, 2, 2), base[6000:6012].view(3, 4)]
    ours = [p.detach().requires_grad_() for p in ours]
    ours.append(torch.randn(2, 3, 2, 2).to(DEVICE, memory_format=torch.channels_last))
    ours[-1].requires_grad_()
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    for params, fused in ((ours, True), (theirs, False)):
        generator = torch.Generator().manual_seed(0)
        optimizer = ADAM(params, fused=fused)
        for _ in range(2):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
            params[2].grad = params[2].grad.t().contiguous().t()
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert_close(p, q, p.grad)


def test_complex_parameters() -> None:
    """They are as good as their real views."""
    p = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    whole, view = torch.view_as_complex(p).clone().requires_grad_(), p.requires_grad_()
    for params in ([whole], [view]):
        optimizer = OWN_NORMS(params, fused=True)
        for t in range(3):
            gradient = torch.arange(10.0, device=DEVICE).sub(t).view(5, 2)
            real = params[0] is view
            params[0].grad = gradient if real else torch.view_as_complex(gradient)
            optimizer.step()
    assert torch.equal(torch.view_as_real(whole), view)


def hand_over(optimizer: Any, scale: float, found_inf: float) -> None:
    """Do to an optimizer what a GradScaler does before the step."""
    optimizer.grad_scale = torch.tensor([scale], device=DEVICE)
    optimizer.found_inf = torch.tensor([found_inf], device=DEVICE)


@pytest.mark.parametrize("config", FEW, ids=str)
def test_gradients_are_unscaled_inside(config: Config) -> None:
    ours, theirs = (leaves(torch.float32, SHAPES) for _ in range(2))
    fused, eager = config(ours, fused=True), config(theirs, fused=False)
    for t in range(4):
        hand_over(fused, 1024.0, 0.0)
        set_gradients(ours, t)
        set_gradients(theirs, t)
        for p in ours:
            p.grad.mul_(1024.0)
        fused.step()
        eager.step()
    for p, q in zip(ours, theirs, strict=True):
        assert_close(p, q, q.grad)


@pytest.mark.parametrize("config", FEW, ids=str)
def test_nothing_happens_where_an_infinity_was_found(config: Config) -> None:
    params = leaves(torch.float32, SHAPES)
    optimizer = config(params, fused=True)
    train(optimizer, params, range(2))
    before = [value.clone() for p in params for value in (p, *optimizer.state[p].values())]
    hand_over(optimizer, 1.0, 1.0)
    set_gradients(params, 2)
    params[0].grad.fill_(torch.inf)
    optimizer.step()
    assert equal(before, [v for p in params for v in (p, *optimizer.state[p].values())])
    hand_over(optimizer, 1.0, 0.0)
    train(optimizer, params, range(2, 3))
    assert all(state["step"] == 3 for state in optimizer.state.values())
    other = leaves(torch.float32, SHAPES)
    train(config(other, fused=True), other, range(3))
    assert equal(values(params), values(other))


def test_broken_gradients_reach_parameters_and_are_not_remembered() -> None:
    params = leaves(torch.float32, SHAPES[:2])
    optimizer = CRITICAL(params, fused=True)
    train(optimizer, params, range(2))
    set_gradients(params, 2)
    params[0].grad[0] = torch.nan
    optimizer.step()
    assert params[0][0].isnan()
    assert all(optimizer.state[p][REPLACEMENTS] == 2 for p in params)


def test_tensors_may_move_and_change_format_between_steps() -> None:
    pair = Pair(CRITICAL, shapes=SHAPES[:3])
    pair.step(0)
    for p in pair.ours:
        p.data = p.data.clone()
        pair.fused.state[p]["slot_1"] = pair.fused.state[p]["slot_1"].clone()
    pair.step(1)
    for p in (*pair.ours, *pair.theirs):
        p.data = p.data.to(torch.bfloat16)
        p.grad = None
    pair.step(2)


def test_what_it_does_not_take_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Special(torch.nn.Parameter):
        pass

    def refused(params: list[Tensor], reason: str, **more: Any) -> None:
        with pytest.raises(RuntimeError, match=reason):
            ADAM(params, fused=True, **more)

    params = leaves(torch.float32, SHAPES)
    refused([torch.zeros(4, 4, device=DEVICE)[:, ::2].requires_grad_()], "gaps between")
    refused([Special(torch.zeros(3, device=DEVICE))], "parameters are Special")
    refused(leaves(torch.float8_e5m2, [(3,)]), "parameters are torch.float8_e5m2")
    refused(params, "differentiable", differentiable=True)
    monkeypatch.setattr(gpu, "DEVICES", ("cuda",))
    refused(parameters(torch.float32), "parameters lie on cpu")
    monkeypatch.setattr(gpu, "DEVICES", (DEVICE,))
    monkeypatch.setattr("triton.__version__", "3.5.1")
    gpu._triton_objection.cache_clear()
    refused(params, "triton 3.5.1 is too old")
    monkeypatch.setitem(sys.modules, "triton", None)
    gpu._triton_objection.cache_clear()
    refused(params, "triton is not installed: pip install triton")
    gpu._triton_objection.cache_clear()


def test_state_that_does_not_fit_is_left_to_plain_torch() -> None:
    params = leaves(torch.float32, SHAPES[:2])
    optimizer = ADAM(params)
    train(optimizer, params, range(1))
    assert optimizer.engine == "gpu"
    state = optimizer.state[params[0]]
    state["exp_avg"] = state["exp_avg"].double()
    train(optimizer, params, range(1, 2))
    assert optimizer.engine == "eager, gpu"
