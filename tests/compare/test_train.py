"""A run is fair, repeatable, and measured right."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steppe.compare.optimizers import Recipe, find_recipe
from steppe.compare.tasks import Task
from steppe.compare.train import state_bytes, step, train
from steppe.landscape import sharpness


class Spy(torch.optim.SGD):
    """Moves nothing; keeps the parameters, gradients and lr it sees at every step."""

    seen: list[list[float]]
    rates: list[float]

    def __init__(self, params, lr=0.1) -> None:
        super().__init__(params, lr=lr)
        Spy.seen, Spy.rates = [], []

    def step(self, closure=None):
        loss = closure()
        for group in self.param_groups:
            Spy.rates.append(group["lr"])
            for p in group["params"]:
                Spy.seen += [p.flatten().tolist(), p.grad.flatten().tolist()]
        return loss


def numbers(outcome) -> list[object]:
    return [outcome.curve, outcome.curvature, outcome.state_bytes, outcome.diverged]


@pytest.mark.parametrize("name", ["dualadam", "adamcm", "adamw+warmup+sam", "lbfgs"])
def test_the_same_seed_gives_the_same_numbers(make_run, toy_data, name: str) -> None:
    torch.manual_seed(11)
    first = train(make_run(name), toy_data)
    torch.manual_seed(12)
    assert numbers(train(make_run(name), toy_data)) == numbers(first)
    assert numbers(train(make_run(name, seed=1), toy_data)) != numbers(first)
    assert len(first.curve) == 2


def test_every_optimizer_gets_the_same_start_and_the_same_batches(make_run, toy_data) -> None:
    """One that never moves sees, at equal weights, the gradients of the seed's batches."""
    seen = []
    for name in ("one", "two"):
        run = dataclasses.replace(make_run(), recipe=Recipe(name, Spy))
        torch.rand(5)  # what was drawn before must not matter
        train(run, toy_data)
        seen.append(Spy.seen)
    assert seen[0] == seen[1]
    # 2 epochs of ⌈21/5⌉ batches, weight and bias, value and gradient
    assert len(seen[0]) == 2 * 5 * 2 * 2


def test_the_callers_state_is_left_alone(make_run, toy_data) -> None:
    before = torch.get_rng_state(), torch.get_num_threads()
    train(make_run(threads=1 + torch.get_num_threads()), toy_data)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert not torch.are_deterministic_algorithms_enabled()


def test_only_warning_of_what_does_not_repeat_is_left_as_found(make_run, toy_data) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        train(make_run(), toy_data)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_gradient_that_is_not_finite_costs_the_sharpness_only(make_run, toy_data) -> None:
    def loss(outputs, targets):
        """Finite, while the derivative of the square root at 0 times 0 is NaN."""
        return F.cross_entropy(outputs, targets) + (0 * outputs).sum().sqrt()

    task = Task("toy", lambda: toy_data, lambda: nn.Linear(4, 2), epochs=2, batch_size=5, loss=loss)
    run = dataclasses.replace(make_run(task=task), recipe=Recipe("spy", Spy))
    outcome = train(run, toy_data)
    assert not outcome.diverged
    assert len(outcome.curve) == 2
    assert math.isnan(outcome.curvature.sharpness)


def test_losses_and_accuracy_are_of_the_whole_sets_in_eval_mode(make_run, toy_data) -> None:
    """With lr 0 the model stays what the seed made it, so everything can be computed apart."""
    task = Task("toy", lambda: toy_data, dropped, epochs=1, batch_size=5)
    run = make_run("sgd", seed=4, task=task, lr=0.0, epochs=1)
    outcome = train(run, toy_data)

    torch.manual_seed(4)
    model = dropped().eval()
    with torch.no_grad():
        train_loss = F.cross_entropy(model(toy_data.train_inputs), toy_data.train_targets).item()
        outputs = model(toy_data.test_inputs)
    accuracy = (outputs.argmax(1) == toy_data.test_targets).double().mean().item()
    assert outcome.final.train_loss == pytest.approx(train_loss, rel=1e-6)
    assert outcome.final.test_loss == pytest.approx(
        F.cross_entropy(outputs, toy_data.test_targets).item(), rel=1e-6
    )
    assert outcome.final.test_accuracy == pytest.approx(accuracy)
    whole = [(toy_data.train_inputs, toy_data.train_targets)]
    assert outcome.curvature.sharpness == pytest.approx(
        sharpness(model, F.cross_entropy, whole).value, rel=1e-5
    )


def dropped() -> nn.Module:
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))


def test_evaluation_counts_a_ragged_last_batch_by_its_size(
    make_run, toy_data, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(make_run(), toy_data)
    monkeypatch.setattr("steppe.compare.curvature._BATCH", 4)
    parts = train(make_run(), toy_data)
    assert parts.final.train_loss == pytest.approx(whole.final.train_loss, rel=1e-6)
    assert parts.final.test_loss == pytest.approx(whole.final.test_loss, rel=1e-6)
    assert parts.final.test_accuracy == whole.final.test_accuracy
    assert parts.curvature.sharpness == pytest.approx(whole.curvature.sharpness, rel=1e-4)


def test_training_lowers_the_loss(make_run, toy_data) -> None:
    outcome = train(make_run("adamw", epochs=30, lr=0.05), toy_data)
    losses = [epoch.train_loss for epoch in outcome.curve]
    assert losses[-1] < 0.5 * losses[0]
    assert outcome.final.test_accuracy > 0.7


def test_a_run_that_diverges_ends_there_and_says_so(make_run, toy_data) -> None:
    seen = []
    run = make_run("sgd", lr=1e38, epochs=5)
    outcome = train(run, toy_data, on_epoch=lambda: seen.append(1))
    assert outcome.diverged
    assert len(outcome.curve) == len(seen) < 5
    assert math.isnan(outcome.curvature.sharpness)
    assert math.isnan(outcome.final.test_accuracy)


def test_warm_up_goes_on_step_by_step(make_run, toy_data) -> None:
    run = dataclasses.replace(
        make_run(lr=1.0, switch_rate=0.25), recipe=Recipe("spy", Spy, warmup=True)
    )
    train(run, toy_data)
    assert Spy.rates == [0.25, 0.5, 0.75] + [1.0] * 7


def test_sam_takes_two_passes_and_reports_the_first_loss(toy_data) -> None:
    model = nn.Linear(4, 2)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    batch = toy_data.train_inputs, toy_data.train_targets
    before = F.cross_entropy(model(batch[0]), batch[1]).item()
    passes.clear()
    optimizer = find_recipe("sgd+sam").build(model.parameters(), lr=0.1, switch_rate=0.1)
    assert step(model, optimizer, F.cross_entropy, *batch) == pytest.approx(before)
    assert len(passes) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", 0.0),
        # two moments in fp32, and a 4-byte step for each of the two tensors
        ("adamw", 8.0 + 2 * 4 / 10),
        ("adamw+sam", 8.0 + 2 * 4 / 10),
    ],
)
def test_state_bytes_are_those_of_the_saved_state(toy_data, name: str, expected: float) -> None:
    model = nn.Linear(4, 2)
    optimizer = find_recipe(name).build(model.parameters(), lr=0.1, switch_rate=0.1)
    step(model, optimizer, F.cross_entropy, toy_data.train_inputs, toy_data.train_targets)
    assert state_bytes(optimizer, model) == pytest.approx(expected)


def test_adam_cm_is_charged_for_its_buffer(toy_data) -> None:
    """At least two moments and five slots in fp32."""
    model = nn.Linear(4, 2)
    optimizer = find_recipe("adamcm").build(model.parameters(), lr=0.1, switch_rate=0.1)
    step(model, optimizer, F.cross_entropy, toy_data.train_inputs, toy_data.train_targets)
    assert state_bytes(optimizer, model) >= 4 * 7
