"""Sharpness against closed forms and dense computations, and the model left as found."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.stateful_model import Restless, snapshot
from steppe.landscape import sharpness


def mean_output(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.mean()


def linear(weights: list[float], dtype: torch.dtype = torch.float64) -> nn.Linear:
    model = nn.Linear(len(weights), 1, bias=False, dtype=dtype)
    model.weight.data = torch.tensor([weights], dtype=dtype)
    return model


def batches(inputs: Tensor, targets: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(size), targets.split(size), strict=True))


class Quadratic(nn.Module):
    """½ wᵀAw, whatever the inputs."""

    def __init__(self, matrix: np.ndarray, point: np.ndarray) -> None:
        super().__init__()
        self.matrix = torch.tensor(matrix)
        self.point = nn.Parameter(torch.tensor(point))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.point @ self.matrix @ self.point / 2


ONE = [(torch.zeros(1, 1), torch.zeros(1))]


def random_quadratic(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    root = random.normal(size=(size, size))
    return root @ root.T, random.normal(size=size)


def test_of_a_linear_loss_is_rho_times_the_norm_of_the_gradient() -> None:
    inputs = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    result = sharpness(linear([0.5, -1.0]), mean_output, [(inputs, inputs)], rho=0.2)
    assert result.value == pytest.approx(0.2 * 5.0, rel=1e-12)
    assert result.loss == pytest.approx(0.5 * 3 - 4.0)
    assert result.perturbed_loss == pytest.approx(result.loss + result.value)
    assert (result.rho, result.samples) == (0.2, 1)


def test_of_a_quadratic_loss_has_a_second_order_term() -> None:
    """L = ½ wᵀAw: the rise along u = Aw/‖Aw‖ is ρ‖Aw‖ + ½ρ² uᵀAu."""
    a, w, rho = np.diag([1.0, 9.0, 0.25]), np.array([1.0, -0.3, 2.0]), 0.1
    # The mean over three samples of ½(xᵢ·w)², with rows x of √(3A), is ½ wᵀAw.
    inputs = torch.tensor(np.sqrt(3 * a))
    result = sharpness(
        linear(w.tolist()),
        lambda outputs, targets: outputs.square().mean() / 2,
        [(inputs, inputs)],
        rho=rho,
    )
    gradient = a @ w
    u = gradient / np.linalg.norm(gradient)
    expected = rho * np.linalg.norm(gradient) + rho**2 / 2 * u @ a @ u
    assert result.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [1, 4, 7, 10])
def test_is_over_samples_whatever_the_batches(size: int) -> None:
    """Ten samples in batches of 4, 4, 2 or 7, 3 are as one, and as logistic regression in NumPy."""
    random = np.random.default_rng(1)
    x, y, w = random.normal(size=(10, 3)), random.integers(0, 2, 10), random.normal(size=3)
    result = sharpness(
        linear(w.tolist()),
        lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs[:, 0], targets),
        batches(torch.tensor(x), torch.tensor(y, dtype=torch.float64), size),
        rho=0.3,
    )

    def loss(w: np.ndarray) -> float:
        return float(np.mean(np.log1p(np.exp(x @ w)) - y * (x @ w)))

    gradient = x.T @ (1 / (1 + np.exp(-x @ w)) - y) / 10
    expected = loss(w + 0.3 * gradient / np.linalg.norm(gradient)) - loss(w)
    assert result.value == pytest.approx(expected, rel=1e-10)
    assert result.samples == 10


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_several_steps_follow_the_gradient_within_the_ball(steps: int, adaptive: bool) -> None:
    a, w = random_quadratic(4)
    rho, scale = 0.8, np.abs(w) if adaptive else np.ones(4)
    offset = np.zeros(4)
    for _ in range(steps):
        gradient = a @ (w + offset)
        offset = offset + rho / steps * scale**2 * gradient / np.linalg.norm(scale * gradient)
        # The projection that the definition asks for; steps of ρ/k never need it.
        offset = offset / max(1.0, np.linalg.norm(offset / scale) / rho)
    expected = (w + offset) @ a @ (w + offset) / 2 - w @ a @ w / 2
    result = sharpness(
        Quadratic(a, w), mean_output, ONE, rho=rho, ascent_steps=steps, adaptive=adaptive
    )
    assert result.value == pytest.approx(expected, rel=1e-12)
    assert (result.ascent_steps, result.adaptive, result.stderr) == (steps, adaptive, None)


def test_more_steps_come_nearer_to_the_maximum_on_the_ball() -> None:
    """At w = 0.1·e₁ the gradient points along e₁, and the maximum is near e₂."""
    a, w, rho = np.diag([1.0, 9.0]), np.array([0.1, 0.01]), 0.5
    angles = np.linspace(0, 2 * np.pi, 100_001)
    points = w[:, None] + rho * np.array([np.cos(angles), np.sin(angles)])
    best = np.max(np.sum(points * (a @ points), axis=0)) / 2 - w @ a @ w / 2
    rises = [
        sharpness(Quadratic(a, w), mean_output, ONE, rho=rho, ascent_steps=k).value
        for k in (1, 5, 50)
    ]
    assert rises[0] < 0.7 * best
    assert 0.7 * best < rises[1] < rises[2] < best


def test_adaptive_of_a_linear_loss_is_rho_times_the_scaled_norm() -> None:
    """Along ρT²g/‖Tg‖ the loss g·w rises by ρ‖Tg‖, T = |w|."""
    inputs = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    result = sharpness(linear([0.5, -2.0]), mean_output, [(inputs, inputs)], rho=0.2, adaptive=True)
    assert result.value == pytest.approx(0.2 * math.hypot(0.5 * 3.0, 2.0 * 4.0), rel=1e-12)


@pytest.mark.parametrize("kind", ["worst", "average"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_adaptive_does_not_change_when_layers_are_rescaled(kind: Any, adaptive: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1, bias=False)).double()
    inputs, targets = torch.randn(8, 3).double(), torch.randn(8, 1).double()

    def measured() -> float:
        data = [(inputs, targets)]
        options: dict[str, Any] = {"rho": 0.1, "adaptive": adaptive, "kind": kind}
        return sharpness(model, F.mse_loss, data, **options).value

    before, outputs = measured(), model(inputs)
    with torch.no_grad():
        model[0].weight *= 7.0
        model[0].bias *= 7.0
        model[2].weight /= 7.0
    torch.testing.assert_close(model(inputs), outputs)
    assert (measured() == pytest.approx(before, rel=1e-9)) == adaptive


def ten_samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(10, 1, generator=generator, dtype=torch.float64)


def by_hand(groups: list[tuple[Tensor, Tensor]], rho: float) -> tuple[float, float]:
    """Return the mean rise over groups, and its standard error."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    sizes = np.array([len(targets) for _, targets in groups])
    rises = np.array([sharpness(model, F.mse_loss, [group], rho=rho).value for group in groups])
    mean = np.average(rises, weights=sizes)
    weights, count = sizes / sizes.sum(), len(groups)
    return mean, math.sqrt(np.sum(weights**2 * (rises - mean) ** 2) * count / (count - 1))


@pytest.mark.parametrize("size", [1, 3, 4, 7, 10])
@pytest.mark.parametrize("m", [1, 4, 5, 9])
def test_m_is_over_groups_whatever_the_batches(size: int, m: int) -> None:
    inputs, targets = ten_samples()
    expected, stderr = by_hand(batches(inputs, targets, m), rho=0.3)
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    result = sharpness(model, F.mse_loss, batches(inputs, targets, size), rho=0.3, m=m)
    assert result.value == pytest.approx(expected, rel=1e-12)
    assert result.stderr == pytest.approx(stderr, rel=1e-9)
    assert result.loss == pytest.approx(F.mse_loss(model(inputs), targets).item())
    assert (result.samples, result.m, result.complete) == (10, m, True)


@pytest.mark.parametrize("train", [False, True])
def test_m_of_all_samples_is_the_plain_one(train: bool) -> None:
    data = batches(*ten_samples(), 4)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)).double()
    options: dict[str, Any] = {"rho": 0.3, "train": train, "params": [model[1].weight]}
    plain = sharpness(model, F.mse_loss, data, **options)
    grouped = sharpness(model, F.mse_loss, data, m=10, **options)
    assert grouped.value == pytest.approx(plain.value, rel=1e-12)
    assert grouped.stderr is None


def test_m_cuts_mappings_and_leaves_what_has_no_samples() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(3, 1).double()

        def forward(self, x: Tensor, mask: Tensor, parts: dict[str, Any], y: Tensor) -> Tensor:
            return (self.body(x * mask + parts["shift"][0]) - y).square().mean()

    inputs, targets = ten_samples()
    torch.manual_seed(0)
    model, mask = Keywords(), torch.tensor([[1.0, 0.0, 1.0]])
    data = [
        {"x": x, "mask": mask, "parts": {"shift": [0.1 * x]}, "y": y}
        for x, y in batches(inputs, targets, 7)
    ]
    result = sharpness(model, lambda outputs, batch: outputs, data, rho=0.3, m=4)
    expected, _ = by_hand(batches(inputs * mask + 0.1 * inputs, targets, 4), rho=0.3)
    assert result.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_average_of_a_quadratic_is_its_trace(adaptive: bool) -> None:
    """E uᵀAu = tr(A)/n on the unit sphere, and the linear term averages out."""
    a, w = random_quadratic(5, seed=2)
    scale, rho = np.abs(w) if adaptive else np.ones(5), 0.3
    result = sharpness(
        Quadratic(a, w),
        mean_output,
        ONE,
        rho=rho,
        kind="average",
        draws=400,
        adaptive=adaptive,
    )
    expected = rho**2 * np.trace(scale[:, None] * a * scale) / (2 * 5)
    # The variance of the linear term ρ·(Ty)·u, y = Aw, is ρ²‖Ty‖²/n; it leads.
    deviation = rho * np.linalg.norm(scale * (a @ w)) / math.sqrt(5 * 400)
    assert abs(result.value - expected) < 4 * result.stderr
    assert result.stderr == pytest.approx(deviation, rel=0.15)
    assert result.perturbed_loss - result.loss == result.value
    assert (result.draws, result.samples) == (400, 1)


def test_average_goes_as_far_as_rho_whatever_the_direction() -> None:
    model = Quadratic(np.eye(7), np.zeros(7))
    result = sharpness(model, mean_output, ONE, rho=0.3, kind="average")
    assert result.value == pytest.approx(0.3**2 / 2, rel=1e-12)
    assert result.stderr == pytest.approx(0.0, abs=1e-12)


def test_average_is_the_seeds() -> None:
    def measured(seed: int) -> float:
        model = Quadratic(*random_quadratic(5))
        return sharpness(model, mean_output, ONE, kind="average", draws=3, seed=seed).value

    assert measured(1) == measured(1) != measured(2)


def test_one_draw_has_no_standard_error() -> None:
    model = Quadratic(*random_quadratic(3))
    assert sharpness(model, mean_output, ONE, kind="average", draws=1).stderr is None


@pytest.mark.parametrize("steps", [1, 3])
def test_a_loss_that_overflows_is_reported_as_infinite(steps: int) -> None:
    inputs = torch.ones(1, 1, dtype=torch.float64)
    result = sharpness(
        linear([1.0]),
        lambda outputs, targets: outputs.exp().mean(),
        [(inputs, inputs)],
        rho=3000.0,
        ascent_steps=steps,
    )
    assert (result.value, result.perturbed_loss) == (math.inf, math.inf)
    assert result.loss == pytest.approx(math.e)


def test_params_chooses_what_is_perturbed() -> None:
    model = nn.Linear(1, 1, dtype=torch.float64)
    inputs = torch.ones(2, 1, dtype=torch.float64)
    result = sharpness(model, mean_output, [(inputs, inputs)], rho=0.5, params=[model.bias])
    assert result.value == pytest.approx(0.5)


def test_sums_the_norm_in_float64() -> None:
    """Squares of 1e25 overflow float32."""
    inputs = torch.full((1, 2), 1e25)
    result = sharpness(linear([0.0, 0.0], torch.float32), mean_output, [(inputs, inputs)], rho=1.0)
    assert result.value == pytest.approx(math.sqrt(2) * 1e25, rel=1e-6)


def test_perturbs_only_what_requires_a_gradient() -> None:
    model = nn.Linear(1, 1, dtype=torch.float64)
    model.bias.requires_grad_(False)
    inputs = torch.ones(2, 1, dtype=torch.float64)
    # With the bias the gradient (1, 1) would have the norm √2.
    assert sharpness(model, mean_output, [(inputs, inputs)], rho=0.5).value == pytest.approx(0.5)


def test_at_a_stationary_point_is_zero() -> None:
    inputs = torch.zeros(2, 1, dtype=torch.float64)
    assert sharpness(linear([1.0]), mean_output, [(inputs, inputs)]).value == 0.0


@pytest.mark.parametrize("fails", [False, True])
def test_leaves_the_model_as_found(fails: bool) -> None:
    model = Restless()
    inputs = torch.randn(6, 3)
    model(inputs).sum().backward()
    model.body[1].eval()
    before = snapshot(model)
    seen = 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        # Two batches: the fourth call is in the perturbed pass, which must be undone as well.
        if fails and seen == 4:
            raise RuntimeError("no more")
        return outputs.square().mean()

    if fails:
        with pytest.raises(RuntimeError, match="no more"):
            sharpness(model, loss_fn, batches(inputs, inputs, 3), weight="samples")
    else:
        sharpness(model, loss_fn, batches(inputs, inputs, 3))
    assert snapshot(model) == before


def test_is_taken_in_eval_mode() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(3, 1)
    model = nn.Sequential(nn.Dropout(0.9), plain)
    inputs = torch.randn(5, 3)
    with_dropout = sharpness(model, mean_output, [(inputs, inputs)])
    assert with_dropout == sharpness(plain, mean_output, [(inputs, inputs)])


def test_train_mode_drops_out_the_same_each_time() -> None:
    """A loss that is linear in the weights rises by ρ‖g‖, with any one mask; not with two."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(40, 1, bias=False)).double()
    inputs = torch.ones(3, 40, dtype=torch.float64)
    data = [(inputs, inputs)]
    torch.manual_seed(1)
    kept = F.dropout(inputs, 0.5).mean(dim=0)
    result = sharpness(model, mean_output, data, rho=0.1, train=True)
    assert result.value == pytest.approx(0.1 * kept.norm().item(), rel=1e-10)
    assert result.train


class Interrupted:
    """Data that is gone through without trouble so many times."""

    def __init__(self, data: list[Any], times: int) -> None:
        # Once more, as it is looked at whether it can be gone through again.
        self.data, self.times = data, times

    def __iter__(self) -> Iterator[Any]:
        if self.times == 0:
            raise KeyboardInterrupt
        self.times -= 1
        return iter(self.data)


def test_an_interrupt_keeps_the_draws_so_far() -> None:
    model = Quadratic(*random_quadratic(3))
    before = model.point.tolist()
    result = sharpness(model, mean_output, Interrupted(ONE, 3), kind="average", draws=50)
    assert (result.draws, result.complete) == (2, False)
    assert result.value == sharpness(model, mean_output, ONE, kind="average", draws=2).value
    assert model.point.tolist() == before


@pytest.mark.parametrize("kind", ["worst", "average"])
def test_an_interrupt_before_any_result_goes_through(kind: Any) -> None:
    model = Quadratic(*random_quadratic(3))
    before = model.point.tolist()
    with pytest.raises(KeyboardInterrupt):
        sharpness(model, mean_output, Interrupted(ONE, 1), kind=kind)
    assert model.point.tolist() == before


def test_can_be_written_down() -> None:
    result = sharpness(Quadratic(*random_quadratic(3)), mean_output, ONE)
    written = result.to_dict()
    assert written["value"] == result.value
    assert {"kind": "worst", "m": None, "complete": True}.items() <= written.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "best"}, "kind='best' is not one of"),
        ({"m": 0}, "m must be a whole number of at least 1, got 0"),
        ({"m": 2.5}, "m must be a whole number of at least 1, got 2.5"),
        ({"ascent_steps": 0}, "ascent_steps must be a whole number of at least 1, got 0"),
        ({"kind": "average", "draws": 0}, "draws must be a whole number of at least 1, got 0"),
        ({"kind": "average", "m": 1}, 'm and ascent_steps belong to kind="worst", got m=1'),
        ({"kind": "average", "ascent_steps": 2}, 'belong to kind="worst", .*ascent_steps=2'),
    ],
)
def test_refuses_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sharpness(Quadratic(*random_quadratic(3)), mean_output, ONE, **options)


@pytest.mark.parametrize("rho", [0.0, -0.1, math.inf, math.nan])
def test_refuses_a_radius_out_of_range(rho: float) -> None:
    inputs = torch.ones(1, 1)
    with pytest.raises(ValueError, match="rho must be a finite number above 0"):
        sharpness(nn.Linear(1, 1), mean_output, [(inputs, inputs)], rho=rho)


def test_refuses_a_model_without_trainable_parameters() -> None:
    inputs = torch.ones(1, 1)
    with pytest.raises(ValueError, match="no parameter"):
        sharpness(nn.Linear(1, 1).requires_grad_(False), mean_output, [(inputs, inputs)])


@pytest.mark.parametrize("options", [{}, {"m": 2}, {"kind": "average"}])
def test_refuses_narrow_parameters(options: dict[str, Any]) -> None:
    """Of 10⁶ weights in bfloat16, most would not move by 0.05/1000."""
    inputs = torch.ones(1, 1, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"sharpness needs .*'weight' is torch\.bfloat16"):
        sharpness(nn.Linear(1, 1).bfloat16(), mean_output, [(inputs, inputs)], **options)


@pytest.mark.parametrize("options", [{}, {"m": 2}, {"kind": "average"}])
def test_refuses_no_data(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="data is empty"):
        sharpness(nn.Linear(1, 1), mean_output, [], **options)


def test_refuses_data_that_can_be_read_only_once() -> None:
    inputs = torch.ones(1, 1)
    with pytest.raises(ValueError, match="pass a list or a DataLoader"):
        sharpness(nn.Linear(1, 1), mean_output, (pair for pair in [(inputs, inputs)]))


def test_refuses_a_loss_that_is_not_finite() -> None:
    inputs = torch.full((1, 1), math.nan)
    with pytest.raises(ValueError, match="loss is not finite"):
        sharpness(nn.Linear(1, 1), mean_output, [(inputs, inputs)])


def test_refuses_a_gradient_that_is_not_finite() -> None:
    """√|w| has an infinite slope at 0, where it is 0."""
    inputs = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="gradient of the loss is not finite"):
        sharpness(linear([0.0]), lambda outputs, _: outputs.sqrt().mean(), [(inputs, inputs)])


class TimeFirst(nn.Module):
    """Reads inputs of shape (time, samples, features)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.LSTM(2, 3, dtype=torch.float64)
        self.head = nn.Linear(3, 1, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)[0][-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("steps", [5, 8])
def test_samples_are_not_taken_out_of_the_wrong_dimension(steps: int) -> None:
    """With m=1 the whole batch was compared with one target."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps, 8, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(8, 1, generator=generator, dtype=torch.float64)
    loss_fn = lambda outputs, y: (outputs - y).square().mean()  # noqa: E731
    with pytest.raises(ValueError, match="of 4 samples that were taken out of batch 0"):
        sharpness(TimeFirst(), loss_fn, [(x, y)], m=1)
    # Of outputs in a mapping nothing is known but the inputs' shape.
    if steps == 5:
        wrapped = nn.Sequential(TimeFirst(), Named())
        named = lambda outputs, y: loss_fn(outputs["y"], y)  # noqa: E731
        with pytest.raises(ValueError, match="no input whose first dimension is as long"):
            sharpness(wrapped, named, [(x, y)], m=1)


class EveryStep(nn.Module):
    """A sequence model with outputs for each time step, time first or samples first."""

    def __init__(self, kind: str, transposes: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transposes, self.read = transposes, nn.Linear(2, 4, dtype=torch.float64)
        self.head = nn.Linear(4, 3, dtype=torch.float64)
        if kind == "recurrent":
            self.body: nn.Module = nn.GRU(4, 4, dtype=torch.float64)
        else:
            layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, dtype=torch.float64)
            self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.transposes:
            x = x.transpose(0, 1)
        found = self.body(self.read(x))
        found = self.head(found[0] if isinstance(found, tuple) else found)
        return found.transpose(0, 1) if self.transposes else found  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["recurrent", "attention"])
def test_time_steps_are_not_taken_for_samples(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 12, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (6, 12), generator=generator)
    loss_fn = lambda outputs, y: F.cross_entropy(outputs.flatten(0, 1), y.flatten())  # noqa: E731
    with pytest.raises(ValueError, match="samples 3 to 5 of batch 0 change when the others"):
        sharpness(EveryStep(kind, transposes=False), loss_fn, [(x, y)], m=4)
    # Samples first, transposed by the model: as many groups of sequences as there are.
    apart = (x.transpose(0, 1).contiguous(), y.t().contiguous())
    found = sharpness(EveryStep(kind, transposes=True), loss_fn, [apart], m=4, rho=0.2)
    alone = [
        sharpness(EveryStep(kind, transposes=False), loss_fn, [(x[:, i : i + 4], y[:, i : i + 4])],
                  rho=0.2).value
        for i in (0, 4, 8)
    ]  # fmt: skip
    assert found.value == pytest.approx(sum(alone) / 3, rel=1e-9)


class Named(nn.Module):
    def forward(self, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": y}


class Sampling(nn.Module):
    """Noise that eval() leaves on, as of a variational autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x + 0.3 * torch.randn_like(x))  # type: ignore[no-any-return]


def test_noise_and_losses_near_zero_are_no_wrong_dimension() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 4, generator=generator)
    y = torch.arange(16) % 3
    assert sharpness(Sampling(), nn.CrossEntropyLoss(), [(x, y)], m=4).value > 0
    advantages = torch.randn(16, 3, generator=generator)
    advantages -= advantages.mean()
    surrogate = lambda outputs, a: -((outputs - outputs.detach()).exp() * a).mean()  # noqa: E731
    assert sharpness(nn.Linear(4, 3), surrogate, [(x, advantages)], m=4).samples == 16
