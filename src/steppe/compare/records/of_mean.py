"""Scores that are functions of a mean over samples, with their derivatives."""

import math
from collections.abc import Callable, Mapping

from steppe.compare.records.choices import OfMean

#: The score, from the mean over samples: infinite where exp overflows.
OF_MEAN: Mapping[OfMean, Callable[[float], float]] = {
    "itself": float,
    "exp": lambda mean: math.exp(mean) if mean < 700 else math.inf,
    "root": lambda mean: math.sqrt(mean) if mean >= 0 else math.nan,
}

#: Its derivative by the mean.
SLOPE: Mapping[OfMean, Callable[[float], float]] = {
    "itself": lambda mean: 1.0,
    "exp": OF_MEAN["exp"],
    "root": lambda mean: 0.5 / math.sqrt(mean) if mean > 0 else 0.0,
}
