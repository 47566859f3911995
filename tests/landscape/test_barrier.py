"""Barriers that are known; buffers on the way, and that neither model is changed."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.stateful_model import restless, snapshot
from steppe.landscape import Barrier, barrier

ONE = [(torch.ones(4, 1).double(), torch.zeros(4, 1).double())]


def at(weight: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, weight)
    return model


def double_well(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.square() - 1).square().mean()


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean() / 2


def test_a_double_well_has_a_barrier_of_1() -> None:
    found = barrier(at(-1.0), at(1.0), double_well, ONE, points=5)
    assert (found.height, found.where) == (1.0, 0.5)
    np.testing.assert_allclose(found.coordinates, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found.losses, [0, 0.5625, 1, 0.5625, 0])
    assert (found.samples, found.train, found.complete) == (4, False, True)


def test_is_measured_from_the_line_between_the_ends() -> None:
    """From w = 0 to 2, of −w³: L(t) = −8t³ is highest above −8t at t = 1/√3, by 16/(3√3)."""

    def falling(outputs: Tensor, targets: Tensor) -> Tensor:
        return -outputs.pow(3).mean()

    found = barrier(at(0.0), at(2.0), falling, ONE, points=201)
    assert found.height == pytest.approx(16 / (3 * math.sqrt(3)), rel=1e-4)
    assert found.where == pytest.approx(1 / math.sqrt(3), abs=1 / 200)


def test_a_convex_loss_has_none() -> None:
    found = barrier(at(-1.0), at(2.0), half_square, ONE)
    assert (found.height, found.where) == (0.0, 0.0)


def test_the_ends_are_the_models_to_the_last_bit() -> None:
    torch.manual_seed(0)
    a, b = nn.Linear(3, 1), nn.Linear(3, 1)
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    found = barrier(a, b, half_square, [(x, y)], points=3)
    assert found.losses[0] == half_square(a(x), y).item()
    assert found.losses[-1] == half_square(b(x), y).item()


def normalised(mean: float, batches: int) -> nn.BatchNorm1d:
    model = nn.BatchNorm1d(1, affine=True, eps=1e-12).double()
    model.running_mean.fill_(mean)
    model.num_batches_tracked.fill_(batches)
    return model


def test_running_statistics_are_interpolated() -> None:
    data = [(torch.tensor([[1.0], [3.0]]).double(), torch.zeros(2, 1).double())]
    a, b = normalised(0.0, 1), normalised(4.0, 2)
    found = barrier(a, b, half_square, data, points=5)
    expected = [((1 - 4 * t) ** 2 + (3 - 4 * t) ** 2) / 4 for t in found.coordinates]
    np.testing.assert_allclose(found.losses, expected)
    # With the batch's own statistics outputs are −1 and 1 everywhere.
    found = barrier(a, b, half_square, data, points=5, train=True)
    np.testing.assert_allclose(found.losses, 0.5)
    assert found.train


@pytest.mark.parametrize("fails", [False, True])
def test_neither_model_is_changed(fails: bool) -> None:
    a, b = restless(), restless()
    nn.init.ones_(b.body[0].weight)
    inputs = torch.randn(6, 3)
    before = snapshot(a), snapshot(b)
    calls = 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if fails and calls == 6:
            raise RuntimeError("no more")
        return outputs.square().mean()

    def measure() -> None:
        data = [(inputs[:4], inputs), (inputs[4:], inputs)]
        # Given the weight, the loss is not called to find it.
        barrier(a, b, loss_fn, data, train=True, weight="samples")

    if fails:
        with pytest.raises(RuntimeError, match="no more"):
            measure()
    else:
        measure()
    assert (snapshot(a), snapshot(b)) == before


def test_frozen_parameters_are_interpolated_too() -> None:
    found = barrier(at(-1.0).requires_grad_(False), at(1.0), double_well, ONE)
    assert found.height == 1.0


def test_a_buffer_that_a_forward_pass_replaces_is_interpolated() -> None:
    class Remembering(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1).double())
            self.register_buffer("shift", torch.tensor(shift).double())

        def forward(self, inputs: Tensor) -> Tensor:
            outputs = self.scale * inputs + self.shift
            self.shift = torch.tensor(100.0).double()
            return outputs

    def mean(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean()

    found = barrier(Remembering(1.0), Remembering(3.0), mean, ONE, points=3)
    np.testing.assert_allclose(found.losses, [2.0, 3.0, 4.0])


def test_where_the_loss_overflows_the_barrier_is_infinite() -> None:
    def wall(outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 / outputs).square().mean()

    found = barrier(at(-1.0), at(1.0), wall, ONE, points=3)
    assert found.losses.tolist() == [1.0, math.inf, 1.0]
    assert (found.height, found.where) == (math.inf, 0.5)
    found.plot().figure.draw_without_rendering()


def interrupted_at(call: int) -> Barrier:
    calls = 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return double_well(outputs, targets)

    return barrier(at(-1.0), at(1.0), loss_fn, ONE, points=5)


def test_ctrl_c_leaves_what_there_is() -> None:
    found = interrupted_at(6)
    np.testing.assert_allclose(found.losses, [0, 0.5625, np.nan, np.nan, 0])
    assert (found.height, found.where, found.complete) == (0.5625, 0.25, False)
    with pytest.raises(KeyboardInterrupt):
        interrupted_at(5)


def test_refuses_models_of_other_names() -> None:
    message = "model_b has 'bias', model_a has not: they must be of one architecture"
    with pytest.raises(ValueError, match=message):
        barrier(at(1.0), nn.Linear(1, 1), double_well, ONE)
    message = "model_a has 'running_mean', model_b has not"
    plain = nn.BatchNorm1d(2, track_running_stats=False)
    with pytest.raises(ValueError, match=message):
        barrier(nn.BatchNorm1d(2), plain, double_well, ONE)


@pytest.mark.parametrize("name", ["model_a", "model_b"])
def test_names_the_model_inside_of_a_wrapper(name: str) -> None:
    models = {"model_a": at(1.0), "model_b": at(0.0)}
    models[name] = torch.optim.swa_utils.AveragedModel(models[name])
    with pytest.raises(ValueError, match=f"architecture; pass {name}.module$"):
        barrier(**models, loss_fn=double_well, data=ONE)
    models[name] = models[name].module
    assert barrier(**models, loss_fn=double_well, data=ONE).samples == 4


def test_refuses_what_is_no_model() -> None:
    with pytest.raises(TypeError, match="model_b must be a module, got OrderedDict"):
        barrier(at(1.0), at(0.0).state_dict(), double_well, ONE)


def test_refuses_models_of_other_shapes() -> None:
    message = r"'weight' has shape \(1, 1\) in model_a, \(1, 2\) in model_b"
    with pytest.raises(ValueError, match=message):
        barrier(at(1.0), nn.Linear(2, 1, bias=False), double_well, ONE)


def test_refuses_fewer_points_than_three() -> None:
    with pytest.raises(ValueError, match="points=2 must be an integer of at least 3"):
        barrier(at(-1.0), at(1.0), double_well, ONE, points=2)


def test_refuses_a_model_whose_loss_is_not_finite() -> None:
    with pytest.raises(ValueError, match="the loss of batch 0 is inf"):
        barrier(at(1.0), at(1e200), double_well, ONE)


def test_the_height_is_drawn() -> None:
    found = barrier(at(-1.0), at(1.0), double_well, ONE, points=5)
    axes = found.plot()
    curve, _, height = axes.lines
    np.testing.assert_array_equal(curve.get_ydata(), found.losses)
    np.testing.assert_allclose(height.get_ydata(), [0.0, 1.0])
    assert height.get_label() == "barrier 1"
    assert "height" in found.to_dict()


def test_a_loss_that_reads_the_parameters_is_that_of_each_point() -> None:
    a, b = at(-1.0), at(3.0)

    def penalised(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean() + a.weight.square().sum()

    found = barrier(a, b, penalised, ONE, points=5)
    weights = -1.0 + 4.0 * found.coordinates
    np.testing.assert_allclose(found.losses, weights + weights**2)
    assert (a.weight.item(), b.weight.item()) == (-1.0, 3.0)


def test_models_may_share_their_tensors() -> None:
    torch.manual_seed(0)
    first, second = (nn.Linear(1, 1, bias=False).double() for _ in range(2))
    a, b = nn.Sequential(first, second), nn.Sequential(second, first)
    u, v = first.weight.item(), second.weight.item()
    found = barrier(a, b, lambda outputs, targets: outputs.mean(), ONE, points=5)
    t = found.coordinates
    np.testing.assert_allclose(found.losses, ((1 - t) * u + t * v) * ((1 - t) * v + t * u))
    assert (first.weight.item(), second.weight.item()) == (u, v)


class Keeping(nn.Module):
    """Keeps the mean of its inputs in a buffer that its first forward pass makes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("mean", None)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.mean = inputs.mean(0).detach()
        return self.linear(inputs)


def test_a_forward_pass_may_make_a_buffer() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    loss = nn.CrossEntropyLoss()
    one, other = Keeping(), Keeping()
    before = one.linear.weight.detach().clone()
    found = barrier(one, other, loss, data, points=3)
    torch.testing.assert_close(one.linear.weight.detach(), before, rtol=0, atol=0)
    for model, value in ((one, found.losses[0]), (other, found.losses[-1])):
        assert value == pytest.approx(loss(model(data[0][0]), data[0][1]).item(), rel=1e-6)


class Quantised(nn.Module):
    """A linear map of whose bias a frozen part is in int8."""

    def __init__(self, whole: int) -> None:
        super().__init__()
        torch.manual_seed(whole)
        self.map = nn.Linear(4, 3)
        self.bias = nn.Parameter(torch.full((3,), whole, dtype=torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x) + self.bias  # type: ignore[no-any-return]


def test_integers_stay_where_both_models_have_the_same() -> None:
    data = [(torch.ones(5, 4), torch.arange(5) % 3)]
    one, other = Quantised(1), Quantised(1)
    nn.init.normal_(other.map.weight)
    found = barrier(one, other, nn.functional.cross_entropy, data, points=3)
    ends = [nn.functional.cross_entropy(m(data[0][0]), data[0][1]).item() for m in (one, other)]
    assert found.losses[[0, 2]] == pytest.approx(ends)
    assert not one.bias.requires_grad
    with pytest.raises(ValueError, match=r"parameter 'bias' is torch\.int8, and differs"):
        barrier(one, Quantised(2), nn.functional.cross_entropy, data, points=3)


@pytest.mark.parametrize("name", ["model_a", "model_b"])
def test_which_model_has_no_finite_loss_is_said(name: str) -> None:
    models = {"model_a": nn.Linear(2, 1), "model_b": nn.Linear(2, 1)}
    nn.init.constant_(models[name].weight, float("nan"))
    data = [(torch.ones(3, 2), torch.zeros(3, 1))]
    with pytest.raises(ValueError, match=f"parameter 'weight' of {name} has numbers that are not"):
        barrier(models["model_a"], models["model_b"], nn.functional.mse_loss, data)
