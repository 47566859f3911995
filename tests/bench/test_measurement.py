"""One optimizer beside the baseline: what is not a time is known exactly."""

import pytest
import torch

from steppe.bench.measurement import measure
from steppe.bench.optimizers import find_measured
from steppe.bench.shapes import uniform

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "engine", "state", "least"),
    [
        ("adamw-fused", None, 8 * 1000 + 4 * 10, 28 * 1000),
        ("dualadam", "cpu", 8 * 1000 + 8 * 10, 28 * 1000),
        ("adamcm-keeping", "cpu", 32 * 1000 + 96 * 10, 32 * 1000),
        ("adamcm-replacing", "cpu", 32 * 1000 + 96 * 10, 44 * 1000),
    ],
)
def test_bytes_are_counted_on_what_was_stepped(
    name: str, engine: str | None, state: int, least: int
) -> None:
    found = measure("toy", uniform(10, 100), find_measured(name), 2, CPU)
    assert (found.model, found.optimizer, found.engine) == ("toy", name, engine)
    assert found.numbers == 1000
    assert found.parameter_bytes == 4000
    assert found.state_bytes == state
    assert found.least_bytes == least
    assert found.ratio.low <= found.ratio.value <= found.ratio.high
    assert found.ratio.value == pytest.approx(found.seconds / found.baseline_seconds)


def test_shares_follow_from_the_numbers(found) -> None:
    one = found()
    # In 2 ms 42 MB could have been copied, and 28 had to be.
    assert one.excess == pytest.approx(1.5)
    assert one.state_per_number == 8.0
    assert one.extra == 0.025
    assert found(extra_bytes=None).extra is None
