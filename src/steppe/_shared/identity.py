"""Whether objects are the very same ones, so that what was verified of them still holds.

Engines ask it in each step of an optimizer's tensors.
"""

from collections.abc import Collection
from operator import is_
from typing import Any


def are_same(found: Collection[Any], expected: Collection[Any]) -> bool:
    """Whether two collections hold the same objects, in the same order."""
    return len(found) == len(expected) and all(map(is_, found, expected))
