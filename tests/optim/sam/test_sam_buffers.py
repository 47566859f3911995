"""Buffers keep what the first of two passes made of them."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import steppe
from helpers.sam_cases import batch, closure_of, network, same, train, values
from steppe import SAM


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
