"""The number formats against float64 arithmetic written from their description."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from steppe._engines import bind
from steppe._engines.base import number_formats
from steppe._engines.eager import bit_ops

Array = NDArray[np.float64]

WORD = 2**32
BLOCK = 256
#: Order of the root that each 8-bit format is evenly spaced in, y of a block's largest number, and
#: the codes that are in use.
ROOT = {"signed8": 2, "square8": 4}
TOP = {"signed8": 127, "square8": 255}
CODES = {"signed8": np.arange(2, 128), "square8": np.arange(4, 256)}
#: How many different noises a rounding tells apart.
NOISES = {"bfloat16": 2**16, "signed8": 2**16, "square8": 2**15}
KINDS = sorted(ROOT)
every_kind = pytest.mark.parametrize("kind", KINDS)

#: Larger ones may be rounded up to infinity, or their block's scale be infinite.
LARGEST = float(np.float32(3.3e38))
numbers = st.floats(-LARGEST, LARGEST, width=32)
noises = st.integers(0, WORD - 1)


# The description in float64


def log2(x: Array) -> Array:
    """Exponent plus fraction: log2, straight between powers of two."""
    mantissa, exponent = np.frexp(x)
    return exponent + 2 * mantissa - 2


def exp2(x: Array) -> Array:
    """Invert :func:`log2`."""
    whole = np.floor(x)
    return np.ldexp(1 + x - whole, whole.astype(int))


def levels(kind: str) -> Array:
    """Return the sizes of the codes in use, over the scale."""
    sizes = exp2(log2(CODES[kind] / (TOP[kind] + 1)) * ROOT[kind])
    return sizes - 2.0**-12 if kind == "signed8" else sizes


def level_step(kind: str, share: Array) -> Array:
    """Return the distance of the levels around a share of the scale."""
    known = levels(kind)
    above = np.clip(np.searchsorted(known, share), 1, len(known) - 1)
    return known[above] - known[above - 1]


def hashed(x: int) -> int:
    """Wellons' lowbias32."""
    x ^= x >> 16
    x = x * 0x7FEB352D % WORD
    x ^= x >> 15
    x = x * 0x846CA68B % WORD
    return x ^ x >> 16


# The code


def call(function: str, *arguments: Any) -> Tensor:
    return bind(getattr(number_formats, function), bit_ops)(*arguments)


def scale_of(kind: str, x: Tensor) -> Tensor:
    return call(f"scale_{kind}", call("size_word", x).max())


def encode(kind: str, x: Tensor, noise: Any) -> Tensor:
    """Round numbers that share a block."""
    noise = torch.as_tensor(noise)
    return call(f"to_{kind}", x, 1.0 / scale_of(kind, x), noise)


def roundtrip(kind: str, x: Tensor, noise: Any) -> Array:
    """Return a block's numbers after they have been stored."""
    decoded = call(f"from_{kind}", encode(kind, x, noise), scale_of(kind, x))
    assert decoded.dtype == torch.float32
    return decoded.double().numpy()


def assert_within_a_step(kind: str, x: Tensor, stored: Array) -> None:
    """Compare with the levels; blocks of tiny numbers have the scale of 1e-37."""
    exact = x.double().numpy()
    scale = max(np.abs(exact).max(), 1e-37) * 1.0161
    error = np.abs(stored - exact) / scale
    assert (error <= level_step(kind, np.abs(exact) / scale) * 1.001 + 1e-6).all()


def bfloat16(x: Any, noise: Any) -> Tensor:
    word = call("to_bfloat16", torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(noise))
    return call("from_bfloat16", word)


def bfloat16_levels(x: Tensor) -> Array:
    """Return the sizes of the bfloat16 numbers around every one of ``x``, in order."""
    below = x.abs().numpy().view(np.uint32) & np.uint32(0xFFFF0000)
    return np.unique(np.stack([below, below + 0x10000]).view(np.float32).astype(np.float64))


def noise(number: int = 0, step: Any = 1, stream: Any = 1, block: Any = 0, index: Any = 0) -> Array:
    """Return noise as shares of its range; one argument may be a range."""
    arguments = [torch.as_tensor(x) for x in (number, step, stream, block, index)]
    key = call("noise_key", *arguments[:2])
    offset = call("noise_offset", key, *arguments[2:4])
    return call("noise", offset, arguments[4]).double().numpy() / WORD


def block_of(kind: str, seed: int = 0) -> Tensor:
    """Return a block whose sizes span nine powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    x = 10.0 ** (torch.rand(BLOCK, generator=generator) * 9 - 8)
    if kind == "signed8":
        x *= torch.randint(2, (BLOCK,), generator=generator) * 2 - 1
    return x


# Levels of the 8-bit codes


@every_kind
def test_codes_mean_the_levels_of_the_description(kind: str) -> None:
    codes, scale = torch.from_numpy(CODES[kind]), torch.tensor(3.7)
    decoded = call(f"from_{kind}", codes, scale).double().numpy() / scale.double().item()
    np.testing.assert_allclose(decoded, levels(kind), rtol=1e-6)
    assert (np.diff(decoded) > 0).all()
    if kind == "signed8":
        negative = call(f"from_{kind}", codes | 0x80, scale).double().numpy()
        positive = call(f"from_{kind}", codes, scale).double().numpy()
        np.testing.assert_array_equal(negative, -positive)


@every_kind
def test_every_level_is_stored_as_it_is(kind: str) -> None:
    x = torch.from_numpy(levels(kind)).float()
    np.testing.assert_array_equal(encode(kind, x, WORD // 2), CODES[kind])
    np.testing.assert_allclose(roundtrip(kind, x, WORD // 2), x, rtol=1e-5)


def test_zero_is_a_signed_level_and_no_square_is_zero() -> None:
    assert levels("signed8")[0] == 0.0
    assert levels("square8")[0] == 2.0**-24
    x = torch.tensor([0.0, -0.0, 1.0])
    for random in (0, WORD - 1):
        assert roundtrip("signed8", x, random)[:2].tolist() == [0.0, 0.0]
        assert roundtrip("square8", x, random)[0] == pytest.approx(2.0**-24, rel=0.02)


@every_kind
def test_a_step_near_the_top_is_1_6_percent(kind: str) -> None:
    top = levels(kind)[-2:]
    assert np.diff(top) / top[1] == pytest.approx(0.016, abs=0.0003)


@every_kind
@given(st.floats(2.0**-100, 2.0**127, width=32))
def test_the_largest_of_a_block_comes_back(kind: str, largest: float) -> None:
    """It is never rounded up, which would be out of range, and down for one noise in 10 000."""
    x = torch.tensor([largest])
    for random in (WORD // 10_000, WORD // 2, WORD - 1):
        assert encode(kind, x, random).item() == TOP[kind]
        assert roundtrip(kind, x, random)[0] == pytest.approx(largest, rel=1e-5)


@every_kind
@given(x=st.lists(numbers, min_size=1, max_size=16), random=noises)
def test_stored_numbers_are_within_a_step(kind: str, x: list[float], random: int) -> None:
    block = torch.tensor(x)
    if kind == "square8":
        block = block.abs()
    assert_within_a_step(kind, block, roundtrip(kind, block, random))


# Unbiased


@every_kind
def test_the_mean_over_all_noises_is_the_number(kind: str) -> None:
    """Exactly, but for the rounding of y itself to a part in 2¹⁶ (2¹⁵) of a step."""
    x = block_of(kind)
    every = torch.arange(NOISES[kind])[:, None] * (WORD // NOISES[kind])
    scale = scale_of(kind, x)
    known = call(f"from_{kind}", torch.arange(256), scale).double()
    exact = x.double()
    if kind == "square8":
        exact = exact.clamp(min=2.0**-24 * scale.item())
    for part in (slice(0, 64), slice(64, 128), slice(128, 192), slice(192, 256)):
        codes = call(f"to_{kind}", x[part], 1.0 / scale, every)
        mean = known[codes].mean(0)
        step = level_step(kind, exact[part].abs().numpy() / scale.item()) * scale.item()
        assert ((mean - exact[part]).abs() <= torch.from_numpy(step) / 2**14).all()


@given(numbers)
@settings(max_examples=50)
def test_bfloat16_over_all_noises_has_the_number_as_mean(x: float) -> None:
    rounded = bfloat16([x], torch.arange(NOISES["bfloat16"]) << 16).double()
    assert rounded.mean().item() == pytest.approx(x, rel=1e-12, abs=0)


@pytest.mark.parametrize("kind", ["bfloat16", *KINDS])
def test_the_mean_over_steps_is_the_number(kind: str) -> None:
    """With the noise of real steps, for numbers over nine powers of ten.

    Rounding x between levels a and b has the variance (x − a)(b − x); 4.5 standard errors of the
    mean, and 4 events for levels that are reached less than once.
    """
    steps = 4000
    x = block_of("signed8" if kind == "bfloat16" else kind)
    share = noise(step=torch.arange(steps)[:, None], index=torch.arange(BLOCK))
    random = torch.from_numpy(share * WORD).long()
    size = x.abs().double().numpy()
    if kind == "bfloat16":
        stored = bfloat16(x.expand(steps, -1), random)
        known, scale = bfloat16_levels(x), 1.0
    else:
        scale = scale_of(kind, x).item()
        stored = call(f"from_{kind}", encode(kind, x, random), torch.tensor(scale))
        known = levels(kind) * scale
        size = np.maximum(size, known[0])
    above = np.minimum(np.searchsorted(known, size, side="right"), len(known) - 1)
    low, high = known[above - 1], known[above]
    error = np.abs(stored.double().numpy().mean(0) - np.copysign(size, x.double().numpy()))
    deviation = np.sqrt((size - low).clip(0) * (high - size).clip(0) / steps)
    assert (error <= 4.5 * deviation + 4 * (high - low) / steps).all()


# bfloat16


@given(x=numbers, random=noises)
def test_bfloat16_is_one_of_the_two_neighbours(x: float, random: int) -> None:
    below = np.array(x, np.float32).view(np.uint32) & 0xFFFF0000  # towards zero
    neighbours = [np.array(below + up, np.uint32).view(np.float32) for up in (0, 0x10000)]
    share = (np.array(x, np.float32).view(np.uint32) & 0xFFFF) / 2**16
    up = random // 2**16 / 2**16 + share >= 1
    assert bfloat16(x, random).item() == neighbours[int(up)]


@pytest.mark.parametrize("random", [0, WORD // 3, WORD - 1])
def test_bfloat16_keeps_what_it_can_hold(random: int) -> None:
    held = [0.0, -0.0, 1.0, -1.5, 3.3895314e38, 2.0**-126, 2.0**-133, -(2.0**-133)]
    held += [float("inf"), -float("inf")]
    x = torch.tensor(held)
    stored = bfloat16(x, random)
    assert torch.equal(stored, x)
    assert torch.equal(stored.signbit(), x.signbit())
    assert torch.isnan(bfloat16([float("nan"), -float("nan")], random)).all()
    # A NaN whose word ends in ones, to which noise is not to be added.
    assert torch.isnan(bfloat16(torch.tensor([-1]).int().view(torch.float32), random)).all()


# bfloat24


def bfloat24(x: Any, noise: Any) -> tuple[Tensor, Tensor]:
    """Return the words of the nearest bfloat16, and the bytes of the errors."""
    word = call("to_bfloat24", torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(noise))
    return call("nearest_bfloat16", word), word & 0xFF


def read_bfloat24(stored: tuple[Tensor, Tensor]) -> Tensor:
    found = call("from_bfloat24", *stored)
    assert found.dtype == torch.float32
    return found


#: Below half of bfloat16's smallest number the parameter is 0, and so is the weight.
weights = numbers.filter(lambda x: x == 0 or abs(x) >= 2.0**-133)


@given(x=weights, random=noises)
def test_bfloat24_is_one_of_the_two_neighbours(x: float, random: int) -> None:
    below = np.array(x, np.float32).view(np.uint32) & 0xFFFFFF00  # towards zero
    neighbours = [np.array(below + up, np.uint32).view(np.float32) for up in (0, 0x100)]
    share = (np.array(x, np.float32).view(np.uint32) & 0xFF) / 2**8
    up = random // 2**24 / 2**8 + share >= 1
    assert read_bfloat24(bfloat24([x], random)).item() == neighbours[int(up)]


@given(x=weights, random=noises)
def test_the_parameter_is_the_nearest_bfloat16(x: float, random: int) -> None:
    stored = bfloat24([x], random)
    exact, upper = read_bfloat24(stored), call("from_bfloat16", stored[0])
    around = bfloat16_levels(exact)
    nearest = np.abs(around - exact.abs().double().numpy()).min()
    assert abs(upper.double().item() - exact.double().item()) == nearest


@given(weights)
@settings(max_examples=50)
def test_bfloat24_over_all_noises_has_the_number_as_mean(x: float) -> None:
    rounded = read_bfloat24(bfloat24([x], torch.arange(2**8) << 24)).double()
    assert rounded.mean().item() == pytest.approx(x, rel=1e-12, abs=0)


@given(word=st.integers(0, 2**24 - 1), random=noises)
def test_what_bfloat24_holds_is_kept_bit_for_bit(word: int, random: int) -> None:
    """Whatever the noise: so a weight whose update is 0 stays, and a checkpoint loses nothing."""
    size = word & 0x7FFFFF
    if 0 < size < 0x80 or size > 0x7F8000:  # the parameter is 0, or no number
        return
    x = torch.tensor([word << 8]).to(torch.uint32).view(torch.float32)
    found = read_bfloat24(bfloat24(x, random))
    assert torch.equal(found.view(torch.int32), x.view(torch.int32))


@pytest.mark.parametrize("random", [0, WORD // 3, WORD - 1])
def test_bfloat24_lets_nan_and_infinity_through(random: int) -> None:
    stored = bfloat24([math.nan, -math.nan, math.inf, -math.inf], random)
    for found in (read_bfloat24(stored), call("from_bfloat16", stored[0])):
        assert found[:2].isnan().all()
        assert found[2:].tolist() == [math.inf, -math.inf]
    # A NaN whose word ends in ones, to which noise is not to be added.
    ones = bfloat24(torch.tensor([-1]).int().view(torch.float32), random)
    assert read_bfloat24(ones).isnan().all()


@pytest.mark.parametrize("sign", [0, 0x8000])
def test_of_zero_no_error_counts(sign: int) -> None:
    """Somebody has set the parameter to 0: its old error would make it tiny, or no number."""
    found = read_bfloat24((torch.full((256,), sign), torch.arange(256)))
    assert (found == 0).all()
    assert (found.signbit() == bool(sign)).all()


# What is not ordinary


@every_kind
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 3.4e38])
@pytest.mark.parametrize("random", [0, WORD - 1])
def test_what_is_not_finite_breaks_its_block(kind: str, broken: float, random: int) -> None:
    """Nothing is silently finite again, nor where the block's scale overflows."""
    x = block_of(kind)
    x[17] = abs(broken) if kind == "square8" else broken
    stored = roundtrip(kind, x, random)
    assert not np.isfinite(stored).any()
    if np.isnan(broken):
        assert np.isnan(stored).all()


@every_kind
@pytest.mark.parametrize("size", [1e-36, 1e-37, 1e-38, 1e-40, 1.5e-45])
def test_tiny_numbers_stay_tiny(kind: str, size: float) -> None:
    x = torch.tensor([size, size / 2, 0.0])
    assert_within_a_step(kind, x, roundtrip(kind, x, WORD // 2))


def test_zero_blocks_stay_zero() -> None:
    zeros = torch.zeros(BLOCK)
    for random in (0, WORD - 1):
        assert (roundtrip("signed8", zeros, random) == 0).all()
        assert (roundtrip("square8", zeros, random) < 1e-44).all()


@every_kind
def test_state_that_was_never_written_is_zero(kind: str) -> None:
    """State begins as codes and scales of zeros."""
    zero = torch.zeros(1)
    assert call(f"from_{kind}", zero.long(), zero).item() == 0.0


# Noise


def test_noise_is_the_hash_of_the_description() -> None:
    """The seed is the parameter's number; then come step, stream, block and, by addition, index."""
    places = [(0, 1, 0, 0, 0), (3, 7, 2, 5, 130), (1, 2**20, 6, 2**22, 2**30 + 255)]
    for number, step, stream, block, index in places:
        key = hashed(hashed((number + 0x5BD1E995) % WORD) ^ step)
        offset = hashed(hashed((key + stream) % WORD) ^ block)
        expected = (offset + index * 0x9E3779B9) % WORD
        assert noise(number, step, stream, block, index) * WORD == expected


MANY = torch.arange(4096)


@pytest.mark.parametrize("axis", ["number", "step", "stream", "block"])
def test_noise_is_uniform(axis: str) -> None:
    for index in (0, 1, 255):
        assert stats.kstest(noise(**{axis: MANY}, index=index), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("axis", ["number", "step", "stream", "block"])
def test_noise_is_independent_of_its_neighbours(axis: str) -> None:
    """Pairs fill an 8 × 8 grid evenly: of one axis from one to the next, and of any two axes."""
    own = noise(**{axis: MANY}, index=9)
    others = [noise(**{axis: MANY + apart}, index=9) for apart in (1, 2, 1000)]
    for other in {"number", "step", "stream", "block"} - {axis}:
        others.append(noise(**{axis: MANY, other: 2}, index=9))
    for pair in others:
        counts, *_ = np.histogram2d(own, pair, bins=8, range=[[0, 1], [0, 1]])
        assert stats.chisquare(counts.ravel()).pvalue > 1e-4


def test_noise_within_a_block_is_a_lattice() -> None:
    """The golden ratio's: evener than chance, whose gaps would reach 6/256; these stay under 2."""
    for step in range(1, 20):
        u = np.sort(noise(step=step, index=torch.arange(BLOCK)))
        gaps = [b - a for a, b in pairwise([*u, u[0] + 1])]
        assert max(gaps) < 2 / BLOCK


def test_words_hold_no_number_twice() -> None:
    """The hash is a bijection: different steps never share their noise."""
    assert len(set(call("hash_word", torch.arange(2**18)).tolist())) == 2**18
