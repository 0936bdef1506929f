from collections.abc import Callable
from typing import Any, Protocol, TypedDict, final

import numpy as np
import numpy.typing as npt

from pyfedcomm.errors import Error

MAX_CONTROL_BYTES: int

class BuildInfo(TypedDict):
    version: str
    wire_version: int
    mpi_vendor: str
    mpi_version: str
    mpi_library: str
    cuda: bool

class RawStats(TypedDict):
    operations: int
    frames: int
    payload_bytes: int
    frame_bytes: int
    encode_s: float
    decode_s: float
    wire_s: float
    sent_to: tuple[int, ...]

class RawLinkStats(TypedDict, total=False):
    payload_bytes_sent: int
    payload_bytes_received: int
    frame_bytes_sent: int
    frame_bytes_received: int
    received_rate: int | None
    address: str
    congestion: str
    streams: int
    wire_bytes_sent: int
    resent_bytes: int
    reconnects: int
    sent_segments: int
    retransmitted_segments: int
    stalled_s: float
    rtt_s: float
    pace_bytes_per_s: float

class RawMeasured(TypedDict):
    links: list[tuple[int, int, float | None, float | None, float | None]]
    ring: list[int]

class RawForecast(TypedDict):
    algorithm: str
    n_steps: int
    latency_s: float
    moving_s: float
    computing_s: float
    total_s: float
    source: int | None
    destination: int | None

class RawChoice(TypedDict):
    algorithm: str
    payload_bytes: int
    forecasts: list[RawForecast]

def build_info() -> BuildInfo: ...

@final
class View:
    def __init__(
        self,
        address: int,
        n_elems: int,
        dtype: str,
        owner: object,
        device: int = -1,
        stream: int = 0,
    ) -> None: ...
    @property
    def device(self) -> int: ...

@final
class Residual:
    def __init__(
        self,
        sender_in: View,
        sender_out: View,
        owner_in: View,
        owner_out: View,
        algorithm: str = "auto",
    ) -> None: ...
    @property
    def device(self) -> int: ...

@final
class ReduceArgs:
    def __init__(
        self,
        *,
        mean: bool,
        weight: float,
        codec: str,
        algorithm: str,
        residual: Residual | None,
        round: int,
        bucket: int,
        propagate: bool,
        timeout_s: float | None,
    ) -> None: ...

@final
class Work:
    def wait(self, timeout: float | None) -> None: ...
    def done(self) -> bool: ...
    def exception(self) -> Error | None: ...

class Fabric:
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

@final
class MemoryHub:
    def __init__(self, n_ranks: int) -> None: ...
    def fabric(self, rank: int) -> Fabric: ...
    def inject(self, source: int, destination: int, fault: str, after_frames: int) -> None: ...

@final
class TcpListener:
    def __init__(self, options: dict[str, Any]) -> None: ...
    def addresses(self) -> list[str]: ...

@final
class TcpFabric(Fabric):
    def __init__(
        self,
        options: dict[str, Any],
        listener: TcpListener,
        rank: int,
        session: int,
        token: bytes,
        addresses: list[list[str]],
    ) -> None: ...
    def inject(self, fault: str, rank: int, stream: int, after_bytes: int) -> None: ...
    def close(self) -> None: ...

@final
class Group:
    @staticmethod
    def open(fabric: Fabric, timeout_s: float, on_gpu: bool = False) -> Group: ...
    @staticmethod
    def open_all(hub: MemoryHub, timeout_s: float, on_gpu: bool = False) -> list[Group]: ...
    def split(
        self,
        groups: list[list[int]],
        labels: list[str],
        timeout: float | None,
        fabric: Fabric | None,
        rate_limit: float | None,
        on_gpu: bool,
    ) -> Group | None: ...
    def rebuild(self, members: list[int]) -> Group: ...
    def all_reduce(self, input: View, output: View, args: ReduceArgs) -> Work: ...
    def all_gather(self, input: View, output: View, timeout: float | None) -> Work: ...
    def broadcast(self, tensor: View, root: int, timeout: float | None) -> Work: ...
    def barrier(self, timeout: float | None) -> Work: ...
    def abort(self, reason: str) -> None: ...
    def close(self) -> None: ...
    def stats(self) -> RawStats: ...
    def link_stats(self, member: int) -> RawLinkStats: ...
    def measure(self, by: str, seconds: float | None) -> RawMeasured: ...
    def measured(self) -> RawMeasured | None: ...
    def choose(self, n_elems: int, codec: str) -> RawChoice: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    def owned(self, n_elems: int, algorithm: str, codec: str) -> tuple[int, int]: ...
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def timeout_s(self) -> float: ...
    @property
    def transport(self) -> str: ...
    @property
    def broken(self) -> str | None: ...

@final
class Codec:
    @property
    def name(self) -> str: ...
    @property
    def block(self) -> int: ...
    def wire_bytes(self, n_elems: int) -> int: ...
    def encode(
        self, x: npt.NDArray[np.float32], out: npt.NDArray[np.uint8], options: EncodeOptions
    ) -> int: ...
    def decode(self, payload: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None: ...
    def decode_add(
        self,
        payload: npt.NDArray[np.uint8],
        weight: float,
        accumulator: npt.NDArray[np.float32],
    ) -> None: ...

@final
class EncodeOptions:
    def __init__(
        self,
        *,
        propagate: bool,
        residual: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None,
        round: int,
        bucket: int,
        member: int,
    ) -> None: ...

def make_codec(name: str) -> Codec: ...
def codec_names() -> list[str]: ...
def isas() -> list[str]: ...
def current_isa() -> str: ...
def use_isa(name: str) -> None: ...
def thread_count() -> int: ...
def use_threads(n_threads: int) -> None: ...

class CudaCodec(Protocol):
    """A codec at work on device addresses, which nobody checks; asynchronous on a stream."""

    def reserve(self, n_elems: int) -> None: ...
    def encode(
        self,
        x: int,
        n_elems: int,
        payload: int,
        n_bytes: int,
        non_finite: int,
        stream: int,
        residual: tuple[int, int] = (0, 0),
        round: int = 0,
        bucket: int = 0,
        member: int = 0,
    ) -> int | None: ...
    def decode(
        self,
        payload: int,
        n_bytes: int,
        head: bytes,
        out: int,
        n_elems: int,
        corrupt: int,
        stream: int,
    ) -> None: ...
    def decode_add(
        self,
        payload: int,
        n_bytes: int,
        head: bytes,
        weight: float,
        accumulator: int,
        n_elems: int,
        corrupt: int,
        stream: int,
    ) -> None: ...

class _Cuda(Protocol):
    def available(self) -> bool: ...
    Codec: Callable[[str], CudaCodec]

cuda: _Cuda
