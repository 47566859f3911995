"""What a trained model keeps of its score when its weights or its inputs change."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, nn
from torch.utils.data import Dataset

from steppe.compare.data.datasets import parts_of
from steppe.compare.metrics.scores import Metric
from steppe.compare.records.measure_names import CLEAN
from steppe.compare.records.packed_numbers import means_of_stretches, pack_floats
from steppe.compare.records.results import PerturbedScores
from steppe.compare.tasks.task import LoadedTask, Task, is_pair
from steppe.compare.training.evaluation import (
    Change,
    Evaluation,
    batches_for,
    evaluated_at_once,
    outputs_without_graph,
)
from steppe.compare.training.sample_choice import some_samples
from steppe.landscape import (
    Confidences,
    Corruption,
    Perturbation,
    Reference,
    calibration_error,
    changed_weights,
    generator_of,
    is_classification,
    reference_of,
    take_measure,
    usual_perturbations,
    weight_tails,
)

# Samples' results are kept as means over so many stretches: a study has thousands of runs.
_STRETCHES = 10
#: Of noise on weights: trials differ by far more than draws do.
DRAWS_OF_NOISE = 2
# Training samples that compensated rounding is fitted on.
_FITTED_ON = 256

Evaluate = Callable[..., Evaluation]
OnTest = Callable[[str, Sequence[Evaluation]], None]


def robustness_of(
    model: nn.Module,
    loaded: LoadedTask,
    device: torch.device,
    evaluate: Evaluate,
    fitting_samples: int = _FITTED_ON,
    on_test: OnTest = lambda name, draws: None,
) -> dict[str, PerturbedScores]:
    """Measure a trained model with changed weights and inputs, by the names of the perturbations.

    It is left as it was. Besides come the tails of its weights, its calibration if it is a
    classifier, and the task's own measures.

    Parameters
    ----------
    model : nn.Module
        The model, not wrapped.
    loaded : LoadedTask
        The task, which says what is measured, with its data.
    device : torch.device
        Where the model is.
    evaluate : callable
        ``evaluate(dataset, by_sample=True, change=…)``, as
        :func:`~steppe.compare.training.evaluation.evaluate` without its first arguments.
    fitting_samples : int, default 256
        Training samples that compensated rounding is fitted on.
    on_test : callable, optional
        Called with each perturbation's name and the test results of each of its draws.
    """
    task, settings = loaded.task, loaded.task.robustness
    chosen = _Both(
        some_samples(loaded.data.validation, settings.samples, model),
        some_samples(loaded.data.test, settings.samples, model),
    )
    fitted_on = _batches(
        model, task, some_samples(loaded.data.unaugmented, fitting_samples, model), device
    )
    metric = next(iter(task.metrics.values()), None)
    found: dict[str, PerturbedScores] = {}
    for name, draws in _evaluations(model, task, chosen, fitted_on, evaluate):
        found[name] = _scores(metric, draws)
        on_test(name, [each.test for each in draws])
    model.eval()
    found |= _unperturbed(model, task, _Both(*(_batches(model, task, x, device) for x in chosen)))
    model.train()
    return found


class _Both(NamedTuple):
    """Validation and test data, or what was made of them."""

    validation: Any
    test: Any


def _evaluations(
    model: nn.Module, task: Task, chosen: _Both, fitted_on: Sequence[Any], evaluate: Evaluate
) -> Iterator[tuple[str, list[_Both]]]:
    """Yield the clean results, then each perturbation's name and the results of its draws."""
    settings, reference = task.robustness, reference_of(map(_inputs_of, fitted_on))

    def run() -> None:
        for batch in fitted_on:
            outputs_without_graph(task, model, batch)

    def evaluated(perturbation: Perturbation | None, draw: int = 0) -> _Both:
        def part(name: str, dataset: Dataset[Any]) -> Evaluation:
            change = None
            if isinstance(perturbation, Corruption):
                generator = generator_of(settings.seed, perturbation.name, f"draw {draw}/{name}")
                change = _corrupting(perturbation, reference, generator)
            return evaluate(dataset, by_sample=True, change=change)

        return _Both(*(part(*each) for each in chosen._asdict().items()))

    model.eval()
    yield CLEAN, [evaluated(None)]
    perturbations = settings.perturbations
    if perturbations is None:
        # Evaluation leaves the model in train() mode.
        model.eval()
        perturbations = usual_perturbations(model, _inputs_of(fitted_on[0]), DRAWS_OF_NOISE, run)
    for each in perturbations:
        draws = []
        for draw in range(each.draws):
            model.eval()
            with changed_weights(model, each, settings.seed, draw, run):
                draws.append(evaluated(each, draw))
        yield each.name, draws


def _corrupting(corruption: Corruption, reference: Reference, generator: Generator) -> Change:
    """Return what changes the inputs of one batch after the other."""

    def change(batch: Any) -> Any:
        inputs = corruption.corrupted(_inputs_of(batch), reference, generator)
        return type(batch)((inputs, batch[1])) if is_pair(batch) else inputs

    return change


def _inputs_of(batch: Any) -> Any:
    """Return the inputs of a pair, and mappings; of all else nobody knows what are targets."""
    if is_pair(batch):
        return batch[0]
    return batch if isinstance(batch, Mapping) else ()


def _batches(
    model: nn.Module, task: Task, dataset: Dataset[Any], device: torch.device
) -> list[Any]:
    from accelerate.utils import send_to_device

    size = evaluated_at_once(parts_of(dataset)[0], task.batch_size)
    found = [
        part
        for each in parts_of(dataset)
        for (part,) in batches_for(model, each, size, collate=task.collate_evaluated)
    ]
    return [send_to_device(part.batch, device) for part in found]


def _scores(metric: Metric | None, draws: Sequence[_Both]) -> PerturbedScores:
    """Return the means over draws."""
    validation, test = ([getattr(each, part) for each in draws] for part in _Both._fields)
    return PerturbedScores(
        _score(metric, validation),
        _score(metric, test),
        # Six digits, as they decide nothing.
        float(f"{fmean(each.loss for each in validation):.6g}"),
        float(f"{fmean(each.loss for each in test):.6g}"),
        _packed(validation),
        _packed(test),
    )


def _score(metric: Metric | None, draws: Sequence[Evaluation]) -> float:
    if metric is None or metric.of_mean == "itself" or not all(each.scores for each in draws):
        return fmean(each.score for each in draws)
    # Of exp(loss) a mean over draws would be that of the worst.
    return metric.of(fmean(fmean(each.scores) for each in draws))


def _packed(draws: Sequence[Evaluation]) -> str:
    """Pack what stretches of samples add to the score, on average over draws."""
    if not all(each.scores for each in draws):
        return ""
    means = np.mean([each.scores for each in draws], axis=0)
    return pack_floats(means_of_stretches(means, min(_STRETCHES, len(means))))


def _unperturbed(model: nn.Module, task: Task, batches: _Both) -> dict[str, PerturbedScores]:
    """Return what else is measured: tails of the weights, calibration, the user's own measures."""
    found = {name: (value, value) for name, value in weight_tails(model)._asdict().items()}
    found |= _calibration(model, task, batches)
    for name, measure in task.robustness.measures.items():
        validation, test = (take_measure(name, measure, model, part) for part in batches)
        found[name] = validation, test
    return {name: PerturbedScores(*pair) for name, pair in found.items()}


def _calibration(model: nn.Module, task: Task, batches: _Both) -> dict[str, tuple[float, float]]:
    """Return calibration error and Brier score of a classifier; nothing of other models."""
    errors, scores = [], []
    for part in batches:
        known = Confidences()
        for batch in part:
            _, outputs, targets = outputs_without_graph(task, model, batch)
            if not is_classification(outputs, targets):
                return {}
            known.add(outputs, targets)
        top, right, brier = known.joined()
        errors.append(calibration_error(top, right))
        scores.append(float(brier.mean()))
    return {
        "calibration error": (errors[0], errors[1]),
        "Brier score": (scores[0], scores[1]),
    }
