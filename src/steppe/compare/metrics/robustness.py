"""What is measured of a run's robustness, on how many samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from steppe.landscape import Perturbation

#: ``measure(model, batches)``, any number of a trained model.
OwnMeasure = Callable[[nn.Module, Any], float]


@dataclass(frozen=True)
class RobustnessSettings:
    """What ``--robustness`` measures of each run, and on what.

    Attributes
    ----------
    samples : int, default 2000
        So many validation samples and as many test samples, always the same ones, or all if there
        are fewer. All perturbations take about forty passes over them.
    perturbations : tuple, optional
        Of :class:`~steppe.landscape.Rounding`, :class:`~steppe.landscape.WeightNoise` and
        :class:`~steppe.landscape.Corruption`. Default: rounding to 4, 3 and 2 bits with each kind
        of scales, noise on weights of 0.1, 0.3 and 0.5 (means of two draws), and corruptions of
        images or texts at severities 1, 3 and 5.
    measures : mapping, default empty
        Measures of your own: of names to ``measure(model, batches)``, which returns a number. They
        are taken on validation and on test samples; what they change in the model is put back.
    seed : int, default 0
        Seed of noise and corruptions, which are the same for every run.

    Raises
    ------
    TypeError, ValueError
        A field is not what it must be.
    """

    samples: int = 2_000
    perturbations: tuple[Perturbation, ...] | None = None
    measures: Mapping[str, OwnMeasure] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.samples) is not int or self.samples < 1:
            raise ValueError(f"samples={self.samples!r} must be a whole number of at least 1")
        for each in self.perturbations or ():
            if not isinstance(each, Perturbation):
                raise TypeError(
                    f"perturbations has {each!r}: expected Rounding, WeightNoise or Corruption"
                )
        if not isinstance(self.measures, Mapping):
            raise TypeError(f"measures must be a dict of names to functions, got {self.measures!r}")
        for name, measure in self.measures.items():
            if not isinstance(name, str) or not name.strip() or not callable(measure):
                raise TypeError(
                    f"measures has {name!r}: {measure!r}, expected a name and a function"
                )


DEFAULT_ROBUSTNESS = RobustnessSettings()
