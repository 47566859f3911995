"""Time several actions in turn, so that other work of the machine slows all of them alike.

Ratios of such times hold where the times themselves do not.
"""

from collections.abc import Callable, Sequence
from time import perf_counter

import torch

#: An action that is timed; what it returns is ignored.
Action = Callable[[], object]


def seconds(action: Action, device: torch.device) -> float:
    """Time an action until the device has finished it."""
    _synchronise(device)
    start = perf_counter()
    action()
    _synchronise(device)
    return perf_counter() - start


def host_seconds(action: Action, device: torch.device) -> float:
    """Time an action until it returns: the device, which was idle, may still work."""
    _synchronise(device)
    start = perf_counter()
    action()
    return perf_counter() - start


def time_in_turn(
    actions: Sequence[Action],
    rounds: int,
    device: torch.device,
    timer: Callable[[Action, torch.device], float] = seconds,
) -> list[list[float]]:
    """Time each action once, one after the other, and repeat that for ``rounds`` rounds.

    Parameters
    ----------
    actions : sequence of callables
        What is timed.
    rounds : int
        How often.
    device : torch.device
        The device that works.
    timer : callable, default seconds
        That or :func:`host_seconds`.

    Returns
    -------
    list of lists
        For each action its seconds, round by round.
    """
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for action, taken in zip(actions, times, strict=True):
            taken.append(timer(action, device))
    return times


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
