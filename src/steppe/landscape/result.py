"""What results have in common."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Result:
    """A frozen dataclass that can be written as plain numbers, lists and dicts."""

    #: Fields too large to be written, such as eigenvectors.
    left_out: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as ``json`` takes them: arrays as lists, NaN as it is."""
        names = (field.name for field in fields(self))  # type: ignore[arg-type]
        return {name: plain(getattr(self, name)) for name in names if name not in self.left_out}


def plain(value: Any) -> Any:
    """Return a value in Python's own types."""
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return value


def axes_for(axes: "Axes | None", title: str) -> "Axes":
    """Return the axes to draw on, new ones where none are given, with a title."""
    if axes is None:
        axes = new_figure(6.4, 4.2).subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches.

    Raises
    ------
    ImportError
        Matplotlib is not installed; it says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise ImportError("drawing needs Matplotlib: pip install 'steppe[compare]'") from missing
    return Figure(figsize=(width, height), layout="constrained")
