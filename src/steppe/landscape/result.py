"""What the results of all instruments have in common: they can be written as JSON."""

from dataclasses import fields
from importlib.util import find_spec
from typing import Any, ClassVar

from steppe._shared.json_values import builtin_types
from steppe._shared.notebook_tables import field_rows, html_table


class Result:
    """Base class of results: a frozen dataclass that can be written as plain numbers and lists.

    Examples
    --------
    >>> from steppe.landscape import Operator, trace
    >>> trace(Operator(3, lambda rows: 2 * rows), method="hutchinson").to_dict()["value"]
    6.0
    """

    #: Names of fields that :meth:`to_dict` leaves out because they are too large, as eigenvectors.
    left_out: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, ready for ``json.dumps``.

        Arrays and tensors become lists, results inside become dictionaries, NaN stays NaN.
        """
        names = (field.name for field in fields(self))  # type: ignore[arg-type]
        values = {name: getattr(self, name) for name in names if name not in self.left_out}
        return {
            name: value.to_dict() if isinstance(value, Result) else builtin_types(value)
            for name, value in values.items()
        }

    def _repr_html_(self) -> str:
        """Return a table of the fields for notebooks, and the picture of what can be drawn."""
        table = html_table(field_rows(self.to_dict()), caption=type(self).__name__)
        draw = getattr(self, "figure", None) or getattr(self, "plot", None)
        if draw is None or not find_spec("matplotlib"):
            return table
        from steppe._shared.shown_figures import image_of

        return table + image_of(draw())
