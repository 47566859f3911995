"""SAM and Offload are optimizers like others: what frameworks assign, call and count."""

import copy
import gc
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import steppe
from helpers.optimizer_configs import equal, parameters, set_gradients, train, values
from steppe.optim import Offload

Plain = partial(steppe.AdamCM, lr=0.01, capacity=2)
WRAPPED: dict[str, Callable[[list[Tensor]], Any]] = {
    "plain": Plain,
    "SAM": lambda params: steppe.SAM(Plain(params), required=False),
    "Offload": lambda params: Offload(params, Plain),
    "SAM of Offload": lambda params: steppe.SAM(Offload(params, Plain), required=False),
    "SAM of AdamW": lambda params: steppe.SAM(torch.optim.AdamW(params), required=False),
}
every_wrapper = pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)


def steps(optimizer: Optimizer, params: list[Tensor]) -> list[float]:
    return [float(optimizer.state.get(p, {}).get("step", 0)) for p in params]


def assign_state(optimizer: Any) -> None:
    optimizer.state = defaultdict(dict)


def set_state(optimizer: Any) -> None:
    optimizer.__setstate__({"state": defaultdict(dict)})


def clear_state(optimizer: Any) -> None:
    optimizer.state.clear()


def pop_states(optimizer: Any) -> None:
    for param in list(optimizer.state):
        optimizer.state.pop(param)


def empty_states(optimizer: Any) -> None:
    for param in list(optimizer.state):
        optimizer.state[param] = {}


@every_wrapper
@pytest.mark.parametrize("forget", [assign_state, set_state, clear_state, pop_states, empty_states])
def test_state_that_is_taken_away_is_made_anew(
    make: Callable[..., Any], forget: Callable[[Any], None]
) -> None:
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, range(3))
    assert steps(optimizer, params) == [3.0] * len(params)
    forget(optimizer)
    assert steps(optimizer, params) == [0.0] * len(params)
    fresh = [p.detach().clone().requires_grad_() for p in params]
    other = make(fresh)
    train(optimizer, params, range(2))
    train(other, fresh, range(2))
    assert equal(values(params), values(fresh))
    assert steps(optimizer, params) == [2.0] * len(params)
    assert optimizer.state_dict()["state"].keys() == other.state_dict()["state"].keys()


@every_wrapper
def test_state_is_live_and_of_the_models_parameters(make: Callable[..., Any]) -> None:
    params = parameters()
    optimizer = make(params)
    held = optimizer.state
    train(optimizer, params, range(2))
    assert optimizer.state is held
    assert list(held) == params
    own = held[params[0]]
    train(optimizer, params, range(1))
    assert own["step"] == 3
    held[params[0]]["exp_avg"].zero_()
    assert not optimizer.state_dict()["state"][0]["exp_avg"].any()


@every_wrapper
def test_assigned_groups_are_those_that_are_stepped(make: Callable[..., Any]) -> None:
    """As Lightning's BaseFinetuning assigns them when it resumes."""
    params, alone = parameters(), parameters()
    optimizer, truth = make(params[:2]), make(alone)
    train(optimizer, params[:2], range(2))
    train(truth, alone[:2], range(2))
    for each, ps in ((optimizer, params), (truth, alone)):
        group = {k: v for k, v in each.param_groups[0].items() if k != "params"}
        each.param_groups = [
            {**group, "params": ps[:2]},
            {**group, "params": ps[2:], "lr": 0.5},
        ]
    for each, ps in ((optimizer, params), (truth, alone)):
        set_gradients(ps, 5)
        each.step()
    assert equal(values(params), values(alone))
    assert steps(optimizer, params) == [3.0, 3.0, 1.0, 1.0]
    saved = optimizer.state_dict()
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1], [2, 3]]
    assert saved["param_groups"][1]["lr"] == 0.5
    resumed = make(params)
    resumed.param_groups = [dict(group) for group in optimizer.param_groups]
    resumed.load_state_dict(copy.deepcopy(saved))
    assert steps(resumed, params) == [3.0, 3.0, 1.0, 1.0]


def test_groups_and_defaults_without_sam_s_options_are_given_them() -> None:
    params = parameters()
    sam: Any = WRAPPED["SAM"](params)
    sam.param_groups[0]["rho"] = 0.2
    bare = {k: v for k, v in sam.param_groups[0].items() if k not in ("rho", "metric")}
    sam.param_groups = [bare]
    sam.defaults = {k: v for k, v in sam.defaults.items() if k not in ("rho", "metric")}
    assert sam.base_optimizer.param_groups[0] is bare
    assert (bare["rho"], bare["metric"], sam.defaults["rho"]) == (0.05, "euclidean", 0.05)
    sam.__setstate__({"param_groups": [{**bare, "rho": 0.3}]})
    assert sam.base_optimizer.param_groups[0]["rho"] == 0.3
    set_gradients(params, 0)
    with sam.perturbed():
        set_gradients(params, 0)
    sam.step()
    assert sam.diagnostics()["perturbation_norm"] == pytest.approx(0.3)


@pytest.fixture
def counted() -> Iterator[list[tuple[str, Optimizer]]]:
    """Return what the hooks of all optimizers have seen."""
    seen: list[tuple[str, Optimizer]] = []
    hooks = [
        register_optimizer_step_pre_hook(lambda o, *_: seen.append(("before", o))),
        register_optimizer_step_post_hook(lambda o, *_: seen.append(("after", o))),
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@every_wrapper
@pytest.mark.parametrize("scheduled", [False, True])
def test_hooks_of_all_optimizers_run_once_a_step(
    make: Callable[..., Any], counted: list[tuple[str, Optimizer]], scheduled: bool
) -> None:
    params = parameters()
    optimizer = make(params)
    schedulers = []
    each = optimizer
    while scheduled and each is not None:
        schedulers.append(lr_scheduler.ExponentialLR(each, 0.5))
        each = getattr(each, "base_optimizer", None)
    for _ in range(2):
        train(optimizer, params, range(1))
        # A scheduler that steps before its optimizer warns, and warnings are errors here.
        for scheduler in schedulers:
            scheduler.step()
    assert counted == [("before", optimizer), ("after", optimizer)] * 2


@every_wrapper
def test_a_profile_shows_one_step(make: Callable[..., Any]) -> None:
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, range(1))
    set_gradients(params, 1)
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    names = [e.name for e in profile.function_events if e.name.startswith("Optimizer.step#")]
    assert names == [f"Optimizer.step#{type(optimizer).__name__}.step"]


@pytest.mark.parametrize("name", ["SAM", "Offload", "SAM of AdamW"])
def test_hooks_of_the_base_run_with_its_step(name: str) -> None:
    params = parameters()
    optimizer = WRAPPED[name](params)
    base, seen = optimizer.base_optimizer, []
    base.register_step_pre_hook(lambda o, args, keywords: seen.append((o, args, keywords)))
    base.register_step_pre_hook(lambda o, args, keywords: ((o, lambda: 7.0), keywords))
    base.register_step_post_hook(lambda o, args, keywords: seen.append((o, args[1](), keywords)))
    train(optimizer, params, range(1))
    assert seen == [(base, (base,), {}), (base, 7.0, {})]


def test_a_step_that_somebody_has_put_on_the_base_is_called() -> None:
    params, calls = parameters(), []
    base: Any = torch.optim.SGD(params)
    original = base.step
    base.step = lambda: calls.append(1) or original()
    sam = steppe.SAM(base, required=False)
    train(sam, params, range(2))
    assert calls == [1, 1]


def test_offload_drops_what_it_does_not_step() -> None:
    params = [nn.Parameter(torch.ones(10)) for _ in range(2)]
    optimizer = Offload(params, torch.optim.SGD, lr=0.1)
    optimizer.param_groups = [{**optimizer.param_groups[0], "params": params[:1]}]
    for p in params:
        p.grad = torch.ones(10)
    optimizer.step()
    gc.collect()
    assert (params[0][0].item(), params[1][0].item()) == (pytest.approx(0.9), 1.0)
    assert len(optimizer._copies) == 1
