"""SAM and its base are one optimizer, for schedulers, hooks, groups and arguments."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler, swa_utils

import steppe
from helpers.sam_cases import Make, every_base, leaves, network, same, train, values, wavy_closure
from steppe import SAM


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
    assert sam.diagnostics().items() >= sam.base_optimizer.diagnostics().items()  # type: ignore[operator]
    sgd = SAM(torch.optim.SGD(model.parameters()))
    assert sgd.engine == "torch.optim"
    assert sgd.diagnostics().keys() == {"ascents", "perturbation_norm"}


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
    plain, wrapped = (leaves() for _ in range(2))
    expected = scheduled(torch.optim.AdamW(plain, lr=1e-2), name, plain)
    sam = SAM(steppe.AdamCM(wrapped, lr=1e-2), rho=0.0)
    assert scheduled(sam, name, wrapped) == expected
    assert len({str(step) for step in expected}) > 1
    assert sam.base_optimizer.param_groups[0]["lr"] == expected[-1][0][0]


def test_all_schedulers_of_torch_are_tried() -> None:
    assert {n for n in lr_scheduler.__all__ if n != "LRScheduler"} <= SCHEDULERS.keys()


def test_a_scheduler_of_the_base_sees_its_steps() -> None:
    params = leaves()
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


@pytest.mark.parametrize("wrong", [torch.optim.SGD, nn.Linear(1, 1), nn.Sequential(), None])
def test_only_optimizers_are_wrapped(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"params_or_optimizer=(.|\n)* is not an optimizer"):
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


@pytest.mark.parametrize("rho", [-0.1, float("nan"), "0.1", None, True, torch.tensor(0.1)], ids=str)
def test_rho_that_no_checkpoint_takes_is_refused_when_it_is_used(rho: Any) -> None:
    p = nn.Parameter(torch.ones(2))
    sam = SAM(torch.optim.SGD([p]))
    p.grad = torch.ones(2)
    sam.param_groups[0]["rho"] = rho
    with pytest.raises(ValueError, match=r"rho=.* is not valid in group 0: expected a finite"):
        sam.perturb()
    assert torch.equal(p.detach(), torch.ones(2))
    with pytest.raises(ValueError, match="rho="):
        SAM(torch.optim.SGD([p])).load_state_dict(sam.state_dict())


@pytest.mark.parametrize("rho", [np.float32(0.5), np.array(0.5), np.float64(0.5), "missing"])
def test_rho_may_be_numpys_or_missing(rho: Any) -> None:
    p = nn.Parameter(torch.zeros(2))
    sam = SAM(torch.optim.SGD([p]), rho=0.5 if rho == "missing" else rho)
    if rho == "missing":
        del sam.param_groups[0]["rho"]
    else:
        sam.param_groups[0]["rho"] = rho
    p.grad = torch.tensor([3.0, 4.0])
    sam.perturb()
    assert p.detach().tolist() == pytest.approx([0.3, 0.4])
    assert type(sam.param_groups[0]["rho"]) is float
    sam.load_state_dict(sam.state_dict())


def test_a_sam_is_not_wrapped_again() -> None:
    base = steppe.DualAdam(network().parameters())
    sam = SAM(base, rho=0.1)
    for twice in (sam, base):
        with pytest.raises(ValueError, match="a SAM or in one already"):
            SAM(twice, rho=0.2)


def test_groups_that_name_a_metric_have_its_default_radius() -> None:
    def group(**options: object) -> dict[str, object]:
        return {"params": [torch.ones(1, requires_grad=True)], **options}

    groups = [
        group(),
        group(metric="adaptive"),
        group(adaptive=True),
        group(metric="preconditioned"),
        group(metric="preconditioned", rho=0.3),
    ]
    sam = SAM(groups, lr=0.1)
    sam.add_param_group(group(metric="adaptive"))
    sam.add_param_group(group())
    assert [g["rho"] for g in sam.param_groups] == [0.05, 0.5, 0.5, 0.005, 0.3, 0.5, 0.05]
    for rho in (0.2, 0.05):
        own = SAM([group(metric="adaptive"), group()], rho=rho, lr=0.1)
        own = copy.deepcopy(own)
        own.add_param_group(group(metric="adaptive"))
        assert [g["rho"] for g in own.param_groups] == [rho] * 3
    momentum = SAM([group(metric="adaptive"), group()], direction="momentum", lr=0.1)
    assert [g["rho"] for g in momentum.param_groups] == [1.0, 0.2]


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.RAdam])
def test_a_metric_that_does_not_fit_is_refused_whenever_it_comes(base: type) -> None:
    p = torch.ones(2, requires_grad=True)
    sam = SAM([p], base, lr=0.1)
    p.grad = torch.ones(2)
    sam.perturb()
    p.grad = torch.ones(2)
    sam.step()
    before, counts = p.detach().clone(), sam.diagnostics()["ascents"]
    saved = sam.state_dict()
    saved["param_groups"][0]["metric"] = "preconditioned"
    message = "metric='preconditioned' is not valid for " + base.__name__
    with pytest.raises(ValueError, match=message):
        sam.load_state_dict(saved)
    assert sam.param_groups[0]["metric"] == "euclidean"
    sam.param_groups[0]["metric"] = "preconditioned"
    p.grad = torch.ones(2)
    with pytest.raises(ValueError, match=message):
        sam.perturb()
    assert torch.equal(p, before)
    assert sam.diagnostics()["ascents"] == counts


@pytest.mark.parametrize("total_steps", [1, 2, 50, 99, 1001])
def test_a_start_near_the_end_leaves_the_last_step(total_steps: int) -> None:
    sam = SAM([torch.ones(1, requires_grad=True)], lr=0.1, start=0.999, total_steps=total_steps)
    assert 0 <= sam.first_step <= total_steps - 1
