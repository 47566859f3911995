"""What is wrong is refused by name; what is unusual but right is measured."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.landscape import Corruption, Rounding, WeightNoise, robustness

torch.manual_seed(0)
X, Y = torch.randn(20, 6), torch.arange(20) % 3
DATA = [(X[:12], Y[:12]), (X[12:], Y[12:])]
FEW = [Rounding(2), Rounding(2, "compensated"), WeightNoise(0.2, draws=2)]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def measured(data: Any = DATA, loss_fn: Any = None, **options: Any) -> Any:
    return robustness(network(), data, loss_fn, **options)


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return network()


def expanded() -> nn.Module:
    model = nn.Linear(6, 3)
    model.weight = nn.Parameter(torch.randn(1, 6).expand(3, 6))
    return model


def row_of_each(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no module": (lambda: robustness(network, DATA), TypeError, "model"),  # type: ignore[arg-type]
    "iterator": (lambda: measured(iter(DATA)), ValueError, "iterator"),
    "empty": (lambda: measured([]), ValueError, "data has no batches"),
    "empty fitting data": (
        lambda: measured(fitting_data=[]),
        ValueError,
        "fitting_data has no batches",
    ),
    "no samples": (
        lambda: measured([(X[:0], Y[:0])]),
        ValueError,
        "data must have samples, got batches without any",
    ),
    "a kind that is a list": (
        lambda: Corruption(["a"], 3),  # type: ignore[arg-type]
        ValueError,
        r"kind=\['a'\] is not one of noise, blur",
    ),
    "weights of inference mode": (
        lambda: robustness(made_in_inference_mode(), DATA),
        ValueError,
        r"model's parameter 0\.weight was made in torch\.inference_mode\(\), and cannot be changed",
    ),
    "expanded weights": (
        lambda: robustness(expanded(), DATA),
        ValueError,
        r"parameter weight of shape \(3, 6\) is expanded.*with \.clone\(\)",
    ),
    "weights without a shape": (
        lambda: robustness(nn.LazyLinear(3), DATA),
        ValueError,
        "model's parameter weight has no shape yet: run the model on a batch first",
    ),
    "no loss": (
        lambda: measured([(X, X[:, :3])]),
        ValueError,
        "loss_fn must be given",
    ),
    "text for a metric": (
        lambda: measured(metric="accuracy"),
        TypeError,
        "metric must be a function .* got 'accuracy'",
    ),
    "a metric's class": (lambda: measured(metric=dict), TypeError, "metric must be a function"),
    "a metric of the batch": (
        lambda: measured(metric=F.cross_entropy),
        ValueError,
        r"number for each of the 12 samples of a batch, a tensor of shape \(12,\), got shape \(\)",
    ),
    "a metric of each class": (
        lambda: measured(metric=row_of_each),
        ValueError,
        r"shape \(12,\), got shape \(12, 3\)",
    ),
    "a metric without a tensor": (
        lambda: measured(metric=lambda outputs, targets: 0.5),
        ValueError,
        "got 0.5",
    ),
    "one perturbation": (
        lambda: measured(perturbations=Rounding(2)),
        TypeError,
        "perturbations must be a list of perturbations, got Rounding",
    ),
    "a name": (lambda: measured(perturbations="blur"), TypeError, "must be a list .* got 'blur'"),
    "names": (
        lambda: measured(perturbations=["blur 3"]),
        TypeError,
        "perturbations has 'blur 3': expected Rounding, WeightNoise or Corruption",
    ),
    "twice": (
        lambda: measured(perturbations=[WeightNoise(0.3), WeightNoise(0.3, draws=9)]),
        ValueError,
        "two measures are called 'weight noise 0.3'",
    ),
    "a measure of a perturbation's name": (
        lambda: measured(perturbations=FEW, measures={"2 bits least error": lambda m, d: 1.0}),
        ValueError,
        "two measures are called '2 bits least error'",
    ),
    "a measure called clean": (
        lambda: measured(measures={"clean": lambda m, d: 1.0}),
        ValueError,
        "are called 'clean'",
    ),
    "a list of measures": (
        lambda: measured(measures=[len]),
        TypeError,
        "measures must be a dict of names to functions",
    ),
    "a measure's value": (
        lambda: measured(measures={"depth": 3}),
        TypeError,
        "'depth': 3, expected a name and",
    ),
    "a measure of several numbers": (
        lambda: measured(perturbations=[], measures={"rows": lambda m, d: torch.ones(3)}),
        TypeError,
        "measures has 'rows', which must return a number, got Tensor",
    ),
    "images": (
        lambda: measured(perturbations=[Corruption("blur", 3)]),
        ValueError,
        r"'blur 3' needs inputs that are images, \(samples, channels, height, width\)",
    ),
    "tokens": (
        lambda: measured(perturbations=[Corruption("swaps", 3)]),
        ValueError,
        "needs .* tokens",
    ),
    "a seed": (lambda: measured(perturbations=FEW, seed=1.5), TypeError, "seed must be an integer"),
    "bits": (lambda: Rounding(1), ValueError, "bits=1 must be a whole number from 2 to 8"),
    "half a bit": (lambda: Rounding(2.0), ValueError, "bits=2.0"),  # type: ignore[arg-type]
    "no group": (lambda: Rounding(4, group=0), ValueError, "group=0 must be a whole number"),
    "scales": (lambda: Rounding(2, "max"), ValueError, "scales='max'"),  # type: ignore[arg-type]
    "no noise": (lambda: WeightNoise(0.0), ValueError, "share must be a finite number > 0, got 0"),
    "a word of noise": (lambda: WeightNoise("a"), TypeError, "share must be a number"),  # type: ignore[arg-type]
    "draws": (lambda: WeightNoise(0.1, 0), ValueError, "draws=0 must be a whole number"),
    "kind": (lambda: Corruption("blurr", 3), ValueError, "kind='blurr' is not one of noise, blur"),
    "severity": (lambda: Corruption("blur", 6), ValueError, "severity=6 must be a whole number"),
    "true": (lambda: Corruption("blur", True), ValueError, "severity=True must be a whole number"),
    "half": (lambda: Corruption("blur", 3.0), ValueError, "severity=3.0"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_refused_by_name(what: str) -> None:
    call, kind, message = REFUSED[what]
    with pytest.raises(kind, match=message):
        call()


def test_perturbations_may_be_a_generator() -> None:
    found = measured(perturbations=(each for each in FEW))
    assert [each.name for each in found.results] == ["clean", *(each.name for each in FEW)]


def test_one_sample_has_a_score_and_no_error() -> None:
    found = measured([(X[:1], Y[:1])], perturbations=FEW)
    for each in found.results:
        assert each.score in (0.0, 0.5, 1.0)
        assert math.isfinite(each.loss)
        assert math.isnan(each.score_error)
        assert math.isnan(each.loss_error)
    assert math.isfinite(found.brier)
    assert math.isnan(found.calibration_error_stderr)
    assert "±" not in str(found)


def test_losses_as_modules_have_errors_over_samples_too() -> None:
    one, other = (
        measured([(X, Y)], loss, perturbations=FEW)
        for loss in (F.cross_entropy, nn.CrossEntropyLoss())
    )
    assert one.results == other.results
    assert math.isfinite(one["clean"].loss_error)


@pytest.mark.parametrize(
    ("loss", "weight"),
    [
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2])), None),
        (nn.CrossEntropyLoss(label_smoothing=0.2), None),
        (nn.CrossEntropyLoss(ignore_index=1), None),
        (nn.CrossEntropyLoss(reduction="sum"), None),
        (F.cross_entropy, lambda outputs, targets: float((targets != 1).sum())),
    ],
    ids=["classes", "smoothed", "ignored", "sum", "own weight"],
)
def test_losses_are_the_instruments(loss: Any, weight: Any) -> None:
    from steppe.landscape import Objective

    objective = Objective(network(), loss, DATA, weight=weight)
    with objective.evaluation_mode():
        expected = objective.loss().loss
    found = measured(loss_fn=loss, weight=weight, perturbations=[])
    assert found["clean"].loss == pytest.approx(expected, rel=1e-6)


def test_weights_that_are_no_numbers_give_no_score() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    found = robustness(model, DATA, perturbations=FEW)
    assert all(each.score == 0 and math.isnan(each.loss) for each in found.results)
    assert bool(model[0].weight.detach()[0, 0].isnan())
    assert math.isfinite(found.kurtosis)


def test_a_model_without_matrices_is_measured() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs[:, :3] * self.factor

    found = robustness(Scale(), DATA)
    assert all(each.change == 0 for each in found.results)
    assert math.isnan(found.kurtosis)


def test_perplexity_beyond_all_numbers_is_infinite() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(5000.0))

        def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": self.factor + input_ids.double().mean()}

    tokens = torch.ones(3, 4, dtype=torch.long)
    data = [{"input_ids": tokens, "labels": tokens}] * 2
    found = robustness(Language(), data, perturbations=[])
    assert (found.metric, found["clean"].score) == ("perplexity", math.inf)
    str(found)
    found.plot()


def test_a_layer_that_data_leave_out_is_rounded_without_compensation() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            output: Tensor = self.one(inputs)
            return output

    torch.manual_seed(0)
    model = Experts()
    found = robustness(model, DATA, perturbations=FEW)
    only = robustness(nn.Sequential(model.one), DATA, perturbations=FEW[:2])
    for name in ("2 bits least error", "2 bits compensated"):
        assert found[name].loss == pytest.approx(only[name].loss, rel=1e-6)


def test_inputs_that_are_not_finite_end_compensation_without_an_error() -> None:
    class Divides(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(torch.where(inputs > 9, inputs / 0, inputs))

    model = Divides(*network())
    data = [(torch.cat([X, torch.full((1, 6), 10.0)]), torch.cat([Y, Y[:1]]))]
    found = robustness(model, data, perturbations=FEW[:2])
    own, nearest = found["2 bits compensated"], found["2 bits least error"]
    assert own.score <= 1
    assert nearest.score <= 1


def test_labels_and_masks_in_mappings_are_not_corrupted() -> None:
    images, flags = torch.rand(4, 1, 6, 6), torch.randint(9, (4, 6))
    inputs = {"pixels": images, "pixel_mask": images, "target_image": images, "labels": flags}
    from steppe.landscape import reference_of

    generator = torch.Generator().manual_seed(0)
    found = Corruption("noise", 5).corrupted(inputs, reference_of([inputs]), generator)
    changed = [name for name in inputs if not torch.equal(found[name], inputs[name])]
    assert changed == ["pixels"]


def test_a_model_wrapped_for_several_processes_is_refused(monkeypatch: Any) -> None:
    from steppe.landscape.objective.objective import Objective

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    original = Objective.__init__

    def distributed(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.is_distributed = True

    monkeypatch.setattr(Objective, "__init__", distributed)
    with pytest.raises(ValueError, match=r"several processes.*pass model\.module"):
        measured(perturbations=[])


class Columns(nn.Module):
    """Looks each column up in a table of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(size, 4) for size in (2, 9, 40)])
        self.head = nn.Linear(12, 3)

    def forward(self, columns: Tensor) -> Tensor:
        found = [table(columns[:, place]) for place, table in enumerate(self.tables)]
        output: Tensor = self.head(torch.cat(found, dim=1))
        return output


def test_features_that_are_looked_up_are_no_tokens() -> None:
    torch.manual_seed(0)
    columns = torch.stack([torch.randint(size, (20,)) for size in (2, 9, 40)], dim=1)
    found = robustness(Columns(), [(columns, Y)])
    assert [each.name for each in found.results][-1] == "weight noise 0.5"


def test_a_batch_without_samples_changes_nothing() -> None:
    images = torch.rand(20, 1, 6, 6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    one = robustness(model, [(images, Y)], perturbations=[Corruption("shift", 3)])
    empty = (images[:0], Y[:0])
    other = robustness(model, [(images, Y), empty], perturbations=[Corruption("shift", 3)])
    assert one.results == other.results
    assert one.brier == other.brier


def test_labels_that_are_no_classes_are_named() -> None:
    other = Y[12:].clone()
    other[0] = -100
    data = [DATA[0], (X[12:], other)]
    with pytest.raises(ValueError, match="not those of another one, as -100 is none: pass metric="):
        measured(data, F.cross_entropy)


@pytest.mark.parametrize(
    "outer",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.random.fork_rng(devices=[]),
    ],
    ids=["no_grad", "inference_mode", "autocast", "fork_rng"],
)
def test_what_surrounds_the_call_changes_nothing(outer: Any) -> None:
    expected = measured(perturbations=FEW, measures={"loss": mean_loss})
    model = network()
    with outer():
        found = robustness(model, DATA, perturbations=FEW, measures={"loss": mean_loss})
    assert found.results == expected.results
    assert found.brier == expected.brier
    assert found.own["loss"] == pytest.approx(expected.own["loss"], rel=1e-2)


def mean_loss(model: nn.Module, data: Any) -> Tensor:
    return F.cross_entropy(model(data[0][0]), data[0][1])


@pytest.mark.parametrize("outside", [False, True])
def test_a_refused_model_is_left_as_it_was(outside: bool) -> None:
    model = made_in_inference_mode()
    flags = [each.requires_grad for each in model.parameters()]
    with torch.inference_mode(not outside), pytest.raises(ValueError, match="cannot be changed"):
        robustness(model, DATA)
    assert flags == [each.requires_grad for each in model.parameters()]


def test_an_error_says_which_data_the_model_was_run_on() -> None:
    for given in ([(X[:, :2], Y)], [X]):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            measured(fitting_data=given)
        assert caught.value.__notes__ == ["This was the first batch of fitting_data."]


def test_logits_that_look_like_probabilities_in_one_batch_are_logits() -> None:
    rows = torch.tensor([[0.2, 0.8], [3.0, 0.0], [0.0, 1.0], [1.0, 2.0]])
    labels = torch.tensor([1, 0, 1, 1])
    shares = rows.double().softmax(1)
    brier = float((shares - F.one_hot(labels, 2)).square().sum(1).mean())
    for size in (4, 2, 1):
        data = list(zip(rows.split(size), labels.split(size), strict=True))
        model = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.eye(2))
        assert robustness(model, data, perturbations=[]).brier == pytest.approx(brier)


@pytest.mark.parametrize("how", ["data", "transposed", "twice"])
def test_weights_that_share_memory_are_changed_once(how: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(60, 60), nn.Linear(60, 60)
            if how == "twice":
                self.other.weight = self.one.weight
            else:
                shared = self.one.weight.data
                self.other.weight.data = shared.T if how == "transposed" else shared

        def forward(self, inputs: Tensor) -> Tensor:
            output: Tensor = self.other(self.one(inputs).relu())
            return output

    torch.manual_seed(0)
    model, added = Tied(), []
    before = model.one.weight.detach().clone()

    def note(module: nn.Module, inputs: Any) -> None:
        added.append(float((model.one.weight - before).std() / before.std()))

    model.one.register_forward_pre_hook(note)
    data = [(torch.randn(9, 60), torch.arange(9))]
    found = robustness(model, data, perturbations=[WeightNoise(0.5)])
    assert max(added) == pytest.approx(0.5, rel=0.05)
    assert found.kurtosis == pytest.approx(robustness(model.one, data, perturbations=[]).kurtosis)
    rounded = [Rounding(2, "compensated")]
    model.one.register_forward_hook(lambda *_: note(model, None))
    robustness(model, data, perturbations=rounded)
    assert torch.equal(model.one.weight, before)


@pytest.mark.parametrize("what", ["prune", "hook", "parametrize", "backward hook"])
def test_hooks_of_a_measure_are_taken_away(what: str) -> None:
    from torch.nn.utils import parametrizations, prune

    model, called = network(), []
    kept = model[0].register_forward_hook(lambda *_: called.append("kept"))

    def measure(given: Any, data: Any) -> float:
        if what == "prune":
            prune.l1_unstructured(given[0], "weight", 0.5)
        elif what == "hook":
            given[0].register_forward_hook(lambda *_: called.append("own"))
            kept.remove()
        elif what == "parametrize":
            parametrizations.weight_norm(given[0])
        else:
            given[0].register_full_backward_hook(lambda *_: called.append("own"))
        given(X)
        return float(len(called))

    before, kinds = model(X).detach(), [type(each) for each in model.modules()]
    for _ in range(2):
        robustness(model, DATA, measures={"own": measure}, perturbations=[])
    called.clear()
    found = model(X)
    assert torch.equal(found, before)
    found.sum().backward()
    assert called == ["kept"]
    assert kinds == [type(each) for each in model.modules()]
    assert [*dict(model.named_parameters())] == ["0.weight", "0.bias", "2.weight", "2.bias"]
