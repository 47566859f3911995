"""What is measured of a run's robustness, on how many samples."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from steppe._shared.validation import checked_seed
from steppe.compare.records.measure_names import NOT_SCORES, OF_SCORES
from steppe.landscape import (
    OwnMeasure,
    Perturbation,
    check_measures,
    check_names_differ,
    checked_perturbations,
    usual_perturbations,
)


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
        A field is not what it must be, or two measures have one name.
    """

    samples: int = 2_000
    perturbations: tuple[Perturbation, ...] | None = None
    measures: Mapping[str, OwnMeasure] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.samples) is not int or self.samples < 1:
            raise ValueError(f"samples={self.samples!r} must be a whole number of at least 1")
        checked_seed(self.seed)
        object.__setattr__(self, "perturbations", checked_perturbations(self.perturbations))
        check_measures(self.measures)
        check_names_differ([*OF_SCORES, *NOT_SCORES, *self._perturbation_names(), *self.measures])

    def _perturbation_names(self) -> Iterator[str]:
        if self.perturbations is not None:
            return (each.name for each in self.perturbations)
        images, tokens = torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, dtype=torch.long)
        model = nn.Linear(1, 1)
        of_images, of_tokens = (usual_perturbations(model, each) for each in (images, tokens))
        return iter(dict.fromkeys(each.name for each in (*of_images, *of_tokens)))


DEFAULT_ROBUSTNESS = RobustnessSettings()
