"""Find the SAM inside of a framework's wrapper, and run its second pass over several batches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from steppe.optim import SAM

_INSIDE = ("optimizer", "_optimizer", "opt")


def unwrapped(optimizer: Any) -> Iterator[Any]:
    """Yield an optimizer, the one that it wraps, the one that this wraps, and so on."""
    while optimizer is not None:
        yield optimizer
        held = getattr(optimizer, "__dict__", {})
        optimizer = next((held[name] for name in _INSIDE if name in held), None)


def find_sam(
    optimizer: Any,
    expected: str = "as SAM(model.parameters(), torch.optim.AdamW, lr=…) or SAM(optimizer)",
) -> SAM:
    """Return the SAM that an optimizer is, or that its wrapper holds.

    Parameters
    ----------
    optimizer
        The framework's.
    expected
        How a user gives it one, for the error.

    Raises
    ------
    TypeError
        There is none.
    """
    wrapped = list(unwrapped(optimizer))
    found = next((each for each in wrapped if isinstance(each, SAM)), None)
    if found is None:
        kinds = dict.fromkeys([type(optimizer).__name__, type(wrapped[-1]).__name__])
        raise TypeError(
            f"optimizer={' of '.join(kinds)} is no SAM: expected steppe.SAM, {expected}"
        )
    return found


def run_second_pass(
    sam: SAM,
    passes: Sequence[Callable[[], Any]],
    no_sync: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Run all forward and backward passes of a step once more, at p + e.

    Where the first ones have skipped all batches, and so computed nothing, neither do the second.

    Parameters
    ----------
    sam
        Its gradients are those of all first passes.
    passes
        One for each batch that the step accumulates.
    no_sync
        Keeps gradients in this process: those of all batches are exchanged with the last one's.
    """
    if not sam.has_gradients:
        return
    with sam.perturbed():
        for number, run in enumerate(passes, start=1):
            with nullcontext() if number == len(passes) else no_sync():
                run()
