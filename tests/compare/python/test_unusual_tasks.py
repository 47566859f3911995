"""Tasks that are unusual, but right: a study of each ends, and can be read again."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from steppe._shared.source_hash import function_source
from steppe.compare import Choice, Contender, Metric, Stream, Study, Task, find_task, load, run
from steppe.compare.planning.rehearsal import new_model
from steppe.compare.records.packed_numbers import pack, unpack
from steppe.compare.tasks.trace import TaskError

X = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def task(**changes: Any) -> Task:
    parts: dict[str, Any] = {
        "name": "unusual",
        "model": lambda: nn.Linear(4, 1),
        "train": (X, Y),
        "validation": 0.3,
        "test": 0.3,
        "loss": F.mse_loss,
        "epochs": 2,
    }
    return Task(**{**parts, **changes})


def studied(made: Task, out: Path, optimizers: tuple[Any, ...] = ("sgd",), **options: Any) -> Study:
    found = run(made, optimizers, budget=1, trials=3, out_dir=out, **options)
    assert found.complete
    # It can be read again, from its storage and from its file, and shown.
    assert load(out).complete
    assert load(found.save(out / "study.json")).complete
    assert found.report(out / "page.html").is_file()
    return found


SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "signed, in thousands": lambda x, y: (2000 * (x - y)).squeeze(1),
    "infinite": lambda x, y: (x - y).squeeze(1).abs() * math.inf,
    "tiny": lambda x, y: 1e-9 * (x - y).squeeze(1).square(),
}


@pytest.mark.parametrize("kind", SCORES)
def test_a_score_of_any_size_can_be_kept(kind: str, tmp_path: Path) -> None:
    metric = Metric(SCORES[kind], higher_is_better=False)
    if kind == "infinite":
        with pytest.raises(TaskError, match="expected a finite number"):
            studied(task(metrics={"m": metric}), tmp_path)
        return
    found = studied(task(metrics={"m": metric}), tmp_path)
    assert not [trial.error for trial in found.results.trials if trial.error]


class NanLater:
    """A metric that is no number in trials, though it was in the rehearsal."""

    calls = 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return (outputs - targets).squeeze(1).abs() * (1.0 if self.calls < 5 else math.nan)


def test_a_score_that_is_no_number_counts_as_the_worst(tmp_path: Path) -> None:
    metric = Metric(NanLater(), higher_is_better=False)
    found = studied(task(metrics={"m": metric}), tmp_path)
    assert all(trial.outcome for trial in found.results.trials)


def test_small_numbers_keep_three_digits() -> None:
    values = [2.09e-10, 3.1e-10, 0.0, 1e-12]
    assert unpack(pack(values)).tolist() == pytest.approx(values, rel=1e-6)
    # Losses near 1 take two bytes each, whatever small ones are among them.
    assert pack([1.0, 0.5, 1e-9]).startswith("halves")


class Noted(nn.Module):
    """Notes its mode in each training step; it comes in eval() mode, as pretrained models do."""

    modes: ClassVar[list[bool]] = []

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(4, 1), nn.Dropout(0.5)
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.modes.append(self.training)
        return self.layer(self.dropout(inputs))


def test_a_model_that_comes_in_eval_mode_is_trained_in_train_mode(tmp_path: Path) -> None:
    run(task(model=Noted), ["sgd"], budget=1, trials=3, out_dir=tmp_path)
    # Curvature is measured in eval() mode, after training.
    assert Noted.modes[0] is True
    assert all(Noted.modes[:4])


class Error:
    """A metric with torchmetrics' interface, of which less is better."""

    higher_is_better = False

    def __init__(self) -> None:
        self.sum = 0.0

    def __call__(self, *_: Tensor) -> None:
        raise AssertionError

    def to(self, _: torch.device) -> "Error":
        return self

    def reset(self) -> None:
        self.sum = 0.0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.sum += float((outputs - targets).abs().sum())

    def compute(self) -> float:
        return self.sum


def test_what_is_better_is_what_the_metric_says() -> None:
    assert task(metrics={"error": Error()}).score.higher_is_better is False
    assert Metric(Error()).higher_is_better is False
    assert Metric(Error(), higher_is_better=True).higher_is_better is True
    assert Metric(lambda x, y: x).higher_is_better is True


def layer(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 1))


def scaled(alpha: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: alpha * F.mse_loss(x, y)


def test_other_arguments_make_another_task() -> None:
    assert function_source([partial(layer, 2)]) != function_source([partial(layer, 64)])
    assert function_source([scaled(1.0)]) != function_source([scaled(100.0)])
    assert function_source([scaled(1.0)]) == function_source([scaled(1.0)])

    def identity(**changes: Any) -> str:
        made = task(**changes)
        return find_task(made).identity(made, new_model(made))

    widths = {identity(model=partial(layer, width)) for width in (2, 64)}
    ways = {identity(metrics={"m": Metric(F.mse_loss, better)}) for better in (True, False)}
    assert len(widths) == len(ways) == 2
    assert identity() == identity()


def test_every_row_of_shares_held_out_is_hashed() -> None:
    x = torch.randn(5_000, 2, generator=torch.Generator().manual_seed(0))
    y = x.sum(1, keepdim=True)
    changed = y.clone()
    changed[1_234] += 1
    for make in (lambda x, y: (x, y), TensorDataset):
        prints = {task(train=make(x, each)).load().data.fingerprint for each in (y, y, changed)}
        assert len(prints) == 2


class SometimesFlipped(Dataset[tuple[Tensor, Tensor]]):
    """Augments one sample in ten."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        sign = -1 if torch.rand(()) < 0.1 else 1
        return sign * X[row], Y[row]


def test_rare_augmentation_changes_no_hash_beside_plain_samples_and_needs_these() -> None:
    prints = {
        task(train=SometimesFlipped(), plain=(X, Y)).load().data.fingerprint for _ in range(5)
    }
    assert len(prints) == 1
    parts = {"validation": (X, Y), "test": (X, Y)}
    for _ in range(5):
        with pytest.raises(ValueError, match="give the same samples without it as plain="):
            task(train=SometimesFlipped(), **parts).load()


@pytest.mark.parametrize(
    ("choices", "message"),
    [((True, False), "must be finite numbers"), (("a",), "must be finite"), ((), "must be finite")],
)
def test_choices_are_numbers(choices: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Choice(choices)


def test_names_of_contenders_have_no_blanks_around_them() -> None:
    with pytest.raises(ValueError, match="' mine ' must be 1 to 60 characters, without blanks"):
        Contender(" mine ", lambda model: torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_task_with_the_name_of_one_of_steppes_is_another(tmp_path: Path) -> None:
    found = studied(task(name="finetune"), tmp_path)
    assert found.results.setup["precision"] == "no"
    assert "weight_decay" in found.results.contenders[0].space


def test_a_stream_has_a_constant_lr_unless_another_is_asked_for(tmp_path: Path) -> None:
    parts = {
        name: Stream([list(zip(X, Y, strict=True))] * 2) for name in ("train", "validation", "test")
    }
    found = studied(task(**parts), tmp_path / "usual")
    assert found.results.setup["schedule"] == "constant"
    found = studied(task(**parts), tmp_path / "asked", schedule="cosine")
    assert found.results.setup["schedule"] == "cosine"


def test_convolutions_of_volumes_are_trained(tmp_path: Path) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(16, 1))

    volumes = torch.randn(40, 1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    targets = volumes.mean((1, 2, 3, 4))[:, None]
    found = studied(task(model=model, train=(volumes, targets)), tmp_path)
    assert not [trial.error for trial in found.results.trials if trial.error]


def test_a_last_batch_that_cannot_be_trained_is_seen_before(tmp_path: Path) -> None:
    model = partial(nn.Sequential, nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    # 36 samples, in batches of 5: one is left.
    with pytest.raises(TaskError, match="last batch, of 1 samples, cannot be trained: choose ano"):
        run(task(model=model, batch_size=5), ["sgd"], budget=1, trials=3, out_dir=tmp_path)


def test_a_loader_is_no_data_set() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=8)
    with pytest.raises(TypeError, match="train is a DataLoader, whose items are batches"):
        task(train=loader).load()


def test_a_loss_that_no_curvature_can_be_measured_of_ends_its_trial(tmp_path: Path) -> None:
    """The mean over a batch of what depends on all of it."""

    def contrast(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs - outputs.mean(), targets - targets.mean())

    found = studied(task(loss=contrast), tmp_path)
    assert not [trial.error for trial in found.results.trials if trial.error]
