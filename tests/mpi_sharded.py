"""What `test_sharded` starts under mpirun: clouds whose ranks hold their parameters differently.

    mpirun -n 4 python mpi_sharded.py <scenario>[,<scenario>...] <clouds> <held> [cuda]

clouds: ranks of each cloud. held: of each cloud whether its ranks hold parameters ``whole`` or
``sharded`` (FSDP2). With ``cuda`` each rank has the GPU of its number. Every check asserts on every
rank. Prints ``rank <r> ok`` for each rank.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mpi_lossy import all_equal
from reference_sync import Run, Vector
from small_model import EXACT, IN_ROUNDS, REPEATING, bits, config_for, crafted
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from pyfedcomm import dtensor, sync
from pyfedcomm.buckets import fingerprint
from pyfedcomm.errors import ConfigError, NonFinite
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.intra import IntraCloud
from pyfedcomm.sync import SyncConfig
from pyfedcomm.topology import Topology
from pyfedcomm.train.muon import Muon

SHAPES = {
    "embed": {"weight": (401, 16), "bias": (5,)},
    "head": {"weight": (7, 11), "small": (1, 3), "long": (5003,)},
}
"""Rows that no number of ranks divides, fewer rows than ranks, more than one shard. No parameter is
empty: FSDP refuses that."""
SIZES = {name: sum(int(np.prod(s)) for s in block.values()) for name, block in SHAPES.items()}
N = sum(SIZES.values())
FRAGMENTS = (slice(0, SIZES["embed"]), slice(SIZES["embed"], N))
TOKENS = 12
"""Of each step of a cloud: its ranks' shares are whole numbers."""


class Model(nn.Module):
    """Parameters with these values; ``forward(g)`` is a loss whose gradient is g."""

    def __init__(self, flat: Vector) -> None:
        super().__init__()
        values = torch.from_numpy(flat.copy())
        for block, shapes in SHAPES.items():
            part = nn.Module()
            for name, shape in shapes.items():
                size = int(np.prod(shape))
                part.register_parameter(name, nn.Parameter(values[:size].reshape(shape).clone()))
                values = values[size:]
            self.add_module(block, part)

    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        flat = torch.cat([p.reshape(-1) for p in self.parameters()])
        return (flat * gradient).sum()


def device(world: Group) -> torch.device:
    on_gpu = sys.argv[-1] == "cuda"
    return torch.device("cuda", world.rank) if on_gpu else torch.device("cpu")


def start(seed: int = 0) -> Vector:
    """With some -0, which a sum over zeros would lose."""
    flat = crafted(seed, N)
    flat[::97] = -0.0
    return flat


def gradient(step: int, rank: int) -> Vector:
    """Multiples of 3: means over up to 4 ranks, and over clouds, do not round; none at the -0."""
    flat = 3 * crafted(1000 * step + rank, N)
    flat[::97] = 0.0
    return flat


def flat_of(model: nn.Module) -> Vector:
    return np.concatenate([dtensor.whole(p).cpu().numpy().reshape(-1) for p in model.parameters()])


class Cloud:
    """A rank of a training that shards the model, or does not, as its cloud does."""

    def __init__(self, h: Hierarchy, held: list[str], config: SyncConfig, seed: int = 0) -> None:
        self.h, self.sharded = h, held[h.topology.cloud] == "sharded"
        self.model = Model(start(seed)).to(h.device)
        mesh = h.device_mesh()
        if self.sharded and mesh is not None:
            # One group of parameters: what the blocks alone would do is up to their forward.
            fully_shard(self.model, mesh=mesh, reshard_after_forward=True)
        self.rule = sync.make(config, self.model.named_parameters(), h)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.25)
        self.tokens = TOKENS // h.topology.local_size

    def step(self, step: int, change: Callable[[Vector], Vector] = lambda g: g) -> None:
        mine = torch.from_numpy(change(gradient(step, self.h.world.rank)))
        self.model(mine.to(self.h.device)).backward()
        self.rule.after_backward(self.tokens)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.rule.after_step(self.tokens)


def check_rules(h: Hierarchy, held: list[str]) -> None:
    """Every rule against the plain algorithm, after every step, on the whole parameters."""
    topology = h.topology
    tokens = [TOKENS // len(ranks) for ranks in topology.clouds for _ in ranks]
    for rule, momentum in [(rule, 0.0) for rule in IN_ROUNDS] + [(rule, 0.5) for rule in REPEATING]:
        truth = Run(
            start(),
            topology.clouds,
            0.25,
            rule,
            2,
            0.5,
            0.5,
            fragments=FRAGMENTS,
            overlap=1,
            mixing=0.5,
            local_momentum=momentum,
        )
        config = config_for(rule, EXACT, local_steps=2, local_momentum=momentum)
        cloud = Cloud(h, held, config)
        assert dtensor.is_sharded(next(cloud.model.parameters())) == (
            cloud.sharded and topology.local_size > 1
        )
        for step in range(5):
            truth.step([gradient(step, r) for r in range(h.world.size)], tokens)
            cloud.step(step)
            expected = truth.params[topology.cloud]
            np.testing.assert_array_equal(flat_of(cloud.model), expected, f"{rule} {step}")
        cloud.rule.finish()
        truth.finish()
        np.testing.assert_array_equal(flat_of(cloud.model), truth.params[topology.cloud], rule)
        if rule != "isolated":
            assert all_equal(h.world, fingerprint(cloud.model.named_parameters())), rule


def check_lossy(h: Hierarchy, held: list[str]) -> None:
    """Lossy codecs with residuals: the same bits on all ranks, and again after a resume."""
    for rule, codec in (
        ("gradient", "int8"),
        ("fedavg", "int2"),
        ("streaming", "e3m0"),
        ("diloco", "topk(0.1, fp32)"),
        ("sparse", "chunk_topk(256, 32, int2, beta=0.5)"),
    ):
        config = config_for(rule, EXACT, local_steps=2, codec=codec, error_feedback=True)
        if rule in ("fedavg", "streaming"):
            config = replace(config, local_momentum=0.7)

        def real(flat: Vector) -> Vector:
            return np.divide(flat, 7, dtype=np.float32)

        straight, broken = Cloud(h, held, config), Cloud(h, held, config)
        for step in range(6):
            straight.step(step, real)
            if step < 3:
                broken.step(step, real)
        saved = {
            name: t.clone() if isinstance(t, torch.Tensor) else t
            for name, t in broken.rule.state_dict().items()
        }
        resumed = Cloud(h, held, config, seed=1)
        for to, source in zip(resumed.model.parameters(), broken.model.parameters(), strict=True):
            dtensor.set_whole(to, dtensor.whole(source))
        resumed.rule.load_state_dict(saved)
        for step in range(3, 6):
            resumed.step(step, real)
        assert bits(resumed.rule.state_dict()) == bits(straight.rule.state_dict()), rule
        for cloud in (straight, resumed):
            cloud.rule.finish()
        assert np.array_equal(flat_of(straight.model), flat_of(resumed.model))
        prints = [fingerprint(c.model.named_parameters()) for c in (straight, resumed)]
        assert prints[0] == prints[1], rule
        assert all_equal(h.world, prints), rule


def check_nan(h: Hierarchy, held: list[str]) -> None:
    """A cloud that diverged is set back to the common parameters, whoever holds them."""
    last = h.topology.n_clouds - 1
    config = config_for("diloco", EXACT, local_steps=2, nonfinite="exclude")
    cloud = Cloud(h, held, config)

    def spoil(flat: Vector) -> Vector:
        return np.full_like(flat, np.nan) if h.topology.cloud == last else flat

    cloud.step(0, spoil)
    cloud.step(1)
    assert cloud.rule.excluded == {h.topology.names[last]: 1}
    assert cloud.rule.restarts == (h.topology.cloud == last)
    assert np.isfinite(flat_of(cloud.model)).all()
    assert all_equal(h.world, fingerprint(cloud.model.named_parameters()))


def check_masters(h: Hierarchy, held: list[str]) -> None:
    """bf16 parameters: their fp32 masters are sharded as they are, and train as fp32 ones would."""
    small = 2.0**-13
    truth = Run(start(), h.topology.clouds, small, "diloco", 2, 0.5, 0.5)
    model = Model(start()).bfloat16().to(h.device)
    mesh = h.device_mesh()
    if held[h.topology.cloud] == "sharded" and mesh is not None:
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    masters = sync.MasterWeights(model.named_parameters())
    rule = sync.make(config_for("diloco", EXACT, local_steps=2), masters.named_parameters(), h)
    optimizer = torch.optim.SGD(masters.parameters(), lr=small)
    tokens = [TOKENS // len(ranks) for ranks in h.topology.clouds for _ in ranks]
    for step in range(4):
        truth.step([gradient(step, r) for r in range(h.world.size)], tokens)
        mine = torch.from_numpy(gradient(step, h.world.rank)).bfloat16()
        model(mine.to(h.device)).backward()
        masters.take_gradients()
        rule.after_backward(tokens[h.world.rank])
        optimizer.step()
        optimizer.zero_grad()
        rule.after_step(tokens[h.world.rank])
        masters.write_back()
    values = [dtensor.whole(p).reshape(-1) for p in masters.parameters()]
    np.testing.assert_array_equal(torch.cat(values).cpu().numpy(), truth.params[h.topology.cloud])
    assert all_equal(h.world, fingerprint(model.named_parameters()))


def check_named(h: Hierarchy, held: list[str]) -> None:
    """An infinity is told to every rank with its parameter's name, wherever that lies."""
    cloud = Cloud(h, held, config_for("diloco", EXACT, local_steps=1))
    place = sum(SIZES.values()) - 2  # in head.long, on the last of the ranks that hold some

    def spoil(flat: Vector) -> Vector:
        flat = flat.copy()
        flat[place] = np.inf
        return flat

    before = {n: t.clone() for n, t in cloud.rule.state_dict().items() if torch.is_tensor(t)}
    with pytest.raises(NonFinite, match=r"parameter 'head\.long'"):
        cloud.step(0, spoil if h.topology.cloud == 0 else lambda flat: flat)
    after = {n: t for n, t in cloud.rule.state_dict().items() if torch.is_tensor(t)}
    assert bits(after) == bits(before)


def check_idle(h: Hierarchy, held: list[str]) -> None:
    """A cloud without tokens counts for nothing, and without any other its gradients are zero."""
    for rule in ("gradient", "isolated"):
        cloud = Cloud(h, held, config_for(rule, EXACT))
        cloud.tokens = 0 if h.topology.cloud else TOKENS // h.topology.local_size
        cloud.step(0)
        first = [gradient(0, r) for r in h.topology.clouds[0]]
        mean = sum(first[1:], first[0]) / np.float32(len(first))
        moved = h.topology.cloud == 0 or rule == "gradient"
        expected = start() - np.float32(0.25 if moved else 0) * mean
        np.testing.assert_array_equal(flat_of(cloud.model), expected)


def check_nothing_moves_inside(h: Hierarchy, held: list[str]) -> None:
    """Where shards are what ranks hold, no bucket is sent inside a sharded cloud."""
    calls: list[str] = []
    names = ("all_reduce", "reduce_shards", "gather_shards", "all_to_all")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            original = getattr(IntraCloud, name)

            def counted(*args: Any, name: str = name, original: Any = original) -> Any:
                calls.append(name)
                return original(*args)

            patch.setattr(IntraCloud, name, counted)
        for rule in ("gradient", "diloco", "streaming"):
            cloud = Cloud(h, held, config_for(rule, EXACT, local_steps=2))
            for step in range(3):
                cloud.step(step)
    aligned = all(len(ranks) == h.n_rails for ranks in h.topology.clouds)
    if held[h.topology.cloud] == "sharded":
        assert set(calls) == (set() if aligned or h.topology.local_size == 1 else {"all_to_all"})
    else:
        assert "all_to_all" not in calls


def rules(world: Group, topology: Topology, held: list[str]) -> None:
    for n_rails in sorted({1, topology.n_rails}):
        with Hierarchy(world, topology, device=device(world), n_rails=n_rails) as h:
            check_rules(h, held)
            check_lossy(h, held)
            if topology.n_clouds > 1:
                check_nan(h, held)
            check_idle(h, held)
            check_masters(h, held)
            check_nothing_moves_inside(h, held)


def check_muon(h: Hierarchy) -> None:
    """Ranks that share the work take a lone rank's steps, with shards and with whole matrices."""
    mesh = h.device_mesh()
    assert mesh is not None
    shapes = [(8, 12), (13, 7), (13, 7), (13, 7), (13, 7), (1, 5), (8, 12), (401, 16), (2, 2)]
    whole = [nn.Parameter(torch.ones(s, device=h.device)) for s in shapes]
    held = [nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for p in whole]
    shared = [nn.Parameter(p.detach().clone()) for p in whole]
    optimizers = [Muon(whole, lr=0.1), Muon(held, lr=0.1), Muon(shared, lr=0.1, cloud=h)]
    for step in range(4):
        for i, (p, part, same) in enumerate(zip(whole, held, shared, strict=True)):
            if i == step:  # frozen for a step
                p.grad = part.grad = same.grad = None
                continue
            drawn = np.random.default_rng(10 * step + i).standard_normal(shapes[i], np.float32)
            p.grad = torch.from_numpy(drawn).to(h.device)
            part.grad, same.grad = dtensor.sharded_like(part, p.grad), p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    tolerance = 2e-2 if h.device.type == "cuda" else 1e-5
    for p, part, same in zip(whole, held, shared, strict=True):
        moved = (p - 1).norm()
        assert (dtensor.whole(part) - p).norm() < tolerance * moved
        assert (same - p).norm() < tolerance * moved
        states = [o.state[of] for o, of in zip(optimizers, (p, part, same), strict=True)]
        buffers = [state["momentum_buffer"] for state in states]
        assert [dtensor.is_sharded(buffer) for buffer in buffers] == [False, True, False]
        assert all(torch.equal(dtensor.whole(buffer), buffers[0]) for buffer in buffers)
    for params in (held, shared):
        assert all_equal(h.world, fingerprint((str(i), p) for i, p in enumerate(params)))


def muon(world: Group, topology: Topology, held: list[str]) -> None:
    with Hierarchy(world, topology, device=device(world)) as h:
        check_muon(h)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyfedcomm.train.muon._AT_ONCE", 1)  # as many as there are ranks
            check_muon(h)


def failures(world: Group, topology: Topology, held: list[str]) -> None:
    for n_rails in sorted({1, topology.n_rails}):
        with Hierarchy(world, topology, device=device(world), n_rails=n_rails) as h:
            check_named(h, held)


def errors(world: Group, topology: Topology, held: list[str]) -> None:
    """What is not understood: one error on every rank, with the parameter's name."""
    with Hierarchy(world, topology, device=device(world)) as h:
        mesh = h.device_mesh()
        assert mesh is not None
        square = init_device_mesh("cpu", (1, topology.local_size), mesh_dim_names=("a", "b"))

        def parameter(on: Any, *placements: Any) -> nn.Parameter:
            return nn.Parameter(DTensor.from_local(torch.ones(2, 2), on, placements))

        plain = nn.Parameter(torch.ones(2, 2))
        first = topology.local_rank == 0
        cases: list[tuple[list[tuple[str, nn.Parameter]], str]] = [
            ([("tp", parameter(mesh, Shard(1)))], "'tp' is a DTensor with placements.*tensor-par"),
            ([("copies", parameter(mesh, Replicate()))], "'copies' is a DTensor"),
            ([("hsdp", parameter(square, Replicate(), Shard(0)))], "'hsdp' .*several dimensions"),
            ([("alone", parameter(square["a"], Shard(0)))], "'alone' .*is 0 of 1; .*is . of 2"),
            ([("a", parameter(mesh, Shard(0))), ("rest", plain)], "'rest' is not sharded"),
            (
                [("a", nn.Parameter(torch.ones(4, 2)) if first else parameter(mesh, Shard(0)))],
                "has sharded parameters and rank .* has not",
            ),
        ]
        for named, text in cases:
            with pytest.raises(ConfigError, match=text):
                sync.make(EXACT, named, h)


SCENARIOS: dict[str, Callable[[Group, Topology, list[str]], None]] = {
    "rules": rules,
    "failures": failures,
    "errors": errors,
    "muon": muon,
}


def main() -> None:
    torch.set_num_threads(1)
    scenarios, clouds, held = sys.argv[1:4]
    with Group.world(timeout=30.0) as world:
        if device(world).type == "cuda":
            torch.cuda.set_device(device(world))
        topology = Topology.discover(world, clouds=clouds)
        for name in scenarios.split(","):
            SCENARIOS[name](world, topology, held.split(","))
        os.write(1, f"rank {world.rank} ok\n".encode())
        world.barrier()


if __name__ == "__main__":
    main()
