"""Many parameters as one flat fp32 vector, and back.

A `BucketLayout` says which element of the vector belongs to which parameter. It holds no tensor:
the vector may be parameters, gradients or deltas, the whole of it or one rail's shard. It does
not communicate, and it does not decide what is exchanged: see ``hierarchy`` and ``sync``.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pyfedcomm import dtensor
from pyfedcomm.errors import InvalidArgument

NamedParameters = Iterable[tuple[str, torch.nn.Parameter]]

EXCHANGED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What fp32 holds without loss."""

SHARD_MULTIPLE = 4096
"""Shards begin at multiples of this many elements, so that no codec block is cut in two."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a tensor, and where they lie in the vector; at least one element."""

    tensor: int
    """Index of it."""
    begin: int
    """First element of the flattened tensor, and the first one after the piece."""
    end: int
    offset: int
    """First element in the vector."""


@dataclass(frozen=True)
class BucketLayout:
    """Where each of some tensors lies in one flat fp32 vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    """Of the parameters; the vector is fp32."""
    pieces: tuple[Piece, ...]
    """Every element of the tensors once, in the order of the vector."""
    n_elems: int

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, torch.Tensor]], *, sections: int = 1) -> BucketLayout:
        """The layout of these named tensors, one after the other, without gaps.

        sections: with more than one the vector has so many parts of equal length, a multiple of
            `SHARD_MULTIPLE`, and part r has, one after the other, the rows of every tensor that
            rank r of so many holds if it is sharded; then padding. See `dtensor.rows`.
        """
        named = list(tensors)
        shapes = tuple(tuple(tensor.shape) for _, tensor in named)
        parts = [[rows_of(shape, sections, r) for shape in shapes] for r in range(sections)]
        lengths = [sum(end - begin for begin, end in part) for part in parts]
        length = padded(max(lengths), 1) if sections > 1 else lengths[0]
        pieces = []
        for r, part in enumerate(parts):
            offset = r * length
            for i, (begin, end) in enumerate(part):
                if begin < end:
                    pieces.append(Piece(i, begin, end, offset))
                    offset += end - begin
        return cls(
            names=tuple(name for name, _ in named),
            shapes=shapes,
            dtypes=tuple(tensor.dtype for _, tensor in named),
            pieces=tuple(pieces),
            n_elems=sections * length,
        )

    def pack(
        self, tensors: Sequence[torch.Tensor | None], out: torch.Tensor, *, begin: int = 0
    ) -> None:
        """Writes elements ``begin`` to ``begin + len(out)`` of the flat vector to ``out``.

        tensors: one for each name, of its shape, any floating dtype and device; None counts as
            zeros (a parameter that got no gradient).
        out: flat fp32. What belongs to no tensor (padding) becomes zero.
        """
        done = 0
        with torch.no_grad():
            for i, source, target in self._overlaps(begin, out.numel()):
                out[done : target.start].zero_()
                tensor = tensors[i]
                if tensor is None:
                    out[target].zero_()
                else:
                    out[target].copy_(tensor.detach().reshape(-1)[source])
                done = target.stop
            out[done:].zero_()

    def unpack(self, flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
        """Writes the vector back, in place, rounding to each tensor's dtype.

        flat: fp32, at least ``n_elems`` elements. tensors: one for each name, of its shape.
        """
        with torch.no_grad():
            for rows, values in self._rows(flat, tensors):
                rows.copy_(values)

    def add(self, flat: torch.Tensor, tensors: Sequence[torch.Tensor], scale: float) -> None:
        """Adds ``scale`` times the vector, as `unpack` writes it; ``flat`` on their device."""
        with torch.no_grad():
            pairs = list(self._rows(flat, tensors))
            if pairs:  # one kernel for many tensors
                rows, values = zip(*pairs, strict=True)
                torch._foreach_add_(rows, values, alpha=scale)

    def round_(self, part: torch.Tensor, *, begin: int = 0) -> torch.Tensor:
        """Rounds a part of the vector, which starts at ``begin``, to the parameters' dtypes.

        In place, returns ``part`` (still fp32): the values that `unpack` would leave behind.
        """
        for i, _, target in self._overlaps(begin, part.numel()):
            if self.dtypes[i] != torch.float32:
                part[target].copy_(part[target].to(self.dtypes[i]))
        return part

    def name_of(self, index: int) -> str:
        """Name of the parameter that contains element ``index`` of the vector."""
        at = bisect_right(self.pieces, index, key=lambda piece: piece.offset) - 1
        piece = self.pieces[at] if at >= 0 else None
        if piece is None or not 0 <= index - piece.offset < piece.end - piece.begin:
            raise InvalidArgument(
                f"element {index} is of no parameter in a bucket of {self.n_elems} elements"
            )
        return self.names[piece.tensor]

    def digest(self) -> str:
        """Short hash of names, shapes and dtypes: equal where the vectors can be exchanged."""
        lines = [
            f"{n} {s} {d}" for n, s, d in zip(self.names, self.shapes, self.dtypes, strict=True)
        ]
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()

    def _rows(
        self, flat: torch.Tensor, tensors: Sequence[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(rows of a tensor, what the vector has for them), alike in shape."""
        for piece in self.pieces:
            rows, length = tensors[piece.tensor], piece.end - piece.begin
            if length < rows.numel():
                width = rows.numel() // rows.shape[0]
                rows = rows[piece.begin // width : piece.end // width]
            yield rows, flat[piece.offset : piece.offset + length].view(rows.shape)

    def _overlaps(self, begin: int, n_elems: int) -> Iterator[tuple[int, slice, slice]]:
        """(tensor, its elements, their place in the part) of what ``begin``, ``n_elems`` covers."""
        end = begin + n_elems
        first = bisect_right(self.pieces, begin, key=lambda piece: piece.offset) - 1
        for piece in self.pieces[max(0, first) :]:
            if piece.offset >= end:
                return
            low = max(begin, piece.offset)
            high = min(end, piece.offset + piece.end - piece.begin)
            if low < high:
                inside = piece.begin - piece.offset
                yield (
                    piece.tensor,
                    slice(low + inside, high + inside),
                    slice(low - begin, high - begin),
                )


def rows_of(shape: tuple[int, ...], n_ranks: int, rank: int) -> tuple[int, int]:
    """First and last element, flattened, of what one rank holds of a tensor of this shape."""
    held = dtensor.rows(shape[0] if shape else 1, n_ranks, rank)
    width = math.prod(shape[1:])
    return held.start * width, held.stop * width


def padded(n_elems: int, n_rails: int) -> int:
    """The smallest multiple of ``n_rails * SHARD_MULTIPLE`` that holds ``n_elems``."""
    unit = SHARD_MULTIPLE * n_rails
    return -(-n_elems // unit) * unit


def shards(n_elems: int, n_rails: int) -> list[slice]:
    """The part of a bucket that each rail owns: in order, without gap or overlap.

    All begin at multiples of `SHARD_MULTIPLE` and are of equal length, but for the last ones,
    which end where the bucket does.
    """
    length = padded(n_elems, n_rails) // n_rails
    return [
        slice(min(rail * length, n_elems), min((rail + 1) * length, n_elems))
        for rail in range(n_rails)
    ]


def trainable(
    parameters: NamedParameters, *, once_per: Literal["object", "storage"] = "object"
) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters that training changes, in order; frozen and integer ones are left out.

    once_per: tied parameters appear once, under their first name. One that is registered twice is
        one ``"object"``; two that share their memory have two gradients, but one value
        (``"storage"``).
    Raises `InvalidArgument` for a dtype that fp32 cannot hold, and where nothing is left.
    """
    kept: list[tuple[str, torch.nn.Parameter]] = []
    seen: set[object] = set()
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.dtype not in EXCHANGED_DTYPES:
            raise InvalidArgument(
                f"parameter {name!r} is {parameter.dtype}; exchanges are fp32 and would lose some "
                "of it: use model.float(), or freeze it with requires_grad_(False)"
            )
        key: object = id(parameter)
        # A rank that holds none of a sharded parameter could not tell whom it shares memory with.
        plain = not dtensor.is_sharded(parameter)
        if once_per == "storage" and parameter.numel() and plain:
            key = (parameter.data_ptr(), parameter.shape, parameter.stride(), parameter.dtype)
        if key not in seen:
            seen.add(key)
            kept.append((name, parameter))
    if not kept:
        raise InvalidArgument("the model has no trainable parameter: there is nothing to exchange")
    return kept


def fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hash of names, dtypes, shapes and every bit of the values: equal only for equal tensors.

    Sharded tensors count as the whole ones that they are parts of, which is collective over the
    ranks that hold them; one at a time is gathered.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = dtensor.whole(tensor).reshape(-1).contiguous().cpu()
        # Tensors of 0 or 1 elements may have any stride, which `view` does not accept.
        flat = flat.as_strided((flat.numel(),), (1,))
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
