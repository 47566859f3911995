"""The pictures: there, with the right numbers, and no label on another."""

import itertools
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from helpers import synthetic_studies as studies
from helpers.synthetic_studies import diverged, outcome, scores
from steppe.compare.records.results import Curvature, Metric, StudyResults
from steppe.compare.report.pictures import plot_curves, plot_differences, plot_flatness

PLOTS = (plot_curves, plot_differences, plot_flatness)
Plot = Callable[[StudyResults, Path], bool]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Draw and hand back the figure, with everything in its place but no pixels."""
    figures = []

    def keep(figure: Figure, *args, **kwargs) -> None:
        figure.draw_without_rendering()
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(plot: Plot, study: StudyResults) -> Figure:
        assert plot(study, tmp_path / "picture.png")
        return figures[-1]

    return draw


@pytest.mark.parametrize("plot", PLOTS)
def test_a_png_of_fair_size_is_written(tmp_path: Path, plot: Plot) -> None:
    path = tmp_path / "new" / "picture.png"
    assert plot(studies.study({"adamw": scores(0.9, 0.8), "sgd": scores(0.8, 0.8)}), path)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 1300
    assert height >= 250
    assert [each.name for each in path.parent.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("plot", PLOTS)
def test_nothing_to_draw_writes_nothing(tmp_path: Path, plot: Plot) -> None:
    path = tmp_path / "picture.png"
    made = {"adamw": [], "sgd": [diverged()], "nadam": [studies.FAILED]}
    assert not plot(studies.study(made), path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("plot", PLOTS)
def test_nothing_runs_over_the_edge(tmp_path: Path, plot: Plot) -> None:
    plot(studies.plausible(12, 3, budget=1, epochs=3), tmp_path / "picture.png")
    pixels = imread(tmp_path / "picture.png")[..., :3]
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert edge.min() == 1.0


def test_lines_are_means_over_the_seeds_that_did_not_diverge(drawn) -> None:
    lost = outcome(0.1, diverged=True)
    made = [outcome(0.9), outcome(0.7), lost, studies.FAILED, outcome(0.1, math.inf)]
    study = studies.study({"adamw": made, "sgd": [outcome(math.nan)]})
    train, validation, score = drawn(plot_curves, study).axes
    assert len(score.lines) == 1
    assert list(score.lines[0].get_ydata()) == pytest.approx([10.0, 80.0])
    assert list(validation.lines[0].get_ydata()) == pytest.approx([2.2, 0.3])
    assert list(train.lines[0].get_ydata()) == pytest.approx([2.0, 0.1])
    assert list(score.lines[0].get_xdata()) == [1, 2]
    assert score.get_title(loc="left") == "Validation accuracy, %"
    band = score.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((10.0, 90.0))


def test_labels_do_not_cover_each_other_and_have_their_lines_colours(drawn) -> None:
    names = [f"optimizer{i}" for i in range(12)]
    axes = drawn(plot_curves, studies.study({name: scores(0.9) for name in names})).axes[2]
    # An annotation's own extent has its leader in it; the text's has not.
    boxes = sorted(map(Text.get_window_extent, axes.texts), key=lambda box: box.y0)
    assert len(boxes) == len(names)
    for lower, upper in itertools.pairwise(boxes):
        assert lower.y1 <= upper.y0
    assert all(0.0 <= label.xyann[1] <= 1.0 for label in axes.texts)
    assert {label.get_text(): label.get_color() for label in axes.texts} == {
        line.get_label(): line.get_color() for line in axes.lines
    }


def test_styles_do_not_repeat_among_fourteen(drawn) -> None:
    study = studies.study({f"optimizer{i}": scores(0.9) for i in range(14)})
    curves = drawn(plot_curves, study).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == 14
    points = drawn(plot_flatness, study).axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in points}) == 14


def test_a_contender_keeps_its_colour_when_another_is_missing(drawn) -> None:
    both = drawn(plot_curves, studies.study({"adamw": scores(0.9), "sgd": scores(0.8)}))
    one = drawn(plot_curves, studies.study({"adamw": [diverged()], "sgd": scores(0.8)}))
    assert one.axes[0].lines[0].get_color() == both.axes[0].lines[1].get_color()


def test_a_single_epoch_shows_as_points(drawn) -> None:
    one = outcome(curve=outcome().curve[:1])
    figure = drawn(plot_curves, studies.study({"adamw": [one]}))
    assert figure.axes[0].lines[0].get_marker() == "o"


def test_losses_that_are_not_positive_have_no_logarithm(drawn) -> None:
    made = {"adamw": [outcome(train_loss=-0.5), outcome(train_loss=-0.4)]}
    train, validation, _ = drawn(plot_curves, studies.study(made)).axes
    assert train.get_yscale() == "linear"
    assert validation.get_yscale() == "log"


def test_differences_are_drawn_best_first_with_interval_and_verdict(drawn) -> None:
    study = studies.study(
        {
            "adamw": scores(0.90, 0.91, 0.92),
            "worse": scores(0.80, 0.81, 0.821),
            "better": scores(0.951, 0.960, 0.969),
            "equal": scores(0.91, 0.92, 0.93),
            "lost": [diverged()] * 3,
        }
    )
    (axes,) = drawn(plot_differences, study).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["better", "equal", "worse"]
    said = [text.get_text() for text in axes.texts]
    assert said[0].startswith("better, p ")
    assert said[1] == "same on every seed"
    assert said[2].startswith("worse, p ")
    zero, bar, point = axes.lines[:3]
    assert list(zero.get_xdata()) == [0.0, 0.0]
    assert list(bar.get_xdata()) == pytest.approx([4.9, 5.1])
    assert list(point.get_xdata()) == pytest.approx([5.0])
    assert len({text.get_color() for text in axes.texts}) == 3


def test_differences_follow_the_metric_and_the_baseline(drawn, tmp_path: Path) -> None:
    metric = Metric("error", "", 1.0, higher_is_better=False)
    made = {"adamw": scores(0.5, 0.6), "sgd": scores(0.2, 0.35), "nadam": scores(0.1, 0.2)}
    study = studies.study(made, metric=metric, task="curve fit")
    figure = drawn(lambda each, path: plot_differences(each, path, "sgd"), study)
    assert figure.get_suptitle() == "curve fit: test error minus sgd's"
    points = [float(line.get_xdata()[0]) for line in figure.axes[0].lines[2::2]]
    assert points == pytest.approx([-0.125, 0.275])
    assert figure.axes[0].get_xlabel().startswith("lower is better")
    with pytest.raises(ValueError, match="baseline: no contender"):
        plot_differences(study, tmp_path / "no.png", "radam")


def test_a_baseline_alone_has_no_difference(tmp_path: Path) -> None:
    assert not plot_differences(studies.study({"adamw": scores(0.9, 0.8)}), tmp_path / "no.png")


def test_flatness_has_a_point_for_each_run_that_has_both(drawn) -> None:
    made = [
        outcome(test_loss=0.3, curvature=Curvature(sharpness=0.01, largest=5.0)),
        outcome(test_loss=0.4, curvature=Curvature(sharpness=0.02)),
        outcome(test_loss=0.5, curvature=Curvature()),
        outcome(test_loss=math.inf),
        diverged(),
    ]
    figure = drawn(plot_flatness, studies.study({"adamw": made, "sgd": scores(0.9)}))
    sharpness, largest = figure.axes
    assert np.array(sharpness.lines[0].get_data()).T.tolist() == [[0.01, 0.3], [0.02, 0.4]]
    assert np.array(largest.lines[0].get_data()).T.tolist() == [[5.0, 0.3]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["adamw", "sgd"]


def test_a_measure_that_nobody_has_gets_no_panel(drawn) -> None:
    only = [outcome(curvature=Curvature(sharpness=0.01))]
    assert len(drawn(plot_flatness, studies.study({"adamw": only})).axes) == 1
