"""The picture: each ratio where it belongs, whole or not there."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from steppe._shared.pictures import DPI
from steppe._shared.statistics import Ratio
from steppe.bench.plot import plot

MACHINE = "EPYC, 2 CPU threads; torch 2.13"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Draw and hand back the figure."""
    figures = []
    save = Figure.savefig

    def keep(figure: Figure, *args, **kwargs) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(found) -> Figure:
        assert plot(found, MACHINE, tmp_path / "bench.png")
        return figures[-1]

    draw.figures = figures
    return draw


def marks(axes, marker: str) -> list[tuple[float, float]]:
    return [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if line.get_marker() == marker
    ]


def legend_of(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_one_panel_a_model_one_row_an_optimizer(drawn, found) -> None:
    rows = [
        found(model="resnet18", optimizer="adamw-fused", ratio=Ratio(1.0, 0.98, 1.02)),
        found(model="resnet18", optimizer="dualadam", ratio=Ratio(0.8, 0.7, 0.9)),
        found(model="small", optimizer="dualadam", ratio=Ratio(3.0, 2.5, 4.0)),
    ]
    figure = drawn(rows)
    resnet18, small = figure.axes
    titles = [axes.get_title(loc="left") for axes in (resnet18, small)]
    assert titles == ["resnet18\n62 tensors, 30 parameters", "small\n10000 tensors, 30 parameters"]
    assert figure.get_suptitle().splitlines()[1] == MACHINE
    names = [label.get_text() for label in resnet18.get_yticklabels()]
    assert names == ["adamw-fused", "dualadam"]
    assert [text.get_text() for text in resnet18.texts] == ["1.00", "0.80"]
    assert [text.get_text() for text in small.texts] == ["3.00"]
    # The second row, also where the first has nothing.
    assert small.texts[0].xy == (4.0, 1)


def test_ours_theirs_and_the_disturbed_are_told_apart_without_colour(drawn, found) -> None:
    rows = [
        found(optimizer="ours"),
        found(optimizer="theirs", engine=None),
        found(optimizer="disturbed", baseline_seconds=1.0),
    ]
    figure = drawn(rows)
    (axes,) = figure.axes
    assert [marks(axes, shape) for shape in "osX"] == [[(0.5, 0)], [(0.5, 1)], [(0.5, 2)]]
    assert legend_of(figure) == [
        "steppe",
        "torch and other packages",
        "copying the bytes that a step must move",
        "disturbed by other work",
    ]


def test_beside_a_step_stands_the_time_of_copying_its_bytes(drawn, found) -> None:
    host = found(optimizer="host", bandwidth=None)
    (axes,) = drawn([found(), host]).axes
    ((value, row),) = marks(axes, "|")
    assert (value, row) == (pytest.approx(1 / 3), 0)
    assert legend_of(drawn([host])) == ["steppe", "torch and other packages"]


def test_a_long_line_of_versions_is_not_cut(tmp_path: Path, found, drawn) -> None:
    assert plot([found()], ", ".join(["package 1.0"] * 20), tmp_path / "long.png")
    figure = drawn.figures[-1]
    assert figure._suptitle.get_window_extent().x1 <= DPI * figure.get_size_inches()[0]
    assert figure.get_suptitle().count("package") == 20


def test_a_png_is_written_whole(tmp_path: Path, found) -> None:
    path = tmp_path / "bench.png"
    assert plot([found()], MACHINE, path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    assert not plot([], MACHINE, tmp_path / "bench.png")
    assert not list(tmp_path.iterdir())
