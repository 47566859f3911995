"""Find measurements during which the machine had other work to do.

Table, picture and JSON mark them: a step's time against the baseline's means nothing then.
"""

from collections.abc import Iterable

from steppe.bench.measurement import Measurement

#: A block is disturbed if the baseline took this many times as long as in its model's best block.
#: The optimizer beside it was then slowed too, but not alike: AdamW(fused=True) starts its threads
#: once a tensor, steppe once a step, and each start may have to wait for a core.
DISTURBED_RATIO = 1.5


def disturbed(measurements: Iterable[Measurement]) -> frozenset[Measurement]:
    """Return the measurements whose ratio cannot be relied on, as the baseline was slowed."""
    measurements = list(measurements)
    best: dict[str, float] = {}
    for each in measurements:
        best[each.model] = min(each.baseline_seconds, best.get(each.model, each.baseline_seconds))
    return frozenset(
        each for each in measurements if each.baseline_seconds > DISTURBED_RATIO * best[each.model]
    )
