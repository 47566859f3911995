"""Pictures and animations: there, with the numbers they should have."""

import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageSequence
from scipy import ndimage

from steppe.play.animation import animate, check_format
from steppe.play.panels import draw_panels
from steppe.play.pictures import plot_losses, plot_paths, quartiles
from steppe.play.results import SweepResult
from steppe.play.surface_grid import sample_surface, shown_bounds
from steppe.play.sweep import plan_sweep

pytestmark = pytest.mark.thorough

SHAPES: dict[str, dict[str, Any]] = {
    "ackley": {},
    "goldstein-price": {"optimizers": ["adam", "dualadam", "sgd", "adamcm", "nadam"]},
    "six-hump-camel": {"starts": [[0.5, 0.5]]},
    "sharp-flat": {},
    "quadratic": {},
}


def played(function: str, **changes: Any) -> SweepResult:
    given: dict[str, Any] = {"optimizers": ["adam", "sgd"], "rates": [0.1], "steps": 25}
    given |= {"drawn": 3, "switch": 0.2, "rho": 0.1}
    return plan_sweep(function, **(given | SHAPES.get(function, {}) | changes)).run()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Draw and hand back the figure, with everything in its place but no pixels."""
    figures = []

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        figure.draw_without_rendering()
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(plot: Any, result: SweepResult) -> Figure:
        plot(result, tmp_path / "picture.png")
        return figures[-1]

    return draw


def test_pngs_are_written_whole(tmp_path: Path) -> None:
    for plot in (plot_paths, plot_losses):
        path = tmp_path / f"{plot.__name__}.png"
        plot(played("ackley", steps=1), path)
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", content[16:24])
        assert width > 900
        assert height > 500
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", SHAPES)
def test_paths_run_from_start_to_end_in_a_panel_for_each(drawn: Any, name: str) -> None:
    result = played(name)
    figure = drawn(plot_paths, result)
    titled = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(titled) == len(result.optimizers)
    if result.function.dimension == 1:
        titled = figure.axes[len(result.optimizers) :]
    for axes, optimizer in zip(titled, result.optimizers, strict=True):
        x = optimizer.descent.points[..., 0]
        lines = [line.get_xdata() for line in axes.lines]
        np.testing.assert_array_equal([line for line in lines if len(line) == 26], x)


def test_no_title_or_legend_covers_another_text(drawn: Any) -> None:
    figure = drawn(plot_paths, played("goldstein-price"))
    boxes = [axes.get_tightbbox() for axes in figure.axes if axes.axison]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    for number, box in enumerate(boxes):
        assert not any(box.shrunk(0.98, 0.98).overlaps(other) for other in boxes[number + 1 :])
        assert box.x0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1


def test_losses_are_quartiles_above_the_minimum(drawn: Any) -> None:
    result = played("goldstein-price", drawn=5, optimizers=["adam"])
    (axes,) = drawn(plot_losses, result).axes
    gaps = result.optimizers[0].descent.losses - 3
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(result.optimizers[0].loss - 3)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.median(gaps, 0))
    low, _, high = quartiles(result, result.optimizers[0].descent.losses)
    np.testing.assert_allclose([low, high], [np.sort(gaps, 0)[1], np.sort(gaps, 0)[3]])
    assert axes.get_yscale() == "log"


def test_runs_that_diverged_count_as_infinite() -> None:
    result = played("quadratic", drawn=4, steps=2)
    losses = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, np.nan], [np.nan, np.nan]])
    np.testing.assert_allclose(quartiles(result, losses)[:, 0], [1.75, 2.5, np.nan])
    np.testing.assert_allclose(quartiles(result, losses)[:, 1], [1.75, np.nan, np.nan])
    # Nor do they swallow the value beside them.
    np.testing.assert_allclose(quartiles(result, losses[[0, 1, 3]])[1], [2.0, 2.0])


def test_what_is_shown_is_where_they_went() -> None:
    whole = shown_bounds(played("ackley", starts=[[-4.5, 4.5]], steps=1))
    assert -5 <= whole[0][0] < -4.5
    assert 4.5 < whole[1][1] <= 5
    # What hardly moves is shown with its surroundings.
    ((low, high), _) = shown_bounds(played("ackley", starts=[[0.01, 0.01]], steps=1, rates=[1e-3]))
    assert low < 0 < 0.01 < high
    assert high - low == pytest.approx(1.0)
    far = shown_bounds(played("goldstein-price", optimizers=["sgd"], rates=[1.0]))
    assert far == [(-2.0, 2.0), (-2.0, 2.0)]


@pytest.mark.parametrize(
    ("name", "wide"), [("ackley", False), ("goldstein-price", True), ("rosenbrock", True)]
)
def test_levels_are_logarithmic_where_the_range_is_wide(name: str, wide: bool) -> None:
    found = sample_surface(played(name, starts=[[-1.9, -1.9], [1.9, 1.9]]), 101)
    assert (found.unit is not None) == wide
    values = np.linspace(found.lowest, found.values.max(), 50)
    scaled = found.to_scale(values)
    assert (np.diff(scaled) > 0).all()
    places, labels = found.ticks()
    for place, label in zip(places, labels, strict=True):
        assert found.to_scale(np.array(float(label))) == pytest.approx(place, abs=0.01)
    assert len(places) >= 3


def heads(result: SweepResult, step: int, width: int) -> np.ndarray:
    """Say where on the picture, in pixels from below, the runs are at a step."""
    figure, tracks = draw_panels(result)
    figure.set_dpi(width / figure.get_size_inches()[0])
    figure.draw_without_rendering()
    places = []
    for track in tracks:
        points = track.axes.transData.transform(np.stack([track.x[:, step], track.y[:, step]], -1))
        places += [point for point in points if track.axes.bbox.contains(*point)]
    return np.array(places)


@pytest.mark.parametrize("name", ["six-hump-camel", "sharp-flat"])
def test_a_gif_moves_and_is_small(tmp_path: Path, name: str) -> None:
    path, result = tmp_path / "paths.gif", played(name)
    animate(result, path)
    assert path.stat().st_size < 3e6
    with Image.open(path) as film:
        assert film.n_frames == 26
        frames = [np.asarray(each.convert("RGB")) for each in ImageSequence.Iterator(film)]
    # The points, as orange in it as in the pictures, are where the runs are. At the first step and
    # at the last they lie on the edge of panels that have steps as an axis.
    for step in (1, 12, 24):
        frame = frames[step]
        orange = (frame == (0xE6, 0x9F, 0x00)).all(-1)
        # Discs, not pixels of that colour where a star's edge blends into the landscape.
        rows, columns = np.nonzero(ndimage.binary_erosion(orange))
        found = np.stack([columns, len(frame) - 1 - rows], -1)
        apart = np.linalg.norm(found[:, None] - heads(result, step, frame.shape[1]), axis=-1)
        assert apart.min(0).max() < 3
        assert apart.min(1).max() < 3
    moved = (frames[0] != frames[-1]).any(-1).mean()
    # Points and the clock; the landscape does not flicker.
    assert 0.0005 < moved < 0.1


FFMPEG = """#!{python}
import pathlib, sys
shown = sys.stdin.buffer.read()
width, height = map(int, sys.argv[sys.argv.index("-s") + 1].split("x"))
if len(shown) % (3 * width * height): sys.exit("not whole frames")
sys.stdout.buffer.write(b"%d frames" % (len(shown) // (3 * width * height)))
"""


def pretend(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str) -> None:
    (directory / "bin").mkdir()
    program = directory / "bin" / "ffmpeg"
    program.write_text(script.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory / "bin"))


def test_an_mp4_goes_through_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tmp_path, FFMPEG)
    check_format("mp4")
    animate(played("six-hump-camel", steps=3), tmp_path / "paths.mp4")
    # Four steps, and the last held for a second.
    assert (tmp_path / "paths.mp4").read_bytes() == b"19 frames"


def test_what_ffmpeg_complains_of_is_said_and_no_file_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(
        monkeypatch,
        tmp_path,
        "#!{python}\nimport sys\nsys.stdin.buffer.read()\nsys.exit('no codec')\n",
    )
    with pytest.raises(ValueError, match="ffmpeg failed: no codec"):
        animate(played("six-hump-camel", steps=3), tmp_path / "paths.mp4")
    assert [each.name for each in tmp_path.iterdir()] == ["bin"]


def test_an_animation_that_cannot_be_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="one of gif, mp4, none, got 'webm'"):
        check_format("webm")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"ffmpeg.*not installed.*--animation gif"):
        check_format("mp4")
    check_format("gif")
