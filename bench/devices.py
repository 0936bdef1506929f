"""Which GPU a rank of a benchmark works on, and what clouds are made of."""

from __future__ import annotations

import torch

from pyfedcomm import Group, Topology


def device_of(wanted: str, topology: Topology) -> torch.device:
    """This rank's: its own GPU among those of the ranks on its host that use one.

    wanted: ``cuda`` or ``cpu`` of each cloud, by commas; or ``auto``. Ends the program for others.
    """
    names = wanted.split(",") if wanted != "auto" else []
    if names and len(names) != topology.n_clouds:
        raise SystemExit(f"--devices names {len(names)} clouds, there are {topology.n_clouds}")
    kinds = names or [("cuda" if torch.cuda.is_available() else "cpu")] * topology.n_clouds
    if not set(kinds) <= {"cuda", "cpu"}:
        raise SystemExit(f"--devices: {wanted}: they are cuda and cpu")
    if kinds[topology.cloud] == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit(f"--devices: {wanted}: torch finds no GPU here")
    host = topology.hosts[topology.rank]
    users = [
        rank
        for cloud, ranks in enumerate(topology.clouds)
        for rank in ranks
        if kinds[cloud] == "cuda" and topology.hosts[rank] == host
    ]
    device = torch.device("cuda", users.index(topology.rank) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def names_of(world: Group, topology: Topology, device: torch.device) -> list[str]:
    """Of each cloud: its GPUs' name, or ``CPU``. Collective over all ranks."""
    told = world.all_gather_object(
        torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    )
    return [told[ranks[0]] for ranks in topology.clouds]


def synchronise(device: torch.device) -> None:
    """Waits for all that the device was given to do, so that a clock tells how long it took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
