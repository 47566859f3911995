"""Language models, by name: LSTMs that read on from batch to batch, and transformers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe._shared.names import look_up

# Layers, columns of the batch, width: hidden values and cells.
State = tuple[Tensor, Tensor]

#: Words that a transformer can look back on, the last included.
MAX_TOKENS = 512


def find_language_model(name: str, vocabulary: int) -> nn.Module:
    """Return a new model of that name, with weights from torch's global generator.

    Parameters
    ----------
    name : str
        One of ``LANGUAGE_MODELS``.
    vocabulary : int
        Words that there are.

    Returns
    -------
    Module
        Of tokens of shape (B, T), it gives scores (logits) of shape (B, T, vocabulary).

    Raises
    ------
    ValueError
        If there is none; the message lists those there are.

    Examples
    --------
    >>> model = find_language_model("small-lstm", 100)
    >>> model(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 100])
    """
    return look_up("model", name, LANGUAGE_MODELS)(vocabulary)


def columns(blocks: int, batch_size: int) -> list[list[int]]:
    """Order a text's blocks in columns, each of which goes on in the next batch.

    Column c goes through the blocks c·n … c·n + n − 1, with n = ⌈blocks / batch_size⌉ batches in
    all: every block is in one of them. The text may end before the last columns do: the last
    batches have fewer.

    Parameters
    ----------
    blocks : int
        Of the text.
    batch_size : int
        Columns at most.

    Examples
    --------
    >>> columns(8, 3)
    [[0, 3, 6], [1, 4, 7], [2, 5]]
    """
    count = -(-blocks // batch_size)
    return [list(range(first, blocks, count)) for first in range(count)]


class Recurrent(nn.Module, ABC):
    """A model that reads word after word, and can go on where the previous batch ended.

    Gradients stay within a batch: truncated backpropagation through time (Mikolov et al. 2010).
    The state is no parameter, and is not saved with them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._carries = False
        self._start: State | None = None
        self._end: State | None = None

    @property
    def place(self) -> tuple[bool, State | None, State | None]:
        """Whether it reads on, from where, and where the pass over this batch has ended."""
        return self._carries, self._start, self._end

    @place.setter
    def place(self, found: tuple[bool, State | None, State | None]) -> None:
        self._carries, self._start, self._end = found

    @abstractmethod
    def read(self, tokens: Tensor, start: State | None) -> tuple[Tensor, State]:
        """Return the scores and the state at the end; None starts from zeros."""

    def begin(self) -> None:
        """From now on a batch goes on where the one before ended; the first starts from zeros."""
        self.stop()
        self._carries = True

    def advance(self) -> None:
        """Start the next batch from where the first forward pass over this one ended.

        That is the pass at the weights themselves; sharpness-aware minimisation has a second one,
        at shifted weights, and it too leaves what layers remember as the first pass made it.
        """
        self._start, self._end = self._end, None

    def stop(self) -> None:
        """Start every batch from zeros again, as a new model does."""
        self._carries, self._start, self._end = False, None, None

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores of shape (B, T, vocabulary) for tokens of shape (B, T).

        Two passes over one batch start alike, until :meth:`advance`.

        Raises
        ------
        ValueError
            If the batch has more columns than the one before, where it should go on.
        """
        # Hessian-vector products are taken of passes that carry no state.
        with nullcontext() if self._carries else _twice_differentiable_kernels():
            scores, end = self.read(tokens, self._start_of(len(tokens)))
        if self._carries and self._end is None:
            self._end = end[0].detach(), end[1].detach()
        return scores

    def _start_of(self, size: int) -> State | None:
        if self._start is None:
            return None
        hidden, cells = self._start
        if size > hidden.shape[1]:
            raise ValueError(
                f"the batch must have at most the {hidden.shape[1]} columns of the previous batch, "
                f"got {size}"
            )
        return hidden[:, :size].contiguous(), cells[:, :size].contiguous()


@contextmanager
def carried_state(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Let a recurrent model read on from batch to batch in the block; change nothing for others.

    Yields a function, to be called after each batch. A block inside of another, as an evaluation
    amid training, leaves the outer one where it was.
    """
    if not isinstance(model, Recurrent):
        yield lambda: None
        return
    outside = model.place
    model.begin()
    try:
        yield model.advance
    finally:
        model.place = outside


@contextmanager
def _twice_differentiable_kernels() -> Iterator[None]:
    """Use torch's own kernels: cuDNN's and oneDNN's LSTMs have no second derivatives."""
    libraries: tuple[Any, ...] = torch.backends.cudnn, torch.backends.mkldnn
    found = [library.enabled for library in libraries]
    try:
        for library in libraries:
            library.enabled = False
        yield
    finally:
        for library, was in zip(libraries, found, strict=True):
            library.enabled = was


class LSTM(Recurrent):
    """Zaremba et al., "Recurrent Neural Network Regularization" (2014): dropout between layers.

    Parameters
    ----------
    vocabulary : int
        Words that there are.
    width, depth : int
        Of the embedding and of each layer; layers.
    dropout : float
        Of what goes into a layer and out of the last.
    bound : float
        Weights start uniformly between −bound and bound.
    """

    def __init__(
        self, vocabulary: int, *, width: int, depth: int, dropout: float, bound: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        between = dropout if depth > 1 else 0.0
        self.layers = nn.LSTM(width, width, depth, batch_first=True, dropout=between)
        self.head = nn.Linear(width, vocabulary)
        self.dropout = nn.Dropout(dropout)
        for param in self.parameters():
            nn.init.uniform_(param, -bound, bound)

    def read(self, tokens: Tensor, start: State | None) -> tuple[Tensor, State]:
        """Return the scores and the state at the end; None starts from zeros."""
        hidden, end = self.layers(self.dropout(self.embedding(tokens)), start)
        return self.head(self.dropout(hidden)), end


class Transformer(nn.Module):
    """A decoder as GPT-2 is: layers normalised first, learned positions, tied embeddings.

    Radford et al., "Language Models are Unsupervised Multitask Learners" (2019). It reads at most
    512 words at a time.

    Parameters
    ----------
    vocabulary : int
        Words that there are.
    width : int
        Of a word; the hidden layer of a block is four times as wide.
    depth, heads : int
        Blocks, and attention heads in each.
    dropout : float
        Of embeddings, attention, and what a block adds.
    """

    def __init__(
        self, vocabulary: int, *, width: int, depth: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(MAX_TOKENS, width))
        nn.init.normal_(self.embedding.weight, std=0.02)
        # Not nn.TransformerEncoder: it copies one block, so that all would start alike.
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                heads,
                dim_feedforward=4 * width,
                dropout=dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores of shape (B, T, vocabulary) for tokens of shape (B, T).

        Raises
        ------
        ValueError
            If T is more than 512.
        """
        length = tokens.shape[1]
        if length > MAX_TOKENS:
            raise ValueError(f"length must be at most {MAX_TOKENS} for a transformer, got {length}")
        later = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        hidden = self.dropout(self.embedding(tokens) + self.positions[:length])
        for block in self.blocks:
            hidden = block(hidden, src_mask=later, is_causal=True)
        return F.linear(self.norm(hidden), self.embedding.weight)


#: A model of a vocabulary of the given size, by name.
LANGUAGE_MODELS: Mapping[str, Callable[[int], nn.Module]] = {
    "small-lstm": partial(LSTM, width=128, depth=1, dropout=0.0, bound=0.1),
    "lstm-200": partial(LSTM, width=200, depth=2, dropout=0.2, bound=0.1),
    "lstm": partial(LSTM, width=650, depth=2, dropout=0.5, bound=0.05),
    "small-transformer": partial(Transformer, width=128, depth=2, heads=4, dropout=0.0),
    "transformer": partial(Transformer, width=256, depth=4, heads=4, dropout=0.1),
}
