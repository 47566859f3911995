"""A run is fair, repeatable, and does what it says, step by step."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from helpers.training_runs import KillError, by_hand, killed_after, numbers, seeds, train_on
from steppe._shared.recipes import Recipe
from steppe.compare.data.datasets import Data, Samples
from steppe.compare.tasks import makers
from steppe.compare.tasks.makers import TaskMaker
from steppe.compare.training import checkpoint, evaluated_weights
from steppe.compare.training.accelerator import make_accelerator
from steppe.compare.training.run import Run, RunContext

MakeRun = Callable[..., Run]


class Spy(torch.optim.SGD):
    """Moves nothing; keeps the parameters, gradients and lr it sees at every step."""

    weights: list[Tensor]
    gradients: list[Tensor]
    rates: list[float]

    def __init__(self, params, lr=0.1) -> None:
        super().__init__(params, lr=lr)
        Spy.weights, Spy.gradients, Spy.rates = [], [], []

    def step(self, closure):
        loss = closure()
        (group,) = self.param_groups
        Spy.rates.append(group["lr"])
        Spy.weights.append(torch.cat([p.detach().flatten() for p in group["params"]]))
        Spy.gradients.append(torch.cat([p.grad.flatten() for p in group["params"]]))
        return loss


class IgnoresClosure(torch.optim.SGD):
    def step(self, closure=None):
        pass


def test_an_optimizer_that_does_not_call_the_closure_is_refused_by_name(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    run = replace(make_run(), recipe=Recipe("ignores", IgnoresClosure))
    with pytest.raises(TypeError, match=r"IgnoresClosure.step\(closure\) must call closure"):
        train_on(run, toy_data, context)


def spied(run: Run, **changes: Any) -> Run:
    return replace(run, recipe=Recipe("spy", Spy, **changes))


def evaluated(model: nn.Module, samples: Samples) -> tuple[float, float]:
    with torch.no_grad():
        outputs = model.eval()(samples.inputs)
    right = (outputs.argmax(1) == samples.targets).double().mean()
    return F.cross_entropy(outputs, samples.targets).item(), right.item()


@pytest.mark.parametrize(
    ("name", "cls", "settings", "changes"),
    [
        ("adamw", torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1}, {"schedule": "cosine"}),
        ("sgd", torch.optim.SGD, {"lr": 0.2, "weight_decay": 0.01}, {"warmup": 0.4}),
        ("sgd", torch.optim.SGD, {"lr": 0.5}, {"schedule": "cosine-epochs", "clip": 0.3}),
        ("nadam", torch.optim.NAdam, {"lr": 0.02, "weight_decay": 0.0}, {"accumulate": 2}),
        ("sgd+sam", torch.optim.SGD, {"lr": 0.3, "rho": 0.2}, {"clip": 0.3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("network", ["linear", "noisy"])
def test_a_run_is_a_plain_loop_of_torch(
    make_run: MakeRun, toy_task: TaskMaker, toy_data: Data, context: RunContext,
    name: str, cls, settings: dict[str, float], changes: dict[str, Any], network: str,
) -> None:  # fmt: skip
    """The same start and batches, and every number of the run, without Accelerate or steppe.

    SAM draws dropout anew in its second pass, and so does the loop. Statistics of batches change
    with their parts, so with them nothing is accumulated.
    """
    if network == "noisy":
        changes = {**changes, "accumulate": 1}
    settings = {"weight_decay": 0.0, **settings}
    run = make_run(name, 4, settings=settings, model=network, epochs=3, **changes)
    seen = []
    outcome = train_on(run, toy_data, context, lambda number, epoch: seen.append((number, epoch)))

    torch.manual_seed(seeds(run, -1))
    model = toy_task.make(network)
    params = list(model.parameters())
    rho = settings.pop("rho", None)
    optimizer = cls(params, **settings)
    rates = []

    def step(number: int, inputs: Tensor, targets: Tensor) -> float:
        rates.append(settings["lr"] * run.run_settings.lr_factor(number))
        optimizer.param_groups[0]["lr"] = rates[-1]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        if rho is not None:
            length = torch.cat([p.grad.flatten() for p in params]).norm()
            moves = [rho * p.grad / length for p in params]
            kept = {n: b.clone() for n, b in model.named_buffers()}
            with torch.no_grad():
                for p, move in zip(params, moves, strict=True):
                    p += move
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            with torch.no_grad():
                for p, move in zip(params, moves, strict=True):
                    p -= move
                for n, b in model.named_buffers():
                    b.copy_(kept[n])
        if run.run_settings.clip is not None:
            nn.utils.clip_grad_norm_(params, run.run_settings.clip)
        optimizer.step()
        return loss.item()

    for epoch, train_loss in enumerate(by_hand(run, model, toy_data.train, step)):
        found = outcome.curve[epoch]
        assert found.train_loss == pytest.approx(train_loss, abs=1e-6)
        loss, score = evaluated(model, toy_data.validation)
        assert found.validation_loss == pytest.approx(loss, abs=1e-6)
        assert found.validation_score == pytest.approx(score)
        assert found.lr == pytest.approx(rates[-1], rel=1e-9)
        assert seen[epoch] == (epoch, found)
    final = outcome.final
    for part, samples in (
        ((final.train_loss, final.train_score), toy_data.train),
        ((final.validation_loss, final.validation_score), toy_data.validation),
        ((final.test_loss, final.test_score), toy_data.test),
    ):
        assert part == pytest.approx(evaluated(model, samples), abs=1e-6)
    assert not outcome.diverged


@pytest.mark.parametrize("name", ["dualadam", "adamcm", "adamw+warmup+sam", "lbfgs"])
def test_the_same_seed_gives_the_same_numbers(
    make_run: MakeRun, toy_data: Data, context: RunContext, name: str
) -> None:
    torch.manual_seed(11)
    first = train_on(make_run(name, model="noisy"), toy_data, context)
    torch.manual_seed(12)
    assert numbers(train_on(make_run(name, model="noisy"), toy_data, context)) == numbers(first)
    assert numbers(train_on(make_run(name, 1, model="noisy"), toy_data, context)) != numbers(first)
    assert len(first.curve) == 2


def test_every_optimizer_gets_the_same_start_and_the_same_batches(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    """One that never moves sees, at equal weights, the gradients of the seed's batches."""
    seen = []
    for name in ("adamw", "sgd"):
        torch.rand(5)  # what was drawn before must not matter
        train_on(spied(make_run(name)), toy_data, context)
        seen.append(torch.stack([*Spy.weights, *Spy.gradients]))
    assert torch.equal(seen[0], seen[1])
    # 2 epochs of ⌈21/5⌉ batches; each epoch has an order of its own
    assert len(Spy.gradients) == 10
    assert not torch.equal(Spy.gradients[0], Spy.gradients[5])
    train_on(spied(make_run(seed=1)), toy_data, context)
    assert not torch.equal(torch.stack([*Spy.weights, *Spy.gradients]), seen[0])


def test_the_test_set_is_looked_at_once_at_the_end(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    looks = []

    class Counted(Samples):
        targets = toy_data.test.targets

        def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
            looks.append(row)
            return toy_data.test[row]

        def take(self, rows: Tensor) -> "Counted":
            return self

    counted = replace(toy_data, test=Counted())
    train_on(make_run(), counted, context, lambda number, epoch: looks.append(-1))
    # The first sample tells how large they are.
    assert looks == [-1, -1, 0, *range(len(toy_data.test))]


def test_lr_is_set_step_by_step(make_run: MakeRun, toy_data: Data, context: RunContext) -> None:
    run = make_run("adam+warmup", settings={"lr": 1.0, "switch": 0.4})
    train_on(spied(run, warmup=True), toy_data, context)
    assert Spy.rates == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)
    cosine = make_run(schedule="cosine", settings={"lr": 2.0})
    train_on(spied(cosine), toy_data, context)
    assert Spy.rates == pytest.approx(
        [2.0 * (1e-3 + 0.999 * (1 + math.cos(math.pi * t / 10)) / 2) for t in range(10)]
    )


@pytest.mark.parametrize("parts", [2, 3, 5, 9])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(
    make_run: MakeRun, toy_data: Data, context: RunContext, parts: int
) -> None:
    """Batches of 5, and one of 1, do not divide evenly."""
    whole = train_on(spied(make_run()), toy_data, context)
    expected = torch.stack(Spy.gradients)
    found = train_on(spied(make_run(accumulate=parts)), toy_data, context)
    torch.testing.assert_close(torch.stack(Spy.gradients), expected, rtol=1e-5, atol=1e-7)
    assert found.curve[0].train_loss == pytest.approx(whole.curve[0].train_loss, rel=1e-6)


def test_clipping_bounds_the_norm_and_keeps_the_direction(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    train_on(spied(make_run()), toy_data, context)
    free = torch.stack(Spy.gradients)
    bound = free.norm(dim=1).median().item()
    train_on(spied(make_run(clip=bound, accumulate=2)), toy_data, context)
    clipped = torch.stack(Spy.gradients)
    lengths = free.norm(dim=1, keepdim=True)
    assert (lengths > bound).any()
    expected = free * (bound / lengths).clamp(max=1)
    torch.testing.assert_close(clipped, expected, rtol=1e-4, atol=1e-6)


def test_bfloat16_is_for_training_and_not_for_curvature(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    settings = {"lr": 1e-30, "weight_decay": 0.0}  # stays where it starts
    full = train_on(make_run("sgd", settings=settings), toy_data, context)
    half = train_on(make_run("sgd", settings=settings, precision="bf16"), toy_data, context)
    assert half.final.train_loss == pytest.approx(full.final.train_loss, rel=1e-2)
    assert half.final.train_loss != full.final.train_loss
    assert half.curvature == full.curvature


def in_half(run: Run, context: RunContext, **scale: float) -> Any:
    """Make Accelerate do on the CPU what it does in fp16 on accelerators."""
    accelerator = make_accelerator(run, context)
    accelerator.scaler = torch.amp.GradScaler("cpu", **scale)
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"
    return accelerator


@pytest.mark.parametrize("name", ["sgd", "sgd+sam"])
def test_float16_is_scaled_and_clipped_and_unscaled_once(
    make_run: MakeRun, toy_data: Data, context: RunContext, name: str
) -> None:
    run = make_run(name, settings={"lr": 0.3, "weight_decay": 0.0}, clip=0.3, epochs=4)
    expected = train_on(run, toy_data, context)
    accelerator = in_half(run, context, init_scale=2.0**10)
    found = train_on(run, toy_data, context, accelerator=accelerator)
    assert accelerator.scaler.get_scale() == 2.0**10
    for one, other in zip(found.curve, expected.curve, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)
        assert one.lr == other.lr
    assert found.final.test_loss == pytest.approx(expected.final.test_loss, rel=1e-3)
    assert found.final.test_loss != expected.final.test_loss


@pytest.mark.parametrize(("name", "passes"), [("sgd", 1), ("sgd+sam", 2)])
def test_sam_takes_two_passes_per_step(
    make_run: MakeRun, toy_task: TaskMaker, toy_data: Data, context: RunContext, monkeypatch,
    name: str, passes: int,
) -> None:  # fmt: skip
    calls: list[bool] = []
    during: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return F.cross_entropy(outputs, targets)

    monkeypatch.setitem(makers.TASKS, "toy", replace(toy_task, loss=loss))
    run = make_run(name, epochs=1, curvature="none")
    train_on(run, toy_data, context, lambda *_: during.append(sum(calls)))
    assert during == [5 * passes]


@pytest.mark.parametrize(
    "name",
    [
        *("adamw", "lbfgs", "adamcm", "dualadamcm+sam", "rprop", "sgd-momentum", "radam", "nadam"),
        *("muon", "schedule-free", "schedule-free+sam", "adamw+beta1+ema", "sgd+2epochs"),
    ],
)
def test_training_lowers_the_loss(
    make_run: MakeRun, toy_data: Data, context: RunContext, name: str
) -> None:
    settings = {} if name in ("lbfgs", "rprop") else {"lr": 0.05}
    run = make_run(name, epochs=12, settings=settings, curvature="none")
    outcome = train_on(run, toy_data, context)
    losses = [epoch.train_loss for epoch in outcome.curve]
    assert losses[-1] < 0.8 * losses[0]


def test_a_run_that_diverges_ends_there_and_says_so(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    seen = []
    run = make_run("sgd", settings={"lr": 1e38}, epochs=5)
    outcome = train_on(run, toy_data, context, lambda number, epoch: seen.append(number))
    assert outcome.diverged
    assert len(outcome.curve) == len(seen) < 5
    assert math.isnan(outcome.curvature.sharpness)
    assert math.isnan(outcome.final.test_score)


def test_a_gradient_that_is_not_finite_costs_the_curvature_only(
    make_run: MakeRun, toy_task: TaskMaker, toy_data: Data, context: RunContext, monkeypatch
) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Finite, while the derivative of the square root at 0 times 0 is NaN."""
        return F.cross_entropy(outputs, targets) + (0 * outputs).sum().sqrt()

    monkeypatch.setitem(makers.TASKS, "toy", replace(toy_task, loss=loss))
    outcome = train_on(spied(make_run()), toy_data, context)
    assert not outcome.diverged
    assert len(outcome.curve) == 2
    assert math.isnan(outcome.curvature.sharpness)


@pytest.mark.usefixtures("toy_curvature")
def test_stability_is_that_of_the_lr_before_its_schedule(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    """Where the cosine ends, at a thousandth of lr, everything would be stable."""
    run = make_run("sgd", settings={"lr": 0.1}, schedule="cosine")
    assert train_on(run, toy_data, context).curvature.threshold == pytest.approx(2 / 0.1)


@pytest.mark.usefixtures("toy_curvature")
def test_a_model_with_running_statistics_has_a_curvature(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    curvature = train_on(make_run(model="noisy"), toy_data, context).curvature
    assert curvature.density
    assert all(map(math.isfinite, (curvature.sharpness, curvature.largest, curvature.trace)))


@pytest.mark.parametrize("failing", [False, True])
def test_the_callers_state_is_left_alone(
    make_run: MakeRun, toy_data: Data, context: RunContext, failing: bool
) -> None:
    def state() -> tuple[object, ...]:
        return (
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )

    class StopError(Exception):
        pass

    def during(*_: object) -> None:
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        if failing:
            raise StopError

    threads = torch.get_num_threads()
    for warn_only in (False, True):
        torch.use_deterministic_algorithms(warn_only, warn_only=warn_only)
        torch.set_num_threads(2)
        try:
            before = state()
            try:
                train_on(make_run(model="noisy", epochs=1), toy_data, context, during)
            except StopError:
                assert failing
            assert state() == before
        finally:
            torch.use_deterministic_algorithms(False)
            torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", 0.0),
        # two moments in fp32, and a 4-byte step for each of the two tensors of 10 parameters
        ("adamw", 8.0 + 2 * 4 / 10),
        ("adamw+sam", 8.0 + 2 * 4 / 10),
    ],
)
def test_costs_are_of_the_training(
    make_run: MakeRun, toy_data: Data, context: RunContext, name: str, expected: float
) -> None:
    outcome = train_on(make_run(name), toy_data, context)
    assert outcome.costs.state_bytes == pytest.approx(expected)
    assert math.isnan(outcome.costs.peak_bytes)
    assert outcome.costs.seconds == outcome.curve[-1].seconds > outcome.curve[0].seconds > 0
    # The median of two epochs is their mean.
    assert outcome.costs.step_ms == pytest.approx(1e3 * outcome.costs.seconds / 10)


def test_adam_cm_is_charged_for_its_buffer(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    """At least two moments and five slots in fp32."""
    assert train_on(make_run("adamcm"), toy_data, context).costs.state_bytes >= 4 * 7


@pytest.mark.parametrize(
    "name",
    [
        *("adamcm", "dualadam+sam", "adam+warmup", "adamcm+ema", "muon"),
        *("schedule-free", "schedule-free+ema+sam"),
    ],
)
def test_a_killed_run_goes_on_to_the_same_numbers(
    make_run: MakeRun, toy_data: Data, context: RunContext, name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Killed after every epoch in turn, with random layers, against one left in peace."""
    # An average over four of fifteen steps, which differs from the weights.
    monkeypatch.setattr(evaluated_weights, "_WINDOW", 0.25)
    run = make_run(name, 2, model="noisy", epochs=3, schedule="cosine")
    whole = train_on(run, toy_data, replace(context, out=context.out / "whole"))
    seen: list[int] = []
    for epoch in range(3):
        with pytest.raises(KillError):
            train_on(run, toy_data, context, killed_after(epoch, seen))
        torch.rand(7)
    unfinished = checkpoint.progress_path(context.out, run)
    assert unfinished.is_file()
    outcome = train_on(run, toy_data, context, killed_after(-1, seen))
    assert seen == [0, 1, 2]
    assert numbers(outcome) == numbers(whole)
    assert outcome.costs.seconds == outcome.curve[-1].seconds
    assert outcome.costs.gradients == whole.costs.gradients == (30 if "+sam" in name else 15)
    assert not unfinished.exists()
    kept = [
        checkpoint.load(checkpoint.checkpoint_path(out, run), torch.device("cpu"))
        for out in (context.out, context.out / "whole")
    ]
    for one, other in zip(*map(tree_leaves, kept), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_a_scalers_state_goes_on_too(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    run = make_run("sgd")
    scales = []
    for epoch in (0, -1):
        accelerator = in_half(run, context, init_scale=8.0, growth_interval=5)
        try:
            train_on(run, toy_data, context, killed_after(epoch, []), accelerator)
        except KillError:
            assert epoch == 0
        scales.append(accelerator.scaler.get_scale())
    # Doubled after each five steps, and an epoch has five.
    assert scales == [16.0, 32.0]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04nothing", None], ids=["empty", "other", "cut"])
def test_a_run_whose_file_is_damaged_starts_over(
    make_run: MakeRun, toy_data: Data, context: RunContext, damage: bytes | None
) -> None:
    run = make_run("adamcm")
    whole = train_on(run, toy_data, context)
    with pytest.raises(KillError):
        train_on(run, toy_data, context, killed_after(0, []))
    unfinished = checkpoint.progress_path(context.out, run)
    content = unfinished.read_bytes()
    unfinished.write_bytes(content[: len(content) // 2] if damage is None else damage)
    seen: list[int] = []
    assert numbers(train_on(run, toy_data, context, killed_after(-1, seen))) == numbers(whole)
    assert seen == [0, 1]


def test_an_edited_library_does_not_go_on_with_a_run(
    make_run: MakeRun, toy_data: Data, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    with pytest.raises(KillError):
        train_on(run, toy_data, context, killed_after(0, []))
    monkeypatch.setattr("steppe.compare.training.run.steppe_source", lambda: "edited")
    seen: list[int] = []
    train_on(run, toy_data, context, killed_after(-1, seen))
    assert seen == [0, 1]


def test_a_device_that_accelerate_does_not_take_is_refused(
    make_run: MakeRun, context: RunContext
) -> None:
    with pytest.raises(ValueError, match="which Accelerate uses here, got meta"):
        make_accelerator(make_run(), replace(context, device="meta"))
