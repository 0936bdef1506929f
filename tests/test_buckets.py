"""Layouts of flat vectors: nothing lost, nothing twice, every element has its name."""

from __future__ import annotations

import pytest
import torch

from pyfedcomm.buckets import (
    SHARD_MULTIPLE,
    BucketLayout,
    fingerprint,
    padded,
    shards,
    trainable,
)
from pyfedcomm.errors import InvalidArgument

SHAPES = [(3, 5), (), (0,), (7,), (2, 0), (1, 1, 4)]


def make(shapes: list[tuple[int, ...]] = SHAPES) -> list[tuple[str, torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (f"layer{i}.weight", torch.nn.Parameter(torch.randn(shape, generator=generator)))
        for i, shape in enumerate(shapes)
    ]


def tensors(named: list[tuple[str, torch.nn.Parameter]]) -> list[torch.Tensor]:
    return [p.detach() for _, p in named]


def test_layout_is_dense_and_in_order() -> None:
    layout = BucketLayout.of(make())
    assert [(p.tensor, p.begin, p.end, p.offset) for p in layout.pieces] == [
        (0, 0, 15, 0),
        (1, 0, 1, 15),
        (3, 0, 7, 16),
        (5, 0, 4, 23),
    ]
    assert layout.n_elems == 27
    assert layout.shapes == tuple(SHAPES)


@pytest.mark.parametrize("sections", [2, 3, 5])
def test_sections_are_what_each_rank_holds(sections: int) -> None:
    named = make([(7, 3), (), (5003,), (0,), (2, 0), (1, 1, 4), (4, 2)])
    layout = BucketLayout.of(named, sections=sections)
    flat = torch.full((layout.n_elems,), float("nan"))
    layout.pack(tensors(named), flat)
    length = layout.n_elems // sections
    assert length % SHARD_MULTIPLE == 0
    longest = 0
    for rank in range(sections):
        held = []
        for tensor in tensors(named):
            chunks = tensor.reshape(tensor.shape or (1,)).chunk(sections)
            held += [chunks[rank].reshape(-1)] if rank < len(chunks) else []
        expected = torch.cat(held)
        longest = max(longest, expected.numel())
        section = flat[rank * length : (rank + 1) * length]
        assert torch.equal(section[: expected.numel()], expected)
        assert not section[expected.numel() :].any()
        part = torch.full((length // 2 + 1,), float("nan"))
        layout.pack(tensors(named), part, begin=rank * length + 3)
        whole = torch.nn.functional.pad(flat, (0, length))[rank * length + 3 :]
        assert torch.equal(part, whole[: part.numel()])
    assert length - longest < SHARD_MULTIPLE
    copies = [
        torch.zeros(t.shape).t().contiguous().t() if t.dim() == 2 else torch.zeros_like(t)
        for t in tensors(named)
    ]
    layout.unpack(flat, copies)
    for copy, tensor in zip(copies, tensors(named), strict=True):
        assert torch.equal(copy, tensor)
    last = layout.pieces[-1]
    assert layout.name_of(last.offset) == layout.names[last.tensor]
    with pytest.raises(InvalidArgument, match="of no parameter"):
        layout.name_of(last.offset + last.end - last.begin)


def test_pack_then_unpack_restores_every_bit() -> None:
    named = make()
    layout = BucketLayout.of(named)
    flat = torch.full((layout.n_elems,), float("nan"))
    layout.pack(tensors(named), flat)
    assert torch.equal(flat, torch.cat([t.reshape(-1) for t in tensors(named)]))
    copies = [torch.zeros_like(t) for t in tensors(named)]
    layout.unpack(flat, copies)
    for copy, tensor in zip(copies, tensors(named), strict=True):
        assert torch.equal(copy, tensor)


@pytest.mark.parametrize("length", [1, 4, 27, 31])
def test_parts_together_are_the_whole(length: int) -> None:
    named = make()
    layout = BucketLayout.of(named)
    whole = torch.cat([t.reshape(-1) for t in tensors(named)])
    for begin in range(0, layout.n_elems + length, length):
        part = torch.full((length,), float("nan"))
        layout.pack(tensors(named), part, begin=begin)
        inside = whole[begin : begin + length]
        assert torch.equal(part[: inside.numel()], inside)
        assert not part[inside.numel() :].any()  # padding is zero, not what was there before


def test_pack_reads_strided_tensors_and_missing_gradients() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    layout = BucketLayout.of([("a", weight.t()), ("b", torch.zeros(2))])
    flat = torch.ones(8)
    layout.pack([weight.t(), None], flat)
    assert flat.tolist() == [0, 3, 1, 4, 2, 5, 0, 0]


def test_name_of_every_element() -> None:
    layout = BucketLayout.of(make())
    names = [layout.name_of(i) for i in range(layout.n_elems)]
    assert names == (
        ["layer0.weight"] * 15 + ["layer1.weight"] + ["layer3.weight"] * 7 + ["layer5.weight"] * 4
    )
    for outside in (-1, layout.n_elems):
        with pytest.raises(InvalidArgument, match="bucket of 27"):
            layout.name_of(outside)


def test_unpack_rounds_to_the_parameters_dtype() -> None:
    low = torch.zeros(3, dtype=torch.bfloat16)
    full = torch.zeros(2)
    layout = BucketLayout.of([("low", low), ("full", full)])
    flat = torch.tensor([1.001, 2.0, 3.0, 1.001, 5.0])
    layout.unpack(flat, [low, full])
    assert low.tolist() == [1.0, 2.0, 3.0]
    assert full[0] == flat[3]
    rounded = layout.round_(flat.clone())
    packed = torch.empty(5)
    layout.pack([low, full], packed)
    assert torch.equal(rounded, packed)
    assert torch.equal(layout.round_(flat[1:].clone(), begin=1), packed[1:])


def test_frozen_and_integer_parameters_are_left_out() -> None:
    kept = torch.nn.Parameter(torch.ones(2))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    integer = torch.nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    named = [("frozen", frozen), ("integer", integer), ("kept", kept)]
    assert [name for name, _ in trainable(named)] == ["kept"]
    with pytest.raises(InvalidArgument, match="no trainable parameter"):
        trainable(named[:2])


def test_tied_parameters_appear_once() -> None:
    shared = torch.nn.Parameter(torch.ones(4))
    same_memory = torch.nn.Parameter(shared.detach())
    named = [("a", shared), ("b", shared), ("c", same_memory), ("d", make()[0][1])]
    assert [name for name, _ in trainable(named)] == ["a", "c", "d"]
    assert [name for name, _ in trainable(named, once_per="storage")] == ["a", "d"]
    # Empty tensors may all have address 0; they are not tied.
    empty = [("x", torch.nn.Parameter(torch.ones(0))), ("y", torch.nn.Parameter(torch.ones(0)))]
    assert len(trainable(empty, once_per="storage")) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_dtypes_that_fp32_cannot_hold_are_refused(dtype: torch.dtype) -> None:
    wide = torch.nn.Parameter(torch.ones(2, dtype=dtype))
    with pytest.raises(InvalidArgument, match=r"'wide' is torch\.\w+64"):
        trainable([("wide", wide)])


@pytest.mark.parametrize("n_rails", range(1, 9))
def test_shards_cover_a_bucket_once_at_block_boundaries(n_rails: int) -> None:
    m = SHARD_MULTIPLE
    for n_elems in (0, 1, m - 1, m, m + 1, 3 * m, 8 * m, 8 * m + 1, 9 * m - 1, 100 * m + 17):
        parts = shards(n_elems, n_rails)
        assert len(parts) == n_rails
        covered = [i for part in parts for i in (part.start, part.stop)]
        assert covered[0] == 0
        assert covered[-1] == n_elems
        assert covered[1:-1:2] == covered[2::2]  # each begins where the one before ends
        for part in parts:
            assert part.start % m == 0 or part.start == n_elems
        whole = shards(padded(n_elems, n_rails), n_rails)
        assert len({part.stop - part.start for part in whole}) == 1
        assert 0 <= padded(n_elems, n_rails) - n_elems < m * n_rails


def test_digest_tells_layouts_apart() -> None:
    base = BucketLayout.of(make()).digest()
    assert base == BucketLayout.of(make()).digest()
    renamed = [(name + "x", p) for name, p in make()]
    lower = [(name, torch.nn.Parameter(p.detach().bfloat16())) for name, p in make()]
    others = [renamed, lower, make([(5, 3), *SHAPES[1:]]), make()[:-1]]
    digests = [BucketLayout.of(other).digest() for other in others]
    assert len({base, *digests}) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool])
def test_fingerprint_sees_every_bit(dtype: torch.dtype) -> None:
    def value(*elements: float) -> list[tuple[str, torch.Tensor]]:
        return [("x", torch.tensor(elements).to(dtype)), ("empty", torch.zeros(0))]

    assert fingerprint(value(0, 1)) == fingerprint(value(0, 1))
    assert fingerprint(value(0, 1)) != fingerprint(value(1, 0))
    assert fingerprint([("x", torch.tensor([0.0]))]) != fingerprint([("x", torch.tensor([-0.0]))])
    one = torch.zeros(2).as_strided((1,), (0,))
    assert fingerprint([("x", one)]) == fingerprint([("x", torch.zeros(1))])
    table = torch.arange(6.0).reshape(2, 3)
    assert fingerprint([("x", table.t())]) == fingerprint([("x", table.t().contiguous())])
