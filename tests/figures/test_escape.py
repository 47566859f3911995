"""The numbers behind the picture, against the formula's closed forms."""

import json

import numpy as np
import pytest

from figures.escape import draw, measure


@pytest.fixture(scope="module")
def data() -> dict:
    return json.loads(json.dumps(measure(steps=4e6, sharpnesses=(1.5, 1.75, 3.0))))


@pytest.mark.parametrize(("method", "power"), [("adam", 0.5), ("sgd", 1.0), ("invadam", 1.5)])
def test_exponents_fall_by_their_powers(data: dict, method: str, power: float) -> None:
    found = data[method]
    np.testing.assert_allclose(found["exponent"], 8.0 * np.array([1.5, 1.75, 3.0]) ** -power)
    log_ratio = np.log(np.array(found["theory"]) / found["prefactor"])
    np.testing.assert_allclose(log_ratio, found["exponent"])
    assert found["line"][0] == pytest.approx(found["theory"][0])
    assert found["line"][-1] == pytest.approx(found["theory"][-1])


def test_walkers_leave_the_sharp_well_in_the_papers_order(data: dict) -> None:
    """Beside the flattest, InvAdam leaves the sharp one soonest, then SGD, then Adam."""
    left = [data[method]["mean"][2] / data[method]["mean"][0] for method in data]
    assert list(data) == ["adam", "sgd", "invadam"]
    assert left[0] > left[1] > left[2]


def test_draws(data: dict) -> None:
    figure = draw(data)
    figure.canvas.draw()
    assert [bool(axes.get_xlabel() and axes.get_ylabel()) for axes in figure.axes] == [True] * 4
