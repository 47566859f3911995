"""A task's own schedule of lr, under the warm-up that the study or an optimizer adds."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer


class OwnSchedule:
    """Multiplies what a task's scheduler says by a factor, step by step.

    A scheduler may compute lr from the last one, so it finds the lr that it has set itself.

    Parameters
    ----------
    schedule : LRScheduler
        The task's; it has set the first lr already.
    optimizer : Optimizer
        What it schedules.
    factor : callable
        ``factor(step)``, from 0.
    """

    def __init__(self, schedule: Any, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self._schedule, self._optimizer, self._factor = schedule, optimizer, factor
        self._steps = 0
        self._lrs = self._warmed()

    def step(self) -> None:
        """Go on to the lr of the next step."""
        for group, lr in zip(self._optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr
        self._schedule.step()
        self._steps += 1
        self._lrs = self._warmed()

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state, the step, and the lr before the factor."""
        return {"own": self._schedule.state_dict(), "steps": self._steps, "lrs": list(self._lrs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the optimizer's, with its lr, has been loaded already."""
        self._schedule.load_state_dict(state["own"])
        self._steps, self._lrs = state["steps"], state["lrs"]

    def _warmed(self) -> list[Any]:
        """Multiply the groups' lr by the factor; return what it was before."""
        groups = self._optimizer.param_groups
        before = [group["lr"] for group in groups]
        for group, lr in zip(groups, before, strict=True):
            group["lr"] = lr * self._factor(self._steps)
        return before
