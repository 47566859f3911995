"""Tensor shapes of the models whose parameters are stepped: ResNet-18, GPT-2, many small vectors.

The time of a step depends on the shapes alone, so no model is built. Models with as many tensors of
a few numbers show the host time: what a step takes outside of its kernels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from steppe._shared.names import unknown_name_message

Shape = tuple[int, ...]


def resnet18() -> list[Shape]:
    """Return the shapes of torchvision's ResNet-18: 62 tensors, 11.7 M numbers.

    Examples
    --------
    >>> resnet18()[:4]
    [(64, 3, 7, 7), (64,), (64,), (64, 64, 3, 3)]
    """
    shapes = _normalised_convolution(3, 64, 7)
    before = 64
    for width in (64, 128, 256, 512):
        shapes += _normalised_convolution(before, width, 3)
        shapes += _normalised_convolution(width, width, 3)
        if before != width:  # the shortcut past a stage's first block
            shapes += _normalised_convolution(before, width, 1)
        shapes += 2 * _normalised_convolution(width, width, 3)
        before = width
    return shapes + _linear(512, 1000)


def gpt2() -> list[Shape]:
    """Return the shapes of GPT-2 small: 148 tensors, 124 M numbers.

    Examples
    --------
    >>> gpt2()[:3]
    [(50257, 768), (1024, 768), (768,)]
    """
    width = 768
    norm: list[Shape] = [(width,), (width,)]
    attention = _linear(width, 3 * width) + _linear(width, width)
    perceptron = _linear(width, 4 * width) + _linear(4 * width, width)
    block = norm + attention + norm + perceptron
    embeddings: list[Shape] = [(50257, width), (1024, width)]
    return embeddings + 12 * block + norm


def uniform(count: int, size: int) -> list[Shape]:
    """Return the shapes of ``count`` vectors of ``size`` numbers."""
    return [(size,) for _ in range(count)]


def small() -> list[Shape]:
    """Return the shapes of 10 000 vectors of 100 numbers: such a step is all overhead."""
    return uniform(10_000, 100)


@dataclass(frozen=True)
class Model:
    """The tensors of a model, and what is measured on them.

    Attributes
    ----------
    shapes : callable
        Returns the tensors' shapes.
    is_host : bool, default False
        Whether the time until a step returns is measured, with warm caches.
    """

    shapes: Callable[[], list[Shape]]
    is_host: bool = False


#: The models that can be measured, by name.
MODELS: dict[str, Model] = {
    "resnet18": Model(resnet18),
    "gpt2": Model(gpt2),
    "small": Model(small),
    "one": Model(lambda: uniform(1, 64), is_host=True),
    "resnet18-host": Model(lambda: uniform(len(resnet18()), 16), is_host=True),
    "gpt2-host": Model(lambda: uniform(len(gpt2()), 16), is_host=True),
}


def check_models(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names, each once.

    Raises
    ------
    ValueError
        There is no such model; the message lists the names.

    Examples
    --------
    >>> check_models(["small", "small"])
    ('small',)
    """
    names = tuple(dict.fromkeys(names))
    for name in names:
        if name not in MODELS:
            raise ValueError(unknown_name_message("model", name, MODELS))
    return names


def _normalised_convolution(before: int, after: int, size: int) -> list[Shape]:
    """Return a convolution's weight, and its normalisation's weight and bias."""
    return [(after, before, size, size), (after,), (after,)]


def _linear(before: int, after: int) -> list[Shape]:
    return [(after, before), (after,)]
