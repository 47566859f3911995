"""A small language model, how it is trained, and text of two kinds that every CPython brings.

The prose is the language reference as ``help()`` shows it, the code is the source of modules of the
standard library. Both change a little from one Python to the next.
"""

import hashlib
import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from steppe.compare.optimizers import find_recipe
from steppe.compare.results import Settings
from steppe.compare.run import Run, Setup

MODULES = ("_pydecimal", "argparse", "inspect", "ast")

_CHARACTERS = 128
_BATCH = 16
_EVALUATED_TOGETHER = 64


@dataclass(frozen=True)
class Parts:
    """Windows to train, to choose and to report on, each (windows, context + 1) character codes.

    No character is in two of them.
    """

    train: Tensor
    validation: Tensor
    test: Tensor

    @property
    def fingerprint(self) -> str:
        """Hash of all characters: the text is another in another Python."""
        digest = hashlib.sha256()
        for windows in (self.train, self.validation, self.test):
            digest.update(bytes(windows.flatten().tolist()))
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Losses:
    """Of one run, in nats: means of each epoch's training losses, validation after it, test."""

    train: Sequence[float]
    validation: Sequence[float]
    test: float


def prose() -> str:
    """Return the topics of the language reference, in the order of their names."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def code(characters: int, modules: Sequence[str] = MODULES) -> list[str]:
    """Return so many characters of source in all, from the beginning of each module."""
    each = characters // len(modules)
    return [inspect.getsource(import_module(name))[:each] for name in modules]


def split(texts: Iterable[str], context: int, shares: tuple[float, float] = (0.5, 0.25)) -> Parts:
    """Cut each text into three parts that follow one another, and the parts into windows.

    Parameters
    ----------
    texts : iterable of str
        What is not ASCII counts as "?".
    context : int
        Characters that the model sees at most.
    shares : (float, float), default (0.5, 0.25)
        Of training and validation; the rest is the test's.
    """
    pieces: tuple[list[Tensor], ...] = ([], [], [])
    for text in texts:
        first, second = (round(len(text) * share) for share in (shares[0], sum(shares)))
        for part, piece in zip(
            pieces, (text[:first], text[first:second], text[second:]), strict=True
        ):
            part.append(_windows(piece, context))
    return Parts(*map(torch.cat, pieces))


def _windows(text: str, context: int) -> Tensor:
    """Cut text into rows of context + 1 characters, one after the other; a shorter rest is left."""
    codes = torch.tensor(list(text.encode("ascii", "replace")), dtype=torch.long)
    rows = len(codes) // (context + 1)
    return codes[: rows * (context + 1)].view(rows, context + 1)


class LanguageModel(nn.Module):
    """A transformer that predicts each character from those before it.

    Parameters
    ----------
    context : int
        Characters in a window.
    width : int
        Of the residual stream; the layers inside are four times as wide.
    layers, heads : int, default 2, 4
        How deep, and into how many heads attention is split.
    """

    def __init__(self, context: int, width: int, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.characters = nn.Embedding(_CHARACTERS, width)
        self.places = nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.body = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)
        self.head = nn.Linear(width, _CHARACTERS)
        future = nn.Transformer.generate_square_subsequent_mask(context)
        self.register_buffer("future", future, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Give the logits of each next character: (windows, context) to (windows, context, 128)."""
        inputs = self.characters(codes) + self.places.weight
        logits: Tensor = self.head(self.body(inputs, mask=self.future, is_causal=True))
        return logits


def language_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next character, in nats."""
    logits = model(windows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def evaluated(model: nn.Module, windows: Tensor) -> float:
    """Return the mean loss over all windows in ``eval()`` mode, whose exponential is perplexity."""
    model.eval()
    losses = [
        language_loss(model, some).item() * len(some)
        for some in torch.split(windows, _EVALUATED_TOGETHER)
    ]
    model.train()
    return sum(losses) / len(windows)


def run_of(optimizer: str, settings: Settings, seed: int, parts: Parts, epochs: int) -> Run:
    """Describe a run as studies do: lr falls by half a cosine, after a warm-up if it has one."""
    setup = Setup(
        task="language",
        model="transformer",
        samples=None,
        fingerprint=parts.fingerprint,
        epochs=epochs,
        steps_per_epoch=math.ceil(len(parts.train) / _BATCH),
        batch_size=_BATCH,
    )
    return Run(setup, find_recipe(optimizer), settings, seed)


def train(model: LanguageModel, run: Run, parts: Parts) -> Losses:
    """Train from where the model stands; the run's seed is that of the order of batches."""
    optimizer = run.recipe.build(model.parameters(), run.settings, run.setup.steps)
    schedule = LambdaLR(optimizer, run.rate)
    order = torch.Generator().manual_seed(run.seed)
    trained, validation = [], []
    for _ in range(run.setup.epochs):
        total = 0.0
        shuffled = torch.randperm(len(parts.train), generator=order)
        for rows in torch.split(shuffled, run.setup.batch_size):
            optimizer.zero_grad()
            loss = language_loss(model, parts.train[rows])
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        trained.append(total / len(parts.train))
        validation.append(evaluated(model, parts.validation))
    return Losses(trained, validation, evaluated(model, parts.test))
