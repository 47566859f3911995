"""The picture: there, and no label on another."""

import itertools
import struct
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from steppe.compare.plots import plot_curves


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Draw and hand back the figure."""
    figures = []
    save = Figure.savefig

    def keep(figure: Figure, *args, **kwargs) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(finished) -> Figure:
        plot_curves(finished, "toy", tmp_path / "curves.png")
        return figures[-1]

    return draw


def test_a_png_of_fair_size_is_written(tmp_path: Path, outcome) -> None:
    path = tmp_path / "curves.png"
    assert plot_curves({"adamw": {0: outcome(), 1: outcome(0.8)}, "sgd": {}}, "toy", path)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 1600
    assert height >= 500


def test_nothing_finished_draws_nothing(tmp_path: Path, outcome) -> None:
    path = tmp_path / "curves.png"
    assert not plot_curves({"adamw": {}, "sgd": {0: outcome(diverged=True)}}, "toy", path)
    assert not path.exists()


def test_lines_are_means_over_the_seeds_that_did_not_diverge(drawn, outcome) -> None:
    seeds = {0: outcome(0.9), 1: outcome(0.7), 2: outcome(0.1, diverged=True)}
    train, test, accuracy = drawn({"adamw": seeds}).axes
    assert list(accuracy.lines[0].get_ydata()) == pytest.approx([10.0, 80.0])
    assert list(test.lines[0].get_ydata()) == pytest.approx([2.0, 0.3])
    assert list(train.lines[0].get_ydata()) == pytest.approx([2.0, 0.1])
    assert list(accuracy.lines[0].get_xdata()) == [1, 2]


def test_labels_do_not_cover_each_other_and_have_their_lines_colours(drawn, outcome) -> None:
    names = ("adamw", "adam+warmup", "dualadam", "adamcm", "adamw+sam")
    figure = drawn({name: {0: outcome(0.9)} for name in names})
    axes = figure.axes[2]
    # An annotation's own extent has its leader in it; the text's has not.
    boxes = sorted(map(Text.get_window_extent, axes.texts), key=lambda box: box.y0)
    assert len(boxes) == len(names)
    for lower, upper in itertools.pairwise(boxes):
        assert lower.y1 <= upper.y0
    assert {label.get_text(): label.get_color() for label in axes.texts} == {
        line.get_label(): line.get_color() for line in axes.lines
    }


def test_nothing_runs_over_the_edge(tmp_path: Path, outcome) -> None:
    names = ("adamw", "dualadam-scale-free+sam", "some.package.module:Optimizer+warmup")
    plot_curves({name: {0: outcome()} for name in names}, "toy", tmp_path / "curves.png")
    pixels = imread(tmp_path / "curves.png")[..., :3]
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert edge.min() == 1.0


def test_styles_do_not_repeat_among_fourteen(drawn, outcome) -> None:
    figure = drawn({f"optimizer{i}": {0: outcome()} for i in range(14)})
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == 14


def test_a_single_epoch_shows_as_points(drawn, outcome) -> None:
    one = outcome(curve=outcome().curve[:1])
    figure = drawn({"adamw": {0: one}})
    assert figure.axes[0].lines[0].get_marker() == "o"
