"""What an integration is given to talk over, as a `Hierarchy`."""

from __future__ import annotations

import socket

import torch

from pyfedcomm.errors import InvalidArgument
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.topology import from_labels


def hierarchy_over(over: Group | Hierarchy, device: torch.device) -> tuple[Hierarchy, bool]:
    """The hierarchy to use, and whether it was made here and is the caller's to close.

    over: a `Group`, each member of which is a cloud of one rank; or the `Hierarchy` of clouds of
        several ranks, on ``device``. Collective with a group.
    Raises InvalidArgument where it is neither, or the hierarchy is for another kind of device.
    """
    if isinstance(over, Group):
        hosts = [str(host) for host in over.all_gather_object(socket.gethostname())]
        names = [f"cloud{i}" for i in range(over.size)]
        return Hierarchy(over, from_labels(names, hosts, over.rank), device=device), True
    if not isinstance(over, Hierarchy):
        raise InvalidArgument(
            f"this is a {type(over).__name__}; give a Group, each of whose members is a cloud, or "
            "for clouds of several ranks Hierarchy(world, Topology.discover(world))"
        )
    if over.device.type != device.type:
        raise InvalidArgument(
            f"the parameters are on {device}, but the hierarchy was made for {over.device}: move "
            f"the model, or make it with device={str(device)!r}"
        )
    return over, False
