"""The second task of a study: what trained models are fine-tuned on at the end of their runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Points of a curve besides the trained model itself.
_POINTS = 9


@dataclass(frozen=True)
class SecondTask:
    """A task that every trained model is fine-tuned on, the same way for every contender.

    Attributes
    ----------
    task : str
        Its name, with its modifiers, and of a user's own its file, without the directory.
    fingerprint : str
        Hash of its data.
    batch_size : int
        Samples of a batch.
    steps : int
        Of AdamW, with torch's defaults and a constant lr.
    lrs : tuple of float
        The learning rates; fine-tuning begins anew for each.
    loss : float or None, default None
        The second task's validation loss that forgetting is read at; None for what
        :func:`~steppe.compare.records.forgetting_at_common_loss.common_loss` takes by default.
    options : mapping, default empty
        What was asked of the task.
    source : str, default ""
        What :meth:`steppe.compare.tasks.source.TaskSource.identity` returned; "" of steppe's own.
    """

    task: str
    fingerprint: str
    batch_size: int
    steps: int
    lrs: tuple[float, ...]
    loss: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def measured_steps(self) -> tuple[int, ...]:
        """Return after which steps models are measured: up to ten, evenly spaced by logarithm.

        The first is 0, the trained model itself.

        Examples
        --------
        >>> SecondTask("sonnets", "", 8, 300, (1e-3,)).measured_steps()
        (0, 1, 2, 4, 8, 17, 35, 72, 147, 300)
        """
        exponents = (place / (_POINTS - 1) for place in range(_POINTS))
        return (0, *sorted({round(self.steps**each) for each in exponents}))
