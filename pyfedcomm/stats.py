"""What groups count while they work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """What a group has done since it was made. Bytes are those this member sent."""

    operations: int
    frames: int
    payload_bytes: int
    """Encoded values only."""
    frame_bytes: int
    """Payload plus headers and seals: what crosses the wire."""
    encode_s: float
    """Seconds of the progress thread spent encoding."""
    decode_s: float
    """Seconds of the progress thread spent decoding and accumulating."""
    wire_s: float
    """Seconds with an operation in flight and nothing to compute: the network's share."""
    sent_to: tuple[int, ...]
    """Frame bytes by destination."""


def sum_of(groups: Sequence[Stats]) -> Stats:
    """The counters of several groups, added; their members differ: without destinations."""
    return Stats(
        operations=sum(s.operations for s in groups),
        frames=sum(s.frames for s in groups),
        payload_bytes=sum(s.payload_bytes for s in groups),
        frame_bytes=sum(s.frame_bytes for s in groups),
        encode_s=math.fsum(s.encode_s for s in groups),
        decode_s=math.fsum(s.decode_s for s in groups),
        wire_s=math.fsum(s.wire_s for s in groups),
        sent_to=(),
    )
