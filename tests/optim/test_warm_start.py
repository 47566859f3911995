"""Checkpoints of torch's optimizers, of older versions, and of other optimizers of this library."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import steppe
from helpers.optimizer_configs import NAMES, Config, equal, parameters, set_gradients, train, values

ADAMS = ["DualAdam", "InvAdam", "MIAdam", "AdamCM", "DualAdamCM", "AdamCG"]
SGDS = ["SGDCM", "SGDCG"]
every_adam = pytest.mark.parametrize("name", ADAMS)
every_sgd = pytest.mark.parametrize("name", SGDS)


def trained(
    make: Any, dtype: torch.dtype = torch.float64, steps: int = 5, **options: Any
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    params = parameters(dtype)
    optimizer = make(params, **options)
    train(optimizer, params, range(steps))
    return params, optimizer


def through_a_file(saved: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def switched(
    name: str, params: list[Tensor], optimizer: torch.optim.Optimizer, **options: Any
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """Return copies of the parameters, and an optimizer that goes on from the checkpoint."""
    others = [p.detach().clone().requires_grad_() for p in params]
    ours = Config(name)(others, **options)
    ours.load_state_dict(through_a_file(optimizer.state_dict()))
    return others, ours


GO_ON: dict[str, tuple[str, dict[str, Any], Any, dict[str, Any]]] = {
    "AdamW, DualAdam": ("DualAdam", {"switch_rate": 1.0}, torch.optim.AdamW, {}),
    "AdamW, MIAdam": ("MIAdam", {"switch_rate": 1.0}, torch.optim.AdamW, {}),
    "AdamW, AdamCG": ("AdamCG", {"capacity": 0}, torch.optim.AdamW, {"weight_decay": 0.1}),
    "AMSGrad": ("AdamCG", {"capacity": 0}, torch.optim.AdamW, {"amsgrad": True}),
    "Adam": ("AdamCG", {"capacity": 0}, torch.optim.Adam, {"betas": (0.8, 0.9), "lr": 0.02}),
    "ascent": ("AdamCG", {"capacity": 0}, torch.optim.Adam, {"maximize": True}),
    "SGD": ("SGDCM", {"capacity": 0}, torch.optim.SGD, {"lr": 0.1}),
    "momentum": ("SGDCM", {"capacity": 0}, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "dampening": (
        "SGDCG",
        {"capacity": 0},
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
    ),
    "SGD, SGDCG": ("SGDCG", {"capacity": 0, "momentum": 0.9}, torch.optim.SGD, {"lr": 0.1}),
    "RMSprop": ("RMSpropCG", {"capacity": 0}, torch.optim.RMSprop, {"alpha": 0.9}),
    "centered": (
        "RMSpropCG",
        {"capacity": 0},
        torch.optim.RMSprop,
        {"centered": True, "momentum": 0.9, "weight_decay": 0.1},
    ),
}


@pytest.mark.parametrize("case", GO_ON)
def test_a_run_goes_on_where_torchs_optimizer_was(case: str) -> None:
    """Where this library's optimizer is torch's, the switch cannot be seen."""
    name, options, make, theirs = GO_ON[case]
    params, optimizer = trained(make, foreach=False, **theirs)
    others, ours = switched(name, params, optimizer, **options)
    for each, tensors in ((optimizer, params), (ours, others)):
        train(each, tensors, range(5, 12))
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("execution", [{"foreach": True}, {"fused": True}])
@every_adam
def test_adams_moments_are_taken_and_the_buffer_is_empty(name: str, execution: Any) -> None:
    chosen = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3}
    params, adamw = trained(torch.optim.AdamW, **chosen, **execution)
    others, ours = switched(name, params, adamw)
    group, defaults = ours.param_groups[0], ours.defaults
    assert {option: group[option] for option in chosen} == chosen
    assert {k: group[k] for k in defaults.keys() - chosen.keys()} == {
        k: v for k, v in defaults.items() if k not in chosen
    }
    assert not {"foreach", "decoupled_weight_decay"} & group.keys()
    for p, q in zip(params, others, strict=True):
        state = ours.state[q]
        assert state["step"].item() == 5
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[moment], adamw.state[p][moment])
    if Config(name).has_buffer:
        assert ours.diagnostics()["buffer_fill"] == 0
        train(ours, others, range(5, 7))
        assert ours.diagnostics()["buffer_fill"] == 2
    else:
        train(ours, others, range(5, 7))
    again = Config(name)([p.detach().clone().requires_grad_() for p in others])
    again.load_state_dict(through_a_file(ours.state_dict()))
    resumed = again.param_groups[0]["params"]
    for each, tensors in ((again, resumed), (ours, others)):
        train(each, tensors, range(7, 10))
    assert equal(resumed, others)


@pytest.mark.parametrize("make", [torch.optim.AdamW, steppe.InvAdam])
def test_an_optimizer_that_goes_on_beside_keeps_its_step_counts(make: Any) -> None:
    """Torch's are in float32, as those of checkpoints before 0.2."""
    params = parameters(torch.float32)
    optimizer = make(params)
    train(optimizer, params, range(2))
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        state["step"] = state["step"].float()
    steppe.InvAdam(parameters(torch.float32)).load_state_dict(saved)
    assert {state["step"].dtype for state in saved["state"].values()} == {torch.float32}


def test_the_first_step_of_adam_cm_after_adamw() -> None:
    """Worked out by hand: a = m̂, because the buffer is empty."""
    p = torch.zeros((), dtype=torch.float64, requires_grad=True)
    adamw = torch.optim.AdamW([p], lr=0.1, weight_decay=0.0, eps=0.0)
    for g in (1.0, 3.0):
        p.grad = torch.tensor(g, dtype=torch.float64)
        adamw.step()
    q = torch.zeros((), dtype=torch.float64, requires_grad=True)
    ours = steppe.AdamCM([q], lr=9.0, kappa=4.0)
    ours.load_state_dict(adamw.state_dict())
    q.grad = torch.tensor(2.0, dtype=torch.float64)
    ours.step()
    m = 0.9 * (0.9 * 0.1 * 1 + 0.1 * 3) + 0.1 * 2
    m_hat = m / (1 - 0.9**3)
    v = 0.999 * (0.999 * 0.001 * 1 + 0.001 * 9) + 0.001 * m_hat**2
    assert q.item() == pytest.approx(-0.1 * m_hat / math.sqrt(v / (1 - 0.999**3)), rel=1e-9)
    assert ours.param_groups[0]["kappa"] == 4.0


@every_adam
def test_amsgrads_maximum_is_used_where_the_optimizer_has_it(name: str) -> None:
    params, adam = trained(torch.optim.Adam, amsgrad=True)
    others, ours = switched(name, params, adam)
    has = "amsgrad" in ours.defaults
    assert ours.param_groups[0].get("amsgrad") is (True if has else None)
    assert all(("max_exp_avg_sq" in ours.state[q]) == has for q in others)
    train(ours, others, range(5, 7))
    assert all(torch.isfinite(q).all() for q in others)


@every_sgd
def test_sgds_momentum_is_taken(name: str) -> None:
    params, sgd = trained(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True)
    others, ours = switched(name, params, sgd)
    for p, q in zip(params, others, strict=True):
        state = ours.state[q]
        assert torch.equal(state["momentum_buffer"], sgd.state[p]["momentum_buffer"])
        assert state["step"].item() == 1
    assert ours.param_groups[0]["momentum"] == 0.9
    train(ours, others, range(5, 8))
    assert ours.diagnostics()["buffer_fill"] == 3


@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize(
    ("name", "make"),
    [(name, torch.optim.AdamW) for name in ADAMS]
    + [(name, torch.optim.SGD) for name in SGDS]
    + [("RMSpropCG", torch.optim.RMSprop)],
)
def test_moments_come_in_the_format_that_this_optimizer_has(
    name: str, make: Any, state_dtype: str | None
) -> None:
    """Half-precision parameters have moments in half precision in torch, and in full here."""
    p = torch.linspace(-1, 1, 4800).view(60, 80).bfloat16().requires_grad_()
    optimizer = make([p], lr=0.01, **({"momentum": 0.9} if make is not torch.optim.AdamW else {}))
    for _ in range(3):
        p.grad = p.detach().sin()
        optimizer.step()
    others, ours = switched(name, [p], optimizer, state_dtype=state_dtype)
    wanted = {None: torch.float32, "bfloat16": torch.bfloat16, "int8": torch.uint8}[state_dtype]
    state = ours.state[others[0]]
    moments = [m for m in ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg") if m in state]
    assert {state[m].dtype for m in moments} == {wanted}
    ours.param_groups[0]["lr"] = 0.0
    others[0].grad = torch.zeros_like(others[0])
    ours.step()
    assert torch.isfinite(others[0]).all()
    found, expected = ours.preconditioner()[others[0]], optimizer.state[p].get("exp_avg_sq")
    if expected is not None and name == "InvAdam":
        d = (expected.float() * 0.999 / (1 - 0.999**4)).sqrt()
        torch.testing.assert_close(found, d, rtol=0.03, atol=0.02 * d.max().item())


def test_scale_free_gets_the_mean_of_the_second_moment() -> None:
    params, adamw = trained(torch.optim.AdamW)
    others, ours = switched("DualAdam", params, adamw, scale_free=True)
    for p, q in zip(params, others, strict=True):
        mean = adamw.state[p]["exp_avg_sq"].mean()
        torch.testing.assert_close(ours.state[q]["exp_avg_sq_mean"], mean)


REFUSED: dict[str, tuple[Any, str, dict[str, Any], str]] = {
    "SGD": (torch.optim.SGD, "DualAdam", {}, r"options of group 0 are of another.*Adam or AdamW"),
    "AdamW": (torch.optim.AdamW, "SGDCM", {}, r"are of another optimizer.*torch's SGD"),
    "Adam": (torch.optim.Adam, "RMSpropCG", {}, r"are of another optimizer.*torch's RMSprop"),
    "RAdam": (torch.optim.RAdam, "InvAdam", {}, r"are of another optimizer.*torch's Adam or"),
    "NAdam": (torch.optim.NAdam, "DualAdam", {}, r"are of another optimizer.*torch's Adam or"),
    "Adamax": (torch.optim.Adamax, "AdamCM", {}, r"are of another optimizer.*torch's Adam or"),
    "Adagrad": (torch.optim.Adagrad, "SGDCG", {}, r"are of another optimizer.*torch's SGD"),
    "Rprop": (torch.optim.Rprop, "SGDCM", {}, r"are of another optimizer.*torch's SGD"),
    "L2 penalty": (
        torch.optim.Adam,
        "DualAdam",
        {"weight_decay": 0.1},
        r"weight_decay=0.1 of group 0 is an L2 penalty.*set weight_decay to",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_state_of_another_method_is_refused_by_name(case: str) -> None:
    make, name, options, message = REFUSED[case]
    _, theirs = trained(make, **options)
    others, ours = trained(Config(name))
    before = values(others), copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match=rf"does not fit this {name}: .*{message}"):
        ours.load_state_dict(theirs.state_dict())
    assert equal(others, before[0])
    assert ours.state_dict()["param_groups"] == before[1]["param_groups"]


def test_other_shapes_and_missing_state_of_torchs_optimizer_are_refused() -> None:
    _, adamw = trained(torch.optim.AdamW)
    for spoil, message in (
        (lambda s: s.update(exp_avg=torch.zeros(2)), r"'exp_avg' has shape \(2,\)"),
        (lambda s: s.pop("exp_avg_sq"), r"'exp_avg_sq' is missing"),
        (lambda s: s.pop("step"), r"'step' is missing"),
    ):
        saved = copy.deepcopy(adamw.state_dict())
        spoil(saved["state"][0])
        for name in ADAMS:
            with pytest.raises(ValueError, match=rf"parameter 0, shape \(3, 4\): {message}"):
                Config(name)(parameters()).load_state_dict(saved)


def test_the_way_out_of_an_l2_penalty_works() -> None:
    params, adam = trained(torch.optim.Adam, weight_decay=0.1)
    saved = adam.state_dict()
    saved["param_groups"][0].update(weight_decay=0.02, decoupled_weight_decay=True)
    ours = Config("AdamCM")(params)
    ours.load_state_dict(saved)
    assert ours.param_groups[0]["weight_decay"] == 0.02
    # A torch from before the option: Adam and AdamW look alike.
    del saved["param_groups"][0]["decoupled_weight_decay"]
    with pytest.raises(ValueError, match=r"may be AdamW's or Adam's.*decoupled_weight_decay=True"):
        ours.load_state_dict(saved)


def test_checkpoints_of_an_older_torch() -> None:
    """Step counts were integers; maximize, foreach, fused and others did not exist."""
    params, adamw = trained(torch.optim.AdamW, weight_decay=0.0)
    saved = adamw.state_dict()
    for option in ("maximize", "foreach", "capturable", "differentiable", "fused"):
        del saved["param_groups"][0][option]
    for state in saved["state"].values():
        state["step"] = int(state["step"])
    others, ours = trained(Config("DualAdam"), maximize=True)
    ours.load_state_dict(saved)
    assert ours.param_groups[0]["maximize"] is False
    assert ours.state[others[0]]["step"].item() == 5
    params, sgd = trained(torch.optim.SGD, lr=0.1)
    saved = sgd.state_dict()
    saved["state"] = {i: {"momentum_buffer": None} for i in range(len(params))}
    ours = Config("SGDCM")(params)
    ours.load_state_dict(saved)
    train(ours, params, range(2))


def test_frozen_parameters_and_groups_of_torchs_optimizer() -> None:
    params = parameters()
    adamw = torch.optim.AdamW(
        [{"params": params[:2], "lr": 0.5, "name": "a"}, {"params": params[2:]}]
    )
    params[0].grad = torch.ones_like(params[0])
    adamw.step()
    others = parameters()
    ours = Config("AdamCM")([{"params": others[:2], "kappa": 0.5}, {"params": others[2:]}])
    ours.load_state_dict(adamw.state_dict())
    assert [group["lr"] for group in ours.param_groups] == [0.5, 1e-3]
    assert [group["kappa"] for group in ours.param_groups] == [0.5, 1.0]
    assert ours.param_groups[0]["name"] == "a"
    assert len(ours.state) == 1
    train(ours, others, range(2))


def test_a_sam_goes_on_from_a_sam() -> None:
    params = parameters()
    sam = steppe.SAM(torch.optim.AdamW(params), rho=0.1)
    loss = sum(p.square().sum() for p in params)
    loss.backward()
    with sam.perturbed():
        sum(p.square().sum() for p in params).backward()
    sam.step()
    ours = steppe.SAM(steppe.AdamCM(params), rho=0.3)
    ours.load_state_dict(sam.state_dict())
    assert ours.param_groups[0]["rho"] == 0.1


# Checkpoints of this library


@pytest.mark.parametrize("name", NAMES)
def test_an_option_that_a_checkpoint_lacks_takes_the_classes_default(name: str) -> None:
    params, optimizer = trained(Config(name))
    truth = copy.deepcopy((params, optimizer))
    train(truth[1], truth[0], range(5, 8))
    for option in optimizer.defaults:
        saved = through_a_file(optimizer.state_dict())
        del saved["param_groups"][0][option]
        others = [p.detach().clone().requires_grad_() for p in params]
        # Its own values differ where that can be.
        own = {"lr": 0.5, "kappa": 3.0, "eps": 1e-2, "maximize": True, "switch_rate": 0.5}
        own |= {"integration_order": 3, "integration_rate": 0.5}
        resumed = Config(name)(others, **{k: v for k, v in own.items() if k in optimizer.defaults})
        resumed.load_state_dict(saved)
        assert resumed.param_groups[0] | {"params": 0} == optimizer.param_groups[0] | {"params": 0}
        train(resumed, others, range(5, 8))
        assert equal(others, truth[0]), option


OTHERS = {
    ("SGDCM", "SGDCG"): r"option 'aggregation' of group 0 is missing.*hold momenta",
    ("AdamCM", "AdamCG"): r"option 'aggregation' of group 0 is missing.*hold momenta",
    ("DualAdamCM", "AdamCG"): r"option 'aggregation' of group 0 is missing.*hold momenta",
    ("SGDCG", "SGDCM"): r"the buffers of group 0 hold gradients, expected momenta",
    ("AdamCG", "AdamCM"): r"the buffers of group 0 hold gradients, expected momenta",
    ("AdamCG", "DualAdamCM"): r"the buffers of group 0 hold gradients, expected momenta",
    ("AdamCM", "InvAdam"): r"group 0 has buffers of critical momenta or gradients",
}
#: Their state is the same.
ALIKE = {("DualAdam", "InvAdam"), ("AdamCM", "DualAdamCM"), ("DualAdamCM", "AdamCM")}


def test_integrals_begin_empty_and_those_of_a_checkpoint_are_not_dropped() -> None:
    """After AdamW, MIAdam's first step is lr²·m̄⁽²⁾ with m̄⁽²⁾ = m̄⁽¹⁾ = m."""
    params, adamw = trained(torch.optim.AdamW, weight_decay=0.0)
    others, ours = switched("MIAdam", params, adamw)
    train(adamw, params, range(5, 6))
    before = values(others)
    train(ours, others, range(5, 6))
    for p, q, start in zip(params, others, before, strict=True):
        torch.testing.assert_close(q - start, (p - start) * 1e-3, rtol=1e-10, atol=1e-15)
        torch.testing.assert_close(ours.state[q]["integral_2"], adamw.state[p]["exp_avg"])
    for name in ("DualAdam", "InvAdam"):
        with pytest.raises(ValueError, match=rf"does not fit this {name}: .*another optimizer"):
            Config(name)(others).load_state_dict(ours.state_dict())


@pytest.mark.parametrize("saved", NAMES)
def test_a_checkpoint_of_another_optimizer_here_is_refused(saved: str) -> None:
    params, optimizer = trained(Config(saved))
    checkpoint = optimizer.state_dict()
    for own in NAMES:
        if own == saved or (saved, own) in ALIKE:
            Config(own)(params).load_state_dict(checkpoint)
            continue
        message = OTHERS.get((saved, own), "")
        with pytest.raises(ValueError, match=rf"does not fit this {own}: .*{message}"):
            Config(own)(params).load_state_dict(checkpoint)


def test_a_checkpoint_without_any_option_of_ours_is_refused() -> None:
    """InvAdam has no option that torch's optimizers lack."""
    params = parameters()
    set_gradients(params, 0)
    theirs = torch.optim.LBFGS(params)
    theirs.step(lambda: torch.ones(()))
    for name in NAMES:
        with pytest.raises(ValueError, match=rf"does not fit this {name}: .*another optimizer"):
            Config(name)(params).load_state_dict(theirs.state_dict())
