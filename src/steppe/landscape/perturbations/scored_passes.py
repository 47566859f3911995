"""Passes of a model over data that keep each sample's score, to compare perturbations by sample."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.landscape.objective.batches import Batch, Batches, labels_of, part_named
from steppe.landscape.objective.loss_weight import LossFunction, Weight
from steppe.landscape.objective.objective import Objective
from steppe.landscape.perturbations.confidence import Confidence, Confidences, is_classification
from steppe.landscape.perturbations.reference import Reference, reference_of

#: ``metric(outputs, targets)``, a number for each sample.
SampleMetric = Callable[[Any, Any], Tensor]

ACCURACY, PERPLEXITY = "accuracy", "perplexity"


class Scored(NamedTuple):
    """The results of a pass.

    Attributes
    ----------
    scores : Tensor or None
        Of each sample, (samples,); None without a metric.
    losses, weights : Tensor
        Of each batch, or of each sample where it is known: (batches,) or (samples,).
    samples : int
        How many there were.
    """

    scores: Tensor | None
    losses: Tensor
    weights: Tensor
    samples: int

    @property
    def loss(self) -> float:
        """The mean loss; of losses that are sums, their sum."""
        return float((self.losses * self.weights).sum() / self.weights.sum())

    @property
    def influences(self) -> Tensor:
        """What each batch, or sample, says of the mean loss: their mean is the loss.

        Their standard error is that of a ratio of means, to first order.
        """
        shares = self.weights / self.weights.sum()
        return self.loss + len(shares) * shares * (self.losses - self.loss)


class ScoredPasses:
    """A model, its data, and how its outputs are scored.

    Parameters
    ----------
    model : nn.Module
        The model, not wrapped.
    loss_fn, data, weight
        As in :func:`~steppe.landscape.hessian`. Without ``loss_fn``: the loss that the outputs
        have, or else cross-entropy of a classifier.
    metric : callable, optional
        ``metric(outputs, targets)``, a number for each sample. Default: whether a classifier is
        right.
    name : str, default "data"
        What errors call the data.

    Attributes
    ----------
    metric : str
        What scores are.

    Raises
    ------
    TypeError
        ``metric`` is no function.
    ValueError
        There is no ``loss_fn``, and the outputs have no loss, nor are they a classifier's; or the
        model is wrapped for several processes.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        data: Batches,
        metric: SampleMetric | None,
        weight: Weight | None,
        name: str = "data",
    ) -> None:
        if metric is not None and (not callable(metric) or isinstance(metric, type)):
            raise TypeError(
                f"metric must be a function of outputs and targets, or None, got {metric!r}"
            )
        probe = Objective(model, loss_fn, data, weight=weight)
        if probe.is_distributed and torch.distributed.get_world_size() > 1:
            raise ValueError(
                "model is wrapped for several processes, each of which has its own data: pass "
                "model.module, and all data, in one of them"
            )
        try:
            #: The first batch.
            self.first, outputs, targets = _first(probe, name)
        except Exception as error:
            error.add_note(f"This was the first batch of {name}.")
            raise
        self._name = name
        is_classifier = _classified(outputs, targets) is not None
        self._has_own_loss = isinstance(part_named("loss", outputs), Tensor)
        if loss_fn is None and not self._has_own_loss:
            if not is_classifier:
                raise ValueError(
                    "loss_fn must be given: the outputs have no loss of their own, and are not "
                    "logits (samples, classes) with a class for each sample"
                )
            loss_fn = F.cross_entropy
        is_by_sample = weight in (None, "samples") and isinstance(outputs, Tensor)
        self._of_each = is_by_sample and _is_cross_entropy(loss_fn)
        self._objective = Objective(model, loss_fn, data, weight=weight)
        self._metric = metric
        self.metric = _name_of(metric) if metric is not None else ""
        if metric is None and is_classifier:
            self._metric, self.metric = _hits, ACCURACY
        elif metric is None and self._has_own_loss and _is_of_tokens(targets):
            self.metric = PERPLEXITY

    def reference(self) -> Reference:
        """Return what corruptions of the data are measured against."""
        with self._objective.evaluation_mode():
            return reference_of(map(inputs_of, self._objective.batches()))

    def run(self, samples: int) -> None:
        """Run the model on the first batches, until they have so many samples."""
        seen = 0
        with self._objective.evaluation_mode():
            for batch in self._objective.batches():
                self._objective.without_graph(partial(self._objective.outputs, batch))
                seen += batch.size
                if seen >= samples:
                    break

    def score(self, change: Callable[[Batch], Batch] = lambda batch: batch) -> Scored:
        """Score the model on changed batches.

        Parameters
        ----------
        change : callable, optional
            ``change(batch)`` returns what the model sees instead.
        """
        scores: list[Tensor] = []
        losses: list[Tensor] = []
        weights: list[Tensor] = []
        samples = 0
        with self._objective.evaluation_mode():
            for batch in self._objective.batches():
                scored = partial(self._scored, change(batch))
                score, loss, weight = self._objective.without_graph(scored)
                samples += batch.size
                losses.append(loss.detach().double().cpu().reshape(-1))
                weights.append(weight.double().cpu().reshape(-1))
                if score is not None:
                    scores.append(score.detach().double().cpu())
        if not samples:
            raise ValueError(f"{self._name} must have samples, got batches without any")
        joined, each_loss = torch.cat(scores) if scores else None, torch.cat(losses)
        if self._objective.is_sum:
            # Batches' losses are summed up: so many times their mean.
            each_loss = each_loss * len(each_loss)
        return Scored(joined, each_loss, torch.cat(weights), samples)

    def confidence(self) -> Confidence | None:
        """Return how sure a classifier is of each sample; None of other models."""
        found = Confidences()
        with self._objective.evaluation_mode():
            for batch in self._objective.batches():
                outputs = self._objective.without_graph(partial(self._objective.outputs, batch))
                pair = _classified(*outputs)
                if pair is None:
                    return None
                found.add(*pair)
        return found.joined()

    def _scored(self, batch: Batch) -> tuple[Tensor | None, Tensor, Tensor]:
        outputs, targets = self._objective.outputs(batch)
        score = None
        if self._metric is not None:
            score = self._metric(outputs, targets)
            if not isinstance(score, Tensor) or score.shape != (batch.size,):
                what = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else repr(score)
                raise ValueError(
                    f"metric must return a number for each of the {batch.size} samples of a batch, "
                    f"a tensor of shape ({batch.size},), got {what}"
                )
        if self._of_each and is_classification(outputs, targets):
            each = F.cross_entropy(outputs, targets, reduction="none")
            return score, each, torch.ones_like(each)
        loss, weight = self._objective.weighted_loss(batch, outputs, targets, require_finite=False)
        return score, loss, torch.tensor(weight)


def _first(probe: Objective, name: str) -> tuple[Batch, Any, Any]:
    """Return the first batch, its outputs and its targets."""
    with probe.evaluation_mode():
        for batch in probe.batches():
            return batch, *probe.without_graph(partial(probe.outputs, batch))
    raise ValueError(f"{name} has no batches")


def inputs_of(batch: Batch) -> Any:
    """Return what the model is called with."""
    return batch.keywords or batch.inputs


def _classified(outputs: Any, targets: Any) -> tuple[Tensor, Tensor] | None:
    """Return logits and labels of a classifier, as tensors or as Hugging Face has them; or None."""
    logits = outputs if isinstance(outputs, Tensor) else part_named("logits", outputs)
    labels = targets if isinstance(targets, Tensor) else next(iter(labels_of(targets)), None)
    if isinstance(logits, Tensor) and isinstance(labels, Tensor):
        return (logits, labels) if is_classification(logits, labels) else None
    return None


def _hits(outputs: Any, targets: Any) -> Tensor:
    pair = _classified(outputs, targets)
    if pair is None:
        raise ValueError(
            "the labels of the first batch are classes, but not those of another one, as -100 is "
            "none: pass metric=, a function of outputs and targets"
        )
    logits, labels = pair
    # Of outputs that are no numbers, argmax takes the first: nothing has been answered.
    is_answer = ~logits.isnan().any(dim=1)
    return (is_answer & (logits.argmax(dim=1) == labels)).double()


def _is_cross_entropy(loss_fn: object) -> bool:
    """Whether a loss is the plain mean of the samples' cross-entropies."""
    if type(loss_fn) is not nn.CrossEntropyLoss:
        return loss_fn is F.cross_entropy
    is_plain = loss_fn.weight is None and loss_fn.label_smoothing == 0
    return is_plain and loss_fn.reduction == "mean" and loss_fn.ignore_index < 0


def _name_of(metric: SampleMetric) -> str:
    name = getattr(metric, "__name__", "")
    return name if name.isidentifier() else "score"


def _is_of_tokens(targets: Any) -> bool:
    labels = next(iter(labels_of(targets)), None) if not isinstance(targets, Tensor) else None
    return isinstance(labels, Tensor) and labels.ndim == 2 and not labels.is_floating_point()
