"""What each rank of bench_utilization.py does: trains a model by each rule, in turns.

Started by mpirun, the ranks of a cloud after each other; its argument is the order as JSON, its
result the file of rows that the order names. A step is that of `pyfedcomm train`, with the same
parts of the library; its tokens are drawn at random.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from devices import device_of, names_of, synchronise
from torch import nn

from pyfedcomm import codecs, sync
from pyfedcomm.data.tokenizers import ByteTokenizer
from pyfedcomm.errors import ConfigError
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.topology import from_labels
from pyfedcomm.train import config as config_module
from pyfedcomm.train import model as model_module
from pyfedcomm.train import optim, parallel
from pyfedcomm.train.config import TrainConfig
from pyfedcomm.train.evaluation import parameters_equal, token_losses

SETTLE_S = 0.3
"""Between turns, so that none pays for what another one left running."""
N_BATCHES = 8
"""After which a rank begins with its first one again."""
MBIT = 1e6 / 8

Row = dict[str, Any]


@dataclass
class Turn:
    """Some steps of one rule, perhaps in several pieces."""

    wall_s: float = 0.0
    compute_s: float = 0.0
    n_steps: int = 0
    n_bytes: int = 0


@dataclass
class Contestant:
    """A model and the rule that keeps it in step."""

    name: str
    config: TrainConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    rule: sync.SyncRule
    slower: float
    """How many times longer its steps take: the rest is slept."""
    at: float = 0.0
    """The step of the run."""
    turns: list[Turn] = field(default_factory=list)

    def step(self, sequences: torch.Tensor) -> float:
        """Trains one step; returns the seconds that forward, backward and optimizer took.

        sequences: ids, shape ``(accumulation, micro_batch, seq_len + 1)``.
        """
        config, device = self.config.train, self.rule.hierarchy.device
        n_tokens = sequences[..., 1:].numel()
        begin = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr_at(self.at, config)
        for each in sequences:
            bf16 = self.config.run.dtype == "bf16"
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                loss = token_losses(self.model, each)
            torch.autograd.backward(loss / len(sequences))
        synchronise(device)
        seconds = time.perf_counter() - begin
        self.rule.after_backward(n_tokens)
        synchronise(device)
        begin = time.perf_counter()
        if config.clip > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        synchronise(device)
        seconds += time.perf_counter() - begin
        if self.slower > 1:
            time.sleep((self.slower - 1) * seconds)
            seconds *= self.slower
        self.rule.after_step(n_tokens)
        synchronise(device)
        self.at = self.rule.advance(self.at)
        return seconds


def contestant(name: str, config: TrainConfig, hierarchy: Hierarchy, slower: float) -> Contestant:
    """As `pyfedcomm train` makes model, optimizer and rule. Collective over all ranks."""
    model = model_module.build(config.model, ByteTokenizer(), config.data.seq_len, config.run.seed)
    if config.run.compile:
        model.compile()
    if config.run.parallel == "fsdp":
        parallel.shard(model, hierarchy)
    model.to(hierarchy.device)
    optimizer = optim.make(model, config.train, optim.chosen(config), hierarchy)
    rule = sync.make(config.sync, model.named_parameters(), hierarchy)
    return Contestant(name, config, model, optimizer, rule, slower)


def batches_of(config: TrainConfig, hierarchy: Hierarchy) -> torch.Tensor:
    """Random ids of this rank, shape ``(n, accumulation, micro_batch, seq_len + 1)``."""
    generator = torch.Generator().manual_seed(1 + hierarchy.topology.rank)
    train = config.train
    shape = (N_BATCHES, train.accumulation, train.micro_batch, config.data.seq_len + 1)
    vocabulary = config.model.options.get("vocab_size", ByteTokenizer().vocab_size)
    return torch.randint(0, vocabulary, shape, generator=generator).to(hierarchy.device)


def train(
    each: Contestant, batches: torch.Tensor, until: float, counted: Turn, world: Group | None
) -> None:
    """Trains until the run is at step ``until``; with ``world``, until all clouds are."""
    sent = each.rule.hierarchy.wan_stats().frame_bytes
    begin = time.perf_counter()
    while each.at < until - 1e-9:
        counted.compute_s += each.step(batches[counted.n_steps % len(batches)])
        counted.n_steps += 1
    if world is not None:
        world.barrier()
    counted.wall_s += time.perf_counter() - begin
    counted.n_bytes += each.rule.hierarchy.wan_stats().frame_bytes - sent


def race(order: Row, configs: dict[str, TrainConfig], hierarchy: Hierarchy) -> list[Row]:
    """Rows of all rules and clouds, on every rank."""
    world, cloud = hierarchy.world, hierarchy.topology.cloud
    slower = order["slower"] if cloud == 1 else 1.0
    contestants = [contestant(*item, hierarchy, slower) for item in configs.items()]
    batches = batches_of(contestants[0].config, hierarchy)
    for each in contestants:
        # Turns begin a little after an exchange has ended, and so hold whole ones.
        train(each, batches, order["offset"], Turn(), None)
    for i in range(order["turns"]):
        for each in contestants:
            each.turns.append(Turn())
        for piece in range(order["pieces"]):
            for j in range(len(contestants)):
                each = contestants[(i + piece + j) % len(contestants)]
                time.sleep(SETTLE_S)
                world.barrier()
                # Of clouds that are to end a round together the fast one waits for the slow one.
                together = order["slower"] > 1 and each.name not in ("isolated", "async")
                until = each.at + order["steps"] / order["pieces"]
                train(each, batches, until, each.turns[-1], world if together else None)
                if order["slower"] == 1:
                    check_whole(each)
    for each in contestants:
        each.rule.finish()
    return [row for each in contestants for row in rows_of(each, hierarchy)]


def check_whole(each: Contestant) -> None:
    """Raises ConfigError where an exchange is under way, which would go on in another's turn."""
    if each.rule.state_dict().get("flights"):
        raise ConfigError(
            f"--pieces: one ends at step {each.at:g} of {each.name}, while a fragment is under "
            "way; as many pieces as fragments, or 1, and fewer sync.overlap_steps than lie between "
            "two fragments, measure whole exchanges"
        )


def rows_of(each: Contestant, hierarchy: Hierarchy) -> list[Row]:
    """Of one rule, by cloud: times are those of a cloud's first rank. Collective over all ranks."""
    world, topology = hierarchy.world, hierarchy.topology
    isolated = each.config.sync.rule == "isolated"
    equal = parameters_equal(each.model, world)
    sent = world.all_gather_object(sum(turn.n_bytes for turn in each.turns))
    n_params = sum(p.numel() for p in each.model.parameters())
    step_s = [turn.wall_s / turn.n_steps for turn in each.turns]
    busy = [turn.compute_s / turn.wall_s for turn in each.turns]
    n_steps = sum(turn.n_steps for turn in each.turns)
    devices = names_of(world, topology, hierarchy.device)
    mine = {
        "rule": each.name,
        "cloud": topology.cloud,
        "n_params": n_params,
        "turns": len(each.turns),
        "steps": [turn.n_steps for turn in each.turns],
        "step_s": statistics.median(step_s),
        "step_min_s": min(step_s),
        "step_max_s": max(step_s),
        "turn_step_s": step_s,
        "busy": statistics.median(busy),
        "turn_busy": busy,
        "bytes_per_step": sum(sent[rank] for rank in topology.clouds[topology.cloud]) / n_steps,
        "floor_bytes_per_step": floor_bytes_per_step(each.config, n_params, topology.n_clouds),
        "verified": None if isolated else equal,
        "ranks": [len(ranks) for ranks in topology.clouds],
        "devices": devices,
        "rails": hierarchy.n_rails,
        "parallel": each.config.run.parallel,
        "dtype": each.config.run.dtype,
        "batch": each.config.train.micro_batch * each.config.train.accumulation,
        "seq_len": each.config.data.seq_len,
        "local_steps": each.config.sync.local_steps,
        "overlap_steps": each.config.sync.overlap_steps,
        "sync": asdict(each.config.sync),
    }
    told = world.all_gather_object(mine)
    return [told[ranks[0]] for ranks in topology.clouds]


def floor_bytes_per_step(config: TrainConfig, n_params: int, n_clouds: int) -> float | None:
    """What a cloud sends at least: 2 (N-1)/N of the coded parameters once in ``local_steps``.

    None for what does not sum all parameters in rounds of that length.
    """
    rule = config.sync.rule
    if rule in ("isolated", "async", "gradient"):
        return None
    coded = codecs.get(config.sync.codec).wire_bytes(n_params)
    return 2 * (n_clouds - 1) / n_clouds * coded / config.sync.local_steps


def open_hierarchy(order: Row, config: TrainConfig, world: Group) -> Hierarchy:
    """As `pyfedcomm train` does, but for the rate, which the gateways of a cloud share."""
    labels = [f"cloud{rank * order['clouds'] // world.size}" for rank in range(world.size)]
    topology = from_labels(labels, ["host"] * world.size, world.rank)
    n_rails = config.inter.rails or topology.n_rails
    return Hierarchy(
        world,
        topology,
        device=device_of(order["devices"], topology),
        n_rails=n_rails,
        timeout=config.run.timeout_s,
        tcp=config.inter.tcp() if world.transport != config.inter.transport else None,
        rate_limit=order["limit_mbit"] * MBIT / n_rails if order["limit_mbit"] else None,
    )


def main() -> int:
    order = json.loads(sys.argv[1])
    configs = {
        name: config_module.load(order["preset"], overrides)
        for name, overrides in order["rules"].items()
    }
    config = next(iter(configs.values()))
    with Group.world(timeout=config.run.timeout_s) as world:
        n_cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(config.run.threads or max(1, n_cores // world.size))
        with open_hierarchy(order, config, world) as hierarchy:
            rows = race(order, configs, hierarchy)
        if world.rank == 0:
            Path(order["results"]).write_text(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
