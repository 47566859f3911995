"""The chart of what is forgotten: the loss on the first task by that on the second."""

from steppe._shared.page.parts import Chart
from steppe.compare.records.forgetting_at_common_loss import fronts, second_task
from steppe.compare.records.results import StudyResults
from steppe.compare.report.page.styles import styles
from steppe.compare.report.page.traces import (
    null_for_not_finite,
    optimizer_of_trace,
    plotly_text,
)


def forgetting(results: StudyResults) -> list[Chart]:
    """Draw the test loss on the first task by that on the second, a line for each contender.

    Points are those of fine-tuning, from the trained model on, means over runs at the recommended
    settings.
    """
    look, second = styles(results), second_task(results)
    traces = [
        {
            **optimizer_of_trace(name),
            "x": null_for_not_finite([point.second for point in points]),
            "y": null_for_not_finite([point.first for point in points]),
            "text": [f"after {point.step} steps" for point in points],
            "mode": "lines+markers",
            "line": {"color": look[name].colour, "dash": look[name].dash, "width": 1.7},
            "marker": {"symbol": look[name].marker, "size": 6},
            "hovertemplate": "%{y:.4g}, second task %{x:.4g}<br>%{text}",
        }
        for name, points in fronts(results).items()
    ]
    if second is None or not traces:
        return []
    axes = (("xaxis", "x", second.task), ("yaxis", "y", results.task))
    layout = {
        axis: {
            "title": {"text": f"test loss on {plotly_text(task)}"},
            # A logarithmic axis would leave out what is not positive.
            "type": "log" if all(x is None or x > 0 for t in traces for x in t[key]) else "linear",
        }
        for axis, key, task in axes
    }
    label = "Test loss on the first task by that on the second, along fine-tuning"
    return [Chart("forgetting", label, traces, layout)]
