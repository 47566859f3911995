"""What a study measures of a run's robustness, against plain loops over a changed copy of it."""

import copy
import math
import random
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from helpers.changed_models import changed_copy
from steppe.compare.data.datasets import Stream, TensorSamples
from steppe.compare.metrics.robustness import RobustnessSettings
from steppe.compare.metrics.scores import Metric
from steppe.compare.records.packed_numbers import unpack
from steppe.compare.records.results import PerturbedScores
from steppe.compare.tasks.task import Task
from steppe.compare.training.evaluation import evaluate
from steppe.compare.training.robustness import robustness_of
from steppe.landscape import (
    IMAGE_CORRUPTIONS,
    Corruption,
    Rounding,
    WeightNoise,
    weight_tails,
)
from steppe.landscape.perturbations.perturbation import generator_of
from steppe.landscape.perturbations.rounding import round_to_bits

CLASSES = 3


def samples(count: int, seed: int) -> TensorSamples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, 1, 6, 6, generator=generator)
    return TensorSamples(inputs, torch.randint(CLASSES, (count,), generator=generator))


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.argmax(1) == targets


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(0.4), nn.Linear(48, CLASSES)
    )


def task_of(settings: RobustnessSettings, **changes: Any) -> Task:
    own: dict[str, Any] = {
        "name": "own",
        "model": network,
        "train": samples(50, 0),
        "validation": samples(31, 1),
        "test": samples(45, 2),
        "loss": F.cross_entropy,
        "metrics": {"accuracy": accuracy},
        "batch_size": 8,
        "robustness": settings,
    }
    return Task(**{**own, **changes})


def measured(task: Task, model: nn.Module | None = None, batch_size: int = 8) -> Any:
    model = task.model() if model is None else model
    evaluated = partial(
        evaluate, model, task, accelerator=Accelerator(cpu=True), sample_length=1,
        batch_size=batch_size,
    )  # fmt: skip
    return robustness_of(model, task.load(), torch.device("cpu"), evaluated)


def check(found: PerturbedScores, models: list[nn.Module], inputs: list[Tensor]) -> None:
    """Compare with the mean over models of plain passes over validation and test samples."""
    for part, name, given in zip((samples(31, 1), samples(45, 2)), ("validation", "test"), inputs,
                                 strict=True):  # fmt: skip
        with torch.no_grad():
            outputs = [model(given) for model in models]
        hits = np.mean([accuracy(each, part.targets).double().numpy() for each in outputs], axis=0)
        loss = np.mean([float(F.cross_entropy(each, part.targets)) for each in outputs])
        assert getattr(found, f"{name}_score") == pytest.approx(hits.mean())
        assert getattr(found, f"{name}_loss") == pytest.approx(loss, rel=2e-5)
        stretches = [each.mean() for each in np.array_split(hits, 10)]
        assert unpack(getattr(found, f"{name}_samples")) == pytest.approx(stretches, abs=1e-3)


def test_rounded_noisy_and_corrupted_results_are_those_of_plain_loops() -> None:
    chosen = (Rounding(2, "absmax"), WeightNoise(0.4, draws=3), Corruption("noise", 4))
    task = task_of(RobustnessSettings(perturbations=chosen, seed=6))
    model, clean = network(), [samples(31, 1).inputs, samples(45, 2).inputs]
    found = measured(task, model)
    check(found["clean"], [changed_copy(model, lambda w: w)], clean)

    def rounded(w: Tensor) -> Tensor:
        return round_to_bits(w.flatten(1), 2, "absmax").reshape(w.shape)

    check(found["2 bits absmax"], [changed_copy(model, rounded)], clean)

    def noisy(draw: int) -> nn.Module:
        generator = generator_of(6, "weight noise 0.4", draw)
        return changed_copy(
            model,
            lambda w: w + 0.4 * w.std(correction=0) * torch.randn(w.shape, generator=generator),
        )

    check(found["weight noise 0.4"], [noisy(draw) for draw in range(3)], clean)
    spread = float(samples(50, 0).inputs.double().std(correction=0))
    corrupted = []
    for name, given in zip(("validation", "test"), clean, strict=True):
        generator = generator_of(6, "noise 4", f"draw 0/{name}")
        noise = torch.stack([torch.randn(1, 6, 6, generator=generator) for _ in given])
        corrupted.append(given + 1.0 * spread * noise)
    check(found["noise 4"], [changed_copy(model, lambda w: w)], corrupted)
    assert found["kurtosis"].test_score == weight_tails(model).kurtosis


def test_a_classifier_has_its_calibration() -> None:
    model = network()
    found = measured(task_of(RobustnessSettings(perturbations=())), model)
    with torch.no_grad():
        shares = model.eval()(samples(45, 2).inputs).double().softmax(1)
    labels = F.one_hot(samples(45, 2).targets, CLASSES)
    brier = float((shares - labels).square().sum(1).mean())
    assert found["Brier score"].test_score == pytest.approx(brier)
    assert list(found) == ["clean", "kurtosis", "outliers", "calibration error", "Brier score"]


def test_results_do_not_depend_on_the_batch_size() -> None:
    """Nor on other samples than the same ones, at the same places."""
    task = task_of(RobustnessSettings())
    model = network()
    one, other = measured(task, model), measured(replace(task, batch_size=3), model, 3)
    # Small images are evaluated in large batches, whatever is asked for.
    step = {"loss": None, "step": lambda m, b: F.cross_entropy(m(b[0]), b[1]),
            "predict": lambda m, b: m(b[0])}  # fmt: skip
    third = measured(task_of(RobustnessSettings(), **step, batch_size=7), model, 7)
    assert len(one) == 1 + 9 + 3 + 15 + 4
    for name, each in one.items():
        for again in (other[name], third[name]):
            assert again.test_score == pytest.approx(each.test_score, rel=1e-5)
            assert again.validation_score == pytest.approx(each.validation_score, rel=1e-5)
            assert again.test_loss == pytest.approx(each.test_loss, rel=2e-5, nan_ok=True)


def test_only_so_many_samples_are_taken_and_always_the_same() -> None:
    seen: list[Tensor] = []

    def note(model: nn.Module, batches: Any) -> float:
        seen.append(torch.cat([inputs for inputs, _ in batches]))
        return len(seen[-1])

    settings = RobustnessSettings(samples=20, perturbations=(), measures={"count": note})
    one, other = measured(task_of(settings)), measured(task_of(settings))
    assert one["count"] == other["count"] == PerturbedScores(20.0, 20.0)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    rows = samples(45, 2).inputs.flatten(1)
    assert all((rows == each.flatten()).all(1).any() for each in seen[1])


def vandal(model: nn.Module, batches: Any) -> float:
    random.seed(9)
    torch.manual_seed(9)
    model.train()
    model.requires_grad_(False)
    for each in (*model.parameters(), *model.buffers()):
        each.zero_()
        each.grad = None
    return 2.0


@pytest.mark.parametrize("stops", [False, True], ids=["ends", "fails"])
def test_the_model_is_left_as_it_was(stops: bool) -> None:
    def fail(model: nn.Module, batches: Any) -> float:
        vandal(model, batches)
        raise ArithmeticError("no")

    measures = {"fail": fail} if stops else {"vandal": vandal}
    model = network()
    model[0].requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    before = copy.deepcopy(model.state_dict())
    flags = [each.requires_grad for each in model.parameters()]
    state = random.getstate()
    task = task_of(RobustnessSettings(measures=measures))
    if stops:
        with pytest.raises(ArithmeticError):
            measured(task, model)
    else:
        assert measured(task, model)["vandal"].test_score == 2.0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert flags == [each.requires_grad for each in model.parameters()]
    assert torch.equal(model[4].weight.grad, torch.ones_like(model[4].weight))
    # Torch's is drawn from by every evaluation, for the seeds of a loader's workers.
    assert random.getstate() == state


def test_a_stream_has_results_of_all_its_tasks() -> None:
    parts = {
        name: Stream([samples(12 + shift, seed), samples(9, seed + 1)])
        for shift, (name, seed) in enumerate([("train", 3), ("validation", 5), ("test", 7)])
    }
    from steppe.compare.data.datasets import Data

    task = task_of(RobustnessSettings(samples=14), data=lambda: Data(**parts),
                   train=None, validation=None, test=None)  # fmt: skip
    model = network()
    found = measured(task, model)
    copied = changed_copy(
        model, lambda w: round_to_bits(w.flatten(1), 3, "absmax").reshape(w.shape)
    )
    whole = measured(replace(task, robustness=RobustnessSettings()), model)["3 bits absmax"]
    shares = []
    for part in (samples(14, 7), samples(9, 8)):
        with torch.no_grad():
            shares.append(float(accuracy(copied(part.inputs), part.targets).double().mean()))
    assert whole.test_score == pytest.approx(np.mean(shares))
    assert found["clean"].test_score >= 0


def test_targets_of_batches_of_ones_own_are_not_corrupted() -> None:
    """Of a triple nobody knows which parts are inputs: only weights are changed."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        (torch.rand(1, 6, 6, generator=generator), torch.rand(1, 6, 6, generator=generator), 1.0)
        for _ in range(12)
    ]
    task = task_of(
        RobustnessSettings(),
        train=rows, validation=rows, test=rows, metrics={}, loss=None,
        step=lambda model, batch: (model(batch[0]).mean() - batch[1].mean()).square(),
    )  # fmt: skip
    found = measured(task)
    assert not [name for name in found if name.split()[0] in IMAGE_CORRUPTIONS]
    assert {"2 bits compensated", "weight noise 0.5"} <= found.keys()
    assert found["clean"].test_score == pytest.approx(found["clean"].test_loss, rel=1e-5)


def test_a_score_that_overflows_is_infinite_and_no_error() -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(36, CLASSES)

        def forward(self, inputs: Tensor) -> Tensor:
            output: Tensor = 1e5 * self.head(inputs.flatten(1))
            return output

    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    metric = Metric(losses, higher_is_better=False, of_mean="exp")
    torch.manual_seed(0)
    task = task_of(RobustnessSettings(), metrics={"perplexity": metric}, model=Large)
    found = measured(task)
    assert found["2 bits absmax"].test_score == math.inf


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"samples": 0}, ValueError, "samples=0 must be a whole number of at least 1"),
        ({"samples": True}, ValueError, "samples=True"),
        ({"seed": "a"}, TypeError, "seed must be an integer, got 'a'"),
        (
            {"perturbations": Rounding(2)},
            TypeError,
            "must be a list of perturbations, got Rounding",
        ),
        ({"perturbations": ["blur"]}, TypeError, "perturbations has 'blur': expected Rounding"),
        ({"perturbations": [Rounding(2), Rounding(2)]}, ValueError, "called '2 bits least error'"),
        ({"measures": [len]}, TypeError, "measures must be a dict of names to functions"),
        ({"measures": {"": len}}, TypeError, "expected a name and a function"),
        ({"measures": {"clean": len}}, ValueError, "two measures are called 'clean'"),
        ({"measures": {"kurtosis": len}}, ValueError, "two measures are called 'kurtosis'"),
        ({"measures": {"Brier score": len}}, ValueError, "are called 'Brier score'"),
        ({"measures": {"corrupted inputs": len}}, ValueError, "are called 'corrupted inputs'"),
        ({"measures": {"blur 3": len}}, ValueError, "two measures are called 'blur 3'"),
        ({"measures": {"swaps 1": len}}, ValueError, "two measures are called 'swaps 1'"),
    ],
)
def test_wrong_settings_are_refused_by_name(given: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        RobustnessSettings(**given)


def test_settings_take_what_is_right() -> None:
    chosen = [Rounding(2), WeightNoise(0.3)]
    settings = RobustnessSettings(perturbations=(each for each in chosen))  # type: ignore[arg-type]
    assert settings.perturbations == tuple(chosen)
    # Its own name is free where nothing else has it.
    RobustnessSettings(perturbations=(), measures={"blur 3": lambda model, batches: 1.0})
