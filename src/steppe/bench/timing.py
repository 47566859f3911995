"""Time several actions in turn, so that other work of the machine slows all of them alike.

Ratios of such times hold where the times themselves do not.
"""

from collections.abc import Callable, Sequence
from time import perf_counter

import torch

#: An action that is timed; what it returns is ignored.
Action = Callable[[], object]


def time_in_turn(actions: Sequence[Action], rounds: int, device: torch.device) -> list[list[float]]:
    """Time each action once, one after the other, and repeat that for ``rounds`` rounds.

    Returns
    -------
    list of lists
        For each action its seconds, round by round.
    """
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for action, taken in zip(actions, times, strict=True):
            taken.append(seconds(action, device))
    return times


def seconds(action: Action, device: torch.device) -> float:
    """Time an action until the device has finished it."""
    _synchronise(device)
    start = perf_counter()
    action()
    _synchronise(device)
    return perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
