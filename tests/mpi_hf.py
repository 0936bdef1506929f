"""What `test_integrations_hf` starts under mpirun: a Trainer in every rank.

    mpirun -n 4 python mpi_hf.py <scenario>[,<scenario>...] <clouds> <directory>

Every check asserts on every rank; a rank that fails ends the whole run with its traceback.
Prints a line ``rank <r> ok`` for each rank.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mpi_lossy import all_equal
from small_model import IN_ROUNDS, bits
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from pyfedcomm import sync
from pyfedcomm.buckets import fingerprint
from pyfedcomm.errors import ConfigError
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.integrations.hf import CrossCloudCallback
from pyfedcomm.sync import SyncConfig
from pyfedcomm.topology import Topology

Row = dict[str, torch.Tensor]


def model(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, attention_dropout=dropout, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def rows(seed: int, n: int = 64) -> list[Row]:
    """Sequences with a prompt that is not learnt, of a length that differs."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n):
        ids = torch.randint(0, 32, (12,), generator=generator)
        labels = ids.clone()
        labels[: int(torch.randint(0, 8, (), generator=generator))] = -100
        made.append({"input_ids": ids, "labels": labels})
    return made


def n_predicted(batch: list[Row]) -> int:
    return sum(int((row["labels"][1:] != -100).sum()) for row in batch)


def arguments(directory: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(directory),
        **{
            "max_steps": 6,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "logging_steps": 2,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "use_cpu": "RANK" in os.environ,
            **options,
        },
    )


class Remembering(torch.utils.data.Dataset[Row]):
    """Rows, and in which order they were taken."""

    def __init__(self, data: list[Row]) -> None:
        self.data = data
        self.taken: list[Row] = []

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Row:
        self.taken.append(self.data[i])
        return self.data[i]


def train(
    world: Group, topology: Topology, directory: Path, config: SyncConfig, **options: Any
) -> tuple[Trainer, CrossCloudCallback]:
    callback = CrossCloudCallback(config, world=world, topology=topology)
    trainer = Trainer(
        model(),
        arguments(directory, **options),
        train_dataset=Remembering(rows(1 + topology.rank)),
        eval_dataset=rows(100 + topology.rank, 8),
        callbacks=[callback],
    )
    trainer.train()
    return trainer, callback


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    assert trainer.model is not None
    return dict(trainer.model.named_parameters())


def folder(trainer: Trainer, name: str) -> Path:
    assert trainer.args.output_dir is not None
    return Path(trainer.args.output_dir, name)


# --- scenarios -----------------------------------------------------------------------------------


def every_rule(world: Group, topology: Topology, directory: Path) -> None:
    """Every rule against the same steps in a loop by hand, with accumulation and clipping."""
    n, size = 2, 2  # batches a step, rows a batch
    for name in IN_ROUNDS:
        config = SyncConfig(rule=name, local_steps=3, fragments=2, codec="fp32")
        options = {"gradient_accumulation_steps": n, "max_grad_norm": 0.5, "optim": "adamw_torch"}
        trainer, callback = train(world, topology, directory / name, config, **options)
        device = trainer.args.device
        by_hand = model().to(device)
        # The Trainer's, but for the groups of what decays: nothing does.
        optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=0.0)
        taken = trainer.train_dataset.taken  # type: ignore[union-attr]
        with Hierarchy(world, topology, device=device) as hierarchy:
            told = replace(config, horizon=6)
            rule = sync.make(told, by_hand.named_parameters(), hierarchy)
            for step in range(6):
                chosen = taken[step * n * size : (step + 1) * n * size]
                tokens = n_predicted(chosen)
                for i in range(n):
                    half = chosen[i * size : (i + 1) * size]
                    batch = {k: torch.stack([row[k] for row in half]).to(device) for k in half[0]}
                    n_items = torch.tensor(tokens, device=device)
                    torch.autograd.backward(by_hand(**batch, num_items_in_batch=n_items).loss)
                rule.after_backward(tokens)
                torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
                for group in optimizer.param_groups:
                    group["lr"] = 1e-2 * ((6 - step) / 6)
                optimizer.step()
                optimizer.zero_grad()
                rule.after_step(tokens)
            rule.finish()
        trained = parameters(trainer)
        assert bits(trained) == bits(dict(by_hand.named_parameters())), name
        assert callback.bit_identical == (name != "isolated" or topology.n_clouds == 1), name
        assert all_equal(world, fingerprint(trained.items())) == callback.bit_identical
        assert trainer.args.max_grad_norm == 0.5


def resumed(world: Group, topology: Topology, directory: Path) -> None:
    """From a checkpoint in the middle of a round, with dropout: the same bits."""
    for name in ("diloco", "streaming", "sparse"):
        config = SyncConfig(rule=name, local_steps=4, fragments=2, error_feedback=True)
        options = {"max_steps": 9, "save_strategy": "steps", "save_steps": 3}

        def make(
            where: str, config: SyncConfig = config, options: dict[str, Any] = options,
            name: str = name, resume_from: Path | None = None,
        ) -> Trainer:  # fmt: skip
            callback = CrossCloudCallback(
                config, world=world, topology=topology, resume_from=resume_from
            )
            return Trainer(
                model(dropout=0.2), arguments(directory / name / where, **options),
                train_dataset=rows(1 + topology.rank), callbacks=[callback],
            )  # fmt: skip

        straight = make("a")
        straight.train()
        checkpoint = folder(straight, "checkpoint-3")
        second = make("b", resume_from=checkpoint)
        second.train(resume_from_checkpoint=str(checkpoint))
        ends = [parameters(t) for t in (straight, second)]
        assert bits(ends[0]) == bits(ends[1]), name
        # What is in the last checkpoint is what all have.
        last = LlamaForCausalLM.from_pretrained(folder(straight, "checkpoint-9"))
        assert bits(dict(last.named_parameters())) == bits(ends[0])
        assert all_equal(world, fingerprint(last.named_parameters()))
        with pytest.raises(ConfigError, match="belongs to other parameters"):
            make("c", resume_from=checkpoint).train(
                resume_from_checkpoint=str(checkpoint.with_name("checkpoint-6"))
            )
        with pytest.raises(ConfigError, match=r"there is no .*c.*resume_from="):
            make("c").train(resume_from_checkpoint=str(checkpoint))


def metrics(world: Group, topology: Topology, directory: Path) -> None:
    """Evaluation is the mean over clouds; logs tell rounds and bytes; only rank 0 prints."""
    config = SyncConfig(rule="diloco", local_steps=2, weights="loss")
    options = {"eval_strategy": "steps", "eval_steps": 3}
    trainer, callback = train(world, topology, directory, config, **options)
    assert callback.bit_identical
    history = trainer.state.log_history
    logs = [row for row in history if "loss" in row]
    assert [row["round"] for row in logs] == [1, 2, 3]
    sent = [row["wan_bytes"] for row in logs]
    assert sent == sorted(sent)
    assert (sent[-1] > 0) == (topology.n_clouds > 1 and topology.local_rank < topology.n_rails)
    evaluations = [row for row in history if "eval_loss" in row]
    assert len(evaluations) == 2
    assert all_equal(world, [[row["eval_loss"] for row in evaluations]])
    last = evaluations[-1]
    by_cloud = [last[f"eval_loss_{name}"] for name in topology.names]
    assert math.isclose(last["eval_loss"], sum(by_cloud) / len(by_cloud))
    # Parameters are equal now, so that every rank can tell its own part of it.
    assert [each.loss for each in callback.rule.observed] == by_cloud
    alone = trainer.evaluate()["eval_loss"]
    told = world.all_gather_object(alone)
    mine = [told[rank] for rank in topology.clouds[topology.cloud]]
    assert math.isclose(by_cloud[topology.cloud], sum(mine) / len(mine), rel_tol=1e-6)
    assert callback.mean({"loss": float(topology.cloud)})["loss"] == (topology.n_clouds - 1) / 2


def adapters(world: Group, topology: Topology, directory: Path) -> None:
    """LoRA: base weights stay, adapters become equal, and only they are sent."""
    import peft

    base = {name: p.detach().clone() for name, p in model().named_parameters()}
    torch.manual_seed(5)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model(), lora)
    callback = CrossCloudCallback(SyncConfig(local_steps=3, codec="fp32"), world=world,
                                  topology=topology)  # fmt: skip
    trainer = Trainer(
        wrapped, arguments(directory), train_dataset=rows(topology.rank), callbacks=[callback]
    )
    trainer.train()
    assert callback.bit_identical
    trained = dict(wrapped.named_parameters())
    n_adapter = sum(p.numel() for p in trained.values() if p.requires_grad)
    state = callback.rule.state_dict()
    assert state["n_elems"] == n_adapter < sum(p.numel() for p in base.values()) / 10
    for name, p in trained.items():
        if not p.requires_grad:
            key = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(p.cpu(), base[key]), name


def own_torch_distributed(world: Group, topology: Topology, directory: Path) -> None:
    """Ranks of a cloud that share a torch.distributed: Trainer deals out data, DDP averages.

    In bf16, which a Trainer on a CPU allows only here, with use_cpu.
    """
    ranks = topology.clouds[topology.cloud]
    os.environ.update(
        MASTER_ADDR="localhost",
        MASTER_PORT=str(ports(world)[ranks[0]]),
        RANK=str(topology.local_rank),
        LOCAL_RANK=str(topology.local_rank),
        WORLD_SIZE=str(topology.local_size),
        LOCAL_WORLD_SIZE=str(topology.local_size),
    )
    callback = CrossCloudCallback(SyncConfig(local_steps=2), world=world, topology=topology)
    trainer = Trainer(
        model(),
        arguments(directory, save_strategy="steps", save_steps=4, bf16=True),
        train_dataset=rows(topology.cloud),
        callbacks=[callback],
    )
    assert trainer.args.world_size == topology.local_size
    trainer.train()
    assert callback.bit_identical
    world.barrier()
    written = folder(trainer, "checkpoint-4")
    assert sorted(p.name for p in written.glob("pyfedcomm-rank-*.json")) == [
        f"pyfedcomm-rank-{rank}.json" for rank in ranks
    ]
    torch.distributed.destroy_process_group()


def ports(world: Group) -> list[int]:
    """One that is free, for each rank."""
    import socket

    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        told: list[int] = world.all_gather_object(listening.getsockname()[1])
    return told


def refused(world: Group, topology: Topology, directory: Path) -> None:
    """What cannot work is one error on every rank, before the first step, and breaks nothing."""

    def trainer(data: Any = None, config: SyncConfig | None = None, **options: Any) -> Trainer:
        callback = CrossCloudCallback(config, world=world, topology=topology)
        data = rows(topology.rank) if data is None else data
        return Trainer(
            model(), arguments(directory, **options), train_dataset=data, callbacks=[callback]
        )

    with pytest.raises(ConfigError, match="auto_find_batch_size=False"):
        trainer(auto_find_batch_size=True)
    with pytest.raises(ConfigError, match="load_best_model_at_end=False"):
        trainer(load_best_model_at_end=True, eval_strategy="no")
    with pytest.raises(ConfigError, match=r"set sync\.adaptive=False"):
        trainer(config=SyncConfig(adaptive=True))
    with pytest.raises(ConfigError, match=r"'async' comes together at steps of its own"):
        trainer(config=SyncConfig(rule="async"))
    with pytest.raises(ConfigError, match=r"choose 'tokens', 'uniform' or 'loss'"):
        trainer(config=SyncConfig(weights="throughput"))
    with pytest.raises(ConfigError, match=r"by the held-out loss: .*eval_strategy='steps'"):
        trainer(config=SyncConfig(weights="loss"))
    with pytest.raises(ConfigError, match=r"sync.rule is 'nothing'"):
        trainer(config=SyncConfig(rule="nothing"))
    with pytest.raises(ConfigError, match=r"max_steps: 5 on .*, 6 on .*one schedule"):
        trainer(max_steps=5 + min(1, topology.rank)).train()
    if topology.local_size > 1:
        same = rows(topology.cloud)
        with pytest.raises(ConfigError, match=r"train on the same batch: .*callback\.part"):
            trainer(same).train()
        part = CrossCloudCallback(world=world, topology=topology).part(same)
        assert len(part) == 64 // topology.local_size
        trainer(part).train()
    frozen = trainer()
    frozen.model.requires_grad_(False)  # type: ignore[union-attr]
    with pytest.raises((ConfigError, ValueError), match=r"no trainable|empty parameter list"):
        frozen.train()


SCENARIOS: dict[str, Callable[[Group, Topology, Path], None]] = {
    f.__name__: f for f in (every_rule, resumed, metrics, adapters, own_torch_distributed, refused)
}


def main() -> int:
    torch.set_num_threads(1)
    scenarios, clouds, directory = sys.argv[1:]
    with Group.world(timeout=60.0) as world:
        topology = Topology.discover(world, clouds=clouds)
        for name in scenarios.split(","):
            SCENARIOS[name](world, topology, Path(directory, name))
        os.write(1, f"rank {world.rank} ok\n".encode())
        world.barrier()
    return 0


if __name__ == "__main__":
    sys.exit(main())
