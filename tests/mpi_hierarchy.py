"""What `test_hierarchy` starts under mpirun: real clouds of several ranks each.

    mpirun -n 4 python mpi_hierarchy.py <scenario>[,<scenario>...] <clouds>

Every check asserts on every rank; a rank that fails ends the whole run with its traceback.
Prints a line ``rank <r> ok`` for each rank. Inputs are integers, so that sums do not round.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from mpi_async import check_async
from mpi_lossy import all_equal, check_excluded, check_failed_round, check_lossy, check_resume
from reference_sync import Run, weighted_mean
from small_model import EXACT, IN_ROUNDS, REPEATING, config_for, crafted

from pyfedcomm import sync
from pyfedcomm.buckets import fingerprint
from pyfedcomm.errors import ConfigError, Error, InvalidArgument, NonFinite, PeerLost, Timeout
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.topology import Topology

Vector = npt.NDArray[np.float32]

LENGTHS = (0, 1, 4095, 8192, 10_001)
WAIT_S = 30.0


def tensor(values: Vector) -> torch.Tensor:
    return torch.from_numpy(values.copy())


def equal(got: torch.Tensor, expected: Vector) -> None:
    np.testing.assert_array_equal(got.numpy(), expected)


def cloud_means(topology: Topology, values: list[Vector], weights: list[float]) -> list[Vector]:
    return [
        weighted_mean([values[r] for r in ranks], [weights[r] for r in ranks])
        for ranks in topology.clouds
    ]


def exact_weights(topology: Topology) -> list[int]:
    """Uneven weights of the ranks that add up to 4 in every cloud: no mean rounds."""
    share = {1: [4], 2: [1, 3], 3: [1, 1, 2]}
    return [weight for ranks in topology.clouds for weight in share[len(ranks)]]


def counted(values: Vector, weight: float) -> torch.Tensor:
    """The values, or NaNs where nothing of them may count."""
    return tensor(values) if weight else torch.full((len(values),), float("nan"))


def check_reductions(h: Hierarchy) -> None:
    """Every reduction, every length, weights that differ inside and between clouds."""
    topology, size, me = h.topology, h.world.size, h.world.rank
    mine = topology.clouds[topology.cloud]
    exact = [float(weight) for weight in exact_weights(topology)]
    growing = [float(2**r) for r in range(size)]
    one_idle = [0.0] + [4.0] * (size - 1)
    for n in LENGTHS:
        values = [crafted(100 * n + r, n) for r in range(size)]
        flat = tensor(values[me])
        h.reduce_inside(flat)
        equal(flat, sum((values[r] for r in mine), np.zeros(n, np.float32)))
        for weights in (exact, growing, one_idle):
            inside = [sum(weights[r] for r in ranks) for ranks in topology.clouds]
            means = cloud_means(topology, values, weights)
            flat = counted(values[me], weights[me])
            assert h.mean_inside(flat, weight=weights[me]) == inside[topology.cloud]
            equal(flat, means[topology.cloud])

            flat = counted(values[me], weights[me])
            total = h.all_reduce(flat, weight=weights[me], round=1).weight
            assert total == sum(weights)
            expected = weighted_mean(means, inside)
            if weights is exact:
                equal(flat, expected)
            np.testing.assert_allclose(flat.numpy(), expected, rtol=1e-6, atol=1e-6)
            assert all_equal(h.world, [total, fingerprint([("flat", flat)])])
        if topology.n_clouds == 2:
            flat = tensor(values[me])  # clouds count alike, whatever their ranks weigh
            mine_now = exact[me] * 2**topology.cloud
            done = h.all_reduce(flat, weight=mine_now, cloud_weight=lambda _: 1.0)
            assert (done.weight, done.excluded) == (2.0, ())
            equal(flat, weighted_mean(cloud_means(topology, values, exact), [1.0, 1.0]))


def check_exchange(h: Hierarchy) -> None:
    """Contributions that are equal inside a cloud: one mean over clouds, input kept."""
    topology = h.topology
    for n in LENGTHS:
        values = [crafted(n + c, n) for c in range(topology.n_clouds)]
        weights = [float(c) for c in range(topology.n_clouds)]  # the first counts for nothing
        weights[-1] = 4.0 - sum(weights[:-1])
        flat, out = tensor(values[topology.cloud]), torch.full((n,), float("nan"))
        done = h.exchange(flat, weight=weights[topology.cloud], out=out)
        assert done.weight == sum(weights)
        equal(flat, values[topology.cloud])
        equal(out, weighted_mean(values, weights))
        h.exchange(flat, weight=weights[topology.cloud])
        equal(flat, weighted_mean(values, weights))


def check_non_finite(h: Hierarchy) -> None:
    """A NaN in the last rail's shard fails every rank, with its place in the bucket."""
    n, place = 10_001, 9_999
    flat = tensor(crafted(1, n))
    if h.world.rank == h.world.size - 1:
        flat[place] = float("nan")
    with pytest.raises(NonFinite) as caught:
        h.all_reduce(flat, weight=1.0)
    assert caught.value.index == place


def check_bad_calls(h: Hierarchy) -> None:
    for bad in (torch.zeros(4, 4), torch.zeros(4).double(), torch.zeros(8)[::2]):
        with pytest.raises(InvalidArgument, match="1-D, contiguous and float32"):
            h.all_reduce(bad, weight=1.0)


def check_rules(h: Hierarchy) -> None:
    """Every rule against the plain algorithm, with gradients and tokens of each rank."""
    topology, me = h.topology, h.world.rank
    shape_a, shape_b = (73, 64), (5_000,)
    n = 73 * 64 + 5_000  # more than two shards, and a fragment is more than one
    fragments = (slice(0, 73 * 64), slice(73 * 64, n))
    tokens = exact_weights(topology)
    for rule, momentum in [(rule, 0.0) for rule in IN_ROUNDS] + [(rule, 0.5) for rule in REPEATING]:
        config = config_for(rule, EXACT, local_steps=2, local_momentum=momentum)
        truth = Run(
            crafted(0, n),
            topology.clouds,
            0.25,
            rule,
            2,
            0.5,
            0.5,
            fragments=fragments,
            overlap=1,
            mixing=0.5,
            local_momentum=momentum,
        )
        start = tensor(crafted(0, n))
        a = torch.nn.Parameter(start[: 73 * 64].reshape(shape_a).clone())
        b = torch.nn.Parameter(start[73 * 64 :].reshape(shape_b).clone())
        made = sync.make(config, [("a", a), ("b", b)], h)
        optimizer = torch.optim.SGD([a, b], lr=0.25)
        frames = h.wan_stats().frame_bytes
        for step in range(5):
            gradients = [crafted(1000 * step + r, n) for r in range(h.world.size)]
            truth.step(gradients, tokens)
            mine = tensor(gradients[me])
            a.grad, b.grad = mine[: 73 * 64].reshape(shape_a), mine[73 * 64 :].reshape(shape_b)
            made.after_backward(tokens[me])
            optimizer.step()
            made.after_step(tokens[me])
        made.finish()
        truth.finish()
        flat = torch.cat([a.detach().reshape(-1), b.detach()])
        equal(flat, truth.params[topology.cloud])
        if rule != "isolated":
            assert all_equal(h.world, fingerprint([("a", a), ("b", b)]))
        else:
            assert h.wan_stats().frame_bytes == frames
        if rule in ("diloco", "streaming"):
            chosen = fragments if rule == "streaming" else (slice(None),)
            check_outer_state(h, made.state_dict(), truth, chosen)


def check_outer_state(
    h: Hierarchy, state: dict[str, Any], truth: Run, fragments: Sequence[slice]
) -> None:
    """Anchor and momentum exist once per cloud, a shard on each gateway, none elsewhere."""
    for i, part in enumerate(fragments):
        for name, whole in (("anchor", truth.anchor[part]), ("momentum", truth.outer[i].momentum)):
            n = h.padded(len(whole))
            shard = h.shard(n)
            assert (f"fragment.{i}.{name}" in state) == (shard is not None)
            if shard is not None:
                padding = np.zeros(n - len(whole), np.float32)
                equal(state[f"fragment.{i}.{name}"], np.concatenate([whole, padding])[shard])


def check_arguments(world: Group, topology: Topology) -> None:
    """Bad arguments: the same error on every rank, before anything is opened."""
    different = 2 if world.rank == 0 else 1
    wrong: list[tuple[int, type[Error]]] = [
        (0, InvalidArgument),
        (9, InvalidArgument),
        (different, ConfigError),
    ]
    for n_rails, kind in wrong:
        with pytest.raises(kind, match="n_rails"):
            Hierarchy(world, topology, n_rails=n_rails)


def everything(world: Group, topology: Topology) -> None:
    """All that must succeed, with as many rails as there can be and with one."""
    check_arguments(world, topology)
    for n_rails in sorted({1, topology.n_rails}):
        with Hierarchy(world, topology, n_rails=n_rails) as h:
            assert h.n_rails == n_rails
            check_reductions(h)
            check_exchange(h)
            check_bad_calls(h)
            check_rules(h)
            check_async(h, exact_weights(h.topology))
            check_lossy(h)
            check_resume(h)
            check_excluded(h)
        assert not dist.is_initialized()
        h.close()  # once more: nothing to do


def failures(world: Group, topology: Topology) -> None:
    """Values that must fail on every rank; each breaks its hierarchy, none the world."""
    with Hierarchy(world, topology) as h:
        check_non_finite(h)
    with Hierarchy(world, topology) as h:
        check_failed_round(h)


def user_world(world: Group, topology: Topology) -> None:
    """torch.distributed as the user initialised it: used if it is the cloud, refused if not."""
    folder = Path(world.all_gather_object(tempfile.mkdtemp())[0])

    def init(name: str, rank: int, size: int) -> None:
        store = dist.FileStore(str(folder / name), size)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)

    init("all", world.rank, world.size)
    with pytest.raises(ConfigError, match="exactly the cloud's ranks"):
        Hierarchy(world, topology)
    dist.destroy_process_group()

    init(f"cloud{topology.cloud}", topology.local_rank, topology.local_size)
    with Hierarchy(world, topology) as h:
        check_exchange(h)
        total = torch.ones(1)
        dist.all_reduce(total)  # the user's own collectives go on beside ours
        assert total[0] == topology.local_size
        check_reductions(h)
    assert dist.is_initialized()
    dist.destroy_process_group()


def hung_rank(world: Group, topology: Topology) -> None:
    """The last rank falls silent: every other one ends with an error, within the deadline."""
    folder = Path(world.all_gather_object(tempfile.mkdtemp())[0])
    h = Hierarchy(world, topology, timeout=4.0)
    if world.rank == world.size - 1:
        time.sleep(10 * WAIT_S)
    with pytest.raises((Timeout, PeerLost)) as caught:
        h.all_reduce(torch.ones(10_001), weight=1.0)
    say(f"rank {world.rank} ended with {caught.typename}")
    # Whoever leaves first makes mpirun stop the others: wait until all have been heard.
    (folder / str(world.rank)).touch()
    end = time.monotonic() + WAIT_S
    while len(list(folder.iterdir())) < world.size - 1 and time.monotonic() < end:
        time.sleep(0.05)
    raise caught.value


SCENARIOS: dict[str, Callable[[Group, Topology], None]] = {
    "everything": everything,
    "failures": failures,
    "user-world": user_world,
    "hung-rank": hung_rank,
}


def say(line: str) -> None:
    """One write: mpirun may mix what ranks write, but not within a write."""
    os.write(1, f"{line}\n".encode())


def main() -> None:
    torch.set_num_threads(1)
    scenarios, clouds = sys.argv[1:]
    with Group.world(timeout=20.0) as world:
        topology = Topology.discover(world, clouds=clouds)
        for name in scenarios.split(","):
            SCENARIOS[name](world, topology)
        say(f"rank {world.rank} ok")
        world.barrier()


if __name__ == "__main__":
    main()
