"""Write values to the log that a user keeps: TensorBoard, Weights & Biases, MLflow, a function.

A log is told by the methods that it has; none of these libraries is imported.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from steppe._shared.messages import first_line
from steppe.landscape.monitoring.run_measurement import RunMeasurement

Write = Callable[[dict[str, float], int], object]

#: Stands before the names of values, which TensorBoard, Weights & Biases and MLflow group by it.
PREFIX = "monitor/"


class RunLog:
    """Writes measurements to a user's log, and warns of what fails, once for each quantity.

    Parameters
    ----------
    log : object
        As in :func:`writer_of`, whose errors it raises.
    """

    def __init__(self, log: Any) -> None:
        self._write = writer_of(log)
        self._warned: set[str] = set()

    def report(self, row: RunMeasurement) -> None:
        """Write a measurement's values; a log that raises does not stop training."""
        failed = dict(row.reasons)
        if self._write is not None:
            try:
                self._write(dict(row.values), row.step)
            except Exception as error:
                failed["log"] = first_line(error)
        new = [f"{name}: {reason}" for name, reason in failed.items() if name not in self._warned]
        self._warned |= failed.keys()
        if new:
            warnings.warn(
                f"the monitor could not measure or log at step {row.step}, and will not say so "
                f"again ({'; '.join(new)})",
                RuntimeWarning,
                # The line that calls Monitor.step() or measure().
                stacklevel=4,
            )


def writer_of(log: Any) -> Write | None:
    """Return a function of values and step that writes to a log; None for None.

    Parameters
    ----------
    log : object
        With ``add_scalar``, as TensorBoard's ``SummaryWriter``; ``log_metrics``, as the module
        ``mlflow`` and Lightning's loggers; ``log``, as a run of Weights & Biases and its module;
        or a function ``f(values, step)``.

    Raises
    ------
    TypeError
        It is none of these.

    Examples
    --------
    >>> writer_of(print)({"loss": 0.5}, 3)
    {'loss': 0.5} 3
    """
    if log is None:
        return None
    if callable(getattr(log, "add_scalar", None)):
        return lambda values, step: [
            log.add_scalar(name, value, step) for name, value in _named(values).items()
        ]
    for method in ("log_metrics", "log"):
        if callable(write := getattr(log, method, None)):
            return lambda values, step: write(_named(values), step=step)
    if callable(log):
        return log  # type: ignore[no-any-return]
    raise TypeError(
        f"log={log!r} must have add_scalar (TensorBoard's SummaryWriter), log_metrics (the module "
        "mlflow) or log (a run of Weights & Biases, or its module), or be a function of values "
        "and step"
    )


def _named(values: Mapping[str, float]) -> dict[str, float]:
    return {f"{PREFIX}{name}": value for name, value in values.items()}
