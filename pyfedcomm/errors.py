"""Every error that pyfedcomm raises on purpose.

One tree, so that ``except pyfedcomm.Error`` catches all of it. The C++ library throws the same
kinds; ``_core`` maps them onto these classes. A message says where (``[mpi] cloud 1 (host): ...``),
what, and, where we know it, what to do.
"""

from __future__ import annotations


class Error(Exception):
    """Base of all errors of pyfedcomm."""


class InvalidArgument(Error, ValueError):
    """A call that cannot be carried out as it was made; nothing was changed or sent."""


class ConfigError(Error, ValueError):
    """A run's configuration is wrong: unknown key, impossible value, clouds that disagree."""


class Timeout(Error, TimeoutError):
    """No progress for as long as the deadline allows."""


class PeerLost(Error):
    """A member left or failed while it was needed; ``cloud`` is its index in the group."""

    cloud: int = -1


class CorruptFrame(Error):
    """Bytes from a peer, or from a file, that are not what their header or checksum says."""


class AuthenticationError(Error):
    """A frame whose authentication tag does not verify."""


class NonFinite(Error, ArithmeticError):
    """A NaN or an infinity where the policy is ``error``; ``index`` counts in its bucket."""

    index: int = -1


class CudaError(Error, RuntimeError):
    """The CUDA runtime refused a call, or this build has no CUDA."""


class GroupBroken(Error):
    """The group failed earlier; it must be rebuilt before it can be used again."""
