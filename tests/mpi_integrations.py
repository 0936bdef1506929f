"""What `test_integrations_optimizer` and `test_integrations_ddp` start under mpirun.

    mpirun -n 4 python mpi_integrations.py <scenario>[,<scenario>...] <clouds> [<device>]

Every check asserts on every rank; a rank that fails ends the whole run with its traceback.
Prints a line ``rank <r> ok`` for each rank. Gradients are integers, so that sums do not round.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from mpi_hierarchy import cloud_means, exact_weights
from mpi_lossy import all_equal
from reference import Choice, decode, encode
from reference_sync import weighted_mean
from small_model import (
    EXACT,
    IN_ROUNDS,
    bits,
    config_for,
    crafted,
    make_parameters,
    set_gradients,
    train,
)
from torch.nn.parallel import DistributedDataParallel

from pyfedcomm import sync
from pyfedcomm.buckets import fingerprint
from pyfedcomm.errors import ConfigError, InvalidArgument, NonFinite
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.integrations.ddp import GradientExchange, register
from pyfedcomm.integrations.optimizer import CrossCloudOptimizer
from pyfedcomm.topology import Topology

Vector = npt.NDArray[np.float32]

SIZES = (3000, 1, 0, 5000, 777, 4096)
"""Of the parameters; buckets of at most 8 KB have one or two of them."""
CAP_MB = 8 / 1024


class Crafted(torch.nn.Module):
    """Its gradients are what it was given: the loss is their product with the parameters."""

    def __init__(self, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> None:
        super().__init__()
        values = [torch.from_numpy(crafted(seed + i, n)) for i, n in enumerate(sizes)]
        self.p = torch.nn.ParameterList(torch.nn.Parameter(value) for value in values)

    def forward(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        terms = [(p * g.to(p.dtype)).sum() for p, g in zip(self.p, gradients, strict=True)]
        return torch.stack(terms).sum()

    def flat(self) -> Vector:
        """Of the gradients."""
        parts = [p.grad.float().reshape(-1) for p in self.p if p.grad is not None]
        return torch.cat(parts).cpu().numpy()


def gradients(seed: int, sizes: tuple[int, ...] = SIZES) -> list[torch.Tensor]:
    return [torch.from_numpy(crafted(seed + 10_000 * i, n)) for i, n in enumerate(sizes)]


def joined(parts: list[torch.Tensor]) -> Vector:
    return torch.cat(parts).numpy()


def backward(
    model: DistributedDataParallel, given: list[torch.Tensor], *, keep: bool = False
) -> Vector:
    """The gradients that one pass leaves."""
    if not keep:
        model.zero_grad()
    device = model.module.p[0].device
    torch.autograd.backward(model([each.to(device) for each in given]))
    flat: Vector = model.module.flat()
    return flat


@contextmanager
def exchanging(
    h: Hierarchy, *, sizes: tuple[int, ...] = SIZES, dtype: torch.dtype = torch.float32, **how: Any
) -> Iterator[tuple[DistributedDataParallel, GradientExchange]]:
    module = Crafted(sizes).to(h.device, dtype)
    model = DistributedDataParallel(module, bucket_cap_mb=CAP_MB)
    exchange = register(model, h, **how)
    try:
        yield model, exchange
    finally:
        exchange.close()


# --- scenarios -----------------------------------------------------------------------------------


def optimizer(h: Hierarchy) -> None:
    """Every rule as if called by hand, in clouds of several ranks; all end with equal bits."""
    tokens = exact_weights(h.topology)[h.world.rank]
    for rule in IN_ROUNDS:
        config = config_for(rule, EXACT, local_steps=2)
        by_hand, wrapped = make_parameters(), make_parameters()
        plain = sync.make(config, by_hand, h)
        inner = torch.optim.SGD([p for _, p in wrapped], lr=0.25)
        with CrossCloudOptimizer(inner, h, sync=config, named_parameters=wrapped) as made:
            for step in range(5):
                only = range(step, step + 1)
                train(plain, by_hand, h.world.rank, only, lambda *_: tokens)
                set_gradients(wrapped, crafted(1000 * step + h.world.rank))
                made.step(n_tokens=tokens)
                assert bits(wrapped) == bits(by_hand), (rule, step)
        plain.finish()
        assert bits(wrapped) == bits(by_hand), rule
        if rule != "isolated":
            assert all_equal(h.world, fingerprint(wrapped)), rule


def ddp(h: Hierarchy) -> None:
    exact_mean(h, torch.float32)
    exact_mean(h, torch.bfloat16)
    accumulated(h)
    overlapped(h)
    nothing_is_lost(h)
    if h.topology.n_clouds == 2 and h.topology.world_size == 2:
        as_the_plain_algorithm(h)


def exact_mean(h: Hierarchy, dtype: torch.dtype) -> None:
    """Every pass, before and after DDP makes its final buckets, and with other weights each."""
    me, size = h.world.rank, h.world.size
    with exchanging(h, dtype=dtype, codec="fp32") as (model, exchange):
        for step in range(4):
            weights = [float(w) * 2**step for w in exact_weights(h.topology)]
            exchange.n_tokens = weights[me]
            values = [joined(gradients(100 * step + rank)) for rank in range(size)]
            inside = [sum(weights[r] for r in ranks) for ranks in h.topology.clouds]
            expected = weighted_mean(cloud_means(h.topology, values, weights), inside)
            got = backward(model, gradients(100 * step + me))
            rounded = torch.from_numpy(expected).to(dtype).float().numpy()
            np.testing.assert_array_equal(got, rounded)
            assert exchange.rounds == step + 1


def accumulated(h: Hierarchy) -> None:
    """Passes under no_sync exchange nothing; the next one exchanges the sum."""
    me, size = h.world.rank, h.world.size
    with exchanging(h, codec="fp32") as (model, exchange):
        exchange.n_tokens = exact_weights(h.topology)[me]
        weights = [float(w) for w in exact_weights(h.topology)]
        inside = [sum(weights[r] for r in ranks) for ranks in h.topology.clouds]
        for step in range(3):
            with model.no_sync():
                backward(model, gradients(500 + 10 * step + me))
            assert exchange.rounds == step
            got = backward(model, gradients(900 + 10 * step + me), keep=True)
            values = [
                joined(gradients(500 + 10 * step + r)) + joined(gradients(900 + 10 * step + r))
                for r in range(size)
            ]
            expected = weighted_mean(cloud_means(h.topology, values, weights), inside)
            np.testing.assert_array_equal(got, expected)


def overlapped(h: Hierarchy) -> None:
    """Backward's last gradient is there only when the first bucket has left for other clouds."""
    with exchanging(h, codec="fp32") as (model, _):
        for step in range(2):
            backward(model, gradients(step + h.world.rank))

        def wait(gradient: torch.Tensor) -> None:
            del gradient
            end = time.monotonic() + 20
            while h.inter is not None and h.inter.stats().frames == before:
                assert time.monotonic() < end, "nothing was sent while backward went on"
                time.sleep(0.01)

        before = 0 if h.inter is None else h.inter.stats().frames
        handle = model.module.p[0].register_hook(wait)
        backward(model, gradients(7 + h.world.rank))
        handle.remove()


def nothing_is_lost(h: Hierarchy) -> None:
    """With error feedback, what many passes leave adds up to the sum of their means."""
    me, size, n_passes = h.world.rank, h.world.size, 20
    given = [gradients(rank) for rank in range(size)]
    mean = sum((joined(g).astype(np.float64) for g in given), np.zeros(sum(SIZES))) / size
    errors = {}
    for feedback in (False, True):
        total = np.zeros(sum(SIZES))
        with exchanging(h, codec="int4", error_feedback=feedback) as (model, _):
            for _ in range(n_passes):
                total += backward(model, given[me])
            assert all_equal(h.world, total.tobytes().hex())
        errors[feedback] = float(np.abs(total - n_passes * mean).max())
    assert errors[True] < 4.0, errors  # the residuals of one pass: steps of int4 are 8 / 7
    if h.topology.n_clouds > 1:
        assert errors[False] > 2 * errors[True], errors


def as_the_plain_algorithm(h: Hierarchy) -> None:
    """int8 with error feedback against e <- e + g; s = int8(e); e <- e - s, bit for bit."""
    n, me = 10_001, h.world.rank
    residuals = [np.zeros(n, np.float32) for _ in range(2)]
    choice = Choice("int8")
    with exchanging(h, sizes=(n,), codec="int8", algorithm="all_gather", error_feedback=True) as (
        model,
        _,
    ):
        for step in range(6):
            values = [joined(gradients(100 * step + rank, (n,))) for rank in range(2)]
            sent = []
            for rank in range(2):
                if step == 0:  # not coded yet
                    sent.append(values[rank])
                    continue
                wanted = values[rank] + residuals[rank]
                padded = np.zeros(h.padded(n), np.float32)
                padded[:n] = wanted
                sent.append(decode(choice, encode(choice, padded), len(padded))[:n])
                residuals[rank] = wanted - sent[rank]
            got = backward(model, gradients(100 * step + me, (n,)))
            np.testing.assert_array_equal(got, weighted_mean(sent, [1.0, 1.0]))


def ddp_refused(h: Hierarchy) -> None:
    """What does not fit is an error of `register`, on every rank, and nothing is broken by it."""
    topology = h.topology
    with pytest.raises(ConfigError, match=r"the parameters at the start: .* on rank"):
        register(DistributedDataParallel(Crafted(seed=topology.cloud)), h)
    codec = ["int8", "int4"][topology.cloud]
    with pytest.raises(ConfigError, match=r"the options of the exchange: .*int4"):
        register(DistributedDataParallel(Crafted()), h, codec=codec)
    with pytest.raises(InvalidArgument, match="nothing"):
        register(DistributedDataParallel(Crafted()), h, codec="nothing")
    if topology.local_size > 1:
        alone = [dist.new_group([rank]) for rank in range(topology.local_size)]
        model = DistributedDataParallel(Crafted(), process_group=alone[topology.local_rank])
        with pytest.raises(ConfigError, match="give it a process_group of the cloud's ranks"):
            register(model, h)
    cap = CAP_MB * (1 + 3 * topology.cloud)  # other buckets in each cloud
    model = DistributedDataParallel(Crafted(), bucket_cap_mb=cap)
    exchange = register(model, h)
    backward(model, gradients(0))  # the first pass has one bucket
    with pytest.raises(ConfigError, match=r"the parameters in bucket .* model, bucket_cap_mb"):
        backward(model, gradients(0))
    exchange.close()


def ddp_nan(h: Hierarchy) -> None:
    """A NaN of one rank ends backward on every rank, naming the parameter."""
    with exchanging(h, codec="int8") as (model, _):
        for step in range(3):
            backward(model, gradients(step))
        given, last = gradients(9), h.world.size - 1
        if h.world.rank == last:
            given[3][17] = math.nan
        with pytest.raises(
            NonFinite, match=rf"\[ddp\] round 3: .* 'p.3' is not finite on rank {last} "
        ):
            backward(model, given)


SCENARIOS: dict[str, Callable[[Hierarchy], None]] = {
    f.__name__: f for f in (optimizer, ddp, ddp_refused, ddp_nan)
}


def main() -> int:
    scenarios = [SCENARIOS[name] for name in sys.argv[1].split(",")]
    world = Group.world(timeout=60.0)
    topology = Topology.discover(world, clouds=sys.argv[2])
    device = sys.argv[3] if len(sys.argv) > 3 else "cpu"
    with Hierarchy(world, topology, device=device) as hierarchy:
        if topology.local_size == 1:  # DDP wants one, if only of itself
            store = dist.HashStore()  # type: ignore[attr-defined]  # torch's stubs forget it
            backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
        for scenario in scenarios:
            scenario(hierarchy)
        if topology.local_size == 1:
            dist.destroy_process_group()
    os.write(1, f"rank {world.rank} ok\n".encode())
    if ddp_nan in scenarios:
        os._exit(0)  # MPI may refuse to end well after a broken exchange
    world.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
