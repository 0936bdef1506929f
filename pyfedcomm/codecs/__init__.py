"""Codecs by themselves: a float32 array to a payload and back, without any communication.

    codec = codecs.get("topk(0.01, int8)")
    payload = codec.encode(x, residual=residual)   # uint8; what it leaves out is added next time
    y = codec.decode(payload, x.size)

A codec's name says what it is made of. Formats, each element by itself or in blocks that share a
scale: ``fp32``, ``bf16``, ``fp8_e4m3``, ``int8``, ``int4``, ``int2``, ``e3m0``, ``sign``, with
``block=`` (a power of two, 32 to 4096), ``scale=`` (``fp32`` or ``bf16``), ``stochastic`` and
``seed=``, as in ``int4(block=64, stochastic)``. Selections, whose values are in any format:
``topk(0.01, int8)`` or ``topk(k=1000, int8)``, the largest magnitudes of the whole tensor, and
``chunk_topk(4096, 64, int2)``, the largest of each chunk; ``index=packed`` gives the latter indices
of fixed width instead of entropy-coded ones. All take ``beta=`` (0 to 1), what the residual is
multiplied by before it is added.

The same code runs inside `Group.all_reduce`; encoders write the same bytes on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyfedcomm import _core
from pyfedcomm.errors import InvalidArgument

Floats: TypeAlias = npt.NDArray[np.float32]
Payload: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Codec:
    """One codec; made by `get`."""

    core: _core.Codec

    @property
    def name(self) -> str:
        """Canonical text: ``get(codec.name)`` is the same codec."""
        return self.core.name

    @property
    def block(self) -> int:
        """Elements that share a scale or are selected among together; 1 where each is by itself."""
        return self.core.block

    def wire_bytes(self, n_elems: int) -> int:
        """Size of the payload of ``n_elems`` elements, in bytes.

        Exact, or the largest there can be where indices are entropy-coded.
        """
        if n_elems < 0:
            raise InvalidArgument(f"n_elems is {n_elems}; it cannot be negative")
        return self.core.wire_bytes(n_elems)

    def encode(
        self,
        x: npt.ArrayLike,
        *,
        out: Payload | None = None,
        residual: Floats | None = None,
        new_residual: Floats | None = None,
        nonfinite: str = "error",
        round: int = 0,
        bucket: int = 0,
        member: int = 0,
    ) -> Payload:
        """The payload of ``x`` (any shape, float32): in ``out``, or a new array.

        residual: error feedback, as many elements as ``x``: what is encoded is
            ``acc = x + beta * residual``, and ``acc - decoded`` becomes the new residual. It is
            written to ``new_residual``, by default over the old one; where encoding fails, what was
            written is of no use.
        nonfinite: ``"error"`` raises `NonFinite` with the element's index; ``"propagate"`` makes
            the block (of a scaled format) or the element (else) decode to NaN or infinity.
        round, bucket, member: with the codec's seed, what stochastic rounding draws from; equal
            numbers draw equally.
        """
        values = _floats(x, "x")
        room = np.empty(self.wire_bytes(values.size), np.uint8) if out is None else out
        pair = None
        if residual is not None:
            pair = (residual, residual if new_residual is None else new_residual)
        options = _core.EncodeOptions(
            propagate=nonfinite == "propagate",
            residual=pair,
            round=round,
            bucket=bucket,
            member=member,
        )
        used = self.core.encode(values, room, options)
        return room[:used]

    def decode(self, payload: Payload, n_elems: int, *, out: Floats | None = None) -> Floats:
        """``n_elems`` float32 values. Raises `CorruptFrame` if the payload cannot be theirs."""
        values = np.empty(n_elems, np.float32) if out is None else out
        if values.size != n_elems:
            raise InvalidArgument(f"out has {values.size} elements, not {n_elems}")
        self.core.decode(payload, values)
        return values

    def decode_add(self, payload: Payload, accumulator: Floats, *, weight: float = 1.0) -> None:
        """``accumulator += weight * decoded``, in place, one rounding for each operation.

        Elements that a selection left out stay as they are.
        """
        self.core.decode_add(payload, weight, accumulator)


def get(name: str) -> Codec:
    """The codec called ``name``. Raises `InvalidArgument` that says what is wrong with the name."""
    return Codec(_core.make_codec(name))


def names() -> list[str]:
    """One codec of each kind, by its canonical name."""
    return _core.codec_names()


def _floats(x: Any, name: str) -> Floats:
    array = np.asarray(x)
    if array.dtype != np.float32:
        raise InvalidArgument(f"{name} has dtype {array.dtype}; codecs encode float32")
    return np.ascontiguousarray(array)
