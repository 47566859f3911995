"""The pictures: there, with the right numbers, and no label on another."""

import dataclasses
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
from helpers.realistic_study import realistic
from helpers.synthetic_studies import diverged, outcome, scores
from steppe._shared.pictures import write_png
from steppe.compare.records.best_of_k import SWAPS, compare_pools
from steppe.compare.records.results import Curvature, Epoch, MetricDescription, StudyResults
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.pictures import (
    draw_budgets,
    draw_curves,
    draw_differences,
    draw_flatness,
)

pytestmark = pytest.mark.thorough

PLOTS = (draw_differences, draw_budgets, draw_curves, draw_flatness)
Plot = Callable[[StudyResults], Figure | None]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Draw and hand back the figure, with everything in its place but no pixels."""
    figures = []

    def keep(figure: Figure, *args, **kwargs) -> None:
        figure.draw_without_rendering()
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(plot: Plot, study: StudyResults) -> Figure:
        figure = plot(study)
        assert figure is not None
        write_png(figure, tmp_path / "picture.png")
        return figures[-1]

    return draw


@pytest.mark.parametrize("plot", PLOTS)
def test_a_png_of_fair_size_is_written(tmp_path: Path, plot: Plot) -> None:
    path = tmp_path / "new" / "picture.png"
    write_png(plot(realistic()), path)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 1200
    assert height >= 250
    assert [each.name for each in path.parent.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("plot", PLOTS)
def test_there_may_be_nothing_to_draw(plot: Plot) -> None:
    made = {"adamw": [diverged()] * 3, "sgd": [diverged()] * 3, "nadam": [studies.FAILED] * 3}
    assert plot(studies.study(made)) is None
    assert plot(studies.study({"adamw": [], "sgd": []})) is None


@pytest.mark.parametrize("plot", PLOTS)
def test_nothing_runs_over_the_edge(tmp_path: Path, plot: Plot) -> None:
    write_png(plot(realistic()), tmp_path / "picture.png")
    pixels = imread(tmp_path / "picture.png")[..., :3]
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert edge.min() == 1.0


def test_lines_are_means_over_the_runs_that_did_not_diverge(drawn) -> None:
    lost = outcome(0.1, diverged=True, curve=())
    made = [outcome(0.9), outcome(0.7), lost, studies.FAILED, outcome(0.1, math.inf)]
    study = studies.study({"adamw": made, "sgd": [outcome(math.nan)] * 5})
    study = dataclasses.replace(study, plan=dataclasses.replace(study.plan, repeats=5))
    train, validation, score = drawn(draw_curves, study).axes
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
    study = studies.study({name: scores(0.9, 0.9, 0.9) for name in names})
    axes = drawn(draw_curves, study).axes[2]
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
    study = studies.study({f"optimizer{i}": [probed()] * 3 for i in range(14)})
    curves = drawn(draw_curves, study).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == 14
    points = drawn(draw_flatness, study).axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in points}) == 14


def test_a_contender_keeps_its_colour_when_another_is_missing(drawn) -> None:
    both = drawn(draw_curves, studies.study({"adamw": scores(0.9), "sgd": scores(0.8)}))
    one = drawn(draw_curves, studies.study({"adamw": [diverged()], "sgd": scores(0.8)}))
    assert one.axes[0].lines[0].get_color() == both.axes[0].lines[1].get_color()


def test_a_single_epoch_shows_as_points(drawn) -> None:
    one = outcome(curve=outcome().curve[:1])
    figure = drawn(draw_curves, studies.study({"adamw": [one]}))
    assert figure.axes[0].lines[0].get_marker() == "o"


def test_losses_that_are_not_positive_have_no_logarithm(drawn) -> None:
    made = {"adamw": [outcome(train_loss=-0.5), outcome(train_loss=-0.4)]}
    train, validation, _ = drawn(draw_curves, studies.study(made)).axes
    assert train.get_yscale() == "linear"
    assert validation.get_yscale() == "log"


def test_differences_are_drawn_from_the_top_with_interval_and_verdict(
    drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(compare_pools.__kwdefaults__, "swaps", SWAPS)
    (axes,) = drawn(draw_differences, realistic()).axes
    found = {each.optimizer: each for each in Readings(realistic()).verdicts}
    order = sorted(found, key=lambda name: -found[name].estimate)
    assert [label.get_text() for label in axes.get_yticklabels()] == order
    said = [text.get_text() for text in axes.texts]
    assert said[0].startswith("better, p <0.001")
    assert said[-2].startswith("worse, p <0.001")
    zero, bar, point = axes.lines[:3]
    assert list(zero.get_xdata()) == [0.0, 0.0]
    sam = found["adamw+sam"]
    assert list(bar.get_xdata()) == pytest.approx([sam.low, sam.high])
    assert list(point.get_xdata()) == pytest.approx([sam.estimate])


def test_one_far_behind_is_pointed_to_beyond_the_axis(drawn) -> None:
    (axes,) = drawn(draw_differences, realistic()).axes
    behind = next(v for v in Readings(realistic()).verdicts if v.optimizer == "adamcg")
    low, high = axes.get_xlim()
    assert behind.high < low < 0.0 < high
    arrow = axes.texts[-1]
    assert arrow.get_text() == f"−{abs(behind.estimate):.3g}"
    assert arrow.arrow_patch is not None


def test_differences_follow_the_metric(drawn) -> None:
    metric = MetricDescription("error", "", 1.0, higher_is_better=False)
    made = {"adamw": scores(0.5, 0.6, 0.7), "sgd": scores(0.2, 0.35, 0.3)}
    study = studies.study({**made, "nadam": scores(0.1, 0.2, 0.3)}, metric=metric, task="curve fit")
    figure = drawn(draw_differences, study)
    assert figure.get_suptitle() == "curve fit: test error, minus adamw's"
    points = [float(line.get_xdata()[0]) for line in figure.axes[0].lines[2::2]]
    assert points == pytest.approx([-0.4, -0.95 / 3])
    assert figure.axes[0].get_xlabel().startswith("aim: lower")


def test_a_baseline_alone_has_no_difference() -> None:
    study = studies.study({"adamw": scores(0.9, 0.8, 0.7)})
    assert draw_differences(study) is None


def test_budgets_are_drawn_up_to_a_third_of_the_trials(drawn) -> None:
    figure = drawn(draw_budgets, realistic())
    (axes,) = figure.axes
    readings = Readings(realistic())
    line = axes.lines[0]
    assert list(line.get_xdata()) == list(range(1, 9))
    expected = [readings.expected("adamw", "score", k, samples=False) for k in range(1, 9)]
    assert list(line.get_ydata()) == pytest.approx([each.mean for each in expected])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(max(each.high for each in expected))
    assert "declared: 4" in axes.get_xlabel()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 8


def probed(sharpness: float = 0.01, test_loss: float = 0.3):
    """Make a run whose sharpness was measured along the way, down to a train loss of 0.1."""
    losses = (1.0, 0.1)
    curve = [
        Epoch(x, x, 0.5, 0.1, 1.0, probe_loss=x, sharpness=sharpness, largest=100 * sharpness)
        for x in losses
    ]
    return outcome(0.9, test_loss, curve=tuple(curve))


def test_flatness_has_a_point_for_each_run_that_has_both(drawn) -> None:
    made = [
        probed(0.01, 0.3),
        probed(0.02, 0.4),
        outcome(test_loss=0.5, curvature=Curvature()),
    ]
    figure = drawn(draw_flatness, studies.study({"adamw": made, "sgd": [probed()] * 3}))
    sharpness, largest = figure.axes
    assert (
        pytest.approx(np.array([[0.01, 0.3], [0.02, 0.4]]))
        == np.array(sharpness.lines[0].get_data()).T
    )
    assert np.array(largest.lines[0].get_data()).T[:, 0] == pytest.approx([1.0, 2.0])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["adamw", "sgd"]
    assert figure.get_suptitle() == "toy: flatness at train loss 0.1 and test loss, a point a run"


def test_without_curvature_along_the_way_there_is_no_picture() -> None:
    assert draw_flatness(studies.study({"adamw": [outcome()] * 3})) is None
