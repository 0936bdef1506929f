"""A `transformers.Trainer` in every rank of every cloud, kept in step by one line.

    trainer = Trainer(model, args, train_dataset=mine,
                      callbacks=[CrossCloudCallback(SyncConfig(local_steps=50))])

The Trainer trains as it always does; this calls a sync rule where a step has gradients and where
it has ended. Frozen parameters are not exchanged, so with PEFT only the adapters travel.
It is silent about models, data and learning rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerCallback
from transformers.utils import SAFE_WEIGHTS_NAME

from pyfedcomm import sync as sync_rules
from pyfedcomm.buckets import fingerprint
from pyfedcomm.errors import ConfigError
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.integrations import batches
from pyfedcomm.integrations.trainer_checks import check_arguments, when_evaluated
from pyfedcomm.sync import SyncConfig, SyncRule
from pyfedcomm.topology import Topology
from pyfedcomm.train import state as state_files
from pyfedcomm.train.agree import agree, agree_on
from pyfedcomm.train.evaluation import parameters_equal
from pyfedcomm.weights import Observation

_TIMING = ("_runtime", "_per_second", "_time")


@dataclass
class _Step:
    """What is known of the step that is going on."""

    counted: list[torch.Tensor] = field(default_factory=list)
    """Predictions of each batch, not read yet: reading waits for a GPU."""
    n_tokens: int = 0
    grad_norm: torch.Tensor | float = 0.0
    max_norm: float | None = None
    """``max_grad_norm``, while it is taken from the Trainer."""
    first_batch: str | None = None


class CrossCloudCallback(TrainerCallback):
    """Exchanges what a Trainer learns with the Trainers of all other ranks.

    All ranks make a Trainer with the same schedule: ``max_steps``, and evaluation at the same
    steps. A cloud is one rank; or several, each with a Trainer of its own and `part` of the data;
    or several that share a torch.distributed of the cloud's ranks, where Trainer and DDP deal out
    the data.

    Where this differs from a Trainer alone:
    - ``output_dir`` becomes ``output_dir/CLOUD``, or ``output_dir/CLOUD/rank-I`` for the Trainers
      behind a cloud's first: checkpoints hold each one's own optimizer, and what this adds.
    - Gradients are clipped after they were averaged; ``grad_norm`` in the logs is that of then.
    - The last round is part of the last step, before its evaluation and checkpoint: from there on
      all ranks have equal parameters (`bit_identical`).
    - Evaluation during training gives the mean over clouds, and each cloud's loss beside it.
      Callbacks that go by it, as early stopping, come after this one.
    - Progress and metrics are printed by rank 0 alone.

    Not supported, and refused: DeepSpeed, FSDP and tensor parallelism, several GPUs in one process,
    ``auto_find_batch_size``, ``load_best_model_at_end``; fp16, where its overflows would not be the
    same on all ranks. ``use_cpu`` under mpirun makes accelerate open a torch.distributed of all
    ranks: hide the GPUs with CUDA_VISIBLE_DEVICES instead.
    """

    world: Group
    topology: Topology
    rule: SyncRule
    """Made when training begins."""
    bit_identical: bool
    """After training: every bit of every parameter is the same on all ranks of all clouds."""

    def __init__(
        self,
        sync: SyncConfig | None = None,
        *,
        clouds: str | None = None,
        world: Group | None = None,
        topology: Topology | None = None,
        hierarchy: Hierarchy | None = None,
        resume_from: str | Path | None = None,
        timeout: float = 1800.0,
    ) -> None:
        """Collective over all ranks.

        sync: the same on all ranks; default `SyncConfig()`, which exchanges every 40 steps.
        clouds, world, topology: default `Topology.discover` over all ranks that mpirun started.
        hierarchy: instead of these; it is the caller's to close.
        resume_from: the checkpoint that training is resumed from, where it is not one in
            ``output_dir``.
        timeout: seconds that ranks wait for the slowest, which may be evaluating or saving.
        """
        self.config = sync or SyncConfig()
        self._hierarchy, self._owned = hierarchy, hierarchy is None
        if hierarchy is not None:
            self.world, self.topology = hierarchy.world, hierarchy.topology
        else:
            self.world = world or Group.world(timeout=timeout)
            self.topology = topology or Topology.discover(self.world, clouds=clouds)
        self._who = f"rank {self.topology.rank} (cloud {self.topology.cloud_name})"
        self._resume_from, self._timeout = resume_from, timeout
        self._output_dir: str | None = None
        self._training = self._finished = False
        self._step = _Step()

    def part(self, dataset: Any) -> Any:
        """This rank's share of its cloud's dataset, where each rank has a Trainer of its own."""
        return batches.part(dataset, self.topology.local_rank, self.topology.local_size)

    # --- beginning -------------------------------------------------------------------------------

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuses what cannot work, and gives the Trainer a directory of its own."""
        agree(self.world, self._who, lambda: check_arguments(args, self.config, self.topology))
        if args.output_dir != self._output_dir:
            directory = Path(args.output_dir, self.topology.cloud_name)
            if args.world_size == 1 and self.topology.local_rank:
                directory /= f"rank-{self.topology.local_rank}"
            args.output_dir = self._output_dir = str(directory)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the networks, makes the rule, or continues with it from a checkpoint."""
        model = kwargs["model"]
        self._step = _Step()
        self._compare = any(len(ranks) > 1 for ranks in self.topology.clouds)
        self._shifted = batches.shifts_labels(model)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        loader = kwargs.get("train_dataloader")
        agree(self.world, self._who, lambda: self._check_model(state))
        agree_on(
            self.world,
            self._who,
            {
                "max_steps": state.max_steps,
                "the step that training goes on from": state.global_step,
                "gradient_accumulation_steps": args.gradient_accumulation_steps,
                "max_grad_norm": args.max_grad_norm,
                "when to evaluate": when_evaluated(args, state, loader),
            },
            remedy="give all ranks one schedule: max_steps, and eval_strategy='steps'",
        )
        if self._hierarchy is None:
            device = self._parameters[0].device
            self._hierarchy = Hierarchy(
                self.world, self.topology, device=device, timeout=self._timeout
            )
        config = replace(self.config, horizon=self.config.horizon or state.max_steps)
        self.rule = sync_rules.make(config, model.named_parameters(), self._hierarchy)
        if state.global_step:
            agree(self.world, self._who, lambda: self._load(args, state, model))
        self._restarts = self.rule.restarts
        self._hook = model.register_forward_pre_hook(self._on_forward, with_kwargs=True)
        self._training, self._finished = True, False
        state.is_world_process_zero = state.is_local_process_zero = self.topology.rank == 0

    def _check_model(self, state: Any) -> None:
        if not self._parameters:
            raise ConfigError("the model has no trainable parameter: there is nothing to exchange")
        if any(isinstance(p, DTensor) for p in self._parameters):
            raise ConfigError(
                "CrossCloudCallback: parameters are sharded over ranks (DTensor), which is not "
                "supported: load the model without tp_plan, and leave fsdp out"
            )
        if state.is_hyper_param_search:
            raise ConfigError(
                "CrossCloudCallback: ranks would search on their own; choose hyperparameters "
                "first, then train"
            )

    # --- a step ----------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _on_forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not module.training or not torch.is_grad_enabled():
            return
        inputs = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
        self._step.counted.append(batches.n_predicted(inputs, shifted=self._shifted))
        if self._compare and self._step.first_batch is None:
            self._step.first_batch = batches.digest(inputs)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes clipping over: the Trainer would clip before gradients are averaged."""
        if self._step.max_norm is None:
            self._step.max_norm, args.max_grad_norm = args.max_grad_norm, 0.0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gradients are there, unscaled: averages and clips them."""
        if self._compare:
            self._check_first_batches()
        step = self._step
        step.n_tokens = sum(int(n.item()) for n in step.counted)
        step.counted = []
        self.rule.after_backward(step.n_tokens)
        if step.max_norm is not None:
            args.max_grad_norm, step.max_norm = step.max_norm, None
        norm = args.max_grad_norm or math.inf
        step.grad_norm = torch.nn.utils.clip_grad_norm_(self._parameters, norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer has stepped: what is to be exchanged after a step is."""
        self.rule.after_step(self._step.n_tokens)
        if self.rule.restarts > self._restarts:
            # The cloud had diverged and starts again from the common parameters: as a beginner.
            self._restarts = self.rule.restarts
            kwargs["optimizer"].state.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the last step the last round, so that what is saved is what all have."""
        if control.should_training_stop:
            self._finish()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last round, where training ended early; frees the networks."""
        self._finish()
        self.bit_identical = parameters_equal(kwargs["model"], self.world)
        self._hook.remove()
        self._training = False
        if self._owned and self._hierarchy is not None:
            self._hierarchy.close()
            self._hierarchy = None

    def _finish(self) -> None:
        if not self._finished:
            self.rule.finish()
            self._finished = True

    def _check_first_batches(self) -> None:
        """Ranks of one cloud that train on the same data do the same work twice."""
        self._compare = False
        told = self.world.all_gather_object(self._step.first_batch)
        for name, ranks in zip(self.topology.names, self.topology.clouds, strict=True):
            if len({told[rank] for rank in ranks}) < len(ranks):
                raise ConfigError(
                    f"ranks of cloud {name} train on the same batch: give each its part, "
                    "train_dataset=callback.part(dataset)"
                )

    # --- metrics ---------------------------------------------------------------------------------

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Adds ``round`` and ``wan_bytes`` (sent by this rank) to what training logs."""
        logs: dict[str, Any] = kwargs["logs"]
        if not self._training or "loss" not in logs or self._hierarchy is None:
            return
        ours = {
            "grad_norm": float(self._step.grad_norm),
            "round": self.rule.round,
            "wan_bytes": self._hierarchy.wan_stats().frame_bytes,
        }
        logs.update(ours)
        state.log_history[-1].update(ours)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """During training the metrics become `mean`; afterwards a rank may evaluate alone.

        The losses are what ``sync.weights = "loss"`` goes by.
        """
        metrics: dict[str, Any] = kwargs["metrics"]
        if self._training:
            metrics.update(self.mean(metrics))
            state.log_history[-1].update(metrics)
            losses = [metrics.get(f"eval_loss_{name}") for name in self.topology.names]
            self.rule.observe([Observation(loss=loss) for loss in losses])

    def mean(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Of all numbers but times: the mean over clouds, of each cloud's mean over its ranks.

        With each cloud's own under ``KEY_CLOUD`` where the key ends in ``loss``. Collective over
        all ranks; the same on all of them.
        """
        numbers = {
            key: float(value)
            for key, value in metrics.items()
            if isinstance(value, (int, float)) and not key.endswith(_TIMING) and key != "epoch"
        }
        told = self.world.all_gather_object(numbers)
        means: dict[str, float] = {}
        for key in told[0]:
            if not all(key in row for row in told):
                continue
            by_cloud = [
                sum(told[rank][key] for rank in ranks) / len(ranks)
                for ranks in self.topology.clouds
            ]
            means[key] = sum(by_cloud) / len(by_cloud)
            if key.endswith("loss"):
                for name, value in zip(self.topology.names, by_cloud, strict=True):
                    means[f"{key}_{name}"] = value
        return means

    # --- checkpoints -----------------------------------------------------------------------------

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Adds this rank's state of the rule to the checkpoint, ``pyfedcomm-rank-R``."""
        model = kwargs["model"]
        stem = self._stem(Path(args.output_dir, f"checkpoint-{state.global_step}"))
        stem.parent.mkdir(parents=True, exist_ok=True)
        if args.world_size == 1 and self.topology.local_rank and isinstance(model, PreTrainedModel):
            # transformers leaves weights to rank 0 wherever there is a torch.distributed, and this
            # Trainer, which knows nothing of the cloud's, goes on from a checkpoint of its own.
            model.config.save_pretrained(stem.parent)
            save_model(model, str(stem.parent / SAFE_WEIGHTS_NAME), metadata={"format": "pt"})
        state_files.write(
            {
                "clouds": self._clouds(),
                "parameters": fingerprint(model.named_parameters()),
                "sync": self.rule.state_dict(),
            },
            stem,
        )

    def _load(self, args: Any, state: Any, model: Any) -> None:
        default = Path(args.output_dir, f"checkpoint-{state.global_step}")
        stem = self._stem(Path(self._resume_from or default))
        if not stem.with_name(stem.name + ".json").is_file():
            raise ConfigError(
                f"training goes on from step {state.global_step}, but there is no {stem}.json: "
                "give CrossCloudCallback(resume_from=) the directory of the checkpoint, which must "
                "have been written with this callback and by this rank"
            )
        saved = state_files.read(stem)
        if saved["clouds"] != self._clouds():
            raise ConfigError(
                f"{stem} was written with the clouds {saved['clouds']}, this run has "
                f"{self._clouds()}; resume with those"
            )
        if saved["parameters"] != fingerprint(model.named_parameters()):
            raise ConfigError(
                f"{stem} belongs to other parameters than the model has: give "
                "CrossCloudCallback(resume_from=) the checkpoint that the Trainer resumes from"
            )
        self.rule.load_state_dict(saved["sync"])

    def _stem(self, checkpoint: Path) -> Path:
        return checkpoint / f"pyfedcomm-rank-{self.topology.rank}"

    def _clouds(self) -> list[Any]:
        topology = self.topology
        return [list(topology.names), [list(ranks) for ranks in topology.clouds]]
