"""What a trained model keeps of its score when its weights or its inputs change.

Rounding to few bits, noise on weights and corrupted inputs are what happens to models after
training; tails of the weights and the calibration of a classifier may explain what comes out.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean

import torch
from torch import Tensor, nn

from steppe._shared.progress import progress
from steppe._shared.statistics import standard_error
from steppe._shared.validation import checked_seed
from steppe.landscape.objective.batches import Batch, Batches
from steppe.landscape.objective.exact_passes import unwrapped
from steppe.landscape.objective.loss_weight import LossFunction, Weight
from steppe.landscape.objective.parameters import check_module
from steppe.landscape.perturbations.confidence import Confidence, calibration_error
from steppe.landscape.perturbations.error_over_draws import error_over_draws
from steppe.landscape.perturbations.own_measure import (
    OwnMeasure,
    check_measures,
    check_names_differ,
    take_measure,
)
from steppe.landscape.perturbations.perturbation import (
    Corruption,
    Perturbation,
    changed_weights,
    checked_perturbations,
    generator_of,
    usual_perturbations,
)
from steppe.landscape.perturbations.reference import Reference
from steppe.landscape.perturbations.robustness_result import CLEAN, Perturbed, Robustness
from steppe.landscape.perturbations.scored_passes import (
    PERPLEXITY,
    SampleMetric,
    Scored,
    ScoredPasses,
    inputs_of,
)
from steppe.landscape.perturbations.weight_tails import weight_tails
from steppe.landscape.perturbations.weights import check_writable

# Samples that compensated rounding is fitted on.
_FITTED_ON = 256
# exp of more overflows.
_LARGEST_EXPONENT = 709.0
# Of samples, for the jackknife of the calibration error.
_GROUPS = 20


def robustness(
    model: nn.Module,
    data: Batches,
    loss_fn: LossFunction | None = None,
    *,
    metric: SampleMetric | None = None,
    perturbations: Iterable[Perturbation] | None = None,
    measures: Mapping[str, OwnMeasure] | None = None,
    fitting_data: Batches | None = None,
    weight: Weight | None = None,
    seed: int = 0,
) -> Robustness:
    r"""Measure what a model keeps of its score when its weights or its inputs change.

    Weights of two or more dimensions are rounded or get noise; inputs are corrupted. The model is
    measured in ``eval()`` mode, and is left exactly as it was. The same seed gives the same noise
    and corruptions for every model, so that models can be compared sample by sample.

    Parameters
    ----------
    model : nn.Module
        The model, called as in :func:`~steppe.landscape.hessian`.
    data : iterable
        Batches that were not trained on, gone through again and again: a list or a ``DataLoader``.
    loss_fn : callable, optional
        ``loss_fn(outputs, targets)``, a scalar. Default: the loss that the outputs have, as Hugging
        Face's, or else cross-entropy of a classifier.
    metric : callable, optional
        ``metric(outputs, targets)`` returns a number for each sample, (samples,). Default: of a
        classifier whether it is right; of a language model that returns its loss, perplexity is
        shown, exp of the mean loss.
    perturbations : iterable, optional
        Of :class:`~steppe.landscape.Rounding`, :class:`~steppe.landscape.WeightNoise` and
        :class:`~steppe.landscape.Corruption`. Default: rounding to 4, 3 and 2 bits with each kind
        of scales (compensated where there are linear layers); noise of 0.1, 0.3 and 0.5 standard
        deviations; of images noise, blur, shift, contrast and brightness, of tokens dropout and
        swaps, at severities 1, 3 and 5.
    measures : mapping, optional
        Your own: of names to ``measure(model, data)``, any number, called without gradients unless
        it enables them. What a measure changes in the model is put back.
    fitting_data : iterable, optional
        Batches, such as of training data, on which compensated rounding is fitted: the first ones,
        until they have 256 samples. Default: those of ``data``.
    weight : str or callable, optional
        As in :func:`~steppe.landscape.hessian`.
    seed : int, default 0
        Of noise and corruptions.

    Returns
    -------
    Robustness
        On Ctrl-C what has been measured, with ``complete=False``.

    Raises
    ------
    TypeError
        ``model`` is no module, or an argument of another type.
    ValueError
        A parameter cannot be changed, there is no loss, the metric does not return a number for
        each sample, two measures have one name, the inputs are not what a corruption needs, or the
        model is wrapped for several processes.

    References
    ----------
    Frantar et al., *GPTQ*, ICLR 2023, arXiv 2210.17323. Hendrycks and Dietterich, *Benchmarking
    Neural Network Robustness to Common Corruptions*, ICLR 2019, arXiv 1903.12261; severities here
    are our own. Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, arXiv
    1706.04599.

    Examples
    --------
    >>> from steppe.landscape import Rounding
    >>> torch.manual_seed(0) is not None
    True
    >>> model, inputs = nn.Linear(4, 3), torch.randn(50, 4)
    >>> data = [(inputs, model(inputs).argmax(dim=1))]
    >>> found = robustness(model, data, perturbations=[Rounding(2, "absmax")])
    >>> found["clean"].score, found["2 bits absmax"].score < 1
    (1.0, True)
    """
    check_module("model", model)
    measures, inner = {} if measures is None else measures, unwrapped(model)
    check_writable(inner)
    # What is made in an outer inference mode could not be changed.
    with torch.inference_mode(False), _all_differentiable(inner):
        passes = ScoredPasses(model, loss_fn, data, metric, weight)
        fitted_on = passes
        if fitting_data is not None:
            fitted_on = ScoredPasses(model, loss_fn, fitting_data, metric, weight, "fitting_data")
        chosen = _checked(inner, passes, perturbations, measures)
        measured = _Measurement(inner, passes, fitted_on, checked_seed(seed))
        with progress("robustness", 1 + sum(each.draws for each in chosen)) as advance:
            complete = measured.all(chosen, advance)
    own: dict[str, float] = {}
    try:
        if complete:
            for name, each in measures.items():
                own[name] = take_measure(name, each, inner, data)
    except KeyboardInterrupt:
        complete = False
    error, error_stderr, brier, brier_stderr = _calibration(measured.confidence)
    return Robustness(
        metric=passes.metric,
        samples=measured.clean.samples,
        results=tuple(measured.results),
        **weight_tails(inner)._asdict(),
        calibration_error=error,
        calibration_error_stderr=error_stderr,
        brier=brier,
        brier_stderr=brier_stderr,
        own=own,
        complete=complete,
    )


class _Measurement:
    """The results so far."""

    def __init__(
        self, model: nn.Module, passes: ScoredPasses, fitted_on: ScoredPasses, seed: int
    ) -> None:
        self._model, self._passes, self._fitted_on, self._seed = model, passes, fitted_on, seed
        self.clean: Scored
        self.results: list[Perturbed] = []
        self.confidence: Confidence | None = None
        self._reference = Reference()

    def all(self, perturbations: Sequence[Perturbation], advance: Callable[[int], None]) -> bool:
        """Measure one after the other, until Ctrl-C; return whether all were measured."""
        # Without the clean results there are none: Ctrl-C ends it.
        self.clean = self._passes.score()
        self.results.append(self._result(CLEAN, [self.clean]))
        advance(1)
        try:
            self.confidence = self._passes.confidence()
            if any(isinstance(each, Corruption) for each in perturbations):
                self._reference = self._passes.reference()
            for each in perturbations:
                draws = []
                for draw in range(each.draws):
                    draws.append(self._perturbed(each, draw))
                    advance(1)
                self.results.append(self._result(each.name, draws))
        except KeyboardInterrupt:
            return False
        return True

    def _perturbed(self, each: Perturbation, draw: int) -> Scored:
        if isinstance(each, Corruption):
            # One for all batches, so that what is drawn does not depend on their sizes.
            generator = generator_of(self._seed, each.name, draw)
            return self._passes.score(lambda batch: self._corrupted(each, batch, generator))
        with changed_weights(
            self._model, each, self._seed, draw, lambda: self._fitted_on.run(_FITTED_ON)
        ):
            return self._passes.score()

    def _corrupted(self, each: Corruption, batch: Batch, generator: torch.Generator) -> Batch:
        inputs = each.corrupted(inputs_of(batch), self._reference, generator)
        if batch.keywords:
            return batch._replace(keywords=inputs)
        return batch._replace(inputs=inputs)

    def _result(self, name: str, draws: Sequence[Scored]) -> Perturbed:
        loss, loss_error = _of_losses(draws)
        score, score_error = math.nan, math.nan
        scores = [each.scores for each in draws if each.scores is not None]
        if scores and self.clean.scores is not None:
            clean = self.clean.scores
            score, score_error = _of_samples(scores)
            change = _of_samples([each - clean for each in scores])
        else:
            change = _of_losses(
                [each._replace(losses=each.losses - self.clean.losses) for each in draws]
            )
            if self._passes.metric == PERPLEXITY:
                score = math.inf if loss > _LARGEST_EXPONENT else math.exp(loss)
                score_error = score * loss_error
        return Perturbed(name, score, score_error, loss, loss_error, *change, len(draws))


def _of_samples(draws: Sequence[Tensor]) -> tuple[float, float]:
    """Return the mean over draws and samples, and its standard error over both."""
    table = torch.stack(list(draws))
    return float(table.mean()), error_over_draws(table)


def _of_losses(draws: Sequence[Scored]) -> tuple[float, float]:
    table = torch.stack([each.influences for each in draws])
    return fmean(each.loss for each in draws), error_over_draws(table)


def _calibration(found: Confidence | None) -> tuple[float, float, float, float]:
    """Return calibration error and Brier score with their standard errors."""
    if found is None:
        return (math.nan,) * 4
    group = torch.arange(len(found.top)) % _GROUPS
    count = min(_GROUPS, len(found.top))
    without = torch.tensor(
        [
            calibration_error(found.top[group != each], found.right[group != each])
            for each in range(count)
        ]
    )
    spread = float(((count - 1) * without.var(correction=0)).sqrt()) if count > 1 else math.nan
    brier = found.brier.tolist()
    return calibration_error(found.top, found.right), spread, fmean(brier), standard_error(brier)


def _checked(
    model: nn.Module,
    passes: ScoredPasses,
    given: Iterable[Perturbation] | None,
    measures: Mapping[str, OwnMeasure],
) -> tuple[Perturbation, ...]:
    """Return the perturbations; refuse others, and two of one name."""
    check_measures(measures)
    chosen = checked_perturbations(given)
    if chosen is None:
        first = inputs_of(passes.first)
        chosen = usual_perturbations(model, first, run=lambda: passes.run(1))
    check_names_differ([CLEAN, *(each.name for each in chosen), *measures])
    return chosen


@contextmanager
def _all_differentiable(model: nn.Module) -> Iterator[None]:
    """Let all parameters require gradients in the block: an objective is a function of such."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for param in frozen:
            param.requires_grad_(True)
        yield
    finally:
        for param in frozen:
            param.requires_grad_(False)
