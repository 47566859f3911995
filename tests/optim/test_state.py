"""State that users reset, replace and add to: a step takes it and a checkpoint of it resumes."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import steppe
from helpers.optimizer_configs import (
    NAMES,
    REPRESENTATIVE,
    Config,
    equal,
    parameters,
    train,
    values,
)

every_config = pytest.mark.parametrize("config", REPRESENTATIVE, ids=str)
every_optimizer = pytest.mark.parametrize("name", NAMES)

#: One parameter that is large enough for 8 bits.
SHAPES = [(70, 80), (3,)]
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg")


def moments_of(state: dict[str, Tensor]) -> list[str]:
    return [name for name in MOMENTS if name in state]


def assert_resumes(
    config: Config, optimizer: torch.optim.Optimizer, params: list[Tensor], **options: Any
) -> None:
    """Compare the ends of a run and of one that is resumed from its checkpoint now."""
    saved = copy.deepcopy(optimizer.state_dict())
    others = [p.detach().clone().requires_grad_() for p in params]
    resumed = config(others, **options)
    resumed.load_state_dict(saved)
    for each, tensors in ((optimizer, params), (resumed, others)):
        train(each, tensors, range(10, 13))
    assert equal(params, others)
    assert not any(torch.isnan(p).any() for p in params)


RESETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "like the parameter": lambda value, p: torch.zeros_like(p.data),
    "float16": lambda value, p: torch.zeros(p.shape, dtype=torch.float16),
    "bfloat16": lambda value, p: torch.zeros(p.shape, dtype=torch.bfloat16),
    "float32": lambda value, p: torch.zeros(p.shape),
    "float64": lambda value, p: torch.zeros(p.shape, dtype=torch.float64),
    "like the state": lambda value, p: torch.zeros_like(value),
    "halved": lambda value, p: value.float().div(2).to(p.dtype),
}


@pytest.mark.thorough
@pytest.mark.parametrize("steps_after", [0, 2])
@pytest.mark.parametrize(
    ("dtype", "reset"),
    [
        (torch.bfloat16, "like the parameter"),
        (torch.bfloat16, "float16"),
        (torch.bfloat16, "float64"),
        (torch.float16, "like the parameter"),
        (torch.float32, "bfloat16"),
        (torch.float32, "float64"),
        (torch.float64, "float32"),
        (torch.float64, "like the state"),
    ],
)
@every_config
def test_moments_may_be_reset_in_any_format(
    config: Config, dtype: torch.dtype, reset: str, steps_after: int
) -> None:
    params, truth = (parameters(dtype, SHAPES) for _ in range(2))
    optimizer, reference = config(params), config(truth)
    for each, tensors in ((optimizer, params), (reference, truth)):
        train(each, tensors, range(3))
    for p, q in zip(params, truth, strict=True):
        state, expected = optimizer.state[p], reference.state[q]
        for name in moments_of(state):
            state[name] = RESETS[reset](state[name], p)
            expected[name].zero_()
    optimizer.preconditioner()
    for each, tensors in ((optimizer, params), (reference, truth)):
        train(each, tensors, range(3, 3 + steps_after))
    formats = {torch.float32, torch.float64}
    if steps_after:
        for p, q in zip(params, truth, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
            found = {optimizer.state[p][name].dtype for name in moments_of(optimizer.state[p])}
            assert found <= formats
    assert_resumes(config, optimizer, params)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", ["DualAdam", "AdamCM", "RMSpropCG", "SGDCG"])
def test_moments_of_rounded_state_may_be_reset_too(name: str, reset: str, state_dtype: str) -> None:
    config = Config(name, {"momentum": 0.9} if name == "SGDCG" else {})
    for steps_after in (0, 2):
        params = parameters(torch.float32, SHAPES)
        optimizer = config(params, state_dtype=state_dtype)
        train(optimizer, params, range(3))
        before = [optimizer.state[p] for p in params]
        for p, state in zip(params, before, strict=True):
            for moment in moments_of(state):
                if state[moment].dtype == torch.uint8 and reset == "halved":
                    continue
                state[moment] = RESETS[reset](state[moment], p)
                if reset == "like the state" and f"{moment}_scale" in state:
                    state[f"{moment}_scale"].zero_()
        train(optimizer, params, range(3, 3 + steps_after))
        if steps_after:
            wanted = torch.bfloat16 if state_dtype == "bfloat16" else torch.uint8
            found = optimizer.state[params[0]]
            assert {found[moment].dtype for moment in moments_of(found)} == {wanted}
        assert_resumes(config, optimizer, params, state_dtype=state_dtype)


def test_numbers_put_in_the_place_of_codes_are_kept() -> None:
    """8-bit state is made of them: a step along m = wanted/2 moves by it, within its rounding."""
    p = torch.zeros(64, 128, requires_grad=True)
    optimizer = steppe.SGDCG([p], lr=1.0, momentum=0.5, capacity=0, state_dtype="int8")
    wanted = torch.linspace(-1, 1, p.numel()).view_as(p)
    for t in range(2):
        p.grad = torch.zeros_like(p)
        if t:
            optimizer.state[p]["momentum_buffer"] = wanted.clone()
        optimizer.step()
    assert optimizer.state[p]["momentum_buffer"].dtype == torch.uint8
    torch.testing.assert_close(p.detach(), -wanted / 2, rtol=0, atol=0.016)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@every_config
def test_all_state_may_be_stored_in_another_format_for_a_while(
    config: Config, dtype: torch.dtype
) -> None:
    """As who saves memory or a checkpoint does: numbers that fit come back as they were."""
    params = parameters(torch.float32, SHAPES)
    optimizer = config(params)
    train(optimizer, params, range(3))
    for state in optimizer.state.values():
        for name, value in state.items():
            if value.is_floating_point():
                state[name] = value.to(dtype)
    assert_resumes(config, optimizer, params)
    train(optimizer, params, range(3, 5))
    formats = {x.dtype for state in optimizer.state.values() for x in state.values()}
    assert formats <= {torch.float32, torch.float64, torch.int64}


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another shape": (lambda s: s.update(exp_avg=torch.zeros(7)), r"'exp_avg' has shape \(7,\)"),
    "sparse": (
        lambda s: s.update(exp_avg=torch.zeros(3, 4).to_sparse()),
        r"'exp_avg' is torch.sparse_coo, expected a dense tensor",
    ),
    "a number": (lambda s: s.update(exp_avg=0.0), r"'exp_avg' is float, expected a tensor"),
    "gone": (lambda s: s.pop("exp_avg"), r"'exp_avg' is missing"),
    "a slot gone": (lambda s: s.pop("slot_1"), r"'slot_1' is missing"),
    "no step": (lambda s: s.pop("step"), r"'step' is missing"),
    "half a step": (lambda s: s.update(step=0.5), r"'step' is 0.5, expected a whole number"),
    "pruned": (
        lambda s: s.update({n: s[n][:2] for n in ("slot_0", "slot_1", "slot_2")}),
        r"'slot_0' has shape \(2, 4\), expected \(3, 4\)",
    ),
}


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("case", SPOILT)
def test_state_that_could_not_be_loaded_is_not_stepped_with(case: str, is_frozen: bool) -> None:
    spoil, message = SPOILT[case]
    params = parameters()
    optimizer = Config("AdamCM", {"capacity": 3})(params)
    train(optimizer, params, range(4))
    kept = dict(optimizer.state[params[0]])
    truth = copy.deepcopy((params, optimizer))
    spoil(optimizer.state[params[0]])
    before = values(params)

    def step(tensors: list[Tensor], each: torch.optim.Optimizer) -> None:
        for i, p in enumerate(tensors):
            p.grad = None if is_frozen and i == 0 else torch.cos(p.detach())
        each.step()

    with pytest.raises(RuntimeError, match=rf"state of parameter 0 of group 0.*{message}"):
        step(params, optimizer)
    assert equal(params, before)
    with pytest.raises(ValueError, match=message):
        Config("AdamCM", {"capacity": 3})(parameters()).load_state_dict(optimizer.state_dict())
    optimizer.state[params[0]].update(kept)
    step(params, optimizer)
    step(*truth)
    assert equal(params, truth[0])


def test_a_buffer_beside_pruned_moments_is_named_by_the_step() -> None:
    p = nn.Parameter(torch.ones(6, 4))
    optimizer = steppe.AdamCM([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    p.data, p.grad = p.data[:3].clone(), torch.ones(3, 4)
    state = optimizer.state[p]
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = state[name][:3].clone()
    with pytest.raises(RuntimeError, match=r"'slot_0' has shape \(6, 4\), expected \(3, 4\)"):
        optimizer.step()
    assert torch.equal(state["step"], torch.tensor(1.0))
    for name, value in state.items():
        if value.shape == (6, 4):
            state[name] = value[:3].clone()
    optimizer.step()
    assert torch.equal(state["step"], torch.tensor(2.0).to(state["step"]))


STEPS: dict[str, Callable[[float], Any]] = {
    "float": float,
    "int": int,
    "float32": lambda t: torch.tensor(t),
    "float64": lambda t: torch.tensor(t, dtype=torch.float64),
    "int64": lambda t: torch.tensor(int(t)),
    "int32": lambda t: torch.tensor(int(t), dtype=torch.int32),
    "bfloat16": lambda t: torch.tensor(t, dtype=torch.bfloat16),
    "one element": lambda t: torch.tensor([t]),
    "NumPy": np.float64,
    "NumPy's int": np.int64,
    "array": lambda t: np.array([t], dtype=np.float32),
}


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("config", [Config("AdamCM"), Config("SGDCG")], ids=str)
def test_a_step_count_may_be_of_any_format(config: Config, kind: str) -> None:
    params = parameters()
    optimizer = config(params)
    train(optimizer, params, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = STEPS[kind](3.0)
    others = [p.detach().clone().requires_grad_() for p in params]
    resumed = config(others)
    resumed.load_state_dict(saved)
    for p in params:
        optimizer.state[p]["step"] = STEPS[kind](3.0)
    if hasattr(optimizer, "diagnostics"):
        optimizer.diagnostics()
    for each, tensors in ((optimizer, params), (resumed, others)):
        train(each, tensors, range(3, 5))
        assert all(each.state[p]["step"].item() == 5 for p in tensors)
        assert all(each.state[p]["step"].ndim == 0 for p in tensors)
    truth = parameters()
    train(config(truth), truth, range(5))
    assert equal(params, truth)
    assert equal(others, truth)


OWN_ENTRIES = [
    {"step": 3, "exp_avg": torch.ones(2)},
    3,
    None,
    torch.zeros(1),
    [1],
    {"a": 1},
    "text",
    np.ones(2),
    (1, 2),
    object,
]


@pytest.mark.parametrize("key", ["note", ("a", 1), None], ids=str)
@every_optimizer
def test_a_users_own_entries_in_state_are_kept(name: str, key: Any) -> None:
    """Under keys that are no parameters, as torch.optim keeps them."""
    for value in OWN_ENTRIES:
        assert_kept_in_state(name, key, value)


def assert_kept_in_state(name: str, key: Any, value: Any) -> None:
    params, truth = parameters(), parameters()
    optimizer, reference = Config(name)(params), Config(name)(truth)
    optimizer.state[key] = value
    train(optimizer, params, range(2))
    train(reference, truth, range(2))
    assert equal(params, truth)
    optimizer.preconditioner()
    assert optimizer.engine == "cpu"
    other = Config(name)(parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert str(other.state[key]) == str(value)


@every_optimizer
def test_a_users_own_entries_beside_a_parameters_state_are_kept(name: str) -> None:
    for value in (3, None, torch.zeros(7), [1], {"a": torch.ones(2)}, "x", np.ones(2)):
        assert_kept_beside_state(name, value)


def assert_kept_beside_state(name: str, value: Any) -> None:
    params, truth = parameters(), parameters()
    optimizer, reference = Config(name)(params), Config(name)(truth)
    for p in params:
        optimizer.state[p]["note"] = value
        optimizer.state[p][3] = value
    if hasattr(optimizer, "diagnostics"):
        optimizer.diagnostics()
    other = Config(name)(parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, tensors in ((optimizer, params), (reference, truth)):
        train(each, tensors, range(2))
    assert equal(params, truth)
    others = [p.detach().clone().requires_grad_() for p in params]
    resumed = Config(name)(others)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert str(resumed.state[others[0]]["note"]) == str(value)
    for each, tensors in ((resumed, others), (reference, truth)):
        train(each, tensors, range(2, 4))
    assert equal(others, truth)


def test_state_of_a_parameter_that_was_replaced_is_left_out() -> None:
    """torch.optim raises a KeyError."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = steppe.AdamCM(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    old = model[0].weight
    model[0].weight = nn.Parameter(old.detach()[:, :2].clone())
    optimizer.param_groups[0]["params"][0] = model[0].weight
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    assert sorted(saved["state"]) == [0, 1, 2, 3]
    assert old in optimizer.state
    assert optimizer.diagnostics()["buffer_fill"] == (1 + 2 + 2 + 2) / 4
    steppe.AdamCM(model.parameters()).load_state_dict(saved)


def test_an_entry_under_a_parameters_number_does_not_replace_its_state() -> None:
    params = parameters()
    optimizer = Config("AdamCM")(params)
    train(optimizer, params, range(2))
    optimizer.state[1] = "a note"
    saved = optimizer.state_dict()
    assert saved["state"][1]["exp_avg"] is optimizer.state[params[1]]["exp_avg"]
    assert optimizer.state[1] == "a note"


@every_optimizer
def test_cleared_state_begins_anew(name: str) -> None:
    params, truth = parameters(), parameters()
    optimizer = Config(name)(params)
    train(optimizer, params, range(3))
    for p, q in zip(params, truth, strict=True):
        optimizer.state[p].clear()
        p.data.copy_(q)
    train(optimizer, params, range(3))
    train(Config(name)(truth), truth, range(3))
    assert equal(params, truth)


# A parameter that is listed twice


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        # torch's SGD forgets the first of two momentum buffers that it makes in one step.
        ("SGDCG", torch.optim.SGD, {"momentum": 0.0, "weight_decay": 0.1}),
        ("SGDCM", torch.optim.SGD, {"momentum": 0.0}),
        ("AdamCG", torch.optim.AdamW, {"weight_decay": 0.1}),
        ("RMSpropCG", torch.optim.RMSprop, {"centered": True}),
    ],
)
def test_a_parameter_that_is_listed_twice_takes_two_steps_as_in_torch(
    ours: str, theirs: Any, options: dict[str, Any], fused: bool | None
) -> None:
    ps, qs = parameters(), parameters()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate")
        optimizers = (
            Config(ours)([*ps, ps[1]], lr=0.01, capacity=0, fused=fused, **options),
            theirs([*qs, qs[1]], lr=0.01, foreach=False, **options),
        )
    for optimizer, params in zip(optimizers, (ps, qs), strict=True):
        train(optimizer, params, range(5))
    for p, q in zip(ps, qs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)
    assert optimizers[0].state[ps[1]]["step"].item() == 10
    assert optimizers[0].state[ps[0]]["step"].item() == 5


@every_config
def test_both_engines_step_a_parameter_that_is_listed_twice_alike(config: Config) -> None:
    starts = [parameters() for _ in range(2)]
    for params, fused in zip(starts, (None, False), strict=True):
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = config([*params, params[0], params[0]], fused=fused)
        train(optimizer, params, range(6))
        assert optimizer.state[params[0]]["step"].item() == 18
    for p, q in zip(*starts, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)


def test_a_parameter_in_two_groups_is_refused_as_in_torch() -> None:
    params = parameters()
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        Config("AdamCM")([{"params": params}, {"params": params[:1]}])


# Lazy modules


@pytest.mark.parametrize("fused", [None, True, False])
@every_optimizer
def test_a_step_before_a_lazy_modules_first_pass_does_nothing(name: str, fused: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    optimizer = Config(name)(model.parameters(), fused=fused)
    optimizer.step()
    assert not optimizer.state
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.preconditioner() == {}
    assert optimizer.engine == ("eager" if fused is False else "cpu")
    model(torch.ones(4, 5)).square().sum().backward()
    before = values(list(model.parameters()))
    optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    with pytest.raises(ValueError, match=r"parameter 0, of a lazy module, has no shape yet"):
        Config(name)(nn.LazyLinear(3).parameters()).load_state_dict(
            Config(name)(model[0].parameters()).state_dict()
            | {"state": {0: optimizer.state[model[0].weight]}}
        )


@every_optimizer
def test_a_frozen_lazy_module_may_stand_beside_others(name: str) -> None:
    model, lazy = nn.Linear(3, 2), nn.LazyLinear(2)
    optimizer = Config(name)([*lazy.parameters(), *model.parameters()])
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert len(optimizer.preconditioner()) == 2
