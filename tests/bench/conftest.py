"""A measurement that nothing was measured for, and a model that takes no time."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import flatness_verdicts
import pytest

from helpers.flatness_studies import forget_studies
from steppe._shared.statistics import Ratio
from steppe.bench.measurement import Measurement
from steppe.bench.shapes import MODELS, Model, uniform

FOUND = Measurement(
    model="tiny",
    optimizer="dualadam",
    engine="cpu",
    numbers=30,
    seconds=0.002,
    baseline_seconds=0.004,
    ratio=Ratio(0.5, 0.45, 0.56),
    bandwidth=21e9,
    least_bytes=28e6,
    state_bytes=240,
    extra_bytes=3,
    parameter_bytes=120,
    dtype="float32",
)


@pytest.fixture
def flatness_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder in the place of docs/results, of which nothing was read."""
    monkeypatch.setattr(flatness_verdicts, "RESULTS", tmp_path)
    forget_studies()
    yield tmp_path
    forget_studies()


@pytest.fixture
def found() -> Callable[..., Measurement]:
    def make(**changes: Any) -> Measurement:
        return replace(FOUND, **changes)

    return make


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", Model(lambda: uniform(3, 10)))
    monkeypatch.setitem(MODELS, "tiny-host", Model(lambda: uniform(3, 10), is_host=True))
