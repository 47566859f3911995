"""The record of an optimizer that could not be measured, in place of its measurement."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """An optimizer that could not be measured here.

    Attributes
    ----------
    block : str
        A model's name, "first step" or "import".
    optimizer : str
        The optimizer's name.
    reason : str
        The error in one line.
    """

    block: str
    optimizer: str
    reason: str
