"""When the machine had other work to do."""

from collections.abc import Iterable

from steppe.bench.measurement import Measurement

#: A baseline that takes so many times as long as in its model's best block was disturbed. So was
#: what it is compared with, but not alike: whoever starts threads more often waits for them more.
MOST = 1.5


def disturbed(found: Iterable[Measurement]) -> frozenset[Measurement]:
    """Return the measurements whose ratio says nothing: the baseline was held up."""
    found = list(found)
    best: dict[str, float] = {}
    for one in found:
        best[one.model] = min(one.baseline_seconds, best.get(one.model, one.baseline_seconds))
    return frozenset(one for one in found if one.baseline_seconds > MOST * best[one.model])
