"""Several measurements one after the other, which Ctrl-C may end; and how their results are told.

The curvature report and the curvature by layer are made so.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from steppe.landscape.spectra.eigenvalues import Eigenvalues

#: Of a search for eigenvalues.
MOST_PRODUCTS = 300


def run_stages(stages: Mapping[str, Callable[[], Any]], measured: dict[str, Any]) -> bool:
    """Run stages until Ctrl-C, into ``measured``; return whether all have run and converged."""
    for name, stage in stages.items():
        try:
            measured[name] = stage()
        except KeyboardInterrupt:
            return False
        if is_interrupted(measured[name]):
            return False
    return all(is_complete(result) for result in measured.values())


def is_complete(result: Any) -> bool:
    """Whether a result has all that was asked for, and has converged."""
    return bool(np.all(getattr(result, "converged", True)) and getattr(result, "complete", True))


def is_interrupted(result: Any) -> bool:
    """Whether Ctrl-C ended a measurement: eigenvalues also end at the maximum of products."""
    at_maximum = isinstance(result, Eigenvalues) and result.products >= MOST_PRODUCTS
    is_doubtful = getattr(result, "reason", "") not in ("", "interrupted")
    return not (is_complete(result) or at_maximum or is_doubtful)


def with_error(value: float, error: float) -> str:
    """Write a value with its error to two digits, or to four digits where the error is smaller.

    >>> with_error(12.345, 0.0678), with_error(8.21638, 5e-8), with_error(0.5, float("nan"))
    ('12.345 ± 0.068', '8.216', '0.5')
    >>> with_error(0.0, 0.0), with_error(1.234e20, 5e18)
    ('0', '1.2e+20 ± 5e+18')
    """
    if not np.isfinite(error) or error <= 1e-4 * abs(value):
        return f"{value:.4g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    if digits > 5 or abs(value) >= 1e7:
        return f"{value:.1e} ± {error:.0e}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def remark_on(found: Any, index: int = 0) -> str:
    """Say why a value has not converged; empty if it has."""
    if np.ravel(found.converged)[index]:
        return ""
    reason = getattr(found, "reason", "")
    return f"not converged: {reason}" if reason else "not converged"
