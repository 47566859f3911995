"""The real SGDCM on quadratics against the theory's rate."""

import json
from itertools import pairwise

import numpy as np
import pytest

from figures.cm_quadratic import decay, draw, fitted_rate, measure
from steppe._shared.json_values import json_ready
from steppe.theory import OptimalRate, rate


@pytest.fixture(scope="module")
def data() -> dict[str, object]:
    found = measure(condition_numbers=(1, 10, 100), measured=(3, 20), curvatures=3, steps=700)
    return json.loads(json.dumps(json_ready(found), allow_nan=False))


@pytest.mark.parametrize("capacity", [1, 3])
def test_a_fifo_buffer_decays_as_its_equation_says(capacity: int) -> None:
    """Away from the best settings: one real root leads, and the fit is all but exact."""
    spectrum, settings = np.array([0.5, 1.0, 2.0]), OptimalRate(np.nan, 0.02, 0.6)
    distances = decay([spectrum], [settings], 1500, capacity=capacity, replacement="fifo")
    ages = range(1, capacity + 1)
    predicted = rate("critical-momenta", spectrum, lr=0.02, momentum=0.6, ages=ages).max()
    assert 1 - fitted_rate(distances[:, 0]) == pytest.approx(1 - predicted, rel=1e-6)
    later = range(2, capacity + 2)
    off_by_one = rate("critical-momenta", spectrum, lr=0.02, momentum=0.6, ages=later).max()
    assert 1 - off_by_one != pytest.approx(1 - predicted, rel=1e-4)


def test_quadratics_side_by_side_are_runs_of_their_own() -> None:
    spectra = [np.array([1.0, 2.0]), np.array([5.0, 70.0])]
    settings = [OptimalRate(np.nan, 0.02, 0.6), OptimalRate(np.nan, 0.004, 0.3)]
    together = decay(spectra, settings, 60, capacity=2, priority_decay=0.9)
    for column in (0, 1):
        alone = decay([spectra[column]], [settings[column]], 60, capacity=2, priority_decay=0.9)
        assert together[:, column] == pytest.approx(alone[:, 0], rel=1e-12)


@pytest.mark.thorough
def test_at_the_best_settings_too(data: dict) -> None:
    for run in data["runs"]:
        if run["replacement"] == "fifo":
            assert run["gaps"] == pytest.approx(run["predicted"], rel=1e-2)


@pytest.mark.thorough
def test_a_priority_buffer_whose_keys_fall_slowly_holds_convergence_up(data: dict) -> None:
    slow = [run for run in data["runs"] if run.get("priority_decay") == 0.99]
    assert len(slow) == 2
    assert max(gap for run in slow for gap in run["gaps"]) < 0.02


def test_the_curves(data: dict) -> None:
    gaps = {(curve["method"], curve["momentum"]): curve["gaps"] for curve in data["curves"]}
    assert gaps["heavy-ball", None] == pytest.approx([1, 0.480506, 2 / 11], rel=1e-5)
    assert gaps["critical-momenta", 0.9][2] == pytest.approx(0.00698, rel=1e-3)
    for curve in gaps.values():
        assert all(wide <= narrow for narrow, wide in pairwise(curve))
    assert all(
        best > given
        for best, given in zip(
            gaps["critical-momenta", None], gaps["critical-momenta", 0.9], strict=True
        )
    )


def test_a_rate_is_read_off_where_float64_reaches() -> None:
    distances = 0.1 ** np.arange(1000.0)  # 0 from the 324th on
    assert fitted_rate(distances) == pytest.approx(0.1)
    assert fitted_rate(3.0 ** np.arange(600.0)) == pytest.approx(3.0)


def test_it_is_drawn(data: dict) -> None:
    left, right = draw(data).axes
    assert len(left.lines) == 6
    assert len(right.lines) == 7  # and the line at 1
    assert right.lines[0].get_ydata() == pytest.approx(1.0, rel=1e-2)
