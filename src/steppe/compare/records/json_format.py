"""Records as JSON: dataclasses of studies to plain values and back, checked against their types.

cattrs does it from the annotations. It was chosen over msgspec because a study's numbers need a
rule of their own (null for NaN, integers that stay integers, as a study's name hashes them), which
cattrs takes as a hook, and because it refuses unknown fields of dataclasses.

All of ``compare`` may use this module.
"""

import gzip
import json
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cattrs import Converter, transform_error
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_unstructure_fn, override
from cattrs.v import format_exception

from steppe._shared.messages import shortened
from steppe._shared.printable import printable

_T = TypeVar("_T")

_TOO_DEEP = "it is nested too deeply"
# A small file may unpack to any size.
_MOST_BYTES = 2 << 30
# What fits into a float, and into a column of any database.
_LARGEST_INTEGER = 2**63

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
    >>> from steppe.compare.records.results import MetricDescription
    >>> from_json(MetricDescription, {"name": "perplexity", "higher_is_better": 0})
    Traceback (most recent call last):
        ...
    ValueError: higher_is_better must be true or false, got 0
    """
    try:
        return _converter.structure(_clean(content), cls)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except Exception as error:
        # cattrs raises a group of all that is wrong; the first is enough to go on with.
        raise ValueError(_first_problem(error)) from error


def read_json(path: Path) -> Any:
    """Read a file of JSON as the standard has it: no NaN, and no name twice in an object.

    Parameters
    ----------
    path : Path
        The file, in UTF-8; compressed by gzip if its name ends in ".gz".

    Raises
    ------
    ValueError
        It is no ordinary file, or holds something else; the message says what.
    OSError
        It cannot be read.
    """
    # Before it is opened: a pipe would wait for a writer, and a device never end.
    if path.exists() and not path.is_file():
        raise ValueError("it is no ordinary file")
    try:
        text = _content_of(path).decode("utf-8")
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not in UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def _content_of(path: Path) -> bytes:
    if not path.name.lower().endswith(".gz"):
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            content = file.read(_MOST_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise ValueError("it is no whole file of gzip") from None
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it holds more than {_MOST_BYTES >> 30} GiB")
    return content


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


def leave_out_defaults(cls: type, *fields: str) -> None:
    """Write fields of a dataclass only where they are not their default.

    Files of studies from before such a field was there are then written as they were.
    """
    rules: Any = dict.fromkeys(fields, override(omit_if_default=True))
    _converter.register_unstructure_hook(cls, make_dict_unstructure_fn(cls, _converter, **rules))


def _number(value: Any, _: Any) -> Any:
    if value is None:
        return math.nan
    # An integer stays one: 5 and 5.0 are equal, but not as JSON, which is hashed.
    if isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value):
        return value
    raise TypeError(f"must be a number or null, got {shortened(repr(value))}")


def _exactly(kind: type, description: str) -> Callable[[Any, Any], Any]:
    """Return a hook that takes values of a type as they are; cattrs itself would convert others."""

    def check(value: Any, _: Any) -> Any:
        too_large = isinstance(value, int) and abs(value) >= _LARGEST_INTEGER
        if type(value) is not kind or too_large:
            raise TypeError(f"must be {description}, got {shortened(repr(value))}")
        return value

    return check


def _is_finite(value: float) -> bool:
    return abs(value) < _LARGEST_INTEGER if isinstance(value, int) else math.isfinite(value)


def _clean(content: Any) -> Any:
    """Return plain values whose texts can be printed, names of fields too."""
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, dict):
        return {_clean(name): _clean(each) for name, each in content.items()}
    if isinstance(content, list | tuple):
        # Most are numbers, hundreds of thousands: a call for each would take a third of the time.
        return [each if isinstance(each, float) else _clean(each) for each in content]
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which JSON has not: null stands where there is no number")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it holds an object with two fields called {shortened(repr(twice))}")
    return found


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
    if isinstance(error, OverflowError):
        return "must be a smaller number"
    return format_exception(error, kind)
