"""What a function's parameters may be, and the error when they are not."""

import math


def check_dimension(dimension: int, least: int = 1) -> None:
    """Refuse what is no number of coordinates."""
    if not isinstance(dimension, int) or isinstance(dimension, bool):
        raise TypeError(f"dimension must be an integer, got {dimension!r}")
    if dimension < least:
        raise ValueError(f"dimension must be at least {least}, got {dimension}")


def check_positive(**values: float) -> None:
    """Refuse the first of the named values that is not a positive number."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number > 0, got {value}")
