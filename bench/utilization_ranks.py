"""What each rank of bench_utilization.py does: trains a GPT-2 by each rule, in turns.

Started by mpirun, one rank a cloud; its argument is the order as JSON, its result the file of rows
that the order names.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pyfedcomm import sync
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync import SyncConfig
from pyfedcomm.tcp import TcpOptions
from pyfedcomm.topology import from_labels

VOCABULARY = 256
SETTLE_S = 0.3
"""Between turns, so that none pays for what another one left running."""

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
    model: Any
    optimizer: torch.optim.Optimizer
    rule: sync.SyncRule
    slower: float
    """How many times longer its steps take: the rest is slept."""
    at: float = 0.0
    """The step of the run."""
    turns: list[Turn] = field(default_factory=list)

    def step(self, batch: torch.Tensor) -> float:
        """Trains one step; returns the seconds that forward, backward and optimizer took."""
        begin = time.perf_counter()
        self.model(batch, labels=batch).loss.backward()
        seconds = time.perf_counter() - begin
        self.rule.after_backward(batch.numel())
        begin = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds += time.perf_counter() - begin
        if self.slower > 1:
            time.sleep((self.slower - 1) * seconds)
            seconds *= self.slower
        self.rule.after_step(batch.numel())
        self.at = self.rule.advance(self.at)
        return seconds


def contestants_of(order: Row, hierarchy: Hierarchy) -> list[Contestant]:
    cloud = hierarchy.topology.cloud
    made = []
    for name, keys in order["rules"].items():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_layer=order["layers"],
                n_embd=order["width"],
                n_head=order["width"] // 64,
                n_positions=order["seq_len"],
            )
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        steps = {name: order[name] for name in ("local_steps", "overlap_steps")}
        config = SyncConfig(**steps, **keys)
        rule = sync.make(config, model.named_parameters(), hierarchy)
        slower = order["slower"] if cloud == 1 else 1.0
        made.append(Contestant(name, model, optimizer, rule, slower))
    return made


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


def race(order: Row, hierarchy: Hierarchy) -> list[Row]:
    world, cloud = hierarchy.world, hierarchy.topology.cloud
    contestants = contestants_of(order, hierarchy)
    generator = torch.Generator().manual_seed(1 + cloud)
    shape = (8, order["batch"], order["seq_len"])
    batches = torch.randint(0, VOCABULARY, shape, generator=generator)
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
    mine = [row_of(each, cloud) for each in contestants]
    for each in contestants:
        each.rule.finish()
    return [row for rows in world.all_gather_object(mine) for row in rows]


def row_of(each: Contestant, cloud: int) -> Row:
    step_s = [turn.wall_s / turn.n_steps for turn in each.turns]
    busy = [turn.compute_s / turn.wall_s for turn in each.turns]
    return {
        "rule": each.name,
        "cloud": cloud,
        "n_params": sum(p.numel() for p in each.model.parameters()),
        "turns": len(each.turns),
        "steps": [turn.n_steps for turn in each.turns],
        "step_s": statistics.median(step_s),
        "step_min_s": min(step_s),
        "step_max_s": max(step_s),
        "turn_step_s": step_s,
        "busy": statistics.median(busy),
        "turn_busy": busy,
        "bytes_per_step": sum(t.n_bytes for t in each.turns) / sum(t.n_steps for t in each.turns),
    }


def main() -> int:
    order = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    with Group.world(timeout=float(order["timeout_s"])) as world:
        labels = [f"cloud{rank}" for rank in range(world.size)]
        topology = from_labels(labels, ["host"] * world.size, world.rank)
        tcp = TcpOptions(**{f.name: order["tcp"][f.name] for f in fields(TcpOptions)})
        with Hierarchy(world, topology, tcp=tcp) as hierarchy:
            rows = race(order, hierarchy)
        if world.rank == 0:
            Path(order["results"]).write_text(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
