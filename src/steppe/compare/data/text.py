"""Texts as numbered words, cut into blocks; the target of each word is the next word.

The tasks ``shakespeare``, ``sonnets``, ``ptb`` and ``wikitext2`` get their data here; ``finetune``
cuts its tokens into blocks here too.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from steppe._shared.cache import cached_tensors
from steppe._shared.progress import progress
from steppe.compare.data import corpora
from steppe.compare.data.corpora import Corpus
from steppe.compare.data.datasets import (
    DATA_DIRECTORY,
    Data,
    Samples,
    TensorSamples,
    as_samples,
    fingerprint_of,
)

#: Words in the vocabulary, of which the models of each text have an output each.
SHAKESPEARE_WORDS, PTB_WORDS, WIKITEXT2_WORDS = 10_000, 10_000, 33_278

UNKNOWN, END_OF_LINE, NUMBER = "<unk>", "<eos>", "N"

# A word with the apostrophes inside it, a number, or a punctuation mark, which may be repeated.
_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|(?P<number>\d+(?:[.,]\d+)*)|([^\w\s]|_)\2*")

# Part of a text's name in the cache: raise it when words are numbered differently.
_CACHE_VERSION = 1

Split = Callable[[str], list[str]]


def shakespeare(*, length: int) -> Data:
    """Shakespeare's works in words: see :func:`steppe.compare.data.corpora.shakespeare`.

    Split by :func:`split_prose` into 1 045 394 words to train on, 133 383 for validation and
    129 500 to test. The vocabulary is ``<unk>`` and the 9 999 most frequent words; of the three
    parts 1.9 %, 4.3 % and 4.8 % are not in it. A model of these words' frequencies alone has a
    perplexity of 285 on validation and test.

    Parameters
    ----------
    length : int
        Words in a block.

    Raises
    ------
    FileNotFoundError
        If the package shakespeare is not installed.
    ValueError
        If ``length`` is not at least 1, or a part is too short for one block.
    """
    return _data(corpora.shakespeare(), split_prose, SHAKESPEARE_WORDS, length)


def sonnets(*, length: int) -> Data:
    """Shakespeare's sonnets in the words of :func:`shakespeare`, so that its models can read them.

    See :func:`steppe.compare.data.corpora.sonnets`; split into 16 250 words to train on, 3 213 for
    validation and 3 382 to test. Arguments and errors are those of :func:`shakespeare`, whose
    training part holds the sonnets too, near its end: its first blocks alone know nothing of them.
    """
    found, words = corpora.sonnets(), SHAKESPEARE_WORDS
    return _data(found, split_prose, words, length, words_of=corpora.shakespeare())


def ptb(directory: Path = DATA_DIRECTORY, *, length: int) -> Data:
    """Penn Treebank in the 10 000 words of Mikolov's files, as ``corpora.ptb`` reads them.

    Parameters
    ----------
    directory : Path, default ``data``
        Where the files are.
    length : int
        Words in a block.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message names it and says how to get it.
    ValueError
        If a file is no text, ``length`` is not at least 1, or a part is too short for one block.
    """
    return _data(corpora.ptb(directory), words_with_line_ends, PTB_WORDS, length)


def wikitext2(directory: Path = DATA_DIRECTORY, *, length: int) -> Data:
    """WikiText-2 in its 33 278 words: see :func:`steppe.compare.data.corpora.wikitext2`.

    Arguments and errors are those of :func:`ptb`.
    """
    return _data(corpora.wikitext2(directory), words_with_line_ends, WIKITEXT2_WORDS, length)


def subsample(data: Data, samples: int) -> Data:
    """Keep only the first blocks, which are consecutive, as recurrent models need them.

    Parameters
    ----------
    data : Data
        All blocks.
    samples : int
        How many blocks to train on, at least 2; of the validation and of the test blocks at most
        half as many are kept, so that evaluation does not outweigh training.

    Raises
    ------
    ValueError
        If there are not that many.
    """
    return _subsample(data, samples, torch.arange, tested=samples // 2)


def subsample_scattered(data: Data, samples: int) -> Data:
    """Keep only blocks from all over the text, always the same; else as :func:`subsample`.

    A larger choice contains every smaller one. At most as many blocks are tested on as are trained
    on: a run has few of them, and is tested once.
    """
    return _subsample(data, samples, _shuffled, tested=samples)


def _subsample(data: Data, samples: int, order: Callable[[int], Tensor], *, tested: int) -> Data:
    train, validation, test = map(as_samples, (data.train, data.validation, data.test))
    if not 2 <= samples <= len(train):
        raise ValueError(
            f"samples must be between 2 and the {len(train)} training blocks, got {samples}"
        )

    def kept(part: Samples, count: int) -> Samples:
        return part.take(order(len(part))[:count].sort().values)

    return Data(
        kept(train, samples),
        kept(validation, samples // 2),
        kept(test, tested),
        fingerprint=f"{data.fingerprint}-{samples}",
    )


def _shuffled(count: int) -> Tensor:
    # Fixed, and not a run's seed: every optimizer and every seed gets the same blocks.
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def blocks(tokens: Tensor, length: int) -> TensorSamples:
    """Cut a text into blocks, one after the other; what does not fill the last one is left out.

    Parameters
    ----------
    tokens : Tensor
        The text, whole numbers in one dimension.
    length : int
        Tokens in a block.

    Returns
    -------
    TensorSamples
        Inputs of shape (N, length), and targets, which are the tokens one further on.

    Raises
    ------
    ValueError
        If ``length`` is not at least 1, or the text has not one block and its target.

    Examples
    --------
    >>> cut = blocks(torch.arange(8), 3)
    >>> cut.inputs.tolist(), cut.targets.tolist()
    ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """
    if length < 1:
        raise ValueError(f"length must be at least 1 token, got {length}")
    count = (len(tokens) - 1) // length
    if count < 1:
        raise ValueError(
            f"length must be less than the {len(tokens)} tokens of each part of the text, "
            f"got {length}"
        )
    end = count * length
    return TensorSamples(tokens[:end].view(count, length), tokens[1 : end + 1].view(count, length))


def cut_into_blocks(numbered: Mapping[str, Tensor], length: int) -> Data:
    """Cut the parts of a text, "train", "validation" and "test", by :func:`blocks`."""
    parts = (numbered[part].long() for part in ("train", "validation", "test"))
    train, validation, test = (blocks(part, length) for part in parts)
    return Data(train, validation, test, fingerprint=fingerprint_of(train, validation, test))


def split_prose(text: str) -> list[str]:
    r"""Split a text as it is printed, much as the Penn Treebank was prepared.

    Words are in lower case and keep the apostrophes inside them, numbers are ``N``, a line that is
    not empty ends with ``<eos>``. Unlike there punctuation is kept: a mark, however often it is
    repeated, is a word.

    Examples
    --------
    >>> split_prose("Enter 2 Lords.\n\nTo-night he's dead--")
    ['enter', 'N', 'lords', '.', '<eos>', 'to', '-', 'night', "he's", 'dead', '--', '<eos>']
    """
    words = []
    for line in filter(str.strip, text.lower().splitlines()):
        words += [NUMBER if found["number"] else found[0] for found in _TOKEN.finditer(line)]
        words.append(END_OF_LINE)
    return words


def words_with_line_ends(text: str) -> list[str]:
    r"""Split a text whose words are apart already; each line ends with ``<eos>``.

    Examples
    --------
    >>> words_with_line_ends(" no <unk> \n\n it was\n")
    ['no', '<unk>', '<eos>', '<eos>', 'it', 'was', '<eos>']
    """
    found = (line.split() for line in text.removesuffix("\n").split("\n"))
    return [word for line in found for word in (*line, END_OF_LINE)]


def vocabulary(words: Iterable[str], size: int) -> dict[str, int]:
    """Assign numbers to ``<unk>``, which is 0, and to the most frequent words.

    Of words that are as frequent the first to appear comes first.

    Examples
    --------
    >>> vocabulary("b a c a b d".split(), 4)
    {'<unk>': 0, 'b': 1, 'a': 2, 'c': 3}
    """
    counts = Counter(word for word in words if word != UNKNOWN)
    kept = [UNKNOWN, *(word for word, _ in counts.most_common(size - 1))]
    return {word: number for number, word in enumerate(kept)}


def _data(
    corpus: Corpus, split: Split, words: int, length: int, *, words_of: Corpus | None = None
) -> Data:
    """Read a corpus in the vocabulary of its own training part, or of another's."""
    name = f"words-{_CACHE_VERSION}-{split.__name__}-{words}-{corpus.identity}"
    if words_of is not None:
        name += f"-{words_of.identity}"
    numbered = cached_tensors(name, partial(_numbered, corpus, split, words, words_of or corpus))
    return cut_into_blocks(numbered, length)


def _numbered(corpus: Corpus, split: Split, words: int, words_of: Corpus) -> dict[str, Tensor]:
    """Replace the words of each part by their numbers in the vocabulary of a training part."""
    parts = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
    numbered = {}
    with progress("numbering words", len(parts)) as advance:
        numbers = vocabulary(split(words_of.train), words)
        for part, text in parts.items():
            found = split(text)
            numbered[part] = torch.tensor([numbers.get(word, 0) for word in found]).int()
            advance(1)
    return numbered
