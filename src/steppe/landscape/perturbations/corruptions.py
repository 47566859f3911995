"""Corruptions of inputs by severity: of images, and of texts as tokens.

They need no library of images and know nothing of how inputs were normalised: noise, contrast and
brightness are measured against the data's own spread and range, lengths against an image's side.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from steppe._shared.names import unknown_name_message

#: From the mildest to the hardest.
SEVERITIES = (1, 2, 3, 4, 5)


class InputScale(NamedTuple):
    """Standard deviation, smallest and largest number of a data set's finite inputs."""

    std: float
    low: float
    high: float


class RunningScale:
    """The scale of all finite inputs together, of one tensor after the other, in float64.

    Examples
    --------
    >>> scale = RunningScale()
    >>> scale.add(torch.tensor([0.0, 2.0]))
    >>> scale.add(torch.tensor([4.0, 6.0, float("nan")]))
    >>> scale.result()
    InputScale(std=2.23606797749979, low=0.0, high=6.0)
    """

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._low, self._high = math.inf, -math.inf

    def add(self, tensor: Tensor) -> None:
        """Take further inputs in."""
        numbers = tensor.detach().double()
        is_finite = numbers.isfinite()
        if not is_finite.all():
            numbers = numbers[is_finite]
        size = numbers.numel()
        if not size:
            return
        own, both = float(numbers.mean()), self._count + size
        # Sums of squares of deviations, joined as Chan et al. do: no sum of large squares.
        self._squares += float((numbers - own).square().sum())
        self._squares += (own - self._mean) ** 2 * self._count * size / both
        self._mean += (own - self._mean) * size / both
        self._count = both
        self._low = min(self._low, float(numbers.min()))
        self._high = max(self._high, float(numbers.max()))

    def result(self) -> InputScale:
        """Return the scale; without any finite number that of nothing."""
        if not self._count:
            return InputScale(math.nan, math.inf, -math.inf)
        return InputScale(math.sqrt(self._squares / self._count), self._low, self._high)


def corrupt_images(
    images: Tensor, kind: str, severity: int, scale: InputScale, generator: Generator
) -> Tensor:
    """Return images with a corruption.

    Parameters
    ----------
    images : Tensor
        (images, channels, height, width), of floating point.
    kind : str
        One of :data:`IMAGE_CORRUPTIONS`, with σ, low and high of ``scale``, and the severities 1 …
        5:

        - ``noise`` adds c·σ·ξ, ξ standard normal, c = 0.2, 0.4, 0.7, 1, 1.5.
        - ``blur`` convolves with a Gaussian of standard deviation c·side, the longer one, c = 0.03,
          0.045, 0.06, 0.08, 0.1.
        - ``shift`` moves each image by c·side in a random direction, to whole pixels and at least
          one, and repeats its edge, c = 0.05, 0.1, 0.15, 0.2, 0.25.
        - ``contrast`` takes each number to m + c·(x − m), m the image's mean, c = 0.7, 0.5, 0.35,
          0.25, 0.15.
        - ``brightness`` adds c·(high − low) and cuts off at high, c = 0.1, 0.2, 0.3, 0.4, 0.5.
    severity : int
        1 to 5.
    scale : InputScale
        Of the clean inputs.
    generator : Generator
        On the CPU, so that a seed means the same on every device.

    Raises
    ------
    ValueError
        There is no such kind or severity.
    """
    _check(kind, severity, IMAGE_CORRUPTIONS)
    return IMAGE_CORRUPTIONS[kind](images, severity, scale, generator)


def corrupt_tokens(
    tokens: Tensor,
    kind: str,
    severity: int,
    generator: Generator,
    real: Tensor | None = None,
    pool: Tensor | None = None,
) -> Tensor:
    """Return sequences of tokens with a corruption; what is to be predicted is not changed.

    Parameters
    ----------
    tokens : Tensor
        (sequences, tokens), whole numbers.
    kind : str
        One of :data:`TOKEN_CORRUPTIONS`, with p = 0.02, 0.05, 0.1, 0.2, 0.4:

        - ``dropout`` puts in the place of each token, with probability p, one drawn from ``pool``,
          so that frequent ones come often.
        - ``swaps`` exchanges a token with the next one with probability p, each of them once only.
    severity : int
        1 to 5.
    generator : Generator
        On the CPU.
    real : Tensor, optional
        Of the same shape: 0 where a token is padding, which stays as it is and is not drawn.
    pool : Tensor, optional
        (tokens,): what replacements are drawn from. Default: the real tokens of the batch.

    Raises
    ------
    ValueError
        There is no such kind or severity.
    """
    _check(kind, severity, TOKEN_CORRUPTIONS)
    is_real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real.bool()
    pool = tokens[is_real] if pool is None else pool
    # Two numbers a real token: what is drawn depends neither on batches nor on their padding.
    drawn = torch.ones((*tokens.shape, 2), dtype=torch.float64)
    own = is_real.cpu()
    drawn[own] = torch.rand((int(own.sum()), 2), generator=generator, dtype=torch.float64)
    return TOKEN_CORRUPTIONS[kind](tokens, _share_of_tokens(severity), drawn, pool)


def _check(kind: str, severity: int, known: Iterable[str]) -> None:
    if kind not in known:
        raise ValueError(unknown_name_message("corruption", kind, known))
    if severity not in SEVERITIES:
        raise ValueError(f"severity={severity!r} must be a whole number from 1 to 5")


def _noise(images: Tensor, severity: int, scale: InputScale, generator: Generator) -> Tensor:
    c = (0.2, 0.4, 0.7, 1.0, 1.5)[severity - 1]
    drawn = torch.empty(images.shape, dtype=torch.float32)
    for each in drawn:
        # torch draws other numbers for two images at once than for one after the other.
        each.normal_(generator=generator)
    return images + c * scale.std * drawn.to(images)


def _blur(images: Tensor, severity: int, scale: InputScale, generator: Generator) -> Tensor:
    c = (0.03, 0.045, 0.06, 0.08, 0.1)[severity - 1]
    width = c * max(images.shape[-2:])
    reach = max(1, math.ceil(3 * width))
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-place.square() / (2 * width**2))
    kernel = (weights / weights.sum()).to(images)
    channels = images.shape[1]
    for dimension in (-2, -1):
        shape = [1, 1, 1, 1]
        shape[dimension] = len(kernel)
        padding = [0, 0, reach, reach] if dimension == -2 else [reach, reach, 0, 0]
        filters = kernel.reshape(shape).expand(channels, *shape[1:])
        # Not "reflect": that asks for images that are wider than the filter.
        images = F.conv2d(F.pad(images, padding, mode="replicate"), filters, groups=channels)
    return images


def _shift(images: Tensor, severity: int, scale: InputScale, generator: Generator) -> Tensor:
    c = (0.05, 0.1, 0.15, 0.2, 0.25)[severity - 1]
    count, _, height, width = images.shape
    angle = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float32)
    length = max(1.0, c * max(height, width))
    rows = _moved(length * angle.sin(), height)
    columns = _moved(length * angle.cos(), width)
    number = torch.arange(count)[:, None, None]
    found: Tensor = images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]]
    return found.permute(0, 3, 1, 2)


def _moved(by: Tensor, side: int) -> Tensor:
    """Return which row comes to each place, (images, side), where images move by so many."""
    return (torch.arange(side) - by.round()[:, None]).clamp(0, side - 1).long()


def _contrast(images: Tensor, severity: int, scale: InputScale, generator: Generator) -> Tensor:
    c = (0.7, 0.5, 0.35, 0.25, 0.15)[severity - 1]
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    if not middle.isfinite().all():
        # A missing pixel leaves the others as they would be.
        known = images.where(images.isfinite(), torch.nan)
        middle = known.nanmean(dim=(1, 2, 3), keepdim=True)
    return middle + c * (images - middle)


def _brightness(images: Tensor, severity: int, scale: InputScale, generator: Generator) -> Tensor:
    c = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    return (images + c * (scale.high - scale.low)).clamp(max=scale.high)


def _share_of_tokens(severity: int) -> float:
    return (0.02, 0.05, 0.1, 0.2, 0.4)[severity - 1]


def _dropout(tokens: Tensor, share: float, drawn: Tensor, pool: Tensor) -> Tensor:
    if not len(pool):
        return tokens
    dropped = drawn[..., 0] < share
    number = (drawn[..., 1] * len(pool)).long().clamp(max=len(pool) - 1)
    others = pool.to(tokens)[number.to(tokens.device)]
    return torch.where(dropped.to(tokens.device), others, tokens)


def _swaps(tokens: Tensor, share: float, drawn: Tensor, pool: Tensor) -> Tensor:
    count, length = tokens.shape
    place = torch.arange(length).repeat(count, 1)
    # Padding has drawn 1, which no share reaches.
    real = drawn[..., 0] < 1
    both = (drawn[:, :-1, 0] < share) & real[:, 1:]
    free = torch.ones(count, dtype=torch.bool)
    for column in range(length - 1):
        now = both[:, column] & free
        place[now, column], place[now, column + 1] = column + 1, column
        free = ~now
    return tokens.gather(1, place.to(tokens.device))


#: What happens to images, by name.
IMAGE_CORRUPTIONS: Mapping[str, Callable[[Tensor, int, InputScale, Generator], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "shift": _shift,
    "contrast": _contrast,
    "brightness": _brightness,
}

#: What happens to texts, by name.
TOKEN_CORRUPTIONS: Mapping[str, Callable[[Tensor, float, Tensor, Tensor], Tensor]] = {
    "dropout": _dropout,
    "swaps": _swaps,
}
