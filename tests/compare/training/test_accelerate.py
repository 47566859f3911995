"""A run in two processes is the run in one."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.process_group import join, leave, results_of_two
from helpers.training_runs import train_on
from steppe._shared.recipes import find_recipe
from steppe.compare.data.datasets import Data, TensorSamples
from steppe.compare.models.image_models import find_model
from steppe.compare.records.packed_numbers import unpack
from steppe.compare.records.results import Epoch, Outcome
from steppe.compare.tasks import makers
from steppe.compare.tasks.makers import Size, TaskMaker
from steppe.compare.training.run import Run, RunContext, RunSettings

pytestmark = pytest.mark.thorough

NAMES = ("adamw", "adamcm+sam", "adam+warmup", "schedule-free+ema")


def even_data() -> Data:
    """Make samples of which each process has as many as the other, batch by batch."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(41, 1, 8, 8, generator=generator)
    targets = (inputs.mean(dim=(1, 2, 3)) > 0).long()
    train, validation, test = (
        TensorSamples(x, y)
        for x, y in zip(inputs.split([24, 9, 8]), targets.split([24, 9, 8]), strict=True)
    )
    return Data(train, validation, test, fingerprint="even")


@contextmanager
def even_runs() -> Iterator[list[Run]]:
    """Offer a run with each optimizer, batches in parts and gradients clipped."""
    size = Size("mlp", epochs=3, batch_size=8)
    task = TaskMaker("even", even_data, lambda name: find_model(name)((1, 8, 8), 2), size, size)
    makers.TASKS["even"] = task
    setup = RunSettings("even", "mlp", None, "even", 3, 3, 8, accumulate=2, clip=0.5)
    settings = {"lr": 0.01, "weight_decay": 0.1, "rho": 0.05, "switch": 0.3}
    try:
        yield [Run(setup, find_recipe(name), settings, 0, curvature="full") for name in NAMES]
    finally:
        del makers.TASKS["even"]


def outcomes(out: Path) -> list[Outcome]:
    with even_runs() as runs:
        return [train_on(run, even_data(), RunContext(out)) for run in runs]


def disturbed(out: Path) -> list[float]:
    """Interrupt a run after its first epoch, start it again, and return its losses."""

    def stop(number: int, epoch: Epoch) -> None:
        raise KeyboardInterrupt

    with even_runs() as runs:
        with pytest.raises(KeyboardInterrupt):
            train_on(runs[0], even_data(), RunContext(out), stop)
        return [e.train_loss for e in train_on(runs[0], even_data(), RunContext(out)).curve]


# One test, since each worker of a parallel run would start processes of its own.
def test_two_processes_train_what_one_does_and_start_again_together(tmp_path: Path) -> None:
    expected = outcomes(tmp_path / "one")
    for process in results_of_two(__file__, tmp_path):
        for found, one in zip(process["together"], expected, strict=True):
            assert found["train"] == pytest.approx([e.train_loss for e in one.curve], rel=1e-4)
            losses = [e.validation_loss for e in one.curve]
            assert found["validation"] == pytest.approx(losses, rel=1e-4)
            assert found["test_loss"] == pytest.approx(one.final.test_loss, rel=1e-4)
            assert found["test_score"] == one.final.test_score
            hits = unpack(one.samples.validation_scores), unpack(one.samples.test_scores)
            assert [found["validation_hits"], found["test_hits"]] == [x.tolist() for x in hits]
            losses = unpack(one.samples.validation_losses), unpack(one.samples.test_losses)
            # Two bytes have three digits.
            for name, expected_losses in zip(("validation", "test"), losses, strict=True):
                assert found[f"{name}_losses"] == pytest.approx(expected_losses, rel=2e-3)
            probed = [e.probe_loss for e in one.curve]
            assert found["probed"] == pytest.approx(probed, rel=1e-4)
            assert found["largest"] == pytest.approx(one.curvature.largest, rel=0.02)
        assert process["apart"] == process["together"][0]["train"], "no directory was shared"
    left = [path.parent.name for path in (tmp_path / "together").rglob("*.pt")]
    assert left == ["checkpoints"] * len(NAMES)


def test_processes_that_would_have_no_sample_to_evaluate_are_too_many(tmp_path: Path) -> None:
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=9)
    message = "one of validation and test for each of 9 processes, got 8"
    with even_runs() as runs, pytest.raises(ValueError, match=message):
        train_on(runs[0], even_data(), RunContext(tmp_path / "out"), accelerator=accelerator)
    assert not (tmp_path / "out").exists()


def plain(outcome: Outcome) -> dict[str, object]:
    return {
        "train": [epoch.train_loss for epoch in outcome.curve],
        "validation": [epoch.validation_loss for epoch in outcome.curve],
        "test_loss": outcome.final.test_loss,
        "test_score": outcome.final.test_score,
        "largest": outcome.curvature.largest,
        "probed": [epoch.probe_loss for epoch in outcome.curve],
        **{
            f"{part}_{name}": unpack(getattr(outcome.samples, f"{part}_{kept}")).tolist()
            for part in ("validation", "test")
            for name, kept in (("hits", "scores"), ("losses", "losses"))
        },
    }


def work(rank: int, folder: Path) -> None:
    """Be one of two processes, as ``accelerate launch`` starts them."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in place.items()}
    join(rank, folder, 2)
    together = [plain(outcome) for outcome in outcomes(folder / "together")]
    found = {"together": together, "apart": disturbed(folder / f"apart{rank}")}
    torch.save(found, folder / f"rank{rank}")
    leave()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
