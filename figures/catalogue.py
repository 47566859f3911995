"""Find figures by name. Each is a module with a function that measures and one that draws."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steppe._shared.names import unknown_name_message

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

NAMES = (
    "dualadam-mechanism",
    "dualadam-idea",
    "dualadam-convergence",
    "dualadam-trajectories",
    "dualadam-accuracy",
    "dualadam-spectrum",
    "inverse-share",
    "escape",
    "cm-goldstein-price",
    "cm-ackley-first-steps",
    "cm-ackley",
    "cm-quadratic",
    "cm-sharp-flat",
)


@dataclass(frozen=True)
class Figure:
    """A figure's text and functions.

    Attributes
    ----------
    name : str
        Such as "cm-ackley".
    text : str
        The module's docstring: a title, the claim that is tested, and the result.
    measure : callable
        Runs the experiment and returns its numbers; its sizes are keyword arguments.
    draw : callable
        Draws the figure from those numbers alone.
    study : Path or None
        The stored study that the figure shows by default; None if it runs its own experiment.
    """

    name: str
    text: str
    measure: Callable[..., Mapping[str, Any]]
    draw: Callable[[Mapping[str, Any]], "Picture"]
    study: Path | None

    @property
    def title(self) -> str:
        """The first line of the text."""
        return self.text.splitlines()[0]

    @property
    def takes_study(self) -> bool:
        """Whether the figure shows a stored study."""
        return "study" in inspect.signature(self.measure).parameters


def find_figure(name: str) -> Figure:
    """Return the figure of that name.

    Raises
    ------
    ValueError
        There is no such figure; the message gives the nearest name.

    Examples
    --------
    >>> find_figure("inverse-share").title
    "How large the inverse part of DualAdam's update is, by the size of the gradients."
    """
    if name not in NAMES:
        raise ValueError(unknown_name_message("figure", name, NAMES))
    module = import_module(f"figures.{name.replace('-', '_')}")
    study = getattr(module, "STUDY", None)
    text = inspect.cleandoc(module.__doc__ or "")
    return Figure(name, text, module.measure, module.draw, study and Path(study))
