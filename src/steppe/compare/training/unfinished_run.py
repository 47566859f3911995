"""The file of an unfinished run: all that its next epoch depends on, written after each epoch."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from steppe.compare.training import checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator


class UnfinishedRun:
    """Writes and reads what a run goes on from, besides the random numbers that it draws.

    Parameters
    ----------
    path : Path
        The file.
    parts : mapping
        What has a state, by name; None has none.
    accelerator : accelerate.Accelerator
        The processes, of which the first one writes.
    """

    def __init__(self, path: Path, parts: Mapping[str, Any], accelerator: "Accelerator") -> None:
        self._path, self._accelerator = path, accelerator
        self._parts = {name: part for name, part in parts.items() if part is not None}

    def check(self) -> None:
        """See that it can be saved, and loaded again.

        Raises
        ------
        ValueError
            It holds something else than tensors and plain values, such as a function.
        """
        checkpoint.check(self._states())

    def save(self, numbers: Mapping[str, Any]) -> None:
        """Write the states and some numbers, atomically."""
        if self._accelerator.is_main_process:
            checkpoint.write(self._path, {**numbers, **self._states()})

    def load(self) -> dict[str, Any] | None:
        """Put the states back that were saved last, and return what was saved with them.

        None if not all processes can read it: the run starts anew.
        """
        from accelerate.utils import gather_object

        content: dict[str, Any] | None = None
        with suppress(FileNotFoundError, ValueError):
            content = checkpoint.read(self._path, torch.device("cpu"))
        # Only the first process has saved it, in a directory that others may not share.
        epochs = gather_object([len(content["curve"]) if content else 0])
        if content is None or len(set(epochs)) > 1:
            return None
        for name, part in self._parts.items():
            part.load_state_dict(content[name])
        return content

    def remove(self) -> None:
        """Delete the file of a run that has ended."""
        self._path.unlink(missing_ok=True)

    def _states(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts.items()}
