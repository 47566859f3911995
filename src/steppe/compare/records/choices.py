"""The names that a study's options take, apart from what the names mean.

``steppe compare --help`` shows them, and a misspelt one is refused, without importing torch, which
takes two seconds. Tests hold that the lists are those of
:data:`steppe.compare.tasks.makers.TASKS` and :data:`steppe.compare.planning.presets.PRESETS`.
"""

import re
from pathlib import Path
from typing import Literal

from steppe._shared.names import check_name
from steppe.compare.records.task_modifiers import parse_task

#: The tasks, as ``steppe compare TASK`` takes them.
TASK_NAMES = (
    "digits",
    "mnist-5k",
    "fashion-mnist",
    "cifar10",
    "cifar100",
    "tiny-imagenet",
    "imagenet",
    "shakespeare",
    "sonnets",
    "ptb",
    "wikitext2",
    "finetune",
    "split-mnist",
    "permuted-mnist",
    "rotated-mnist",
    "5-dataset",
    "tiny-imagenet-stream",
)

#: The papers' comparisons, as ``steppe compare --preset`` takes them.
PRESET_NAMES = (
    "dualadam",
    "dualadam-authors",
    "dualadam-finetune",
    "critical-momenta",
    "critical-momenta-language",
    "critical-momenta-online",
)

#: The programs that runs are logged to, as ``steppe compare --track`` takes them.
TRACKERS = ("tensorboard", "mlflow", "wandb")

#: Amount of data and epochs.
Scale = Literal["full", "small"]

#: What verdicts are given on.
Primary = Literal["score", "loss"]

#: A score as a function of the mean over samples.
OfMean = Literal["itself", "exp", "root"]

#: How much curvature is measured of a run.
CurvatureExtent = Literal["none", "quick", "full"]

#: Number format of autocast; "no" is float32 throughout.
Precision = Literal["no", "bf16", "fp16"]

#: Course of lr over a run.
Schedule = Literal["constant", "cosine", "cosine-epochs"]

#: The same, or the task's own.
AnySchedule = Literal["constant", "cosine", "cosine-epochs", "own"]


def check_task(name: str) -> None:
    """Refuse a task or a modifier that is not known.

    Whether a file has a task is seen when it is imported.

    Raises
    ------
    ValueError
        The message has the nearest name, and all names; or a modifier is out of its range, or given
        twice.
    """
    base, _ = parse_task(name)
    if base.endswith(".py"):
        raise ValueError(f"{base} may have several tasks: name one, as {base}:task")
    if ":" not in base:
        check_name("task", base, TASK_NAMES)


def label_of(name: str) -> str:
    """Return a task's name without the directory of its file, which is another one elsewhere.

    Examples
    --------
    >>> label_of("work/mytask.py:task"), label_of("digits")
    ('mytask.py:task', 'digits')
    """
    path, colon, attribute = name.rpartition(":")
    return f"{Path(path).name}{colon}{attribute}" if colon else name


def directory_of(name: str) -> str:
    """Return the directory that a study of a task is kept in, below "results".

    Examples
    --------
    >>> directory_of("digits"), directory_of("work/mytask.py:task"), directory_of("a.b:other")
    ('digits', 'mytask', 'a.b-other')
    >>> directory_of("work/mytask.py:task+noise40")
    'mytask+noise40'
    """
    path, colon, attribute = name.rpartition(":")
    stem = Path(path).name.removesuffix(".py")
    base, plus, modifiers = attribute.partition("+")
    own = "" if base == "task" else f"-{base}"
    named = f"{stem}{own}{plus}{modifiers}" if colon else name
    # The name may come from a file of somebody else's.
    return file_name(named).lstrip(".") or "study"


def file_name(name: str) -> str:
    """Return a task's name as a part of a file's, in which not all characters may stand.

    Examples
    --------
    >>> file_name("house prices: €/m²")
    'house_prices____m_'
    """
    return re.sub(r"[^A-Za-z0-9.+-]", "_", name)


def check_preset(name: str) -> None:
    """Refuse a preset that is not known.

    Raises
    ------
    ValueError
        The message has the nearest name, and all names.
    """
    check_name("preset", name, PRESET_NAMES)
