"""Numbers come back from their text as they were, and other texts are refused."""

import base64
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from steppe.compare.records.packed_numbers import MOST_LOSSES, pack_bits, pack_floats, unpack

repeatable = settings(max_examples=100, derandomize=True, deadline=None)
halves = st.floats(width=16, allow_nan=False)


@repeatable
@given(st.lists(st.booleans(), max_size=70))
def test_bits_come_back(values: list[bool]) -> None:
    text = pack_bits(values)
    assert unpack(text).tolist() == values
    assert (text == "") == (not values)


@repeatable
@given(st.lists(halves, max_size=MOST_LOSSES))
def test_halves_come_back(values: list[float]) -> None:
    text = pack_floats(values)
    assert unpack(text).tolist() == values
    # Packed again, they are the same text.
    assert pack_floats(unpack(text)) == text


@repeatable
@given(arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(1e-4, 6e4)))
def test_other_numbers_are_rounded_to_eleven_bits(values: np.ndarray) -> None:
    assert unpack(pack_floats(values)) == pytest.approx(values, rel=2.0**-11, abs=2.0**-25)


def test_what_is_infinite_or_no_number_stays_so() -> None:
    found = unpack(pack_floats([np.inf, -np.inf, np.nan, 65_504.0]))
    assert found[:2].tolist() == [np.inf, -np.inf]
    assert np.isnan(found[2])
    assert found[3] == 65_504.0


@repeatable
@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20), st.floats(7e4, 3e38)
)
def test_losses_beyond_float16_come_back_finite(values: list[float], large: float) -> None:
    text = pack_floats([*values, large])
    assert unpack(text).tolist() == [*values, float(np.float32(large))]
    assert pack_floats(unpack(text)) == text


@pytest.mark.parametrize("count", [501, 999, 1_000, 10_000])
def test_more_than_500_are_means_of_stretches_of_nearly_equal_length(count: int) -> None:
    values = np.random.default_rng(0).uniform(0.5, 2.0, count)
    found = unpack(pack_floats(values))
    # As long as it takes for at most 500, and as many as there are of these.
    number = math.ceil(count / math.ceil(count / MOST_LOSSES))
    assert len(found) == number <= MOST_LOSSES
    ends = np.linspace(0, count, number + 1)
    lengths = np.full(number, count // number)
    lengths[: count % number] += 1
    starts = np.cumsum(lengths) - lengths
    expected = [values[at : at + n].mean() for at, n in zip(starts, lengths, strict=True)]
    assert found == pytest.approx(expected, rel=1e-3)
    assert abs(starts - ends[:-1]).max() < MOST_LOSSES
    if count % number == 0:
        # Stretches of equal length have the mean of all samples.
        assert found.mean() == pytest.approx(values.mean(), rel=1e-4)


def test_the_format_is_a_kind_a_count_and_base64() -> None:
    assert (
        pack_bits([1, 0, 0, 0, 0, 0, 0, 0, 1])
        == "bits:9:" + base64.b64encode(bytes([0b1000_0000, 0b1000_0000])).decode()
    )
    # 1.0 is 0x3C00, −2.0 is 0xC000, the smaller byte first.
    assert pack_floats([1.0, -2.0]) == "halves:2:" + base64.b64encode(b"\0\x3c\0\xc0").decode()
    assert unpack("").tolist() == []


@pytest.mark.parametrize(
    "text",
    [
        "bits",
        "bits:3",
        "bits:3:",
        "bits:3:oA",
        "bits:3:oA==x",
        "bits:3:o A==",
        "bits:3:é===",
        "bits:9:oA==",
        "bits:0:",
        "bits:0:oA==",
        "bits:-3:oA==",
        "bits:three:oA==",
        "bits::oA==",
        "bits:3.0:oA==",
        "halves:1:oA==",
        "halves:2:ADwAwAA=",
        "halves:-2:ADwAwA==",
        "floats:2:ADwAwA==",
        "singles:1:ADwAwAA=",
        "singles:2:AADAfw==",
        "BITS:3:oA==",
        ":3:oA==",
        "null",
        f"bits:{10**6}:oA==",
        f"bits:{'9' * 5_000}:oA==",
    ],
)
def test_what_is_damaged_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be packed numbers such as 'bits:3:oA==', got "):
        unpack(text)
