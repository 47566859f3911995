"""What a user sees while a study runs: how far it is, and nothing of the test set."""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from helpers.study_storages import Open, opened
from helpers.synthetic_studies import diverged, outcome
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.execution.worker_pool import WorkerPool
from steppe.compare.planning.study import PlannedStudy
from steppe.compare.records.results import ContenderRecord, MetricDescription, StudyPlan
from steppe.compare.training.run import RunContext, RunSettings

__all__ = ["opened"]


@pytest.fixture
def queue(opened: Open, tmp_path: Path) -> TrialQueue:
    study = PlannedStudy(
        RunSettings("digits", "mlp", None, "abc", epochs=2, steps_per_epoch=4, batch_size=32),
        StudyPlan(budget=1, trials=4),
        (ContenderRecord("sgd", defaults={"lr": 0.1}),),
        MetricDescription(),
        versions={},
    )
    return TrialQueue(opened(str(tmp_path), create=True), study)


@pytest.fixture
def printed(
    queue: TrialQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], str]:
    """Watch a study, of which a trial ends at each look; return what was printed."""
    came = outcome(0.75, 0.25)
    final = replace(came.final, test_loss=0.123456, test_score=0.654321)
    ends: Iterator[object] = iter([replace(came, final=final), diverged(), "MemoryError", came])

    def work(seconds: float) -> None:
        taken, end = queue.take(), next(ends)
        assert taken is not None
        if isinstance(end, str):
            queue.fail(taken, end, "here")
        else:
            queue.finish(taken, end, "here")

    def watch() -> str:
        monkeypatch.setattr("steppe.compare.execution.worker_pool.time.sleep", work)
        text = io.StringIO()
        pool = WorkerPool(queue, RunContext(tmp_path), str(tmp_path), 10)
        assert pool.run(Console(file=text, width=200), count=0) == 0
        return text.getvalue()

    return watch


def test_each_trial_that_has_ended_has_a_line_without_its_test_result(
    printed: Callable[[], str],
) -> None:
    text = printed()
    assert text.splitlines()[1:] == [
        "[1/4] sgd, trial 0: validation 0.7500, loss 0.2500",
        "[2/4] sgd, trial 1: diverged",
        "[3/4] sgd, trial 2: failed: MemoryError",
        "[4/4] sgd, trial 3: validation 0.7500, loss 0.2500",
    ]
    assert "0.123" not in text
    assert "0.654" not in text
