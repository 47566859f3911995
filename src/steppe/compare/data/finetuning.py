"""Text for fine-tuning: the tokens of a pretrained model, in blocks of one length."""

import hashlib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from steppe._shared.cache import cached_tensors
from steppe._shared.progress import progress
from steppe.compare.data import corpora
from steppe.compare.data.corpora import Corpus
from steppe.compare.data.datasets import Data
from steppe.compare.data.text import cut_into_blocks
from steppe.compare.models.pretrained import load_tokenizer, max_tokens, model_identity

# Part of the tokens' name in the cache: raise it when they are made differently.
_CACHE_VERSION = 1


def finetuning(directory: Path | None = None, *, length: int, model: str) -> Data:
    """Shakespeare, or a text of the user's own, as a pretrained model's tokens.

    Each part is one running text without marks between its documents, cut into blocks by
    :func:`steppe.compare.data.text.blocks`. The tokens are made once and kept in the cache.

    Parameters
    ----------
    directory : Path, optional
        Where ``train.txt``, ``validation.txt`` and ``test.txt`` are. Default: Shakespeare, from the
        package shakespeare, see :func:`steppe.compare.data.corpora.shakespeare`.
    length : int
        Tokens of a block.
    model : str
        As for :func:`steppe.compare.models.pretrained.load_causal_model`.

    Raises
    ------
    FileNotFoundError
        The text or the model is not there; the message says how to get it.
    ValueError
        The model cannot take so many tokens at once, or a part is too short for one block.
    ModuleNotFoundError
        transformers is not installed.
    """
    most = max_tokens(model)
    if most is not None and not 1 <= length <= most:
        raise ValueError(f"length must be from 1 to the {most} tokens of {model}, got {length}")
    corpus = corpora.shakespeare() if directory is None else corpora.own_text(directory)
    weights = model_identity(model)
    determined_by = f"{_CACHE_VERSION} {version('tokenizers')} {corpus.identity} {weights}"
    digest = hashlib.sha256(determined_by.encode()).hexdigest()[:16]
    tokens = cached_tensors(f"tokens-{digest}", lambda: _tokens(corpus, model))
    data = cut_into_blocks(tokens, length)
    # Results depend on the weights that training starts from as they do on the text.
    return replace(data, fingerprint=f"{weights}-{data.fingerprint}")


def _tokens(corpus: Corpus, model: str) -> dict[str, Tensor]:
    tokenize = load_tokenizer(model)
    parts = vars(corpus)
    numbered = {}
    with progress("cutting the text into tokens", len(parts)) as advance:
        for part, text in parts.items():
            # Without special tokens, as blocks are from the middle of a text. Not verbose, as it
            # would warn that the text is longer than the model takes.
            rows = tokenize(text, add_special_tokens=False, verbose=False)["input_ids"]
            numbered[part] = torch.tensor(rows)
            advance(1)
    return numbered
