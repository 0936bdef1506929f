"""pyfedcomm: train one language model across several clouds whose data may not move.

The low-level library is `Group` (compressed collectives between clouds); above it lie `hierarchy`,
`sync` and `train`. Importing this package loads neither torch nor transformers nor MPI: they are
loaded by what needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyfedcomm import _core
from pyfedcomm.errors import (
    AuthenticationError,
    ConfigError,
    CorruptFrame,
    CudaError,
    Error,
    GroupBroken,
    InvalidArgument,
    NonFinite,
    PeerLost,
    Timeout,
)
from pyfedcomm.group import Group, memory_groups
from pyfedcomm.links import Choice, Forecast, Link, Links, LinkStats
from pyfedcomm.stats import Stats
from pyfedcomm.tcp import TcpOptions
from pyfedcomm.topology import Topology
from pyfedcomm.work import Work

if TYPE_CHECKING:
    from pyfedcomm.integrations.optimizer import CrossCloudOptimizer as CrossCloudOptimizer

__version__: str = _core.build_info()["version"]

__all__ = [
    "AuthenticationError",
    "Choice",
    "ConfigError",
    "CorruptFrame",
    "CudaError",
    "Error",
    "Forecast",
    "Group",
    "GroupBroken",
    "InvalidArgument",
    "Link",
    "LinkStats",
    "Links",
    "NonFinite",
    "PeerLost",
    "Stats",
    "TcpOptions",
    "Timeout",
    "Topology",
    "Work",
    "__version__",
    "memory_groups",
]


def __getattr__(name: str) -> Any:
    """`CrossCloudOptimizer`, which is a torch optimizer: the first use of it loads torch."""
    if name == "CrossCloudOptimizer":
        from pyfedcomm.integrations.optimizer import CrossCloudOptimizer

        return CrossCloudOptimizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
