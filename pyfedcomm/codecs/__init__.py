"""Codecs by themselves: a float32 array to a payload and back, without any communication.

    codec = codecs.get("int8")
    payload = codec.encode(x)            # uint8 array of codec.wire_bytes(x.size)
    y = codec.decode(payload, x.size)

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
        """Elements that share a scale; 1 where nothing is shared."""
        return self.core.block

    def wire_bytes(self, n_elems: int) -> int:
        """Size of the payload of ``n_elems`` elements, in bytes."""
        if n_elems < 0:
            raise InvalidArgument(f"n_elems is {n_elems}; it cannot be negative")
        return self.core.wire_bytes(n_elems)

    def encode(
        self, x: npt.ArrayLike, *, out: Payload | None = None, nonfinite: str = "error"
    ) -> Payload:
        """The payload of ``x`` (any shape, float32): ``out``, or a new array.

        nonfinite: ``"error"`` raises `NonFinite` with the element's index; ``"propagate"`` makes
            the block (of a scaled format) or the element (else) decode to NaN or infinity.
        """
        values = _floats(x, "x")
        room = np.empty(self.wire_bytes(values.size), np.uint8) if out is None else out
        used = self.core.encode(values, room, nonfinite == "propagate")
        return room[:used]

    def decode(self, payload: Payload, n_elems: int, *, out: Floats | None = None) -> Floats:
        """``n_elems`` float32 values. Raises `CorruptFrame` if the payload cannot be theirs."""
        values = np.empty(n_elems, np.float32) if out is None else out
        if values.size != n_elems:
            raise InvalidArgument(f"out has {values.size} elements, not {n_elems}")
        self.core.decode(payload, values)
        return values

    def decode_add(self, payload: Payload, accumulator: Floats, *, weight: float = 1.0) -> None:
        """``accumulator += weight * decoded``, in place, one rounding for each operation."""
        self.core.decode_add(payload, weight, accumulator)


def get(name: str) -> Codec:
    """The codec called ``name``. Raises `InvalidArgument` that lists the names there are."""
    return Codec(_core.make_codec(name))


def names() -> list[str]:
    """Names of all codecs."""
    return _core.codec_names()


def _floats(x: Any, name: str) -> Floats:
    array = np.asarray(x)
    if array.dtype != np.float32:
        raise InvalidArgument(f"{name} has dtype {array.dtype}; codecs encode float32")
    return np.ascontiguousarray(array)
