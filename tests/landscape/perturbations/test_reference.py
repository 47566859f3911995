"""Which tensors of a batch are tokens, masks, types and positions, decided once for all data."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from steppe.landscape import Corruption, reference_of, robustness

PADDING = 0


def texts(count: int = 30, length: int = 12) -> tuple[Tensor, Tensor]:
    """Return tokens, those of padding 0, and where they are real."""
    generator = Generator().manual_seed(0)
    tokens = torch.randint(2, 50, (count, length), generator=generator)
    real = torch.arange(length) < torch.randint(4, length + 1, (count, 1), generator=generator)
    return tokens.where(real, torch.tensor(PADDING)), real


TOKENS, REAL = texts()
MASK, TYPES = REAL.long(), torch.zeros_like(TOKENS)
# Of pairs: the second text and its padding, and the second text alone, as BERT has it.
LATER = (torch.arange(12) >= 3).expand(30, -1)
PAIRED = (LATER & REAL).long()
POSITIONS = torch.arange(12).expand(30, -1)


@pytest.mark.parametrize(
    "inputs",
    [
        (TOKENS, MASK),
        (TOKENS, TYPES, MASK),
        (TOKENS, MASK, TYPES),
        (TOKENS, PAIRED, MASK),
        (TOKENS, MASK, PAIRED),
        (TOKENS, POSITIONS, TYPES, MASK),
        (MASK, TOKENS),
        (TOKENS, REAL),
        (TOKENS, ~REAL),
        (TOKENS, MASK.double()),
        (TOKENS, torch.zeros(30, 12).masked_fill(~REAL, -torch.inf)),
        [TOKENS, [TYPES, MASK]],
        {"tokens": TOKENS, "mask": MASK, "labels": MASK},
        {"tokens": TOKENS, "padding_mask": ~REAL, "segments": PAIRED},
        {"input_ids": TOKENS, "token_type_ids": PAIRED, "attention_mask": MASK},
        {"input_ids": TOKENS, "attention_mask": MASK.float(), "position_ids": POSITIONS},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["dropout", "swaps"])
def test_real_tokens_change_and_nothing_else(inputs: Any, kind: str) -> None:
    generator = Generator().manual_seed(1)
    found = flat(Corruption(kind, 5).corrupted(inputs, reference_of([inputs]), generator))
    for before, after in zip(flat(inputs), found, strict=True):
        if before is not TOKENS:
            assert torch.equal(before, after)
            continue
        assert torch.equal(after[~REAL], TOKENS[~REAL])
        assert (after[REAL] != PADDING).all()
        assert float((after != TOKENS)[REAL].double().mean()) > 0.2


def flat(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    parts = inputs.values() if isinstance(inputs, dict) else inputs
    return [tensor for part in parts for tensor in flat(part)]


class Joined(nn.Module):
    """Looks up two texts."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Embedding(50, 8), nn.Embedding(90, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        places = torch.arange(one.shape[1])[:, None] - 3
        found = places * (self.one(one) - 2 * self.other(other))
        output: Tensor = self.head(found.mean(1))
        return output


class Mixed(nn.Module):
    """Convolves two pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(1, 4, 3), nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        means = self.one(one).relu().mean((2, 3)), self.other(other).relu().mean((2, 3))
        output: Tensor = self.head(means[0] - 2 * means[1])
        return output


@pytest.mark.parametrize("kind", ["noise", "shift", "dropout", "swaps"])
def test_two_tensors_meet_the_same_however_they_are_batched(kind: str) -> None:
    torch.manual_seed(0)
    labels = torch.arange(20) % 3
    if kind in ("noise", "shift"):
        model: nn.Module = Mixed()
        parts = torch.randn(20, 1, 8, 8), 10 * torch.randn(20, 2, 9, 7)
    else:
        model = Joined()
        # In the first ten samples the second text looks like a mask.
        other = torch.cat([torch.zeros(10, 9), torch.randint(90, (10, 9))]).long()
        parts = torch.randint(50, (20, 9)), other
    found = []
    for size in (20, 10, 7, 1):
        rows = [slice(start, start + size) for start in range(0, 20, size)]
        data = [(tuple(part[each] for part in parts), labels[each]) for each in rows]
        result = robustness(model, data, perturbations=[Corruption(kind, 5)])
        found.append(result[f"{kind} 5"].loss)
        assert found[-1] != pytest.approx(result["clean"].loss, rel=1e-3)
    assert found == pytest.approx([found[0]] * 4, rel=1e-5)


def test_each_text_draws_from_its_own_tokens_and_each_image_has_its_own_scale() -> None:
    generator = Generator().manual_seed(0)
    one = torch.randint(0, 40, (50, 9), generator=generator)
    other = torch.randint(100, 140, (50, 9), generator=generator)
    reference = reference_of([(one, other)])
    first, second = Corruption("dropout", 5).corrupted((one, other), reference, generator)
    assert not torch.equal(first, one)
    assert not torch.equal(second, other)
    assert first.max() < 40 <= 100 <= second.min()
    small, large = torch.randn(50, 1, 8, 8), 100 * torch.randn(50, 1, 8, 8)
    reference = reference_of([(small, large)])
    both = Corruption("noise", 4).corrupted((small, large), reference, generator)
    for before, after in zip((small, large), both, strict=True):
        added = float((after - before).double().std())
        assert added == pytest.approx(float(before.double().std()), rel=0.06)


@pytest.mark.parametrize("size", [50, 7, 1])
def test_replacements_are_drawn_from_the_first_real_tokens(size: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("steppe.landscape.perturbations.reference._POOL", 120)
    parts = [(TOKENS[each : each + size], REAL[each : each + size]) for each in range(0, 30, size)]
    (pool,) = reference_of(parts).tokens.values()
    assert torch.equal(pool, TOKENS[REAL][:120])


def test_a_missing_pixel_changes_no_other_one() -> None:
    torch.manual_seed(0)
    whole = torch.randn(30, 1, 8, 8)
    broken = whole.clone()
    broken[0, 0, 0, 0], broken[1, 0, 2, 3] = torch.nan, torch.inf
    known = broken.isfinite()
    for kind in ("noise", "contrast", "brightness"):
        both = [
            Corruption(kind, 5).corrupted(each, reference_of([each]), Generator().manual_seed(0))
            for each in (whole, broken)
        ]
        assert both[1][known].isfinite().all(), kind
        torch.testing.assert_close(both[0][known], both[1][known], atol=0.05, rtol=0)
    assert not broken.flip(0)[-1].isfinite().all()
