"""SAM in TRL's trainers: the passes of a plain loop, both of them on the same completions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import SequentialSampler

import steppe
from helpers.torchvision_shim import torchvision  # noqa: F401
from steppe.integrations.transformers import SAMMixin

from datasets import Dataset  # isort: skip
from tokenizers import Tokenizer, models, pre_tokenizers  # isort: skip
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # isort: skip
from trl import (  # isort: skip
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    SFTConfig,
    SFTTrainer,
)

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore")]

WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(30))]


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        padding_side="left",
    )  # fmt: skip


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64,
        pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def sam_of(model: LlamaForCausalLM, **options: Any) -> steppe.SAM:
    return steppe.SAM(model.parameters(), torch.optim.AdamW, lr=1e-2, **options)


def options(out: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(out), "report_to": "none", "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "per_device_train_batch_size": 4, "max_steps": 3,
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
        "lr_scheduler_type": "constant", **more,
    }  # fmt: skip


class InOrder(SFTTrainer):
    """Batches in the order of the data, so that a plain loop can have the same ones."""

    def _get_train_sampler(self, *arguments: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class Tuned(SAMMixin, InOrder):
    """A subclass of one's own, as of any Trainer."""


@pytest.mark.parametrize("accumulate", [1, 2])
def test_fine_tuning_takes_the_passes_of_a_plain_loop(accumulate: int, tmp_path: Path) -> None:
    rows = torch.randint(3, 33, (24, 8), generator=torch.Generator().manual_seed(0))
    model = llama()
    sam = sam_of(model)
    given = SFTConfig(
        max_length=16, max_grad_norm=0.1, gradient_accumulation_steps=accumulate,
        **options(tmp_path),
    )  # fmt: skip
    trainer = Tuned(
        model, given, processing_class=tokenizer(), optimizers=(sam, None),
        train_dataset=Dataset.from_list([{"input_ids": row.tolist()} for row in rows]),
    )  # fmt: skip
    trainer.train()
    plain = llama()
    other = sam_of(plain)
    for step in rows.split(4 * accumulate)[:3]:
        batches = step.split(4)

        def passes(batches: Any = batches) -> None:
            for batch in batches:
                (plain(input_ids=batch, labels=batch).loss / len(batches)).backward()

        other.zero_grad()
        passes()
        with other.perturbed():
            passes()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        other.step()
    assert sam.diagnostics()["ascents"] == other.diagnostics()["ascents"] == 3
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        # Of steps of 1e-2. Adam divides by √v: where a gradient is nearly 0, its rounding counts.
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5)
    tokens = [row["num_tokens"] for row in trainer.state.log_history if "num_tokens" in row]
    assert tokens == [32.0 * accumulate * step for step in (1, 2, 3)]  # of one pass


class Preferring(SAMMixin, DPOTrainer):
    pass


def test_preferences_train(tmp_path: Path) -> None:
    model = llama()
    sam = sam_of(model)
    before = [p.detach().clone() for p in model.parameters()]
    pairs = [
        {"prompt": f"w{n}", "chosen": f" w{n + 1}", "rejected": f" w{n + 2}"} for n in range(24)
    ]
    trainer = Preferring(
        model, ref_model=llama(), args=DPOConfig(max_length=16, **options(tmp_path)),
        train_dataset=Dataset.from_list(pairs), processing_class=tokenizer(),
        optimizers=(sam, None),
    )  # fmt: skip
    trainer.train()
    assert sam.diagnostics()["ascents"] == 3
    assert any(
        not torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True)
    )


class Rewarded(SAMMixin, GRPOTrainer):
    """Notes the number of the step and the completions of each pass."""

    def __init__(self, *arguments: Any, **given: Any) -> None:
        self.seen: list[tuple[int, list[list[int]]]] = []
        super().__init__(*arguments, **given)

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **given: Any) -> Any:
        self.seen.append((self._step, inputs["completion_ids"].tolist()))
        return super().compute_loss(model, inputs, *arguments, **given)


def rewarded(out: Path, sam_options: dict[str, Any]) -> Rewarded:
    def different_words(completions: list[str], **_: Any) -> list[float]:
        return [float(len(set(text.split()))) for text in completions]

    model = llama()
    given = GRPOConfig(
        num_generations=4, max_completion_length=6, gradient_accumulation_steps=2, **options(out)
    )
    return Rewarded(
        model, args=given, reward_funcs=different_words, processing_class=tokenizer(),
        train_dataset=Dataset.from_list([{"prompt": f"w{n}"} for n in range(24)]),
        optimizers=(sam_of(model, **sam_options), None),
    )  # fmt: skip


def test_both_passes_have_the_same_completions(tmp_path: Path) -> None:
    trainer = rewarded(tmp_path, {})
    trainer.train()
    completions = [ids for _, ids in trainer.seen]
    assert len(completions) == 12  # 3 steps of 2 batches, twice
    for step in range(3):
        first, second = completions[4 * step : 4 * step + 2], completions[4 * step + 2 :][:2]
        assert first == second
    assert len({str(ids) for ids in completions}) == 6
    assert trainer._step == 6  # batches, not passes


def test_one_pass_generates_as_without_sam(tmp_path: Path) -> None:
    trainer = rewarded(tmp_path, {"direction": "momentum"})
    trainer.train()
    assert [number for number, _ in trainer.seen] == list(range(6))


class OwnStep(InOrder):
    def training_step(self, *arguments: Any, **given: Any) -> Any:
        raise AssertionError("must be refused before")


class OwnStepWithSAM(SAMMixin, OwnStep):
    pass


def test_a_step_that_takes_its_samples_itself_is_refused(tmp_path: Path) -> None:
    model = llama()
    trainer = OwnStepWithSAM(
        model, SFTConfig(max_length=16, **options(tmp_path)), processing_class=tokenizer(),
        train_dataset=Dataset.from_list([{"input_ids": [3, 4, 5]}] * 8),
        optimizers=(sam_of(model), None),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=r"OwnStep\.training_step calls neither.*momentum"):
        trainer.train()
