"""The page, in a browser: it shows the paths, hides what is asked, turns, and asks for nothing."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from helpers.browser import browser
from steppe.play.page import charts, page, write_page
from steppe.play.results import SweepResult
from steppe.play.sweep import plan_sweep

pytestmark = pytest.mark.thorough

__all__ = ["browser"]

# What the software renderer says of itself, and the browser of Plotly's colour bars.
HARMLESS = ("[.WebGL", "Canvas2D")
# Without a GPU every pixel of the surface takes its time.
SMALL = {"width": 400, "height": 480}


def played(function: str, **changes: Any) -> SweepResult:
    given: dict[str, Any] = {"optimizers": ["adam", "adamcm"], "rates": [0.1], "steps": 30}
    given |= {"drawn": 3, "switch": 0.2, "rho": 0.1}
    return plan_sweep(function, **(given | changes)).run()


@pytest.fixture(scope="module")
def open_page(
    browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[SweepResult], Any]]:
    """Open a play's page, which must not complain nor ask for anything beyond its file."""
    monkeypatch = pytest.MonkeyPatch()
    # Nor are there tests of how fine the grid is.
    monkeypatch.setattr(charts, "_POINTS", {1: 41, 2: 15})
    complaints: list[str] = []

    def opened(result: SweepResult) -> Any:
        path = tmp_path_factory.mktemp("page") / "play.html"
        write_page(result, path)
        tab = browser.new_page(viewport=SMALL)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda asked: complaints.append(asked.url))
        tab.goto(path.as_uri())
        complaints.remove(path.as_uri())
        return tab

    yield opened
    monkeypatch.undo()
    assert not [each for each in complaints if not each.startswith(HARMLESS)]


@pytest.fixture(scope="module")
def camel() -> SweepResult:
    return played("six-hump-camel")


@pytest.fixture(scope="module")
def tab(open_page: Callable[[SweepResult], Any], camel: SweepResult) -> Any:
    return open_page(camel)


def visible(tab: Any, chart: str, name: str) -> set[bool]:
    found: list[bool] = tab.evaluate(
        "([id, name]) => document.getElementById(id).data"
        ".filter(trace => trace.meta === name).map(trace => trace.visible)",
        [f"chart-{chart}", name],
    )
    return set(found)


def drawn(tab: Any) -> tuple[int, int]:
    """Count the lines and marks that stand in the two flat charts."""
    charts = ("contour", "losses")
    one, other = (tab.locator(f"#chart-{each} g.scatterlayer g.trace").count() for each in charts)
    return one, other


def eye(tab: Any) -> np.ndarray:
    found = tab.evaluate(
        "() => { const {x, y, z} = document.getElementById('chart-surface')"
        "._fullLayout.scene.camera.eye; return [x, y, z] }"
    )
    return np.array(found)


def until(tab: Any, true: Callable[[], bool]) -> None:
    for _ in range(200):
        if true():
            return
        tab.wait_for_timeout(50)
    raise AssertionError("it did not come")


def test_table_and_charts_are_there(tab: Any, camel: SweepResult) -> None:
    rows = tab.locator("#ends tbody tr")
    assert rows.count() == 2
    assert rows.nth(0).inner_text().split()[:2] == ["adam", "0.1"]
    # Minima, and of each optimizer the lines, and where they begin and end.
    assert drawn(tab) == (5, 4)
    assert tab.locator("#chart-surface canvas").count() == 1
    assert tab.evaluate("document.querySelectorAll('.chart').length") == 3


def test_landscapes_have_the_style_sheet_s_colours(tab: Any) -> None:
    for chart in ("contour", "surface"):
        scale = tab.evaluate(
            "id => document.getElementById(id).data[0].colorscale.map(([_, colour]) => colour)",
            f"chart-{chart}",
        )
        assert len(set(scale)) == 3
        for name, colour in zip(("--low", "--middle", "--high"), scale, strict=True):
            assert f"{name}: {colour};" in tab.inner_html("style")


def test_paths_are_where_they_went(tab: Any, camel: SweepResult) -> None:
    lines = tab.evaluate(
        "() => document.getElementById('chart-contour').data"
        ".filter(trace => trace.mode === 'lines').map(trace => trace.x)"
    )
    for line, optimizer in zip(lines, camel.optimizers, strict=True):
        starts = np.array(line, dtype=float).reshape(3, 32)
        np.testing.assert_allclose(starts[:, :-1], optimizer.descent.points[..., 0], rtol=1e-4)
        # A gap between one start's line and the next.
        assert np.isnan(starts[:, -1]).all()


def test_a_name_in_the_legend_hides_its_paths_everywhere(tab: Any) -> None:
    key = tab.get_by_role("button", name="adamcm", exact=True)
    before = drawn(tab)
    key.click()
    assert drawn(tab) == (before[0] - 2, before[1] - 2)
    for chart in ("contour", "surface", "losses"):
        assert visible(tab, chart, "adamcm") == {False}
        assert visible(tab, chart, "adam") == {True}
    assert tab.locator("#chart-contour g.contourlayer path").count() > 0
    key.click()
    assert drawn(tab) == before
    assert visible(tab, "surface", "adamcm") == {True}


def test_the_surface_turns_about_its_axis_until_it_is_stopped(tab: Any) -> None:
    turn, before = tab.locator("#orbit"), eye(tab)
    turn.click()
    until(tab, lambda: np.linalg.norm(eye(tab) - before) > 0.1)
    assert turn.get_attribute("aria-pressed") == "true"
    turn.click()
    tab.wait_for_timeout(300)
    after = eye(tab)
    assert after[2] == pytest.approx(before[2])
    assert np.linalg.norm(after[:2]) == pytest.approx(np.linalg.norm(before[:2]))
    tab.wait_for_timeout(300)
    np.testing.assert_array_equal(eye(tab), after)
    # Hiding an optimizer does not turn it back.
    tab.get_by_role("button", name="hide all").click()
    np.testing.assert_allclose(eye(tab), after)
    tab.get_by_role("button", name="show all").click()


def test_the_surface_turns_by_hand(tab: Any) -> None:
    before = eye(tab)
    tab.locator("#chart-surface").scroll_into_view_if_needed()
    box = tab.locator("#chart-surface").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(*middle)
    tab.mouse.down()
    tab.mouse.move(middle[0] + 120, middle[1], steps=5)
    tab.mouse.up()
    until(tab, lambda: np.linalg.norm(eye(tab) - before) > 0.1)


def test_on_a_phone_nothing_but_tables_scrolls_sideways(tab: Any) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    # Charts follow a moment later.
    until(tab, lambda: tab.evaluate("document.documentElement.scrollWidth") == 390)
    assert tab.evaluate("document.querySelector('.scroll').scrollWidth") > 390
    tab.set_viewport_size(SMALL)


def test_the_data_come_with_the_page(tab: Any, camel: SweepResult) -> None:
    assert json.loads(tab.inner_html("#study")) == json.loads(json.dumps(camel.to_dict()))


def test_functions_of_one_variable_have_a_curve_instead(
    open_page: Callable[[SweepResult], Any],
) -> None:
    tab = open_page(played("sharp-flat"))
    assert tab.locator("#chart-curve g.trace").count() == 3
    assert tab.locator("#chart-places g.trace").count() == 4
    assert tab.locator("#orbit, #chart-surface").count() == 0
    tab.close()


@pytest.mark.parametrize("function", ["ackley", "goldstein-price"])
def test_pages_can_be_made_of_whatever_came_out(function: str) -> None:
    lost = played(function, optimizers=["sgd"], rates=[1e6])
    assert lost.optimizers[0].count("diverged") == (3 if function == "goldstein-price" else 0)
    assert "NaN" not in page(lost).split('id="charts">')[1].split("</script>")[0]


def test_who_diverges_does_not_flatten_the_others_losses() -> None:
    result = played("goldstein-price", optimizers=["adam", "sgd"])
    (chart,) = charts.losses(result)
    lowest, highest = chart.layout["yaxis"]["range"]
    found = result.optimizers[0].descent.losses - 3
    assert 10**lowest < np.median(found, 0).min()
    assert found[:, 0].max() < 10**highest < 100 * found[:, 0].max()
    assert np.nanmax(result.optimizers[1].descent.losses) > 1e20


def test_of_many_variables_there_are_the_losses() -> None:
    text = page(played("rosenbrock", parameters={"dimension": 4}))
    assert 'id="chart-losses"' in text
    assert 'id="landscape"' not in text
