"""A task: a model, its data, its loss and its metrics. All of a study's runs train one.

The tasks that come with steppe are written with it, in :mod:`steppe.compare.tasks`, and so are a
user's own.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from steppe._shared.validation import checked_weight
from steppe.compare.data.datasets import Data
from steppe.compare.metrics.curvature import DEFAULT_CURVATURE, CurvatureSettings
from steppe.compare.metrics.robustness import DEFAULT_ROBUSTNESS, RobustnessSettings
from steppe.compare.metrics.scores import Loss, Metric
from steppe.compare.records.results import MEAN_LOSS, MetricDescription
from steppe.compare.records.task_modifiers import Modifier, with_modifiers
from steppe.compare.tasks.modifiers import Modifiable
from steppe.compare.tasks.samples import read_data

#: Samples, or what they are made of: see :class:`Task`.
Samples = Dataset[Any] | tuple[Any, ...] | Iterable[Any] | Callable[[], Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Task(Modifiable):
    """What is trained, on which data, and how it is scored.

    A batch is what ``collate_fn`` makes of samples. Of a pair, inputs and targets, the outputs are
    ``model(inputs)``; ``model(*inputs)`` where the inputs are a plain tuple or list, and
    ``model(**inputs)`` where they are a plain dict. Of a mapping they are ``model(**batch)``, and
    the targets are the mapping itself. Of anything else ``predict`` makes them, and the targets are
    the batch, or the second of a pair.

    Attributes
    ----------
    name : str
        The task's, for files and pages.
    model : callable
        ``model()`` returns a new model. It is called with torch's, NumPy's and Python's generators
        seeded by the run. Parameters that require no gradient stay as they are.
    train, validation, test : Dataset, tuple, iterable or callable
        The samples: a map-style data set or any sequence; a tuple of tensors (or arrays) with a row
        for each sample, such as ``(inputs, targets)``; an iterable with a length, which is read
        into memory once; or a function without arguments that returns one of these. ``validation``
        and ``test`` may be a share of the training samples instead, such as 0.2, which is then held
        out. Of a :class:`~steppe.compare.Stream` the parts are learnt one after the other.
    data : callable, optional
        Returns all of them at once, as :class:`~steppe.compare.Data`, in the place of the three.
    plain : as ``train``, optional
        The training samples without augmentation, needed if ``train`` augments.
    loss : callable, optional
        ``loss(outputs, targets)``, the mean over a batch. Default: ``outputs.loss``, as of Hugging
        Face's models.
    step : callable, optional
        ``step(model, batch)`` returns the loss of a batch, in the place of ``loss``.
    weight : callable, optional
        ``weight(outputs, targets)`` returns what the loss of a batch is divided by, such as the
        number of tokens that are no padding: evaluation and curvature weight batches by it, and do
        not depend on how samples are batched. Beside a ``step`` the outputs are None. Default: the
        number of samples.
    predict : callable, optional
        ``predict(model, batch)`` returns the outputs.
    metrics : mapping, default empty
        Of names to :class:`~steppe.compare.Metric`, functions or metrics of torchmetrics; of a
        function more is better. The first is the score. Default: the loss is.
    epochs, batch_size : int, default 10 and 32
        Length of training, and samples of a batch.
    collate_fn : callable, optional
        Makes a batch of a list of samples. Default: torch's.
    evaluation_collate_fn : callable, optional
        Makes the batches that are evaluated, where ``collate_fn`` changes samples at random, as
        MixUp does. Default: ``collate_fn``.
    sample_weights : sequence of float, optional
        A weight for each training sample: an epoch draws as many samples as there are, with
        replacement, in proportion to them. Default: each sample comes once.
    schedule : callable, optional
        ``schedule(optimizer, steps)`` returns a scheduler of torch whose ``step()`` needs no
        argument, stepped after each step, in the place of the study's.
    max_grad_norm : float, optional
        Gradients are clipped to this L2 norm, unless the study says otherwise.
    curvature : CurvatureSettings, optional
        What curvature is measured on, and how exactly.
    robustness : RobustnessSettings, optional
        What ``--robustness`` measures: which perturbations, measures of your own.
    loaders : int, default 0
        Processes that prepare batches, so that an accelerator need not wait for them.
    threads : int, optional
        CPU threads that ``steppe profile`` takes. Default: torch's own choice.
    packages : tuple of str, default empty
        Packages whose versions the results depend on, besides torch.
    model_name : str, default ""
        What pages call the model. Default: the name of its class.
    options : mapping, default empty
        What the function that made the task was told, with its defaults: for pages.
    domain_incremental : bool, default False
        Whether the tasks of a stream share the network's outputs, so that the task of a sample
        is not known.
    subsample : callable, optional
        ``subsample(data, samples)`` returns :class:`~steppe.compare.Data` with so many training
        samples, for :meth:`with_samples`. Default: at random, with the classes in their proportions
        where targets in memory are classes.
    modifiers : tuple of Modifier, default empty
        How :meth:`with_samples`, :meth:`with_label_noise`, :meth:`with_batch_size` and
        :meth:`with_longer_training` have changed the task: call them in the place of giving it.

    Raises
    ------
    TypeError
        Something is of a type that cannot be trained with.
    ValueError
        Something is out of its range, or two arguments contradict each other.

    Examples
    --------
    >>> import torch
    >>> points = torch.linspace(-1, 1, 100)[:, None]
    >>> task = Task(name="line", model=lambda: nn.Linear(1, 1), train=(points, 2 * points),
    ...             validation=0.2, test=0.2, loss=nn.functional.mse_loss)
    >>> data = task.load().data
    >>> len(data.train), len(data.validation), len(data.test)
    (60, 20, 20)
    """

    name: str
    model: Callable[[], nn.Module]
    train: Samples | None = None
    validation: Samples | float | None = None
    test: Samples | float | None = None
    data: Callable[[], Data] | None = None
    plain: Samples | None = None
    loss: Loss | None = None
    step: Callable[[nn.Module, Any], Tensor] | None = None
    weight: Callable[[Any, Any], float] | None = None
    predict: Callable[[nn.Module, Any], Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 10
    batch_size: int = 32
    collate_fn: Callable[[list[Any]], Any] | None = None
    evaluation_collate_fn: Callable[[list[Any]], Any] | None = None
    sample_weights: Any = None
    schedule: Callable[[Optimizer, int], Any] | None = None
    max_grad_norm: float | None = None
    curvature: CurvatureSettings = DEFAULT_CURVATURE
    robustness: RobustnessSettings = DEFAULT_ROBUSTNESS
    loaders: int = 0
    threads: int | None = None
    packages: tuple[str, ...] = ()
    model_name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    domain_incremental: bool = False
    subsample: Callable[[Data, int], Data] | None = None
    modifiers: tuple[Modifier, ...] = ()

    def __post_init__(self) -> None:
        _check(self)
        made = {
            name: given if isinstance(given, Metric) else Metric(given)
            for name, given in self.metrics.items()
        }
        object.__setattr__(self, "metrics", made)

    @property
    def collate_evaluated(self) -> Callable[[list[Any]], Any] | None:
        """What makes the batches that are evaluated."""
        return self.evaluation_collate_fn or self.collate_fn

    @property
    def score(self) -> MetricDescription:
        """What reports say of the first metric; of the loss if there is none."""
        return next((metric.described(name) for name, metric in self.metrics.items()), MEAN_LOSS)

    def load(self) -> "LoadedTask":
        """Return the task with its samples and a hash of them.

        Raises
        ------
        TypeError, ValueError
            They are not what a task takes; the message names the argument.
        """
        return LoadedTask(self, read_data(self))

    def outputs(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """Return a model's outputs on a batch, and the targets.

        Raises
        ------
        TypeError
            The batch is neither a pair nor a mapping, and there is no ``predict``.
        """
        targets = targets_of(batch)
        if self.predict is not None:
            return self.predict(model, batch), targets
        if isinstance(batch, Mapping):
            return _called_with(model, batch), targets
        if not is_pair(batch):
            raise TypeError(
                f"a batch is {_described(batch)}, neither a pair (inputs, targets) nor a mapping: "
                "give the task predict=f(model, batch), or step=f(model, batch)"
            )
        inputs = batch[0]
        if type(inputs) in (tuple, list):
            return model(*inputs), targets
        return model(**inputs) if type(inputs) is dict else model(inputs), targets

    def loss_of(self, outputs: Any, targets: Any) -> Tensor:
        """Return the loss of a batch's outputs.

        Raises
        ------
        TypeError
            There is no ``loss``, and the outputs have none.
        """
        if self.loss is not None:
            return _without_dimensions(self.loss(outputs, targets))
        found = getattr(outputs, "loss", None)
        if not isinstance(found, Tensor):
            raise TypeError(
                f"outputs are {_described(outputs)} without a loss: give the task "
                "loss=f(outputs, targets), or step=f(model, batch)"
            )
        return found

    def weight_of(self, outputs: Any, targets: Any, size: int) -> float:
        """Return what the loss of a batch of so many samples is divided by.

        Raises
        ------
        TypeError
            ``weight`` returns no number.
        ValueError
            The number is negative, or not finite.
        """
        if self.weight is None:
            return float(size)
        return checked_weight(self.weight(None if self.step is not None else outputs, targets))

    def batch_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch."""
        if self.step is not None:
            return _without_dimensions(self.step(model, batch))
        return self.loss_of(*self.outputs(model, batch))

    def weighted_loss(self, model: nn.Module, batch: Any, size: int) -> tuple[Tensor, float]:
        """Return the loss of a batch of so many samples, and what it is divided by."""
        if self.step is not None:
            return self.batch_loss(model, batch), self.weight_of(None, targets_of(batch), size)
        outputs, targets = self.outputs(model, batch)
        return self.loss_of(outputs, targets), self.weight_of(outputs, targets, size)


def _without_dimensions(loss: Tensor) -> Tensor:
    """Return a loss of one element as a scalar; all else is refused when the task is rehearsed."""
    return loss.reshape(()) if isinstance(loss, Tensor) and loss.numel() == 1 else loss


class LoadedTask(NamedTuple):
    """A task with its data."""

    task: Task
    data: Data


def _called_with(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    try:
        return model(**batch)
    except TypeError as error:
        if "forward() got an unexpected keyword" not in str(error):
            raise
        raise TypeError(
            f"{error}: a mapping is passed as model(**batch), its labels too; make samples pairs, "
            "of a mapping and the target, or give the task predict=f(model, batch)"
        ) from error


def targets_of(batch: Any) -> Any:
    """Return the second of a pair; all else is its own targets."""
    return batch[1] if is_pair(batch) else batch


def is_pair(batch: Any) -> bool:
    """Whether a batch is a plain tuple or list of two, inputs and targets."""
    return type(batch) in (tuple, list) and len(batch) == 2


def _described(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{size}"


_FUNCTIONS = (
    *("data", "loss", "step", "weight", "predict", "collate_fn", "evaluation_collate_fn"),
    *("schedule", "subsample"),
)


def _check(task: Task) -> None:
    if not isinstance(task.name, str) or not task.name.strip() or len(task.name) > 100:
        raise ValueError(f"name={task.name!r} must be a text of 1 to 100 characters")
    if not task.name.endswith(suffix := with_modifiers("", task.modifiers)):
        raise ValueError(
            f"name={task.name!r} must end with {suffix!r}, as the task is changed so: name it "
            "before it is changed"
        )
    if not callable(task.model) or isinstance(task.model, nn.Module):
        raise TypeError(
            f"model must be a function that returns a new model, got {type(task.model).__name__}: "
            "each run trains a model of its own"
        )
    for name in _FUNCTIONS:
        given = getattr(task, name)
        if given is not None and not callable(given):
            raise TypeError(f"{name} must be a function, got {type(given).__name__}")
    for name, least in {"epochs": 1, "batch_size": 1, "loaders": 0}.items():
        given = getattr(task, name)
        if isinstance(given, bool) or not isinstance(given, Integral) or given < least:
            raise ValueError(f"{name}={given!r} must be an integer of at least {least}")
        # NumPy's are no numbers of JSON.
        object.__setattr__(task, name, int(given))
    if (norm := task.max_grad_norm) is not None:
        if not (isinstance(norm, Real) and 0 < norm < math.inf):
            raise ValueError(f"max_grad_norm={norm!r} must be a finite number above 0")
        object.__setattr__(task, "max_grad_norm", float(norm))
    if isinstance(task.loss, nn.Module) and any(p.requires_grad for p in task.loss.parameters()):
        raise ValueError(
            "loss has parameters of its own, which no optimizer steps: make it a part of the "
            "model, and give step=f(model, batch)"
        )
    if not isinstance(task.metrics, Mapping) or not all(isinstance(x, str) for x in task.metrics):
        raise TypeError(f"metrics must be a dict of names to metrics, got {task.metrics!r}")
    for name in task.metrics:
        if name.strip().lower() in ("", "loss", MEAN_LOSS.name):
            raise ValueError(f"metrics has the name {name!r}, that of the loss: choose another one")
    if task.step is not None and (task.loss is not None or (task.predict is None and task.metrics)):
        raise ValueError(
            "step computes the loss: leave loss out, and give predict=f(model, batch) if there are "
            "metrics"
        )
    _check_samples(task)


def _check_samples(task: Task) -> None:
    parts = {name: getattr(task, name) for name in ("train", "validation", "test")}
    given = [name for name, part in parts.items() if part is not None]
    others = [name for name in ("plain", "sample_weights") if getattr(task, name) is not None]
    if task.data is not None and (given or others):
        raise ValueError(f"data returns all samples: leave {', '.join(given + others)} out")
    if task.data is None and len(given) < len(parts):
        missing = ", ".join(name for name in parts if name not in given)
        raise ValueError(f"{missing} must be given too: samples, or a share of train such as 0.2")
