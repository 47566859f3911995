"""Values as JSON has them: Python's own types, and for pages rounded finite numbers."""

import math
from collections.abc import Mapping
from typing import Any


def builtin_types(value: Any) -> Any:
    """Return nested mappings, sequences, arrays and tensors as dicts, lists and Python's numbers.

    Numbers are not changed: NaN and infinity stay.

    Examples
    --------
    >>> import numpy as np
    >>> builtin_types({"loss": np.array([1.0, np.inf]), "steps": (1, 2)})
    {'loss': [1.0, inf], 'steps': [1, 2]}
    """
    # Arrays and tensors, told by their method: pages are written where torch is not installed.
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): builtin_types(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [builtin_types(each) for each in value]
    return value


def json_ready(value: Any, digits: int = 6) -> Any:
    """Return what :func:`builtin_types` does, with rounded numbers, and None for non-finite ones.

    JSON has no NaN and no infinity. Six digits are more than a picture shows.

    Examples
    --------
    >>> import numpy as np
    >>> json_ready({"loss": np.array([1.0, np.inf]), "steps": (1, 2)})
    {'loss': [1.0, None], 'steps': [1, 2]}
    """
    return _rounded(builtin_types(value), digits)


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each, digits) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each, digits) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value
