"""Charts of the pool show the primary reading, whichever it is."""

import math
from dataclasses import replace

import numpy as np
import pytest

from helpers.realistic_study import realistic
from steppe.compare.report.page.pool_charts import by_lr


def test_results_by_lr_are_losses_where_losses_are_compared() -> None:
    results = realistic()
    (chart,) = by_lr(replace(results, plan=replace(results.plan, primary="loss")))
    assert chart.layout["yaxis"]["title"]["text"] == "test loss"
    ended = [t for t in results.trials_of("adamw", "pool") if t.finite_outcome]
    ended.sort(key=lambda t: t.settings["lr"])
    means = next(each for each in chart.traces if each["meta"] == "adamw")
    lowest = ended[: round(len(ended) / len(means["x"]))]
    assert means["y"][0] == pytest.approx(np.mean([t.outcome.final.test_loss for t in lowest]))
    # The lower half matters, from its lowest.
    middle = np.median([y for each in chart.traces if "error_y" in each for y in each["y"]])
    low, high = chart.variants["near"]["yaxis"]["range"]
    assert low < min(means["y"])
    assert middle < high


def test_a_test_result_that_is_not_finite_leaves_its_mean_out_alone() -> None:
    results = realistic()
    ended = [t for t in results.trials_of("adamw", "pool") if t.finite_outcome]
    lost = min(ended, key=lambda t: t.settings["lr"])
    final = replace(lost.outcome.final, test_score=math.nan)
    without = replace(lost, outcome=replace(lost.outcome, final=final))
    trials = tuple(without if each is lost else each for each in results.trials)
    (chart,) = by_lr(replace(results, trials=trials))
    means = next(each for each in chart.traces if each["meta"] == "adamw")
    whole = next(each for each in by_lr(results)[0].traces if each["meta"] == "adamw")
    assert not math.isfinite(means["y"][0] or math.nan)
    assert means["y"][1:] == whole["y"][1:]
