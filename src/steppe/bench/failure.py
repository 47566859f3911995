"""What could not be measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """An optimizer that cannot be measured here.

    Attributes
    ----------
    block : str
        What was to be measured: a model's name, or that it was the first step.
    optimizer : str
        The contender's name.
    reason : str
        Why, in one line.
    """

    block: str
    optimizer: str
    reason: str
