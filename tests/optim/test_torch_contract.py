"""What torch's own tests ask of every optimizer in torch.optim, asked of the optimizers here.

Each test runs the same steps with AdamW or SGD, so that it also says what torch does.
"""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer, lr_scheduler

from helpers.optimizer_configs import NAMES, Config, equal, parameters, train, values

Make = Callable[..., Optimizer]

every_optimizer = pytest.mark.parametrize(
    "make",
    [Config(name) for name in NAMES] + [AdamW, torch.optim.SGD],
    ids=[*NAMES, "torch's AdamW", "torch's SGD"],
)


@pytest.fixture
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def regression() -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model, inputs = nn.Linear(10, 5), torch.randn(20, 10)
    targets = inputs @ torch.randn(10, 5)
    return model, lambda: (model(inputs) - targets).square().mean()


def descend(optimizer: Optimizer, loss_of: Callable[[], Tensor], steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "schedule",
    [
        None,
        lambda o: lr_scheduler.ReduceLROnPlateau(o),
        lambda o: lr_scheduler.StepLR(o, gamma=0.9, step_size=10),
        lambda o: lr_scheduler.LinearLR(o, start_factor=0.4, total_iters=4),
    ],
    ids=["none", "plateau", "step", "linear"],
)
@every_optimizer
def test_the_loss_falls(make: Make, schedule: Any) -> None:
    model, loss_of = regression()
    optimizer = make(model.parameters(), lr=0.01)
    first, scheduler = loss_of().item(), schedule and schedule(optimizer)
    for _ in range(20):
        descend(optimizer, loss_of)
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(loss_of().item())
        elif scheduler:
            scheduler.step()
    assert loss_of().item() < first


@every_optimizer
def test_weight_decay_of_one_group_shrinks_it(make: Make) -> None:
    params, others = parameters(), parameters()
    groups = [{"params": params[:1], "weight_decay": 0.5}, {"params": params[1:]}]
    optimizers = make(groups, lr=0.01, weight_decay=0.0), make(others, lr=0.01, weight_decay=0.0)
    for tensors, optimizer in zip((params, others), optimizers, strict=True):
        for p in tensors:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert params[0].norm() < others[0].norm()
    assert equal(params[1:], others[1:])


@every_optimizer
def test_a_group_with_lr_zero_stands_still(make: Make) -> None:
    params = parameters()
    before = values(params)
    optimizer = make([{"params": params[:1], "lr": 0.0}, {"params": params[1:]}], lr=0.01)
    train(optimizer, params, range(3))
    assert torch.equal(params[0].detach(), before[0])
    assert not any(torch.equal(p, q) for p, q in zip(params[1:], before[1:], strict=True))


@every_optimizer
def test_a_step_without_gradients_does_nothing(make: Make) -> None:
    params = parameters()
    before = values(params)
    optimizer = make(params, lr=0.1, weight_decay=0.1)
    for p in params:
        p.grad = None
    optimizer.step()
    assert equal(params, before)
    assert not optimizer.state


@every_optimizer
def test_zero_gradients_move_nothing(make: Make) -> None:
    params = parameters()
    before = values(params)
    optimizer = make(params, lr=0.1, weight_decay=0.0)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert equal(params, before)


@every_optimizer
def test_gradients_stay_as_they_are(make: Make) -> None:
    params = parameters()
    optimizer = make(params, lr=0.1, weight_decay=0.1, maximize=True)
    train(optimizer, params, range(1))
    grads = [p.grad for p in params]
    before = values(grads)
    optimizer.step()
    assert all(p.grad is grad for p, grad in zip(params, grads, strict=True))
    assert equal(grads, before)


@every_optimizer
def test_it_can_be_printed(make: Make) -> None:
    text = repr(make([{"params": parameters(), "lr": 0.25}]))
    assert "Parameter Group 0" in text
    assert "lr: 0.25" in text


@every_optimizer
def test_a_resumed_run_is_deterministic(make: Make) -> None:
    ends = []
    for _ in range(2):
        model, loss_of = regression()
        optimizer = make(model.parameters(), lr=0.01)
        descend(optimizer, loss_of, 3)
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        for weights, state in (saved, saved):
            model.load_state_dict(copy.deepcopy(weights))
            optimizer.load_state_dict(copy.deepcopy(state))
            descend(optimizer, loss_of, 5)
            ends.append(values(list(model.parameters())))
    assert all(equal(end, ends[0]) for end in ends)


@every_optimizer
def test_a_checkpoint_from_before_an_option_loads(make: Make) -> None:
    params = parameters()
    optimizer = make(params, lr=0.01)
    train(optimizer, params, range(2))
    for option in ("maximize", "foreach", "capturable", "differentiable", "fused"):
        saved = copy.deepcopy(optimizer.state_dict())
        saved["param_groups"][0].pop(option, None)
        optimizer.load_state_dict(saved)
    train(optimizer, params, range(2, 4))


@every_optimizer
@pytest.mark.parametrize("named", [(True, False), (False, True), (True, True)], ids=str)
def test_checkpoints_pass_between_named_and_unnamed_parameters(make: Make, named: Any) -> None:
    model, loss_of = regression()

    def new(is_named: bool) -> Optimizer:
        return make(model.named_parameters() if is_named else model.parameters(), lr=0.01)

    saving, loading = map(new, named)
    descend(saving, loss_of, 2)
    loading.load_state_dict(saving.state_dict())
    assert ("param_names" in loading.param_groups[0]) == any(named)
    descend(loading, loss_of, 2)


@every_optimizer
def test_copies_have_all_public_attributes(make: Make) -> None:
    optimizer = make(parameters(), lr=0.01)

    def public(each: Optimizer) -> set[str]:
        return {name for name in vars(each) if not name.startswith("_")}

    for found in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert public(found) == public(optimizer)
        assert found.defaults == optimizer.defaults


@every_optimizer
def test_hooks_run_in_their_order(make: Make) -> None:
    params, seen = parameters(), []
    optimizer = make(params, lr=0.01)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("saving"))
    optimizer.register_state_dict_post_hook(lambda _, saved: seen.append(sorted(saved)))
    optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("loading"))
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    train(optimizer, params, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    saved = ["saving", ["param_groups", "state"]]
    assert seen == ["before", "after", *saved, "loading", "loaded"]


@every_optimizer
def test_the_default_format_may_change_in_mid_run(make: Make, default_dtype: None) -> None:
    params, truth = (parameters(torch.float32) for _ in range(2))
    optimizer, reference = make(params, lr=0.01), make(truth, lr=0.01)
    train(reference, truth, range(4))
    train(optimizer, params, range(2))
    torch.set_default_dtype(torch.float64)
    train(optimizer, params, range(2, 4))
    assert equal(params, truth)


@every_optimizer
def test_parameters_of_several_formats_are_stepped_together(make: Make) -> None:
    formats = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    params = [p for dtype in formats for p in parameters(dtype, [(3, 4)])]
    before = values(params)
    optimizer = make(params, lr=0.01)
    train(optimizer, params, range(10))
    for p, q, dtype in zip(params, before, formats, strict=True):
        assert p.dtype == dtype
        assert torch.isfinite(p).all()
        assert not torch.equal(p, q)


@every_optimizer
def test_entries_in_state_that_are_no_parameters_come_through(make: Make) -> None:
    params = parameters()
    optimizer = make(params, lr=0.01)
    optimizer.state["a note"] = {"value": 3}
    train(optimizer, params, range(2))
    other = make(parameters(), lr=0.01)
    other.load_state_dict(optimizer.state_dict())
    assert other.state["a note"] == {"value": 3}


@every_optimizer
def test_a_step_before_a_lazy_modules_first_pass_does_nothing(make: Make) -> None:
    optimizer = make(nn.LazyLinear(3).parameters(), lr=0.01)
    optimizer.step()
    assert not optimizer.state


@every_optimizer
def test_what_is_no_list_of_parameters_is_refused(make: Make) -> None:
    one, two = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    with pytest.raises(TypeError, match="an iterable of Tensors or dicts"):
        make(one)
    with pytest.warns(UserWarning, match="parameter group with duplicate parameters"):
        make([one, one])
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        make([{"params": one}, {"params": one}])
    with pytest.raises(ValueError, match="Some param names are missing"):
        make([("weight", one), two])
    with pytest.raises(ValueError, match="with/without names"):
        make([{"params": [one]}, {"params": [("weight", two)]}])
    with pytest.raises(ValueError, match="lr"):
        make([one], lr=torch.ones(2))
    with pytest.raises(ValueError, match="empty parameter list"):
        make([])
    with pytest.raises(TypeError, match="ordered collections"):
        make([{"params": {one, two}}])


@pytest.mark.parametrize("make", [Config("SGDCM"), Config("SGDCG"), torch.optim.SGD], ids=str)
def test_momentum_of_one_adds_gradients_up(make: Make) -> None:
    p = torch.zeros(1, requires_grad=True)
    optimizer = make([p], lr=1.0, momentum=1.0, **({} if make is torch.optim.SGD else {"kappa": 0}))
    for _ in range(3):
        p.grad = torch.ones(1)
        optimizer.step()
    assert p.item() == -6.0
    other = make([torch.zeros(1, requires_grad=True)])
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["momentum"] == 1.0


@pytest.mark.parametrize(
    "make",
    [Config(name) for name in ("AdamCM", "AdamCG", "DualAdam")] + [AdamW],
    ids=str,
)
def test_betas_may_be_tensors(make: Make) -> None:
    params, truth = parameters(), parameters()
    betas = torch.tensor(0.75), torch.tensor(0.875)
    optimizer, reference = make(params, betas=betas), make(truth, betas=(0.75, 0.875))
    for each, tensors in ((optimizer, params), (reference, truth)):
        train(each, tensors, range(3))
    for p, q in zip(params, truth, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    other = make(parameters())
    other.load_state_dict(optimizer.state_dict())
    assert list(map(float, other.param_groups[0]["betas"])) == [0.75, 0.875]
