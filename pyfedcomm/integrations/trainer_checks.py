"""What a `transformers.Trainer` may be told, so that the Trainers of all ranks keep step."""

from __future__ import annotations

from typing import Any

from pyfedcomm import sync, weights
from pyfedcomm.errors import ConfigError
from pyfedcomm.sync import SyncConfig
from pyfedcomm.topology import Topology


def check_arguments(args: Any, config: SyncConfig, topology: Topology) -> None:
    """Raises ConfigError for `TrainingArguments` or a rule with which ranks could not keep step."""
    here, size = (args.process_index, args.world_size), topology.local_size
    if args.world_size > 1 and here != (topology.local_rank, size):
        raise ConfigError(
            f"the Trainer's torch.distributed has this process as rank {here[0]} of {here[1]}; "
            f"it must hold exactly the {size} ranks of cloud {topology.cloud_name}, this "
            f"one as rank {topology.local_rank}. Under mpirun, do not set use_cpu: hide "
            "GPUs with CUDA_VISIBLE_DEVICES"
        )
    sync.check(config)
    own, needs = args.world_size == 1, weights.make(config.weights).needs
    for wrong, remedy in (
        (args.deepspeed, "deepspeed is not supported: leave it out, or use DDP in a cloud"),
        (args.fsdp, "fsdp is not supported: leave it out, or use DDP in a cloud"),
        (args.n_gpu > 1, "give each rank one GPU: CUDA_VISIBLE_DEVICES"),
        (args.auto_find_batch_size, "set auto_find_batch_size=False: ranks would differ"),
        (
            args.load_best_model_at_end,
            "set load_best_model_at_end=False: between rounds each cloud's model is its own",
        ),
        (
            config.adaptive,
            "set sync.adaptive=False: clouds would take different numbers of steps, and every "
            "Trainer takes max_steps",
        ),
        (
            config.rule == "async",
            "sync.rule = 'async' comes together at steps of its own, and Trainers evaluate and "
            "save at max_steps: use CrossCloudOptimizer, or sync.rule = 'streaming'",
        ),
        (
            set(needs) - {"loss"},
            f"sync.weights = {config.weights!r} goes by what `pyfedcomm train` measures; "
            "choose 'tokens', 'uniform' or 'loss'",
        ),
        (
            needs and _name(args.eval_strategy) == "no",
            f"sync.weights = {config.weights!r} goes by the held-out loss: give an "
            "eval_dataset, and set eval_strategy='steps'",
        ),
        (
            args.fp16 and config.rule == "gradient",
            "use bf16: an overflow of fp16 in one cloud would skip the step of that one alone",
        ),
        (
            args.fp16 and own and size > 1,
            "use bf16, or one torch.distributed in each cloud: an overflow of fp16 in one rank "
            "would skip the step of that one alone",
        ),
    ):
        if wrong:
            raise ConfigError(f"CrossCloudCallback: {remedy}")


def _name(strategy: Any) -> str:
    return str(getattr(strategy, "value", strategy))


def when_evaluated(args: Any, state: Any, loader: Any) -> list[Any]:
    """What says at which steps a Trainer evaluates, which is collective."""
    strategy = _name(args.eval_strategy)
    every: Any = state.eval_steps if strategy == "steps" else None
    if strategy == "epoch":
        every = len(loader) if hasattr(loader, "__len__") else None
    return [strategy, every, args.eval_delay, args.eval_on_start]
