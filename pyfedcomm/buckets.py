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
from itertools import accumulate
from typing import Literal

import torch

from pyfedcomm.errors import InvalidArgument

NamedParameters = Iterable[tuple[str, torch.nn.Parameter]]

EXCHANGED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What fp32 holds without loss."""

SHARD_MULTIPLE = 4096
"""Shards begin at multiples of this many elements, so that no codec block is cut in two."""


@dataclass(frozen=True)
class BucketLayout:
    """Where each of some tensors lies in one flat fp32 vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    """Of the parameters; the vector is fp32."""
    offsets: tuple[int, ...]
    """First element of each tensor in the vector, ascending."""
    n_elems: int

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, torch.Tensor]]) -> BucketLayout:
        """The layout of these named tensors, one after the other, without gaps."""
        named = list(tensors)
        sizes = [tensor.numel() for _, tensor in named]
        return cls(
            names=tuple(name for name, _ in named),
            shapes=tuple(tuple(tensor.shape) for _, tensor in named),
            dtypes=tuple(tensor.dtype for _, tensor in named),
            offsets=tuple(accumulate([0, *sizes]))[: len(sizes)],
            n_elems=sum(sizes),
        )

    def pack(
        self, tensors: Sequence[torch.Tensor | None], out: torch.Tensor, *, begin: int = 0
    ) -> None:
        """Writes elements ``begin`` to ``begin + len(out)`` of the flat vector to ``out``.

        tensors: one for each name, of its shape, any floating dtype and device; None counts as
            zeros (a parameter that got no gradient).
        out: flat fp32. What lies beyond ``n_elems`` (the padding of a shard) becomes zero.
        """
        with torch.no_grad():
            for i, source, target in self._overlaps(begin, out.numel()):
                tensor = tensors[i]
                if tensor is None:
                    out[target].zero_()
                else:
                    out[target].copy_(tensor.detach().reshape(-1)[source])
            out[max(0, self.n_elems - begin) :].zero_()

    def unpack(self, flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
        """Writes the vector back, in place, rounding to each tensor's dtype.

        flat: fp32, at least ``n_elems`` elements. tensors: one for each name, of its shape.
        """
        with torch.no_grad():
            for offset, shape, tensor in zip(self.offsets, self.shapes, tensors, strict=True):
                tensor.copy_(flat[offset : offset + math.prod(shape)].view(shape))

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
        if not 0 <= index < self.n_elems:
            raise InvalidArgument(f"element {index} is not in a bucket of {self.n_elems} elements")
        # Empty tensors share their offset with the next one; the last of them is the one meant.
        return self.names[bisect_right(self.offsets, index) - 1]

    def digest(self) -> str:
        """Short hash of names, shapes and dtypes: equal where the vectors can be exchanged."""
        lines = [
            f"{n} {s} {d}" for n, s, d in zip(self.names, self.shapes, self.dtypes, strict=True)
        ]
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()

    def _overlaps(self, begin: int, n_elems: int) -> Iterator[tuple[int, slice, slice]]:
        """(tensor, its elements, their place in the part) of what ``begin``, ``n_elems`` covers."""
        end = begin + n_elems
        for i in range(max(0, bisect_right(self.offsets, begin) - 1), len(self.names)):
            offset = self.offsets[i]
            if offset >= end:
                return
            low, high = max(begin, offset), min(end, offset + math.prod(self.shapes[i]))
            if low < high:
                yield i, slice(low - offset, high - offset), slice(low - begin, high - begin)


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
        if once_per == "storage" and parameter.numel():
            key = (parameter.data_ptr(), parameter.shape, parameter.stride(), parameter.dtype)
        if key not in seen:
            seen.add(key)
            kept.append((name, parameter))
    if not kept:
        raise InvalidArgument("the model has no trainable parameter: there is nothing to exchange")
    return kept


def fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hash of names, dtypes, shapes and every bit of the values: equal only for equal tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().reshape(-1).contiguous().cpu()
        # Tensors of 0 or 1 elements may have any stride, which `view` does not accept.
        flat = flat.as_strided((flat.numel(),), (1,))
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
