"""SAM in Hugging Face's Trainer: a plain loop's passes, under accumulation and all the rest."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

import steppe
from helpers.sam_loop import KINDS, data, make_sam, network, same, train
from helpers.torchvision_shim import torchvision  # noqa: F401
from steppe.integrations.transformers import (
    SAMMixin,
    SAMTrainer,
    TrainerDiagnostics,
    optimizer_named,
)
from steppe.landscape import Monitor

from transformers import Trainer, TrainingArguments  # isort: skip

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


class Classifier(nn.Module):
    """A network as Trainer takes it: keyword arguments in, a loss and logits out."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.body = network(seed)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.body(x)
        return {"loss": F.cross_entropy(logits.float(), labels), "logits": logits}


SAMPLES = [{"x": x, "labels": y} for x, y in zip(*data(), strict=True)]


class InOrder(Trainer):
    """Batches in the order of the data, so that a plain loop can have the same ones."""

    def _get_train_sampler(self, *arguments: Any) -> SequentialSampler:
        return SequentialSampler(SAMPLES)


class InOrderSAM(SAMMixin, InOrder):
    """A subclass of one's own with SAM's passes."""


def arguments(out: Path, **options: Any) -> TrainingArguments:
    usual: dict[str, Any] = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "lr_scheduler_type": "constant",
        "seed": 7,
        "max_grad_norm": 0.0,
    }
    return TrainingArguments(str(out), **{**usual, **options})


def batches(size: int = 8) -> list[tuple[Tensor, Tensor]]:
    x, y = data()
    return list(zip(x.split(size), y.split(size), strict=True))


def loss_of(model: Any, batch: Any) -> Tensor:
    return model(*batch)["loss"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize(("clip", "bf16"), [(None, False), (0.1, False), (0.1, True)])
def test_the_passes_are_those_of_a_plain_loop(
    kind: str, accumulate: int, clip: float | None, bf16: bool, tmp_path: Path
) -> None:
    model = Classifier()
    sam = make_sam(model.parameters(), kind)
    given = arguments(
        tmp_path, gradient_accumulation_steps=accumulate, max_grad_norm=clip or 0.0, bf16=bf16
    )
    trainer = InOrderSAM(model, given, train_dataset=SAMPLES, optimizers=(sam, None))
    trainer.train()
    plain = Classifier()
    other = make_sam(plain.parameters(), kind)
    train(plain, other, batches(), loss_of, accumulate=accumulate, clip=clip, bf16=bf16)
    same(model, plain, bf16=bf16)
    if sam.has_two_passes:
        assert sam.diagnostics()["ascents"] == other.diagnostics()["ascents"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_its_checkpoint(kind: str, tmp_path: Path) -> None:
    def trained(out: Path, epochs: int, resume: bool) -> Classifier:
        model = Classifier()
        kwargs = {"base": torch.optim.AdamW, **KINDS[kind]}
        torch.manual_seed(7)
        trainer = InOrderSAM(
            model,
            arguments(
                out, max_steps=epochs * 3, num_train_epochs=3, save_strategy="steps", save_steps=3,
                learning_rate=0.05, gradient_accumulation_steps=2,
            ),
            train_dataset=SAMPLES,
            optimizer_cls_and_kwargs=(steppe.SAM, {**kwargs, "lr": 0.05}),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume or None)
        return model

    whole = trained(tmp_path / "whole", 2, resume=False)
    trained(tmp_path / "parts", 1, resume=False)
    parts = trained(tmp_path / "parts", 2, resume=True)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)


class Failing(Classifier):
    """A model whose third pass raises."""

    calls = 0

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("stopped")
        return super().forward(x, labels)


@pytest.mark.parametrize("kind", ["sam", "msam"])
def test_a_pass_that_raises_leaves_the_parameters_as_they_are(kind: str, tmp_path: Path) -> None:
    model = Failing()
    before = [p.detach().clone() for p in model.parameters()]
    given = arguments(tmp_path, gradient_accumulation_steps=3 if kind == "msam" else 2)
    sam = make_sam(model.parameters(), kind)
    with pytest.raises(RuntimeError, match="stopped"):
        InOrderSAM(model, given, train_dataset=SAMPLES, optimizers=(sam, None)).train()
    assert all(map(torch.equal, before, [p.detach() for p in model.parameters()]))


def test_a_plain_trainer_is_told_that_it_trains_without_sam(tmp_path: Path) -> None:
    model = Classifier()
    trainer = Trainer(
        model, arguments(tmp_path), train_dataset=SAMPLES,
        optimizers=(make_sam(model.parameters(), "sam"), None),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=r"SAM.step\(\) without a second pass"):
        trainer.train()
    other = SAMTrainer(
        Classifier(), arguments(tmp_path), train_dataset=SAMPLES,
        optimizer_cls_and_kwargs=(steppe.DualAdam, {"lr": 1e-3}),
    )  # fmt: skip
    with pytest.raises(TypeError, match=r"is no SAM: expected steppe\.SAM"):
        other.train()


def test_an_engine_that_steps_by_itself_is_refused(tmp_path: Path) -> None:
    from accelerate.utils import DistributedType

    model = Classifier()
    trainer = SAMTrainer(
        model, arguments(tmp_path), train_dataset=SAMPLES,
        optimizers=(make_sam(model.parameters(), "sam"), None),
    )  # fmt: skip
    trainer.accelerator.state.distributed_type = DistributedType.DEEPSPEED
    try:
        with pytest.raises(RuntimeError, match="SAM does not train under DEEPSPEED: its engine"):
            trainer.training_step(model, SAMPLES[0])
    finally:
        trainer.accelerator.state.distributed_type = DistributedType.NO


@pytest.mark.parametrize(
    ("name", "kind", "base"),
    [
        ("dualadam", steppe.DualAdam, None),
        ("AdamCM", steppe.AdamCM, None),
        ("sgd", torch.optim.SGD, None),
        ("adamw+sam", steppe.SAM, torch.optim.AdamW),
        ("dualadam+msam", steppe.SAM, steppe.DualAdam),
        ("adamw+latesam", steppe.SAM, torch.optim.AdamW),
    ],
)
def test_optimizers_by_name(name: str, kind: type, base: type | None, tmp_path: Path) -> None:
    given = arguments(tmp_path, learning_rate=0.02, max_steps=5, weight_decay=0.1)
    cls, options = optimizer_named(name, given)
    assert cls is kind
    trainer_class = InOrderSAM if "+" in name else InOrder
    trainer = trainer_class(
        Classifier(), given, train_dataset=SAMPLES, optimizer_cls_and_kwargs=(cls, options)
    )
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert type(getattr(optimizer, "base_optimizer", optimizer)) is (base or kind)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.param_groups[0]["lr"] == 0.02
    if "dualadam" in name:
        assert optimizer.param_groups[0]["switch_rate"] == 1.0  # 16 % of 5 steps are none


def test_names_that_there_are_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no optimizer is called 'dualadm': did you mean dualadam"):
        optimizer_named("dualadm", arguments(tmp_path))
    with pytest.raises(ValueError, match="no modifier of adamw is called 'warmup'"):
        optimizer_named("adamw+warmup", arguments(tmp_path))


def test_diagnostics_are_logged_beside_the_loss(tmp_path: Path) -> None:
    given = arguments(tmp_path, logging_steps=2, learning_rate=0.01)
    trainer = InOrder(
        Classifier(), given, train_dataset=SAMPLES,
        optimizer_cls_and_kwargs=optimizer_named("dualadam", given, total_steps=5),
    )  # fmt: skip
    trainer.add_callback(TrainerDiagnostics(trainer))
    trainer.train()
    logged = [x for x in trainer.state.log_history if "optimizer/alpha" in x]
    assert [x["step"] for x in logged] == [2, 4]
    assert logged[0]["optimizer/steps_to_switch"] == 0
    assert any("loss" in x for x in trainer.state.log_history)


def test_curvature_is_logged_and_changes_nothing(tmp_path: Path) -> None:
    x, y = data()
    ends = []
    for watch in (False, True):
        given = arguments(tmp_path, logging_steps=2, learning_rate=0.01)
        model = Classifier()
        trainer = InOrderSAM(
            model,
            given,
            train_dataset=SAMPLES,
            optimizers=(make_sam(model.parameters(), "sam"), None),
        )

        def make(model: Any, optimizer: Any) -> Monitor:
            return Monitor(model, None, [{"x": x, "labels": y}], optimizer, every=2)

        if watch:
            trainer.add_callback(TrainerDiagnostics(trainer, make))
        trainer.train()
        ends.append(model)
    for one, other in zip(*(end.parameters() for end in ends), strict=True):
        assert torch.equal(one, other)
    logged = [row for row in trainer.state.log_history if "monitor/lambda_max" in row]
    assert [row["monitor/step"] for row in logged] == [2, 4]
    assert all(row["monitor/lambda_max"] > 0 and row["monitor/stability"] > 0 for row in logged)


def test_a_model_of_hugging_face_trains(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=50, dim=16, hidden_dim=32, n_layers=1, n_heads=2,
        max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    ids = torch.randint(50, (64, 8), generator=torch.Generator().manual_seed(0))
    samples = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": (row[0] < 25).long()}
        for row in ids
    ]
    given = arguments(tmp_path, num_train_epochs=8, learning_rate=5e-3, max_grad_norm=1.0)
    trainer = SAMTrainer(
        DistilBertForSequenceClassification(config), given, train_dataset=samples,
        optimizer_cls_and_kwargs=optimizer_named("adamw+sam", given),
    )  # fmt: skip
    assert trainer.train().training_loss < 0.68


class Counting(Classifier):
    """Notes the sizes of its batches; one of the passes fails."""

    def __init__(self, fails_at: int = 0, message: str = "stopped") -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.fails_at, self.message = fails_at, message

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.sizes.append(len(x))
        if len(self.sizes) == self.fails_at:
            raise RuntimeError(self.message)
        return super().forward(x, labels)


def counting_trainer(model: nn.Module, out: Path, **options: Any) -> InOrderSAM:
    sam = make_sam(model.parameters(), "sam")
    given = arguments(out, gradient_accumulation_steps=2, max_steps=1, **options)
    return InOrderSAM(model, given, train_dataset=SAMPLES, optimizers=(sam, None))


def test_batches_of_a_step_that_was_not_taken_are_forgotten(tmp_path: Path) -> None:
    model = Counting(fails_at=2)
    trainer = counting_trainer(model, tmp_path)
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.train()
    model.sizes.clear()
    model.fails_at = 0
    trainer.train()
    assert model.sizes == [8] * 4


def test_smaller_batches_are_tried_without_those_that_were_too_large(tmp_path: Path) -> None:
    model = Counting(fails_at=2, message="CUDA out of memory. Tried to allocate")
    counting_trainer(model, tmp_path, auto_find_batch_size=True).train()
    assert model.sizes[:2] == [8, 8]
    assert len(model.sizes) == 6
    assert set(model.sizes[2:]) == {model.sizes[2]} != {8}


class TakesOut(InOrderSAM):
    """Takes the labels out of its inputs, as Trainer does to smooth them."""

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **given: Any) -> Any:
        return F.cross_entropy(model.body(inputs["x"]), inputs.pop("labels"))


class ChangesInPlace(InOrderSAM):
    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **given: Any) -> Any:
        return F.cross_entropy(model.body(inputs["x"].mul_(2)), inputs["labels"])


def test_what_the_first_pass_takes_out_is_there_in_the_second(tmp_path: Path) -> None:
    model, plain = Classifier(), Classifier()
    sam, other = (make_sam(each.parameters(), "sam") for each in (model, plain))
    TakesOut(model, arguments(tmp_path), train_dataset=SAMPLES, optimizers=(sam, None)).train()
    train(plain, other, batches(), loss_of)
    same(model, plain)


def test_a_batch_that_the_first_pass_changes_in_place_is_refused(tmp_path: Path) -> None:
    model = Classifier()
    sam = make_sam(model.parameters(), "sam")
    samples = [{name: x.clone() for name, x in each.items()} for each in SAMPLES]
    trainer = ChangesInPlace(
        model, arguments(tmp_path), train_dataset=samples, optimizers=(sam, None)
    )
    with pytest.raises(RuntimeError, match="changed a batch in place"):
        trainer.train()


def test_options_that_are_of_another_kind_are_left_out(tmp_path: Path) -> None:
    """Adafactor's eps is a pair, and the Trainer's a number."""
    given = arguments(tmp_path, max_steps=2)
    trainer = InOrder(
        Classifier(), given, train_dataset=SAMPLES,
        optimizer_cls_and_kwargs=optimizer_named("adafactor", given),
    )  # fmt: skip
    trainer.train()
    assert trainer.optimizer.param_groups[0]["eps"] == (None, 1e-3)


def test_the_last_measurements_are_logged(tmp_path: Path) -> None:
    x, y = data()
    given = arguments(tmp_path, logging_steps=3, max_steps=5)
    trainer = InOrder(
        Classifier(), given, train_dataset=SAMPLES,
        optimizer_cls_and_kwargs=optimizer_named("dualadam", given),
    )  # fmt: skip

    def make(model: Any, optimizer: Any) -> Monitor:
        return Monitor(model, None, [{"x": x, "labels": y}], optimizer, every=1)

    trainer.add_callback(TrainerDiagnostics(trainer, make))
    trainer.train()
    logged = [row["monitor/step"] for row in trainer.state.log_history if "monitor/step" in row]
    assert logged == [1, 2, 3, 4, 5]


class PopsBase(InOrder):
    def training_step(self, model: Any, inputs: Any, *arguments: Any, **given: Any) -> Any:
        inputs.pop("weight")
        return super().training_step(model, inputs, *arguments, **given)


class PopsSAM(SAMMixin, PopsBase):
    pass


class SkipsBase(InOrder):
    """Skips the first batch of a step, or both."""

    skipped: tuple[int, ...] = ()
    count = 0

    def training_step(self, model: Any, inputs: Any, *arguments: Any, **given: Any) -> Any:
        self.count += 1
        if self.count in self.skipped:
            return torch.zeros(())
        return super().training_step(model, inputs, *arguments, **given)


class SkipsSAM(SAMMixin, SkipsBase):
    pass


class AlternatesBase(InOrder):
    """Has one loss and another in turn, as its own count says."""

    count = 0

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **given: Any) -> Any:
        self.count += 1
        self.kinds.append(self.count)
        return super().compute_loss(model, inputs)


class AlternatesSAM(SAMMixin, AlternatesBase):
    pass


def test_what_training_step_takes_out_is_there_in_the_second_pass(tmp_path: Path) -> None:
    model, plain = Classifier(), Classifier()
    sam, other = (make_sam(each.parameters(), "sam") for each in (model, plain))
    samples = [{**each, "weight": torch.ones(())} for each in SAMPLES]
    PopsSAM(
        model, arguments(tmp_path, remove_unused_columns=False), train_dataset=samples,
        optimizers=(sam, None),
    ).train()  # fmt: skip
    train(plain, other, batches(), loss_of)
    same(model, plain)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("skipped", [(1,), (2,), (1, 2), (5,)])
def test_batches_that_are_skipped_take_no_part(
    accumulate: int, skipped: tuple[int, ...], tmp_path: Path
) -> None:
    model = Classifier()
    sam = make_sam(model.parameters(), "sam")
    given = arguments(tmp_path, gradient_accumulation_steps=accumulate)
    trainer = SkipsSAM(model, given, train_dataset=SAMPLES, optimizers=(sam, None))
    trainer.skipped = skipped
    trainer.train()
    windows = [range(i, min(i + accumulate, 6)) for i in range(1, 6, accumulate)]
    taken = [window for window in windows if not set(window) <= set(skipped)]
    assert sam.diagnostics()["ascents"] == len(taken)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_both_passes_of_a_batch_have_one_count(accumulate: int, tmp_path: Path) -> None:
    model = Classifier()
    sam = make_sam(model.parameters(), "sam")
    given = arguments(tmp_path, gradient_accumulation_steps=accumulate, max_steps=2)
    trainer = AlternatesSAM(model, given, train_dataset=SAMPLES, optimizers=(sam, None))
    trainer.kinds = []
    trainer.train()
    assert trainer.kinds == ([1, 1, 2, 2] if accumulate == 1 else [1, 2, 1, 2, 3, 4, 3, 4])
    assert trainer.count == 2 * accumulate


class PreparesMoreLater(InOrderSAM):
    count = 0

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **given: Any) -> Any:
        self.seen = [*getattr(self, "seen", []), 1]
        if len(self.seen) > 1:
            self._prepare_inputs(inputs)
        return super().compute_loss(model, inputs)


def test_a_second_pass_that_prepares_more_is_refused(tmp_path: Path) -> None:
    model = Classifier()
    sam = make_sam(model.parameters(), "sam")
    trainer = PreparesMoreLater(
        model, arguments(tmp_path), train_dataset=SAMPLES, optimizers=(sam, None)
    )
    with pytest.raises(RuntimeError, match="prepares inputs that the first one has not"):
        trainer.train()
