"""What Monitor measures, against dense matrices and closed forms; when, by a clock of the test."""

import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import steppe
from steppe.landscape import Monitor

LOSS = nn.CrossEntropyLoss()
HIDDEN, INPUTS, CLASSES = 6, 5, 3


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)).double()


def data(samples: int = 40, batch: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(samples, INPUTS, generator=generator, dtype=torch.float64)
    targets = torch.randint(CLASSES, (samples,), generator=generator)
    return list(zip(inputs.split(batch), targets.split(batch), strict=True))


def train(model: nn.Module, optimizer: Any, monitor: Monitor | None, steps: int) -> None:
    inputs, targets = (torch.cat(part) for part in zip(*data(), strict=True))
    for _ in range(steps):
        optimizer.zero_grad()
        LOSS(model(inputs), targets).backward()
        if isinstance(optimizer, steppe.SAM):
            with optimizer.perturbed():
                LOSS(model(inputs), targets).backward()
        optimizer.step()
        if monitor is not None:
            monitor.step()


def dense(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, float]:
    """Return Hessian, gradient and loss by torch's nested derivatives, in one batch."""
    inputs, targets = (torch.cat(part) for part in zip(*batches, strict=True))
    names = [name for name, _ in model.named_parameters()]
    shapes = [param.shape for param in model.parameters()]

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        params = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return LOSS(torch.func.functional_call(model, params, (inputs,)), targets)

    at = torch.cat([param.detach().reshape(-1) for param in model.parameters()])
    gradient = torch.func.grad(loss)(at)
    rise = loss(at + 0.05 * gradient / gradient.norm()) - loss(at)
    assert rise > 0
    return torch.autograd.functional.hessian(loss, at), gradient, rise.item()


def test_values_are_those_of_dense_matrices() -> None:
    model = network()
    lr, beta = 0.01, 0.9
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(beta, 0.99))
    monitor = Monitor(model, LOSS, data(), optimizer, every=5, tol=1e-4)
    train(model, optimizer, None, 3)
    train(model, optimizer, monitor, 4)
    before = torch.cat([param.detach().reshape(-1) for param in model.parameters()])
    train(model, optimizer, monitor, 1)
    after = torch.cat([param.detach().reshape(-1) for param in model.parameters()])
    H, gradient, rise = dense(model, data())
    state = [optimizer.state[param] for param in model.parameters()]
    v = torch.cat([each["exp_avg_sq"].reshape(-1) for each in state])
    root = (1 / ((v / (1 - 0.99 ** float(state[0]["step"]))).sqrt() + 1e-8)).sqrt()
    (row,) = monitor.history
    assert row.step == 5
    assert row.samples == 40
    assert row.reasons == {}
    found = row.values
    assert found["lambda_max"] == pytest.approx(torch.linalg.eigvalsh(H)[-1].item(), rel=1e-4)
    PH = root[:, None] * H * root
    largest = torch.linalg.eigvalsh(PH)[-1].item()
    assert found["lambda_max_ph"] == pytest.approx(largest, rel=1e-4)
    assert found["threshold"] == pytest.approx(2 * (1 + beta) / ((1 - beta) * lr))
    assert found["stability"] == pytest.approx(largest * lr / 38, rel=1e-4)
    assert found["gradient_norm"] == pytest.approx(gradient.norm().item(), rel=1e-9)
    assert found["sharpness"] == pytest.approx(rise, rel=1e-9)
    assert found["update_ratio"] == pytest.approx(((after - before).norm() / before.norm()).item())


@pytest.mark.parametrize("threshold_of", [lambda lr: 2 / lr, lambda lr: 2 * 1.9 / lr])
def test_gradient_descents_stability_is_that_of_the_hessian(threshold_of: Callable) -> None:
    model, lr = network(), 0.1
    momentum = 0.0 if threshold_of(1.0) == 2 else 0.9
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    monitor = Monitor(model, LOSS, data(), optimizer, every=4)
    train(model, optimizer, monitor, 4)
    values = monitor.history[0].values
    assert values["lambda_max_ph"] == values["lambda_max"]
    assert values["threshold"] == pytest.approx(threshold_of(lr))
    assert "sam_threshold" not in values


def test_only_what_is_asked_for_is_measured() -> None:
    model = network()
    optimizer = steppe.AdamCM(model.parameters())
    names = iter(["update", "loss"])
    monitor = Monitor(model, LOSS, data(), optimizer, every=1, quantities=names)
    train(model, optimizer, monitor, 2)
    assert [list(row.values) for row in monitor.history] == [
        ["update_ratio", "loss", "gradient_norm"]
    ] * 2
    assert monitor.history[1].products == 0
    # Before the first step there was no step to remember the weights after.
    assert math.isnan(monitor.history[0].values["update_ratio"])
    assert monitor.history[1].values["update_ratio"] > 0


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda p: steppe.DualAdam(p, total_steps=9), {"alpha", "inverse_share"}),
        (lambda p: steppe.AdamCM(p), {"buffer_fill", "slot_age", "replacement_rate"}),
        (lambda p: steppe.SAM(torch.optim.SGD(p, lr=0.1)), {"ascents", "perturbation_norm"}),
        (torch.optim.AdamW, set()),
    ],
)
def test_diagnostics_are_the_optimizers(make: Callable, names: set[str]) -> None:
    model = network()
    optimizer = make(model.parameters())
    monitor = Monitor(model, LOSS, data(), optimizer, every=3)
    train(model, optimizer, monitor, 3)
    values = monitor.history[0].values
    own = {name: value for name, value in values.items() if name.startswith("optimizer/")}
    assert {f"optimizer/{name}" for name in names} <= own.keys()
    told = optimizer.diagnostics() if names else {}
    assert own == {f"optimizer/{name}": float(value) for name, value in told.items()}


def test_large_models_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps along a constant vector from constant weights have the ratio of any sample."""
    monkeypatch.setattr("steppe.landscape.monitoring.update_size.MOST_COPIED", 10)
    model = network()
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = Monitor(model, LOSS, data(), optimizer, every=2, quantities=["update"])
    monitor.step()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.5)
    monitor.step()
    assert monitor.history[0].values["update_ratio"] == pytest.approx(0.25)


class Clock:
    """Time that passes when the test says so, or a loss is computed."""

    def __init__(self, per_sample: float = 0.0) -> None:
        self.now, self.per_sample = 0.0, per_sample

    def __call__(self) -> float:
        return self.now

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.now += self.per_sample * len(targets)
        return LOSS(outputs, targets)


def watched(clock: Clock, steps: int, seconds: float, **options: Any) -> Monitor:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"weight": "samples", "quantities": ["loss", "lambda_max"], **options}
    monitor = Monitor(model, clock.loss, data(), optimizer, clock=clock, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        LOSS(model(data()[0][0]), data()[0][1]).backward()
        optimizer.step()
        clock.now += seconds
        monitor.step()
    return monitor


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_measuring_takes_no_more_than_its_share(share: float) -> None:
    clock = Clock(per_sample=1e-3)
    monitor = watched(clock, 600, 0.1, share=share)
    spent = sum(row.seconds for row in monitor.history)
    assert monitor.cost_share == pytest.approx(spent / 59.9)
    # A measurement that takes longer than the one before it may exceed the share.
    longest = max(row.seconds for row in monitor.history)
    assert monitor.cost_share <= share + longest / 59.9
    assert monitor.cost_share >= share / 2
    assert len(monitor.history) >= 5
    assert monitor.samples == 40


def test_an_interval_is_kept_whatever_it_costs() -> None:
    monitor = watched(Clock(per_sample=1.0), 10, 0.1, every=3)
    assert [row.step for row in monitor.history] == [3, 6, 9]
    assert monitor.cost_share > 10
    assert monitor.every == 3


def test_fewer_samples_are_taken_where_measurements_would_be_rare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("steppe.landscape.monitoring.cost_budget.MOST_STEPS_BETWEEN", 20)
    monkeypatch.setattr("steppe.landscape.monitoring.cost_budget.LEAST_SAMPLES", 10)
    monitor = watched(Clock(per_sample=1e-3), 300, 0.1)
    assert monitor.samples == 10
    assert {row.samples for row in monitor.history} <= {10, *range(11, 40)}
    assert len(monitor.history) >= 2
    assert monitor.cost_share <= 0.05 + max(row.seconds for row in monitor.history) / 29.9


def test_samples_are_the_first_ones() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"every": 1, "quantities": ["loss"]}
    monitor = Monitor(model, LOSS, data(), optimizer, samples=20, **options)
    loss = monitor.measure().values["loss"]
    inputs, targets = (torch.cat(part)[:20] for part in zip(*data(), strict=True))
    assert loss == pytest.approx(LOSS(model(inputs), targets).item(), rel=1e-12)
    assert monitor.samples == 20


def test_searches_begin_at_the_last_eigenvector_and_verify_every_fourth_time() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = Monitor(model, LOSS, data(), optimizer, every=1, quantities=["lambda_max"])
    train(model, optimizer, monitor, 8)
    verified = [row.verified for row in monitor.history]
    assert verified == [True, False, False, False] * 2
    products = [row.products for row in monitor.history]
    assert max(products[1:4] + products[5:]) < min(products[0], products[4])
    truth = torch.linalg.eigvalsh(dense(model, data())[0])[-1].item()
    assert monitor.history[-1].values["lambda_max"] == pytest.approx(truth, rel=0.02)


def test_what_fails_is_recorded_and_training_goes_on() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, LOSS, data(), optimizer, every=1)
    train(model, optimizer, monitor, 1)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    with pytest.warns(RuntimeWarning, match="lambda_max: the loss of batch 0 is nan") as caught:
        monitor.step()
    assert len(caught) == 1
    monitor.step()  # a second warning would be an error
    row = monitor.history[-1]
    assert row.reasons.keys() == {"loss", "sharpness", "lambda_max", "stability"}
    assert math.isnan(row.values["lambda_max"])
    assert math.isnan(row.values["stability"])


def test_what_fails_at_once_is_not_taken_for_cheap() -> None:
    """Where the loss of a run has become NaN, measurements stay as rare as they were."""
    clock = Clock(per_sample=1e-3)
    monitor = watched(clock, 300, 0.1)
    count = len(monitor.history)
    model = monitor._run.model
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(300):
            clock.now += 0.1
            monitor.step()
    assert count < len(monitor.history) <= 4 * count


def test_an_unknown_optimizer_is_watched_without_its_stability() -> None:
    model = network()
    optimizer = torch.optim.Rprop(model.parameters())
    monitor = Monitor(model, LOSS, data(), optimizer, every=2)
    with pytest.warns(RuntimeWarning, match="Rprop has no diagonal preconditioner") as caught:
        train(model, optimizer, monitor, 4)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert math.isnan(monitor.history[-1].values["stability"])
    assert monitor.history[-1].values["lambda_max"] > 0


def test_a_search_that_does_not_converge_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steppe.landscape.monitoring.quantities._MOST_PRODUCTS", 2)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, LOSS, data(), optimizer, quantities=["lambda_max"], every=1)
    with pytest.warns(RuntimeWarning, match="2 products were not enough"):
        train(model, optimizer, monitor, 1)
    assert math.isnan(monitor.history[0].values["lambda_max"])


def test_ctrl_c_ends_training() -> None:
    clock = Clock()
    model = network()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if clock.now:
            raise KeyboardInterrupt
        return LOSS(outputs, targets)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, loss, data(), optimizer, every=1, weight="samples")
    clock.now = 1.0
    with pytest.raises(KeyboardInterrupt):
        monitor.step()


def test_a_function_is_given_values_and_step() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = []
    monitor = Monitor(
        model,
        LOSS,
        data(),
        optimizer,
        every=2,
        log=lambda values, step: given.append((values, step)),
    )
    train(model, optimizer, monitor, 4)
    assert given == [(row.values, row.step) for row in monitor.history]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_shows_them(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with wandb.init(mode="offline", dir=str(tmp_path)) as run:
        monitor = Monitor(model, LOSS, data(), optimizer, every=2, log=run)
        train(model, optimizer, monitor, 4)
        run.log({}, commit=True)
        shown = dict(run.summary)
    last = monitor.history[-1]
    assert {name: shown[f"monitor/{name}"] for name in last.values} == last.values
    assert shown["_step"] == last.step


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_mlflow_shows_them(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    address = f"sqlite:///{tmp_path / 'runs.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with mlflow.start_run() as run:
        monitor = Monitor(model, LOSS, data(), optimizer, every=2, log=mlflow)
        train(model, optimizer, monitor, 4)
    client = mlflow.MlflowClient(address)
    for name in monitor.history[0].values:
        history = client.get_metric_history(run.info.run_id, f"monitor/{name}")
        assert [(each.step, each.value) for each in history] == [
            (row.step, row.values[name]) for row in monitor.history
        ]


def test_tensorboard_shows_them(tmp_path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        monitor = Monitor(model, LOSS, data(), optimizer, every=2, log=writer)
        train(model, optimizer, monitor, 4)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    shown = events.Scalars("monitor/lambda_max")
    assert [each.step for each in shown] == [2, 4]
    expected = [row.values["lambda_max"] for row in monitor.history]
    np.testing.assert_allclose([each.value for each in shown], expected, rtol=1e-6)


def test_a_log_that_raises_does_not_stop_training() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def full(values: dict[str, float], step: int) -> None:
        raise OSError("no space left")

    monitor = Monitor(model, LOSS, data(), optimizer, every=1, log=full)
    with pytest.warns(RuntimeWarning, match="log: OSError: no space left") as caught:
        train(model, optimizer, monitor, 3)
    assert len(caught) == 1
    assert len(monitor.history) == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 2.5}, TypeError, "every must be an integer, got 2.5"),
        ({"share": 0.0}, ValueError, "share=0.0 must be above 0 and at most 1"),
        ({"share": "5%"}, TypeError, "share must be a number, got '5%'"),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"rho": -1.0}, ValueError, "rho must be a finite number > 0, got -1.0"),
        ({"tol": math.inf}, ValueError, "tol must be a finite number > 0, got inf"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"clock": 3.0}, TypeError, "clock must be a function that returns seconds, got 3.0"),
        ({"quantities": ["lambda"]}, ValueError, "quantities must be some of .*; got 'lambda'"),
        ({"quantities": "loss"}, TypeError, "quantities must be a list of names"),
        ({"quantities": 3}, TypeError, "quantities must be a list of names, got 3"),
        ({"train": "yes"}, TypeError, "train must be True or False, got 'yes'"),
        ({"product": "exact"}, ValueError, "product='exact' is not one of"),
        ({"quantities": []}, ValueError, "quantities must be some of .*; got none"),
        ({"log": 3}, TypeError, "log=3 must have add_scalar"),
        ({"model": "net"}, TypeError, "model must be a module, got str"),
        ({"optimizer": None}, TypeError, "optimizer must be an optimizer, got NoneType"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"batches": iter([])}, ValueError, "data is an iterator"),
        ({"loss_fn": 3}, TypeError, "loss_fn must be a function"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, error: type, message: str) -> None:
    model = network()
    good = {
        "model": model,
        "loss_fn": LOSS,
        "batches": data(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    with pytest.raises(error, match=message):
        Monitor(**{**good, **options})


def test_a_model_of_first_derivatives_only_is_monitored_by_differences() -> None:
    """As one with a layer of its own whose backward pass cannot be differentiated."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * (1 - ctx.saved_tensors[0].tanh() ** 2)

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(x)

    model = network()
    own = nn.Sequential(*[Layer() if isinstance(x, nn.Tanh) else x for x in model])
    for each in (model, own):
        each.double()
    batches = [(x.double(), y) for x, y in data()]
    found = []
    for each, options in ((model, {}), (own, {"product": "finite-differences"})):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        found.append(Monitor(each, LOSS, batches, optimizer, every=1, **options).measure())
    assert found[1].reasons == {}
    assert found[1].values["lambda_max"] == pytest.approx(found[0].values["lambda_max"], rel=0.03)
    with pytest.raises(RuntimeError, match="finite-differences"):
        Monitor(own, LOSS, batches, torch.optim.SGD(own.parameters(), lr=0.1), every=1)


def test_an_optimizer_of_another_model_is_refused() -> None:
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer steps none of the model's parameters"):
        Monitor(network(), LOSS, data(), optimizer)


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    monitor = Monitor(model, LOSS, data(), optimizer, every=1, quantities=["lambda_max"])
    H, *_ = dense(model, data())
    size = sum(param.numel() for param in model[2].parameters())
    truth = torch.linalg.eigvalsh(H[-size:, -size:])[-1].item()
    assert monitor.measure().values["lambda_max"] == pytest.approx(truth, rel=0.02)


def test_a_picture_and_plain_numbers() -> None:
    from matplotlib.figure import Figure

    model = network()
    optimizer = steppe.DualAdam(model.parameters(), total_steps=20)
    monitor = Monitor(model, LOSS, data(), optimizer, every=2)
    assert "<table>" in monitor._repr_html_()
    train(model, optimizer, monitor, 6)
    figure = monitor.plot()
    assert isinstance(figure, Figure)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert {"Stability: unstable above 1", "alpha"} <= set(titles)
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [2, 4, 6]
    assert list(line.get_ydata()) == [row.values["lambda_max"] for row in monitor.history]
    assert "<img" in monitor._repr_html_()
    found = json.loads(json.dumps(monitor.to_dict()))
    assert found["steps"] == 6
    assert [row["step"] for row in found["history"]] == [2, 4, 6]


def test_a_run_of_nothing_but_failures_can_be_drawn() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, LOSS, data(), optimizer, every=1)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        monitor.step()
    assert monitor.plot().axes


def test_a_run_without_measurements_has_no_picture() -> None:
    model = network()
    monitor = Monitor(model, LOSS, data(), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="nothing has been measured yet: pass every="):
        monitor.plot()
