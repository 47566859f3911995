"""Options that several commands share: their names, types, ranges and help.

Commands write them as annotations. cyclopts derives from them what is parsed, the grouped help and
shell completion; errors about ranges come from the same :class:`Limit`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter


@dataclass(frozen=True)
class Limit:
    """The values that an option may have.

    Attributes
    ----------
    holds : callable
        Whether a value is one of them.
    wording : str
        For errors: "lr must be …".
    metavar : str
        For help: ``--lr …``.
    """

    holds: Callable[[float], bool]
    wording: str
    metavar: str

    def check(self, name: str, value: float | None) -> None:
        """Refuse a value outside of the limit; None is a default.

        Raises
        ------
        ValueError
            With the option's name, what it must be, and what it is.

        Examples
        --------
        >>> AT_LEAST_ONE.check("seeds", 0)
        Traceback (most recent call last):
            ...
        ValueError: seeds must be at least 1, got 0
        """
        if value is not None and not self.holds(value):
            raise ValueError(f"{name} must be {self.wording}, got {value}")


AT_LEAST_ONE = Limit(lambda value: value >= 1, "at least 1", "N≥1")
# Of more, OpenMP ends the process by a segmentation fault.
THREAD_COUNT = Limit(lambda value: 1 <= value <= 1024, "from 1 to 1024", "1≤N≤1024")
NOT_NEGATIVE = Limit(lambda value: value >= 0, "at least 0", "N≥0")
# Larger integers are refused where a study is read from JSON.
SEED = Limit(lambda value: 0 <= value < 2**63, "from 0 to 2⁶³ − 1", "N≥0")
UP_TO_TEN = Limit(lambda x: 0 < x <= 10, "in (0, 10]", "0<X≤10")
FINITE_POSITIVE = Limit(lambda x: math.isfinite(x) and x > 0, "a finite number above 0", "X>0")
FINITE_NOT_NEGATIVE = Limit(
    lambda x: math.isfinite(x) and x >= 0, "a finite number, at least 0", "X≥0"
)
SHARE_ABOVE_ZERO = Limit(lambda x: 0 < x <= 1, "in (0, 1]", "0<X≤1")
SHARE_BELOW_ONE = Limit(lambda x: 0 <= x < 1, "in [0, 1)", "0≤X<1")


def limited(limit: Limit) -> Parameter:
    """Return the annotation that shows a limit in help."""
    return Parameter(metavar=limit.metavar)


def group(title: str, position: int) -> Parameter:
    """Return the annotation that puts an option under a title of help."""
    return Parameter(group=Group(title, sort_key=position))


def split_at_commas(kind: type, tokens: Any) -> tuple[str, ...]:
    """Read ``a,b,c``, as cyclopts calls a converter; of repeated options the last one counts."""
    return tuple(tokens[-1].value.split(","))


Count = Annotated[int | None, AT_LEAST_ONE, limited(AT_LEAST_ONE)]
NAMES = Parameter(converter=split_at_commas, n_tokens=1, negative="", metavar="NAME,NAME…")

WHERE = group("Where it runs", 80)
OUTPUT = group("What it writes", 90)

Storage = Annotated[
    str | None,
    WHERE,
    Parameter(
        metavar="URL|FILE",
        help="Where the study is kept: a URL such as postgresql://me@host/studies, or a file. "
        "Default: OUT_DIR/study.sqlite.",
    ),
]
StudyName = Annotated[
    str | None,
    Parameter("--study", metavar="NAME", help="Name of the study, if the storage holds several."),
]
Device = Annotated[
    str, WHERE, Parameter(metavar="DEVICE", help="A torch device, such as cpu, cuda or cuda:1.")
]
Threads = Annotated[
    int, WHERE, limited(THREAD_COUNT), Parameter(help="CPU threads of each process.")
]
Data = Annotated[
    Path | None,
    WHERE,
    Parameter(
        metavar="DIR",
        help="Directory with the files of the data set, for tasks that read files. Default: data; "
        "for imagenet data/imagenet, for fashion-mnist /usr/share/datasets/fashion-mnist.",
    ),
]
Track = Annotated[
    str,
    OUTPUT,
    Parameter(
        metavar="TRACKER",
        show_default=False,
        help="Also log every run to this tracker: tensorboard, mlflow or wandb.",
    ),
]
Checkpoints = Annotated[
    Literal["recommended", "all"] | None,
    OUTPUT,
    Parameter(
        negative_none="no-",
        help="Which runs' weights and optimizer state to save in OUT_DIR/checkpoints, for steppe "
        "profile: those at the recommended settings, or all. A large model takes gigabytes.",
    ),
]
Heartbeat = Annotated[
    int,
    WHERE,
    Parameter(
        metavar="SECONDS",
        help="Seconds between the heartbeats that a worker writes to the storage. A worker that "
        "misses six of them loses its trial to another worker.",
    ),
]
Open = Annotated[
    bool,
    OUTPUT,
    Parameter("--open", negative="", show_default=False, help="Open the page in a web browser."),
]
OutDir = Annotated[
    Path | None,
    OUTPUT,
    Parameter(
        metavar="DIR",
        help="Directory for the study, its page and its checkpoints. Default: results/TASK.",
    ),
]
