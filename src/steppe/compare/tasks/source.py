"""Find a task by its name, or in a user's file or module: ``digits``, ``mytask.py:task``."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from steppe._shared.names import look_up
from steppe._shared.source_hash import first_source, loaded_source
from steppe._shared.user_files import import_named
from steppe.compare.records.choices import label_of
from steppe.compare.records.task_modifiers import Modifier, parse_task, with_modifiers
from steppe.compare.tasks.makers import TASKS
from steppe.compare.tasks.modifiers import modified
from steppe.compare.tasks.task import Task
from steppe.compare.tasks.trace import TaskError, explained

#: Options of the command line that a function which makes a task may take.
_OPTIONS = {
    "scale": "scale",
    "model": "model",
    "samples": "samples",
    "length": "seq-length",
    "data": "data",
}


@dataclass(frozen=True)
class TaskSource:
    """Where a task comes from.

    Attributes
    ----------
    name : str
        What the command line calls it, with its modifiers.
    make : callable
        Makes the task, without the modifiers; it may take the options ``scale``, ``model``,
        ``samples``, ``length`` and ``data``.
    source : str, default ""
        Hash of what the user's file does, and of what it imports beside it; "" of steppe's own.
    location : str, default ""
        The name with the file's whole path; "" of steppe's own.
    modifiers : tuple of Modifier, default empty
        How the task that is made is changed.
    """

    name: str
    make: Callable[..., Task]
    source: str = ""
    location: str = ""
    modifiers: tuple[Modifier, ...] = ()

    @property
    def label(self) -> str:
        """The name without the directory, which is another one elsewhere."""
        return label_of(self.name)

    def identity(self, task: Task, model: nn.Module) -> str:
        """Return a hash of what a user's runs' numbers depend on, besides data and settings.

        Two tasks of one file, or a function's with other arguments, have other models or metrics.
        """
        shapes = [[name, list(x.shape)] for name, x in model.state_dict().items()]
        metrics = [repr(metric.described(name)) for name, metric in task.metrics.items()]
        content = [self.source, self.name.rpartition(":")[2], shapes, metrics]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def task(self, options: Mapping[str, Any] | None = None) -> Task:
        """Make the task.

        Parameters
        ----------
        options : mapping, optional
            What the user asks for; None in it is not asked for.

        Raises
        ------
        ValueError
            The task has no such option, or its code raises.
        """
        asked = {name: value for name, value in (options or {}).items() if value is not None}
        taken = inspect.signature(self.make).parameters
        for name, value in asked.items():
            if name not in taken and (name, value) != ("scale", "full"):
                raise ValueError(
                    f"{self.label} takes no {_OPTIONS[name]}: leave --{_OPTIONS[name]} out"
                )
        with explained(f"{self.label} cannot be made"):
            made = self.make(**{name: value for name, value in asked.items() if name in taken})
            if not isinstance(made, Task):
                raise TaskError(f"{self.label} must be a Task, got {type(made).__name__}")
        return modified(made, self.modifiers)


def find_task(name: "str | Task | TaskSource") -> TaskSource:
    """Find the task of that name.

    Parameters
    ----------
    name : str, Task or TaskSource
        A task itself, hashed as it is now, or what was found before; one of
        :data:`steppe.compare.tasks.makers.TASKS`; or ``file.py:attribute`` or
        ``package.module:attribute``, a :class:`~steppe.compare.Task` or a function that returns
        one. The file's code is run. A name may end in modifiers, as ``digits+few250+noise40``:
        ``+few`` is :meth:`~steppe.compare.Task.with_samples`, ``+noise``
        :meth:`~steppe.compare.Task.with_label_noise` in per cent, ``+batch``
        :meth:`~steppe.compare.Task.with_batch_size`, and ``+long``
        :meth:`~steppe.compare.Task.with_longer_training`.

    Raises
    ------
    ValueError
        If there is no such task or modifier; the message lists those there are, or shows where the
        file fails.

    Examples
    --------
    >>> find_task("digits").task({"model": "mlp"}).epochs
    50
    >>> find_task("digits+noise40+few250").task().name
    'digits+few250+noise40'
    """
    if isinstance(name, TaskSource):
        return name
    if isinstance(name, Task):
        return TaskSource(name.name, lambda: name, first_source(task_content(name)))
    base, modifiers = parse_task(name)
    whole = with_modifiers(base, modifiers)
    if ":" not in base:
        return TaskSource(whole, look_up("task", base, TASKS), modifiers=modifiers)
    path, _, attribute = base.rpartition(":")
    with explained(f"{label_of(base)} cannot be imported"):
        module = import_named(base)
        found = getattr(module, attribute, None)
        if not isinstance(found, Task) and not callable(found):
            tasks = [each for each, value in vars(module).items() if isinstance(value, Task)]
            there = f"it has {', '.join(tasks)}" if tasks else "it has no Task"
            raise TaskError(f"{path} has no task {attribute!r}: {there}")
        source = loaded_source(module)
    where = f"{Path(path).resolve()}:{attribute}" if path.endswith(".py") else base
    make = (lambda: found) if isinstance(found, Task) else found
    return TaskSource(whole, make, source, with_modifiers(where, modifiers), modifiers)


def task_content(task: Task) -> list[Any]:
    """Return what a task computes with that was made in Python, but for its samples."""
    own = {each.name: getattr(task, each.name) for each in fields(task)}
    for name in ("train", "validation", "test", "plain"):
        # Tensors are hashed as samples; of an own data set it is how it makes them, too.
        if isinstance(own[name], tuple | list | dict | Tensor | np.ndarray):
            own.pop(name)
    metrics = own.pop("metrics")
    return [own, *(metric.values for metric in metrics.values())]
