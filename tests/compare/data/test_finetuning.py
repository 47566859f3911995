"""Text in a pretrained model's own tokens."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from helpers.tiny_llama import LINES, POSITIONS, save_tiny_llama
from steppe.compare.data import finetuning as module
from steppe.compare.data.corpora import Corpus
from steppe.compare.data.datasets import TensorSamples
from steppe.compare.data.finetuning import finetuning
from steppe.compare.models.pretrained import load_causal_model, load_tokenizer

PARTS = {"train": 12, "validation": 3, "test": 2}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for part, repeats in PARTS.items():
        (folder / f"{part}.txt").write_text("\n".join(LINES * repeats))
    return folder


def refuse(*arguments: Any) -> Any:
    raise AssertionError("the tokens are in the cache")


@pytest.mark.parametrize("part", PARTS)
def test_blocks_are_the_text_one_after_the_other(llama: str, text: Path, part: str) -> None:
    length = 7
    samples = getattr(finetuning(text, length=length, model=llama), part)
    assert isinstance(samples, TensorSamples)
    # The tokenizer's words are those between blanks and marks: 13 and 9 a line.
    count = 22 * PARTS[part]
    assert len(samples) == (count - 1) // length
    assert samples.inputs.dtype == samples.targets.dtype == torch.int64
    cut = load_tokenizer(llama)
    words = " ".join(LINES * PARTS[part]).replace(",", " ,").replace(":", " :").replace("'", "' ")
    found = cut.decode(samples.inputs.flatten(), clean_up_tokenization_spaces=False).split()
    assert found == words.split()[: len(found)]
    running = torch.cat([samples.inputs.flatten(), samples.targets[-1, -1:]])
    assert torch.equal(samples.targets.flatten(), running[1:])


def test_tokens_are_made_once_for_all_lengths_and_for_lora(
    llama: str, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finetuning(text, length=6, model=llama)
    monkeypatch.setattr(module, "load_tokenizer", refuse)
    again = finetuning(text, length=6, model=f"{llama}+lora")
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert first.fingerprint == again.fingerprint
    assert finetuning(text, length=5, model=llama).train.inputs.shape[1] == 5


def other_length(text: Path, llama: str, folder: Path) -> dict[str, Any]:
    return {"directory": text, "length": 5, "model": llama}


def other_text(text: Path, llama: str, folder: Path) -> dict[str, Any]:
    (text / "test.txt").write_text("To be, or not to be, or not.")
    return {"directory": text, "length": 6, "model": llama}


def other_weights(text: Path, llama: str, folder: Path) -> dict[str, Any]:
    other = str(save_tiny_llama(folder, torch.bfloat16))
    return {"directory": text, "length": 6, "model": other}


@pytest.mark.parametrize("change", [other_length, other_text, other_weights])
def test_other_data_have_another_fingerprint(
    llama: str, text: Path, tmp_path: Path, change: Callable[..., dict[str, Any]]
) -> None:
    first = finetuning(text, length=6, model=llama).fingerprint
    assert finetuning(**change(text, llama, tmp_path / "other")).fingerprint != first


def test_shakespeare_is_the_default(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Corpus("to be or not", "to suffer the", "nobler in the")
    monkeypatch.setattr("steppe.compare.data.corpora.shakespeare", lambda: short)
    data = finetuning(length=2, model=llama)
    assert load_tokenizer(llama).decode(data.test.inputs[0]) == "nobler in"


def test_a_long_text_is_nothing_to_warn_of(
    llama: str, text: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    (text / "train.txt").write_text("\n".join(LINES * 2000))
    data = finetuning(text, length=8, model=llama)
    assert len(data.train) == (22 * 2000 - 1) // 8
    assert not caplog.records


@pytest.mark.parametrize("length", [0, POSITIONS + 1])
def test_a_length_that_the_model_cannot_take_is_refused(
    llama: str, text: Path, tmp_path: Path, length: int
) -> None:
    with pytest.raises(ValueError, match=f"length must be from 1 to the 16 .* got {length}"):
        finetuning(text, length=length, model=llama)
    assert not (tmp_path / "cache").exists()


def test_a_part_too_short_for_one_block_is_refused(llama: str, text: Path) -> None:
    (text / "test.txt").write_text("To be, or")
    with pytest.raises(ValueError, match="less than the 4 tokens"):
        finetuning(text, length=4, model=llama)


def test_a_missing_file_is_named(llama: str, text: Path) -> None:
    (text / "validation.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"validation\.txt is missing"):
        finetuning(text, length=4, model=llama)


def test_the_model_learns_from_it(llama: str, text: Path) -> None:
    data = finetuning(text, length=7, model=llama)
    torch.manual_seed(2)
    model = load_causal_model(f"{llama}+lora")
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        outputs = model(data.train.inputs)
        losses.append(F.cross_entropy(outputs.flatten(0, 1), data.train.targets.flatten()))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2
