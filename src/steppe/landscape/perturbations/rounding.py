"""Weights rounded to a few bits: symmetric, with a scale for each output channel or group in it.

Of b bits there are 2ᵇ − 1 levels, q = −(2ᵇ⁻¹ − 1) … 2ᵇ⁻¹ − 1, and a weight becomes scale·q with the
nearest of them. The scale decides how much is lost: the largest weight's, as the simplest
quantizers take it, wastes levels on outliers; that of least squared error cuts them off.
"""

from typing import Literal

import torch
from torch import Tensor, nn

#: How a channel's scale is chosen.
Scales = Literal["absmax", "least error"]

# Numbers that the search for scales holds at once, a few arrays of them.
_HELD = 1 << 22


def round_weight(
    module: nn.Module, weight: Tensor, bits: int, scales: Scales, group: int | None = None
) -> None:
    """Round a module's weight in place, channel by channel.

    Output channels are the first dimension; of transposed convolutions without groups the second.
    """
    transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
    if isinstance(module, transposed) and module.groups == 1:
        weight = weight.transpose(0, 1)
    weight.copy_(round_to_bits(weight.flatten(1), bits, scales, group).reshape(weight.shape))


def round_to_bits(channels: Tensor, bits: int, scales: Scales, group: int | None = None) -> Tensor:
    """Return weights rounded to the nearest level of their channel or group.

    Parameters
    ----------
    channels : Tensor
        (channels, weights of each).
    bits : int
        At least 2.
    scales : "absmax" or "least error"
        See :func:`scale_of`.
    group : int, optional
        Weights of a channel that have a scale of their own, one group after the other; the last may
        be smaller. Default: all of them.

    Examples
    --------
    >>> round_to_bits(torch.tensor([[0.1, -0.6, 1.0]]), 2, "absmax")
    tensor([[ 0., -1.,  1.]])
    """
    if group is not None and group < channels.shape[1]:
        parts = torch.split(channels, group, dim=1)
        return torch.cat([round_to_bits(part, bits, scales) for part in parts], dim=1)
    scale = scale_of(channels, bits, scales)
    return (levels_of(channels.double(), scale, bits) * scale).to(channels.dtype)


def scale_of(channels: Tensor, bits: int, scales: Scales) -> Tensor:
    """Return the distance of two levels for each channel, (channels, 1) in float64.

    "absmax" is ``max|w| / (2ᵇ⁻¹ − 1)``. "least error" minimises ``Σ (w − s·q(w/s))²`` exactly.

    Examples
    --------
    >>> scale_of(torch.tensor([[0.4, 0.4, 0.4, -2.0]]), 2, "absmax").item()
    2.0
    >>> round(scale_of(torch.tensor([[0.9, 1.1, 1.0, -1.2]]), 2, "least error").item(), 4)
    1.05
    """
    channels = channels.double()
    most = 2 ** (bits - 1) - 1
    if scales == "absmax":
        found = channels.abs().amax(dim=1, keepdim=True) / most
    else:
        rows = max(1, _HELD // max(1, channels.shape[1] * most))
        found = torch.cat([_least_error(part.abs(), most) for part in torch.split(channels, rows)])
    # A channel of zeros stays what it is, whatever its scale.
    return torch.where(found > 0, found, torch.ones_like(found))


def levels_of(channels: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the nearest level of each weight, a whole number."""
    most = 2 ** (bits - 1) - 1
    return (channels / scale).round().clamp(-most, most)


def _least_error(sizes: Tensor, most: int) -> Tensor:
    """Return the scale of least squared error of each row of absolute weights, (rows, 1).

    For given levels q the best scale is Σwq/Σq², and the error Σw² − (Σwq)²/Σq². As the scale
    falls, a weight's level rises from k − 1 to k at w/(k − ½): in the order of these places, sums
    go through all levels that any scale has.
    """
    rise = torch.arange(1, most + 1, dtype=torch.float64, device=sizes.device)
    places = (sizes[:, :, None] / (rise - 0.5)).flatten(1)
    order = places.argsort(dim=1, descending=True)
    products = sizes[:, :, None].expand(-1, -1, most).flatten(1).gather(1, order).cumsum(dim=1)
    squares = (2 * rise - 1).expand(*sizes.shape, -1).flatten(1).gather(1, order).cumsum(dim=1)
    best = (products.square() / squares).argmax(dim=1, keepdim=True)
    return products.gather(1, best) / squares.gather(1, best)
