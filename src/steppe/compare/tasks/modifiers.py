"""Change a task in a way that is a part of its identity: fewer samples, noisy labels, and so on.

``steppe compare digits+few250+noise40`` and ``task.with_samples(250).with_label_noise(0.4)`` make
the same task. A modifier is an entry of
:data:`steppe.compare.records.task_modifiers.MODIFIERS`, one of what it does here, and a method of
:class:`Modifiable`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from steppe._shared.validation import check_integer, check_number
from steppe.compare.data.corrupted_inputs import with_corrupted_test
from steppe.compare.data.datasets import Data
from steppe.compare.data.fewer_samples import fewer_samples
from steppe.compare.data.label_noise import with_label_noise
from steppe.compare.records.task_modifiers import LARGEST_SEED, Modifier, ordered, with_modifiers

if TYPE_CHECKING:
    from steppe.compare.tasks.task import Task

    T = TypeVar("T", bound=Task)


class Modifiable:
    """The methods of a task that return a changed one, with a name that says how it was changed.

    Whatever the order in which they are called, the samples are chosen first, and noise comes
    after that. Each can be called once.
    """

    def with_samples(self, samples: int) -> Self:
        """Return the task with so many training samples; those to validate and test on stay.

        ``steppe compare TASK+few250`` does the same. They are always the same samples, and a larger
        choice contains every smaller one; :attr:`Task.subsample` says which. Of a stream they are
        counted in each task.

        Parameters
        ----------
        samples : int
            How many, at least 2. Whether there are so many is seen when they are read.

        Raises
        ------
        TypeError
            It is no integer.
        ValueError
            It is less than 2, or the task has such a choice already.

        Examples
        --------
        >>> from steppe.compare import find_task
        >>> few = find_task("digits").task().with_samples(250)
        >>> few.name, len(few.load().data.train)
        ('digits+few250', 250)
        """
        check_integer(2, samples=samples)
        return self._modified(Modifier("few", samples))

    def with_label_noise(self, probability: float, seed: int = 0) -> Self:
        """Return the task with symmetric label noise in training and validation; the test is clean.

        ``steppe compare TASK+noise40`` does the same with the probability 0.4, ``+noise40-seed3``
        with another seed. With the probability p a label is replaced by one of the K − 1 other
        classes, each with p/(K − 1). Which labels, and by which class, depends on the seed and the
        sample's position alone: after :meth:`with_samples` a larger choice of samples contains a
        smaller one with the same labels. Evaluation on the training samples has the labels that
        were trained on. The classes are those that occur in training and validation; of a stream,
        those of each task.

        Parameters
        ----------
        probability : float
            p, above 0 and below 1.
        seed : int, default 0
            Of the draw, at most 999 999 999.

        Raises
        ------
        TypeError
            The probability is no number, or the seed no integer.
        ValueError
            One is out of its range, or the task has label noise already. When the samples are read:
            targets are not one integer of at least 0 for each sample, or all are equal.

        Examples
        --------
        >>> from steppe.compare import find_task
        >>> find_task("digits").task().with_label_noise(0.4).name
        'digits+noise40'
        """
        check_number(probability=probability)
        check_integer(0, seed=seed)
        if seed > LARGEST_SEED:
            raise ValueError(f"seed must be at most {LARGEST_SEED}, got {seed}")
        if not 0 < probability < 1:
            raise ValueError(f"probability must be above 0 and below 1, got {probability}")
        return self._modified(Modifier("noise", 100 * probability, int(seed)))

    def with_corrupted_test(self, severity: int = 3) -> Self:
        """Return the task with corrupted test inputs: it is tuned on clean data, and meets others.

        ``steppe compare TASK+shift3`` does the same. Each test sample gets one kind of corruption,
        drawn by its position: of images noise, blur, shift, contrast or brightness, of tokens
        dropout or swaps, as :class:`steppe.landscape.Corruption` has them.

        Parameters
        ----------
        severity : int, default 3
            1 to 5.

        Raises
        ------
        TypeError
            It is no integer.
        ValueError
            It is out of its range, or the test set is corrupted already. When the samples are read:
            inputs are neither images nor tokens in a tensor.

        Examples
        --------
        >>> from steppe.compare import find_task
        >>> find_task("digits").task().with_corrupted_test().name
        'digits+shift3'
        """
        check_integer(1, severity=severity)
        return self._modified(Modifier("shift", severity))

    def with_batch_size(self, batch_size: int) -> Self:
        """Return the task with so many samples in a batch, as ``steppe compare TASK+batch1024``.

        Parameters
        ----------
        batch_size : int
            How many, at least 1.

        Raises
        ------
        TypeError
            It is no integer.
        ValueError
            It is less than 1, or the batch size was changed already.

        Examples
        --------
        >>> from steppe.compare import find_task
        >>> find_task("digits").task().with_batch_size(1024).batch_size
        1024
        """
        check_integer(1, batch_size=batch_size)
        return self._modified(Modifier("batch", batch_size))

    def with_longer_training(self, factor: int) -> Self:
        """Return the task with so many times its epochs, as ``steppe compare TASK+long4``.

        Parameters
        ----------
        factor : int
            At least 2.

        Raises
        ------
        TypeError
            It is no integer.
        ValueError
            It is less than 2, or the length of training was changed already.

        Examples
        --------
        >>> from steppe.compare import find_task
        >>> find_task("digits").task().epochs, find_task("digits+long4").task().epochs
        (50, 200)
        """
        check_integer(2, factor=factor)
        return self._modified(Modifier("long", factor))

    def _modified(self, modifier: Modifier) -> Self:
        return cast(Self, modified(cast("Task", self), [modifier]))


def modified(task: "T", modifiers: Iterable[Modifier]) -> "T":
    """Return a task with further modifiers.

    Raises
    ------
    ValueError
        It has one of that kind already, or its name becomes too long.
    """
    new = list(modifiers)
    if not new:
        return task
    every = ordered([*task.modifiers, *new])
    base = task.name.removesuffix(with_modifiers("", task.modifiers))
    changes: dict[str, Any] = {"name": with_modifiers(base, every), "modifiers": every}
    for each in new:
        if each.kind in _SETTINGS:
            changes |= _SETTINGS[each.kind](task, int(each.amount))
    return replace(task, **changes)


def modified_data(task: "Task", data: Data) -> Data:
    """Return a task's samples as its modifiers change them, with a fingerprint that says so.

    Raises
    ------
    ValueError
        They cannot be changed so.
    """
    unchanged = data
    for each in task.modifiers:
        if each.kind in _SAMPLES:
            changed = _SAMPLES[each.kind](task, data, each, unchanged)
            data = replace(changed, fingerprint=f"{data.fingerprint}+{each}")
    return data


def _fewer(task: "Task", data: Data, modifier: Modifier, unchanged: Data) -> Data:
    choose = task.subsample or fewer_samples
    chosen = choose(data, int(modifier.amount))
    # A choice for --samples may be one of the samples to validate and to test on, too.
    return replace(chosen, validation=data.validation, test=data.test)


def _noisy(task: "Task", data: Data, modifier: Modifier, unchanged: Data) -> Data:
    return with_label_noise(data, modifier.amount / 100, modifier.seed)


def _shifted(task: "Task", data: Data, modifier: Modifier, unchanged: Data) -> Data:
    # Measured against all samples: a choice for training must not change the test.
    return with_corrupted_test(data, int(modifier.amount), unchanged)


# What of a task's settings a modifier changes.
_SETTINGS: Mapping[str, Callable[["Task", int], dict[str, Any]]] = {
    "few": lambda task, samples: {"options": {**task.options, "samples": samples}},
    "batch": lambda task, size: {"batch_size": size},
    "long": lambda task, factor: {"epochs": factor * task.epochs},
}

# What it makes of the samples, given those of the task without modifiers too.
_SAMPLES: Mapping[str, Callable[["Task", Data, Modifier, Data], Data]] = {
    "few": _fewer,
    "noise": _noisy,
    "shift": _shifted,
}
