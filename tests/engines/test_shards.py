"""Where elements of a part lie in the whole, and the scales of parts that are dealt out anew."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import steppe
from steppe._engines.base.number_formats import BLOCK
from steppe._engines.base.sharding import LocalShard, local_shard_of
from steppe._engines.checkpoint_scales import scale_layout
from steppe._engines.eager.codecs import encoded

KINDS = ("signed8", "square8")


@st.composite
def shares(draw: st.DrawFn) -> LocalShard:
    """Draw a rectangle of a dense tensor, whatever the order of its dimensions in memory."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=0, max_size=4)))
    order = draw(st.permutations(range(len(shape))))
    strides, step = [0] * len(shape), 1
    for dim in reversed(order):
        strides[dim], step = step, step * shape[dim]
    offsets = tuple(draw(st.integers(0, size)) for size in shape)
    sizes = tuple(draw(st.integers(0, size - at)) for size, at in zip(shape, offsets, strict=True))
    return LocalShard(shape, tuple(strides), offsets, sizes)


def places(share: LocalShard) -> list[int]:
    """Return where the part's elements lie in the whole's memory, in the order of the part's."""
    whole = torch.empty(share.shape).as_strided(share.shape, share.stride)
    order = sorted(range(whole.dim()), key=lambda dim: (-share.stride[dim], dim))
    index = torch.zeros(share.shape, dtype=torch.long)
    for dim, step in enumerate(share.stride):
        along = [1] * whole.dim()
        along[dim] = share.shape[dim]
        index = index + (torch.arange(share.shape[dim]) * step).view(along)
    rectangle = tuple(
        slice(at, at + size) for at, size in zip(share.offsets, share.sizes, strict=True)
    )
    return index[rectangle].permute(order).reshape(-1).tolist()


@given(shares())
@settings(max_examples=300)
def test_runs_are_the_elements_places(share: LocalShard) -> None:
    starts, length = share.runs
    found = [start + i for start in starts.tolist() for i in range(length)]
    assert found == places(share)


@given(shares(), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=300)
def test_pieces_end_where_the_whole_is_cut(share: LocalShard, block: int, times: int) -> None:
    length = block * times
    chunks = share.cut(length, block)
    expected = places(share)
    found = [
        at + i
        for at, size in zip(chunks.whole_first, chunks.size, strict=True)
        for i in range(size)
    ]
    assert found == expected
    assert chunks.first.tolist() == [0, *np.cumsum(chunks.size)][: len(chunks.size)]
    for at, size in zip(chunks.whole_first.tolist(), chunks.size.tolist(), strict=True):
        assert at // length == (at + size - 1) // length
    # Blocks are counted anew where a run ends, even if its next one goes on in the same.
    starts, run = share.runs
    blocks = [(i // run, place // block) for i, place in enumerate(expected)]
    number = {key: i for i, key in enumerate(dict.fromkeys(blocks))}
    assert chunks.block.tolist() == [number[blocks[i]] for i in chunks.first.tolist()]
    assert share.blocks(block) == len(number)
    assert len(starts) * run == len(expected)


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Yield the mesh of four processes of which this one plays the third."""
    distributed.init_process_group("fake", rank=2, world_size=4, store=FakeStore())
    yield init_device_mesh("cpu", (4,))
    distributed.destroy_process_group()


def third(mesh: DeviceMesh, part: Tensor, stride: tuple[int, ...]) -> DTensor:
    """Return an 8 × 3 tensor of which ``part`` is the third quarter."""
    shape = torch.Size((8, 3))
    return DTensor.from_local(part, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def test_complex_shares_are_their_real_views(mesh: DeviceMesh) -> None:
    share = local_shard_of(third(mesh, torch.zeros(2, 3, dtype=torch.complex64), (3, 1)))
    assert (share.shape, share.stride) == ((8, 3, 2), (6, 2, 1))
    assert (share.offsets, share.sizes, share.numel) == ((4, 0, 0), (2, 3, 2), 48)
    whole = local_shard_of(torch.zeros(8, 3, dtype=torch.complex64))
    assert (whole.shape, whole.stride) == (share.shape, share.stride)


def test_contiguous_parts_make_up_a_contiguous_whole(mesh: DeviceMesh) -> None:
    starts, length = local_shard_of(third(mesh, torch.zeros(2, 3), (1, 8))).runs
    assert [start + i for start in starts for i in range(length)] == [12, 13, 14, 15, 16, 17]
    columns = torch.zeros(3, 2).t()
    starts, length = local_shard_of(third(mesh, columns, (1, 8))).runs
    assert [start + i for start in starts for i in range(length)] == [4, 5, 12, 13, 20, 21]


def test_what_cannot_be_stepped_is_refused_before_anything_changes(mesh: DeviceMesh) -> None:
    plain, sharded = torch.zeros(8, 3), third(mesh, torch.zeros(2, 3), (3, 1))
    elsewhere = distribute_tensor(plain, DeviceMesh("cpu", [0, 1]), [Shard(0)], src_data_rank=None)
    for param, grad, message in (
        (sharded, plain, r"shape \(8, 3\), is a DTensor and its gradient a plain tensor"),
        (plain, sharded, r"shape \(8, 3\), is a plain tensor and its gradient a DTensor"),
        (elsewhere, elsewhere, r"no part of parameter 0 of group 0, shape \(8, 3\)"),
    ):
        optimizer = steppe.AdamCM([param.detach().requires_grad_()])
        (leaf,) = optimizer.param_groups[0]["params"]
        with torch.no_grad():
            leaf._grad = grad
        with pytest.raises(RuntimeError, match=message):
            optimizer.step()
        assert not optimizer.state


def test_state_of_other_shards_is_refused(mesh: DeviceMesh) -> None:
    rows = third(mesh, torch.zeros(2, 3), (3, 1))
    columns = distribute_tensor(torch.zeros(8, 3), mesh, [Shard(1)], src_data_rank=None)
    optimizers = []
    for param in (rows, columns):
        leaf = param.detach().requires_grad_()
        leaf.grad = param.detach()
        optimizers.append(steppe.DualAdam([leaf]))
        optimizers[-1].step()
    with pytest.raises(ValueError, match=r"as \(Shard\(dim=0\),\), its parameter sharded .*dim=1"):
        optimizers[1].load_state_dict(optimizers[0].state_dict())


def rows_of(share: LocalShard, begin: int, end: int) -> LocalShard:
    """Return the share of some rows."""
    sizes = (end - begin, *share.sizes[1:])
    return LocalShard(share.shape, share.stride, (begin, *(0 for _ in sizes[1:])), sizes)


def in_blocks(share: LocalShard, values: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield where each block of a part lies in it, and the block, filled up with 0."""
    chunks = share.cut(BLOCK, BLOCK)
    for first, size, place in zip(chunks.first, chunks.size, chunks.whole_first, strict=True):
        where = slice(int(first), int(first + size))
        row = values.new_zeros(BLOCK)
        row[int(place % BLOCK) :][: int(size)] = values.reshape(-1)[where]
        yield where, row


def rounded(kind: str, share: LocalShard, values: Tensor) -> tuple[Tensor, Tensor]:
    """Round to nearest; return codes and scales, block by block."""
    codes, scales = torch.zeros(values.numel(), dtype=torch.uint8), []
    half = torch.full((), 0x80000000)
    for (where, row), place in zip(
        in_blocks(share, values), share.cut(BLOCK, BLOCK).whole_first, strict=True
    ):
        code, scale = encoded(kind, row[None], half)
        begin = int(place % BLOCK)
        codes[where] = code[0, begin : begin + where.stop - where.start]
        scales.append(scale)
    return codes.view(values.shape), torch.cat([*scales, torch.empty(0)])


def numbers(kind: str, share: LocalShard, codes: Tensor, scales: Tensor) -> Tensor:
    """Return the numbers of codes, by the description of the formats in float64."""
    scale = torch.zeros(codes.numel(), dtype=torch.float64)
    for (where, _), value in zip(in_blocks(share, codes), scales.double(), strict=True):
        scale[where] = value
    code = codes.reshape(-1).double()
    if kind == "square8":
        return (scale * power(code / 256, 4)).view(codes.shape)
    size = scale * (power((code % 128) / 128, 2) - 2.0**-12)
    return torch.where(code >= 128, -size, size).view(codes.shape)


def power(y: Tensor, exponent: int) -> Tensor:
    """Return what the piecewise linear root is inverted by."""
    mantissa, at = torch.frexp(y)
    line = (at + 2 * mantissa - 2) * exponent
    whole = line.floor()
    return torch.ldexp(1 + line - whole, whole)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
@settings(max_examples=40)
def test_scales_are_dealt_out_anew(kind: str, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 9), label="rows")
    shape = data.draw(
        st.sampled_from([(rows,), (rows, 3), (rows, 100), (rows, 256), (rows, 300), (rows, 2, 512)])
    )
    cuts = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=3))})
    others = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=3))})
    values = torch.randn(shape, generator=torch.Generator().manual_seed(rows)) * 10.0
    values = values.square() if kind == "square8" else values
    whole = local_shard_of(values)

    codes, lines, before = [], [], []
    for begin, end in pairwise(cuts):
        share = rows_of(whole, begin, end)
        code, scales = rounded(kind, share, values[begin:end])
        codes.append(code)
        lines.append(scale_layout(share).whole(scales))
        before.append(numbers(kind, share, code, scales))
    saved, scales, known = torch.cat(codes), torch.cat(lines), torch.cat(before)
    assert scales.shape == scale_layout(whole).shape

    line = values[0].numel()
    seams = {(cut * line) // BLOCK for cut in cuts[1:-1] if cut * line % BLOCK}
    for begin, end in pairwise(others):
        share = rows_of(whole, begin, end)
        code, own = scale_layout(share).part(kind, saved[begin:end], scales[begin:end])
        assert len(own) == share.blocks(BLOCK)
        found = numbers(kind, share, code, own)
        apart = (found - known[begin:end]).abs().reshape(-1)
        place = torch.arange(begin * line, end * line) // BLOCK
        is_seam = torch.tensor([int(each) in seams for each in place], dtype=torch.bool)
        assert (apart[~is_seam] <= 1e-6 * known[begin:end].reshape(-1)[~is_seam].abs()).all()
        assert torch.equal(code.reshape(-1)[~is_seam], saved[begin:end].reshape(-1)[~is_seam])
        for each in place.unique():
            here = place == each
            largest = known[begin:end].reshape(-1)[here].abs().max()
            assert (apart[here] <= 0.017 * largest).all()
