"""Tasks that are unusual, but right: a study of each ends, and can be read again."""

import importlib
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
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
        return (outputs - targets).squeeze(1).abs() * (1.0 if self.calls < 8 else math.nan)


def test_a_score_that_is_no_number_counts_as_the_worst(tmp_path: Path) -> None:
    metric = Metric(NanLater(), higher_is_better=False)
    found = studied(task(metrics={"m": metric}), tmp_path)
    assert all(trial.outcome for trial in found.results.trials)


@pytest.mark.filterwarnings("ignore:With 3 trials")
def test_where_no_trial_has_a_score_there_is_nothing_to_compare(tmp_path: Path) -> None:
    def at_first(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.where(outputs == 0, 1.0, math.nan).squeeze(1)

    def zero() -> nn.Module:
        model = nn.Linear(4, 1)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        return model

    made = task(model=zero, metrics={"m": at_first})
    found = studied(made, tmp_path, ("sgd", "adamw"))
    assert all(math.isnan(t.outcome.final.test_score) for t in found.results.trials)
    (verdict,) = found.verdicts()
    assert verdict.verdict == "no verdict: no trial has a result"
    assert all(math.isnan(x) for x in (verdict.estimate, verdict.low, verdict.high, verdict.p))
    text = str(found)
    assert "All trials diverged, failed, or ended without a result" in text
    assert "No m (NaN), though a finite loss, have 3 of sgd and 3 of adamw" in text


class Viewing(nn.Module):
    """LeNet as it is often written: its maps are flattened by view()."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 4, 2), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.first(x.view(-1, 1, 2, 2).expand(-1, 2, -1, -1))
        return self.last(maps.view(maps.size(0), -1))


class Flattening(torch.optim.SGD):
    """An optimizer that sees kernels as matrices, as Muon does."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.view(len(p), -1)
                    p.data.view(-1)
        return super().step(closure)


@pytest.mark.filterwarnings("ignore:With 3 trials")
def test_models_are_trained_in_the_memory_format_that_they_have(tmp_path: Path) -> None:
    flat = Contender("flattening", lambda model, lr=1e-2: Flattening(model.parameters(), lr=lr))
    found = studied(task(model=Viewing), tmp_path, ("sgd", flat, "lbfgs"))
    assert not [trial.error for trial in found.results.trials if trial.error]


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
    torch.manual_seed(0)
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
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

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


VECTORS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
NET = nn.Linear(4, 1)


class Pretrained(nn.Module):
    """Trains the vectors that it was given, as Embedding.from_pretrained does."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors, self.head = nn.Parameter(vectors), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x @ self.vectors)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "model", [lambda: Pretrained(VECTORS), lambda: NET, lambda: nn.Sequential(NET, nn.Linear(1, 1))]
)
def test_models_that_share_weights_are_refused(
    model: Callable[[], nn.Module], tmp_path: Path
) -> None:
    """Each trial began where the last one had ended."""
    with pytest.raises(TaskError, match="returns models that share memory"):
        run(task(model=model), ["sgd"], budget=1, trials=3, out_dir=tmp_path)


def test_models_may_share_what_no_training_changes(tmp_path: Path) -> None:
    def model() -> nn.Module:
        frozen = nn.Linear(4, 4)
        frozen.weight = nn.Parameter(torch.eye(4), requires_grad=False)
        return nn.Sequential(frozen, Pretrained(VECTORS.clone()))

    assert studied(task(model=model), tmp_path).complete


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": lambda: nn.LazyLinear(1)}, "has lazy modules"),
        ({"loss": nn.Sequential(nn.Linear(1, 1))}, "loss has parameters of its own"),
    ],
)
def test_what_would_be_trained_by_nobody_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(task(**changes), ["sgd"], budget=1, trials=3, out_dir=tmp_path)


def test_numpys_numbers_are_numbers() -> None:
    made = task(batch_size=np.int64(16), epochs=np.int32(2), max_grad_norm=np.float32(1))
    assert [type(each) for each in (made.batch_size, made.epochs, made.max_grad_norm)] == [
        int, int, float,
    ]  # fmt: skip


class Scaled:
    """A loss as an object with an attribute."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.factor * F.mse_loss(outputs, targets)


def test_what_a_task_is_bound_to_makes_it_another() -> None:
    def source(**changes: Any) -> str:
        return find_task(task(**changes)).source

    def defaulted(value: float) -> Any:
        return lambda outputs, targets, v=value: v * F.mse_loss(outputs, targets)

    def around(module: nn.Module) -> Any:
        return lambda: nn.Sequential(module, nn.Linear(1, 1))

    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"loss": Scaled(1.0)}, {"loss": Scaled(2.0)}),
        ({"loss": defaulted(1.0)}, {"loss": defaulted(2.0)}),
        ({"loss": nn.SmoothL1Loss(beta=1.0)}, {"loss": nn.SmoothL1Loss(beta=2.0)}),
        ({"model": around(nn.Tanh())}, {"model": around(nn.ReLU())}),
        ({"sample_weights": [1.0] * len(X)}, {"sample_weights": [2.0] * len(X)}),
    ]
    for one, other in pairs:
        assert source(**one) != source(**other)
        assert source(**one) == source(**one)


CELL = """
from torch import nn
class Net(nn.Linear):
    def forward(self, x):
        return FACTOR * super().forward(x)
FACTOR = {factor}
def helped(outputs, targets):
    return nn.functional.mse_loss(outputs, targets) * {scale}
def loss(outputs, targets):
    return helped(outputs, targets)
"""


@pytest.mark.parametrize("changed", [{"factor": 2}, {"scale": 2}, {"class": "tanh"}])
def test_what_a_notebook_defines_anew_makes_another_task(changed: dict[str, Any]) -> None:
    def source(**given: Any) -> str:
        cell: dict[str, Any] = {"__name__": "a notebook's"}
        text = CELL.format(**{"factor": 1, "scale": 1, **given})
        if "class" in given:
            text = text.replace("super().forward(x)", "super().forward(x).tanh()")
        exec(text, cell)
        made = eval("lambda: Net(4, 1)", cell)
        return find_task(task(model=made, loss=cell["loss"])).source

    assert source() == source()
    assert source() != source(**changed)


@pytest.mark.parametrize("place", ["model", "loss", "metrics"])
def test_an_edited_file_makes_another_task_wherever_it_is_used(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def source(body: str) -> str:
        (tmp_path / "edited_parts.py").write_text(f"def part(*given):\n    {body}\n")
        importlib.invalidate_caches()
        sys.modules.pop("edited_parts", None)
        part = importlib.import_module("edited_parts").part
        return find_task(task(**{place: {"m": part} if place == "metrics" else part})).source

    assert source("return 1") != source("return 2")
    assert source("return 1") == source("return 1  # a comment")
    sys.modules.pop("edited_parts")


class WithOwnLoss(nn.Module):
    """Returns its loss, as Hugging Face's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        outputs = self.map(x)
        return SimpleNamespace(logits=outputs, loss=F.mse_loss(outputs, labels))


def test_a_loss_that_a_model_returns_says_nothing_of_single_samples(tmp_path: Path) -> None:
    """Each had its batch's loss: the interval of the test samples was 4.6 times too narrow."""
    named = {"x": X, "labels": Y}
    found = studied(task(model=WithOwnLoss, loss=None, train=named), tmp_path)
    for trial in found.results.trials:
        assert not unpack(trial.outcome.samples.test_losses).size


class Keeping(Dataset[tuple[Tensor, Tensor]]):
    """Keeps what it has read."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.kept.setdefault(row, (X[row], Y[row]))


def test_a_data_set_that_keeps_what_it_has_read_is_the_same_in_the_next_call(
    tmp_path: Path,
) -> None:
    made = task(train=Keeping())
    first = studied(made, tmp_path)
    again = run(made, ["sgd"], budget=1, trials=3, out_dir=tmp_path)
    assert again.results.name == first.results.name == load(tmp_path).results.name
    assert again.to_csv() == first.to_csv()
    # What the user changes is another task all the same.
    made.train.rows = 3  # type: ignore[attr-defined]
    assert find_task(made).source != find_task(task(train=Keeping())).source


def test_what_weights_samples_are_drawn_by_is_a_part_of_the_data() -> None:
    weights = (None, torch.ones(90), torch.ones(90), torch.arange(90.0) + 1)
    prints = [task(sample_weights=each).load().data.fingerprint for each in weights]
    assert len(set(prints)) == 3
    assert prints[1] == prints[2]


def against_others(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Return a contrastive loss: which of the batch's samples it is."""
    inputs, _ = batch
    vectors = F.normalize(model(inputs), dim=1)
    return F.cross_entropy(5 * vectors @ vectors.T, torch.arange(len(inputs)))


def placed() -> nn.Module:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(torch.arange(12.0).reshape(3, 4).sin())
        model.bias.zero_()
    return model


def test_a_step_that_compares_samples_is_evaluated_in_the_batches_of_training(
    tmp_path: Path,
) -> None:
    """In batches of 500 it was another loss than in training, and in each part another."""
    made = task(model=placed, loss=None, step=against_others, batch_size=8, epochs=1)
    found = run(made, ["sgd"], budget=1, trials=3, out_dir=tmp_path, lr=1e-12, weight_decay=0.0)
    test, model = made.load().data.test, placed().eval()
    rows = [test[row] for row in range(27)]
    batches = [[torch.stack(x) for x in zip(*rows[i : i + 8], strict=True)] for i in (0, 8, 16, 24)]
    truth = sum(against_others(model, batch).item() * len(batch[0]) for batch in batches) / 27
    for trial in found.results.trials:
        assert trial.outcome is not None
        assert trial.outcome.final.test_loss == pytest.approx(truth)


def test_tables_of_pandas_are_samples() -> None:
    pandas = pytest.importorskip("pandas")
    table, column = pandas.DataFrame(X.numpy()), pandas.Series(Y.numpy()[:, 0])
    inputs, target = task(train=(table, column)).load().data.train[0]
    assert torch.equal(inputs, X[0]) or inputs.shape == (4,)
    assert target.ndim == 0
    with pytest.raises(TypeError, match="train must have numbers alone"):
        task(train=(pandas.DataFrame({"a": ["b"] * 90}), column)).load()
    with pytest.raises(TypeError, match="train is one table: give a tuple of inputs and targets"):
        task(train=table).load()


@pytest.mark.parametrize("given", [[X, Y], (X.tolist(), Y.tolist()), (X, Y.tolist())])
def test_inputs_and_targets_that_would_be_two_samples_are_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="give a tuple of tensors or arrays"):
        task(train=given).load()
