"""A SAM that takes no second pass says so; what it did is told by its diagnostics."""

import copy
import gc
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import steppe
from helpers.float64_reference import sam_perturbation
from helpers.sam_cases import (
    Make,
    batch,
    bits_of_state,
    closure_of,
    either_form,
    every_base,
    gradient,
    leaves,
    network,
    same,
    train,
    values,
    wavy_closure,
)
from steppe import SAM
from steppe.optim import Offload

REFUSED = r"without a second pass.*perturbed\(\).*closure.*required=False"


def one_pass(model: nn.Module) -> None:
    model.zero_grad()
    model(batch()).square().mean().backward()


def second_pass(model: nn.Module, sam: SAM) -> None:
    with sam.perturbed():
        model(batch()).square().mean().backward()


def skipped_by_a_scaler(model: nn.Module, sam: SAM) -> None:
    second_pass(model, sam)
    sam.zero_grad()
    one_pass(model)


def stepped_already(model: nn.Module, sam: SAM) -> None:
    second_pass(model, sam)
    sam.step()


def nothing_under_perturbed(model: nn.Module, sam: SAM) -> None:
    with sam.perturbed():
        pass
    one_pass(model)


def nothing_at_all(model: nn.Module, sam: SAM) -> None:
    pass


@pytest.mark.parametrize(
    "before", [nothing_at_all, nothing_under_perturbed, stepped_already, skipped_by_a_scaler]
)
def test_a_step_without_a_second_pass_is_refused_and_changes_nothing(
    before: Callable[[nn.Module, SAM], None],
) -> None:
    model = network()
    sam = SAM(steppe.AdamCM(model.parameters(), lr=0.1))
    one_pass(model)
    before(model, sam)
    weights, state = values(model), bits_of_state(sam)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=REFUSED):
            sam.step()
    assert same(values(model), weights)
    assert bits_of_state(sam) == state
    second_pass(model, sam)
    sam.step()
    assert not same(values(model), weights)


def test_a_grad_scaler_s_step_without_a_second_pass_is_refused() -> None:
    model, scaler = network(), torch.amp.GradScaler("cpu", init_scale=8.0)
    sam = SAM(torch.optim.SGD(model.parameters()))
    scaler.scale(model(batch()).square().mean()).backward()
    with pytest.raises(RuntimeError, match=REFUSED):
        scaler.step(sam)


@every_base
def test_where_it_is_not_required_a_step_alone_is_the_base_s(make: Make) -> None:
    one, two = network(), network()
    plain, sam = make(one.parameters()), SAM(make(two.parameters()), rho=1.0, required=False)
    for model, opt in ((one, plain), (two, sam)):
        closure_of(model, opt, batch())()
        assert opt.step() is None
    assert same(values(one), values(two))
    train(two, sam, steps=1)
    assert sam.diagnostics()["ascents"] == 1


def test_a_step_without_gradients_does_nothing() -> None:
    model = network()
    before = values(model)
    SAM(steppe.AdamCM(model.parameters(), lr=0.1)).step()
    assert same(values(model), before)


@every_base
def test_a_checkpoint_library_makes_state_by_a_step_that_moves_nothing(make: Make) -> None:
    model, fresh = network(), network()
    sam = SAM(make(model.parameters()), rho=0.3)
    train(model, sam)
    saved = get_optimizer_state_dict(model, sam)
    before = values(fresh)
    again = SAM(make(fresh.parameters()))
    set_optimizer_state_dict(fresh, again, copy.deepcopy(saved))
    assert same(values(fresh), before)
    assert bits_of_state(again) == bits_of_state(sam)


@pytest.mark.parametrize(("lr", "slope"), [(0.0, 1.0), (0.1, 0.0)])
def test_a_step_that_moves_something_is_none_of_those(lr: float, slope: float) -> None:
    p = nn.Parameter(torch.ones(2))
    sam = SAM(torch.optim.AdamW([p], lr=lr, weight_decay=0.1))
    p.grad = torch.full((2,), slope)
    with pytest.raises(RuntimeError, match=REFUSED):
        sam.step()


def test_a_closure_that_adds_to_other_batches_is_refused() -> None:
    model = network()
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    before = values(model)

    def closure() -> Tensor:
        loss: Tensor = model(batch()).square().mean()
        loss.backward()
        return loss

    closure()
    with pytest.raises(RuntimeError, match=r"added to gradients.*SAM's zero_grad\(\) first"):
        sam.step(closure)
    assert same(values(model), before)
    sam.zero_grad()
    sam.step(closure)
    assert not same(values(model), before)


# Zeroed in place by the model, gradients cannot be told from those that are added to.
@pytest.mark.parametrize(
    ("set_to_none", "through_the_model"), [(True, False), (False, False), (True, True)]
)
def test_a_closure_that_clears_gradients_is_not(set_to_none: bool, through_the_model: bool) -> None:
    one, two = network(), network()
    ends = []
    for model in (one, two):
        sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
        run = closure_of(model, sam, batch())

        def closure(model: Any = model, sam: Any = sam) -> Tensor:
            (model if through_the_model else sam).zero_grad(set_to_none=set_to_none)
            loss: Tensor = model(batch()).square().mean()
            loss.backward()
            return loss

        for _ in range(3):
            sam.step(closure if model is two else run)
        ends.append(values(model))
    assert same(*ends)


# Diagnostics


@either_form
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_diagnostics_tell_the_ascents_and_the_last_length(
    adaptive: bool, dtype: torch.dtype
) -> None:
    params = leaves(dtype=dtype)
    sam = SAM(steppe.DualAdam(params, lr=1e-2), rho=0.3, adaptive=adaptive)
    first = sam.diagnostics()
    assert first["ascents"] == 0
    assert np.isnan(first["perturbation_norm"])
    for count in range(1, 4):
        at = [p.detach().double().numpy().copy() for p in params]
        sam.step(wavy_closure(params, sam))
        e = sam_perturbation(at, [gradient(p) for p in at], 0.3, adaptive)
        expected = np.sqrt(sum(np.sum(x**2) for x in e))
        found = sam.diagnostics()
        assert found["ascents"] == count
        assert found["perturbation_norm"] == pytest.approx(expected, rel=1e-6)
        assert adaptive or found["perturbation_norm"] == pytest.approx(0.3, rel=1e-6)
    assert found.items() >= sam.base_optimizer.diagnostics().items()  # type: ignore[operator]


def test_the_number_of_ascents_goes_on() -> None:
    model = network()
    sam = SAM(steppe.AdamCM(model.parameters()))
    train(model, sam, steps=3)
    resumed = SAM(steppe.AdamCM(model.parameters()))
    resumed.load_state_dict(copy.deepcopy(sam.state_dict()))
    assert "ascents" not in resumed.param_groups[0]
    for again in (resumed, copy.deepcopy(sam), pickle.loads(pickle.dumps(sam))):
        assert again.diagnostics()["ascents"] == 3
        assert np.isnan(again.diagnostics()["perturbation_norm"])
    train(model, resumed, steps=1)
    assert resumed.diagnostics()["ascents"] == 4
    # One that was saved before they were counted.
    saved = sam.state_dict()
    for group in saved["param_groups"]:
        del group["ascents"]
    resumed.load_state_dict(saved)
    assert resumed.diagnostics()["ascents"] == 0


def test_the_length_is_that_of_all_groups() -> None:
    params = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": params[:1], "rho": 0.5}, {"params": params[1:], "rho": 2.0}]
    sam = SAM(torch.optim.SGD(groups))
    params[0].grad, params[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    sam.perturb()
    expected = np.hypot(0.5 * 3 / 5, 2.0 * 4 / 5)
    assert sam.diagnostics()["perturbation_norm"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("slope", [0.0, torch.inf, torch.nan])
def test_an_ascent_that_moves_nothing_has_length_zero(slope: float) -> None:
    p = nn.Parameter(torch.ones(2))
    sam = SAM(torch.optim.SGD([p]))
    p.grad = torch.full((2,), slope)
    sam.perturb()
    assert sam.diagnostics() == {"ascents": 1.0, "perturbation_norm": 0.0}


# The module


def normalised() -> nn.Sequential:
    return network(norm=nn.BatchNorm1d(4))


@pytest.fixture
def _no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def searched() -> Iterator[Any]:
        raise AssertionError("the heap has been searched")

    monkeypatch.setattr("gc.get_objects", searched)


@pytest.mark.usefixtures("_no_search")
def test_a_named_module_s_buffers_are_put_back_without_a_search() -> None:
    one, two = normalised(), normalised()
    train(two, torch.optim.SGD(two.parameters(), lr=0.0), steps=1)
    sam = SAM(torch.optim.SGD(one.parameters(), lr=0.0), rho=1.0, module=one)
    train(one, sam, steps=1)
    assert one[1].num_batches_tracked == 1
    assert same(values(one), values(two))


def test_other_modules_buffers_are_left_alone() -> None:
    whole = normalised()
    sam = SAM(torch.optim.SGD(whole.parameters(), lr=0.0), rho=1.0, module=whole[0])
    train(whole, sam, steps=1)
    assert whole[1].num_batches_tracked == 2


def test_a_module_that_the_collector_does_not_list_is_found() -> None:
    model = normalised()
    gc.freeze()
    train(model, SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=1.0), steps=1)
    assert model[1].num_batches_tracked == 1
    assert gc.get_freeze_count()


@pytest.mark.parametrize("wrong", [3, "model", [nn.Linear(2, 2)]])
def test_what_is_no_module_is_refused(wrong: Any) -> None:
    base = torch.optim.SGD(network().parameters())
    with pytest.raises(TypeError, match=r"module=(.|\n)* is not valid: expected the torch.nn.Modu"):
        SAM(base, module=wrong)
    assert "adaptive" not in base.defaults


def test_required_is_true_or_false() -> None:
    with pytest.raises(ValueError, match="required=1 is not valid"):
        SAM(torch.optim.SGD(network().parameters()), required=1)  # type: ignore[arg-type]


def test_a_module_of_other_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="module=Linear holds none of the optimizer's parameters"):
        SAM(torch.optim.SGD(network().parameters()), module=nn.Linear(2, 2))


def test_copies_have_the_copied_module() -> None:
    model = normalised()
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.0), module=model, required=False)
    pairs = [copy.deepcopy((model, sam)), pickle.loads(pickle.dumps((model, sam)))]
    for its, again in pairs:
        assert again.module is its
        assert again.required is False
        train(its, again, steps=1)
        assert its[1].num_batches_tracked == 1
    assert model[1].num_batches_tracked == 0


def test_sam_around_offload_tells_both() -> None:
    model = network()
    sam = SAM(Offload(model.parameters(), steppe.DualAdam), module=model)
    train(model, sam)
    assert sam.diagnostics()["ascents"] == 4
    assert "alpha" in sam.diagnostics()


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("form", ["perturbed", "perturb"])
def test_an_only_pass_at_a_point_that_is_the_same_is_refused(set_to_none: bool, form: str) -> None:
    """The loop of methods that take one pass: with SAM e would be 0, and the step the base's."""
    model = network()
    sam = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    one_pass(model)
    second_pass(model, sam)
    sam.step()
    before = values(model)
    sam.zero_grad(set_to_none=set_to_none)
    ascents = sam.diagnostics()["ascents"]
    with pytest.raises(RuntimeError, match=r"no gradients.*first pass.*direction='momentum'"):
        getattr(sam, form)().__enter__()
    assert same(values(model), before)
    assert not sam.is_perturbed
    assert sam.diagnostics()["ascents"] == ascents


def test_gradients_that_are_zero_are_gradients() -> None:
    model = network()
    sam = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with sam.perturbed():
        pass
    assert sam.diagnostics() == {"ascents": 1.0, "perturbation_norm": 0.0}
