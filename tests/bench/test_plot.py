"""The picture: each ratio where it belongs, whole or not there."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from steppe._shared.statistics import Ratio
from steppe.bench.plot import plot


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
        assert plot(found, tmp_path / "bench.png")
        return figures[-1]

    return draw


def test_one_panel_a_model_one_row_an_optimizer(drawn, found) -> None:
    rows = [
        found(model="resnet18", optimizer="adamw-fused", ratio=Ratio(1.0, 0.98, 1.02)),
        found(model="resnet18", optimizer="dualadam", ratio=Ratio(0.8, 0.7, 0.9)),
        found(model="small", optimizer="dualadam", ratio=Ratio(3.0, 2.5, 4.0)),
    ]
    resnet18, small = drawn(rows).axes
    assert [axes.get_title(loc="left") for axes in (resnet18, small)] == ["resnet18", "small"]
    names = [label.get_text() for label in resnet18.get_yticklabels()]
    assert names == ["adamw-fused", "dualadam"]
    assert [text.get_text() for text in resnet18.texts] == ["1.00", "0.80"]
    assert [text.get_text() for text in small.texts] == ["3.00"]
    # The second row, also where the first has nothing.
    assert small.texts[0].xy == (4.0, 1)


def test_faster_slower_and_undecided_are_told_apart(drawn, found) -> None:
    ratios = [Ratio(0.8, 0.7, 0.9), Ratio(1.0, 0.9, 1.1), Ratio(1.3, 1.2, 1.4)]
    rows = [found(optimizer=str(i), ratio=ratio) for i, ratio in enumerate(ratios)]
    rows.append(found(optimizer="disturbed", ratio=ratios[0], baseline_seconds=1.0))
    (axes,) = drawn(rows).axes
    faster, undecided, slower, disturbed = (
        line.get_color() for line in axes.lines if line.get_marker() == "o"
    )
    assert len({faster, undecided, slower}) == 3
    assert disturbed == undecided


def test_a_png_is_written_whole(tmp_path: Path, found) -> None:
    path = tmp_path / "bench.png"
    assert plot([found()], path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    assert not plot([], tmp_path / "bench.png")
    assert not list(tmp_path.iterdir())
