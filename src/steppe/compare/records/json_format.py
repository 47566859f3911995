"""Records as JSON: dataclasses of studies to plain values and back, checked against their types.

cattrs does it from the annotations. It was chosen over msgspec because a study's numbers need a
rule of their own (null for NaN, integers that stay integers, as a study's name hashes them), which
cattrs takes as a hook, and because it refuses unknown fields of dataclasses.

All of ``compare`` may use this module.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

from cattrs import Converter, transform_error
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.v import format_exception

_T = TypeVar("_T")

_converter = Converter(forbid_extra_keys=True, unstruct_collection_overrides={tuple: list})


def to_json(record: Any) -> Any:
    """Return a record as JSON's own types: null for numbers that are not finite.

    Parameters
    ----------
    record : dataclass instance
        Such as :class:`~steppe.compare.records.results.StudyResults`.
    """
    return _converter.unstructure(record)


def from_json(cls: type[_T], content: Any) -> _T:
    """Rebuild a record from :func:`to_json`.

    Parameters
    ----------
    cls : type
        The record's dataclass. Fields with a default may be missing.
    content : Any
        The plain values. Null is NaN where a number belongs.

    Raises
    ------
    ValueError
        If a field is missing, unknown, or of another type; the message names it.

    Examples
    --------
    >>> from steppe.compare.records.results import Metric
    >>> from_json(Metric, {"name": "perplexity", "higher_is_better": 0})
    Traceback (most recent call last):
        ...
    ValueError: higher_is_better must be true or false, got 0
    """
    try:
        return _converter.structure(content, cls)
    except Exception as error:
        # cattrs raises a group of all that is wrong; the first is enough to go on with.
        raise ValueError(_first_problem(error)) from error


def register_format(
    kind: Any, to_plain: Callable[[Any], Any], from_plain: Callable[[Any], Any]
) -> None:
    """Let fields of a type have a format of their own.

    Parameters
    ----------
    kind : type
        As it stands in the annotation.
    to_plain, from_plain : callable
        From a value to plain values, and back.
    """
    _converter.register_unstructure_hook_func(lambda found: found == kind, to_plain)
    _converter.register_structure_hook_func(
        lambda found: found == kind, lambda content, _: from_plain(content)
    )


def _number(value: Any, _: Any) -> Any:
    if value is None:
        return math.nan
    # An integer stays one: 5 and 5.0 are equal, but not as JSON, which is hashed.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise TypeError(f"must be a number or null, got {value!r}")


def _exactly(kind: type, description: str) -> Callable[[Any, Any], Any]:
    """Return a hook that takes values of a type as they are; cattrs itself would convert others."""

    def check(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"must be {description}, got {value!r}")
        return value

    return check


def _null_if_not_finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


_converter.register_structure_hook(float, _number)
_converter.register_structure_hook(int, _exactly(int, "an integer"))
_converter.register_structure_hook(bool, _exactly(bool, "true or false"))
_converter.register_structure_hook(str, _exactly(str, "a string"))
_converter.register_unstructure_hook(float, _null_if_not_finite)


def _first_problem(error: Exception) -> str:
    lines = transform_error(error, path="", format_exception=_described)
    problem, _, field = lines[0].rpartition(" @ ")
    field = field.lstrip(".") or ("" if problem.startswith("[") else "the content")
    return f"{field}{problem}" if problem.startswith("[") else f"{field} {problem}"


def _described(error: BaseException, kind: type | None) -> str:
    if isinstance(error, KeyError):
        return "is missing"
    if isinstance(error, ForbiddenExtraKeysError):
        return f"has an unknown field: {', '.join(sorted(error.extra_fields))}"
    if isinstance(error, AttributeError):  # cattrs looks for its keys
        return "must be an object with fields"
    # Written here, or by a format's own ``from_json`` of a list.
    if str(error).startswith(("must be", "[")):
        return str(error)
    return format_exception(error, kind)
