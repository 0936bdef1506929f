"""The training loop: the phases of a step, one after the other, in `Trainer.run`.

    batch -> forward, backward -> sync -> clip -> optimizer -> sync -> log, evaluate, checkpoint

How clouds exchange is ``sync``'s business, what a run is made of ``setup``'s; nothing here knows a
codec, a rule or a network by name.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pyfedcomm
from pyfedcomm import dtensor, sync
from pyfedcomm.errors import NonFinite
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.topology import Topology
from pyfedcomm.train import model as model_module
from pyfedcomm.train import optim, pace, parallel, resuming, state
from pyfedcomm.train.agree import agree, is_everywhere
from pyfedcomm.train.config import TrainConfig, shared
from pyfedcomm.train.evaluation import EvalResult, evaluate, parameters_equal, token_losses
from pyfedcomm.train.feed import Feed
from pyfedcomm.train.links import link_rate, say_links
from pyfedcomm.train.metrics import PHASES, MetricsWriter, StepRecord
from pyfedcomm.train.observe import Pace, with_losses, with_paces
from pyfedcomm.train.result import Tally, TrainResult
from pyfedcomm.train.saving import Saver
from pyfedcomm.train.setup import Ready, identity, prepare


def train(
    config: TrainConfig,
    world: Group,
    topology: Topology,
    *,
    say: Callable[[str], None] | None = None,
) -> TrainResult:
    """Trains one model in all clouds. Collective over all ranks of ``world``.

    say: told, where this rank is a gateway, what is known of links between clouds and chosen by it.

    Returns the same numbers on every rank. Ends in an error on every rank if any rank has one:
    those found while setting up and checkpointing name the ranks at fault; any other breaks
    ``world``, so that nobody waits.
    """
    try:
        ready = prepare(config, world, topology)
        with Hierarchy(
            world,
            topology,
            device=ready.device,
            n_rails=config.inter.rails or None,
            timeout=config.run.timeout_s,
            # Clouds that met at a rendezvous talk over TCP anyhow.
            tcp=config.inter.tcp() if world.transport != config.inter.transport else None,
            rate_limit=config.inter.rate_limit or None,
        ) as hierarchy:
            if config.inter.measure:
                hierarchy.measure()
            if say is not None:
                say_links(config, ready.model, hierarchy, say)
            return Trainer(config, ready, hierarchy).run()
    except BaseException as error:
        # An error that every rank has must not be overtaken by the news that the group is broken.
        if not is_everywhere(error):
            world.abort(f"cloud {topology.cloud_name}: {type(error).__name__}: {error}")
        raise


class Trainer:
    """One rank of a run."""

    def __init__(self, config: TrainConfig, ready: Ready, hierarchy: Hierarchy) -> None:
        """Collective; continues from ``ready.resumed`` where that is given."""
        self.config, self.ready, self.hierarchy = config, ready, hierarchy
        self.world, self.topology = hierarchy.world, hierarchy.topology
        self.model: nn.Module = ready.model
        # All ranks agree, also those of clouds that do not shard.
        agree(self.world, ready.who, self._shard)
        self.optimizer = optim.make(self.model, config.train, optim.chosen(config), hierarchy)
        how = replace(config.sync, horizon=config.sync.horizon or config.train.steps)
        self.rule = sync.make(how, self.model.named_parameters(), hierarchy)
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.n_params = sum(p.numel() for p in self.trainable)
        self.feed = Feed(config, ready.data, self.topology, ready.device)
        self.tally = Tally()
        self._change: dict[str, Any] | None = None
        # Dropout must differ between ranks; initial weights, drawn before, must not.
        torch.manual_seed(config.run.seed + 1 + self.topology.rank)
        if ready.resumed is not None:
            tally, self._change = resuming.restore(
                config, ready, hierarchy, self.model, self.optimizer, self.rule, self.feed
            )
            self.tally = Tally(**tally)
        self._before = replace(self.tally)
        self._restarts = 0

    def _shard(self) -> None:
        if self.config.run.parallel == "fsdp":
            parallel.shard(self.model, self.hierarchy)

    def run(self) -> TrainResult:
        """Trains to the last step, evaluates, and writes the last checkpoint."""
        config, topology = self.config, self.topology
        out = Path(config.run.out)
        writer = MetricsWriter(
            out if topology.cloud == 0 else out / topology.cloud_name,
            enabled=topology.local_rank == 0,
            tensorboard=config.log.tensorboard,
            progress=config.log.progress and topology.rank == 0,
            n_steps=config.train.steps,
            first_step=self.tally.step,
        )
        saver = Saver(
            self.ready.checkpoints,
            keep=config.checkpoint.keep,
            background=config.checkpoint.background,
            every=config.checkpoint.every,
            report=writer.checkpoint,
        )
        with writer as self.writer, self.feed, saver as self.saver:
            agree(self.world, self.ready.who, writer.open)
            self.writer.start(self._summary())
            if self._change is not None:
                self.writer.clouds(self._change)
            self._started = time.perf_counter()
            if self.ready.resumed is None:
                self.tally.eval_loss_start = self._observe_losses()
            self._train()
            with self._phase("sync"):
                self.rule.finish()
            final = self._evaluate()
            if config.checkpoint.enabled:
                self._save()
                saver.finish()
            result = self._result(final)
            self.writer.end(asdict(result))
            return result

    # --- one step --------------------------------------------------------------------------------

    def _train(self) -> None:
        """Steps of this rank until the run has all of its own (see `SyncRule.advance`)."""
        step = float(self.tally.step)
        self.rule.meet(pace.next_stop(self.config, self.tally.step))
        while self.tally.step < self.config.train.steps:
            self._train_step(step)
            step = self.rule.advance(step)
            common = self.rule.common_step(step)
            if common is not None:
                since, self.tally.step = self.tally.step, common
                self._after_step(since)
                self.rule.meet(pace.next_stop(self.config, common))

    def _train_step(self, step: float) -> None:
        config = self.config.train
        with self._phase("compute"):
            for group in self.optimizer.param_groups:
                group["lr"] = optim.lr_at(step, config)
            n_tokens = 0
            for _ in range(config.accumulation):
                sequences = self.feed.next().sequences
                with self._autocast():
                    loss = token_losses(self.model, sequences)
                torch.autograd.backward(loss / config.accumulation)
                n_tokens += sequences[:, 1:].numel()
                self.tally.loss_sum += loss.item() * sequences[:, 1:].numel()
        with self._phase("sync"):
            self.rule.after_backward(n_tokens)
        with self._phase("compute"):
            if config.clip > 0:
                nn.utils.clip_grad_norm_(self.trainable, config.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        with self._phase("sync"):
            self.rule.after_step(n_tokens)
        if self.rule.restarts > self._restarts:
            # The cloud had diverged and starts again from the common parameters: as a beginner.
            self._restarts = self.rule.restarts
            self.optimizer.state.clear()
        self.tally.tokens += n_tokens
        self.tally.loss_tokens += n_tokens

    def _after_step(self, since: int) -> None:
        """What all ranks do together at a step of the run; ``since``: where they last could."""
        config, step = self.config, self.tally.step
        last = step >= config.train.steps

        def is_due(every: int) -> bool:
            return bool(every) and step // every > since // every

        if last or is_due(config.log.every):
            self._log()
        if not last and is_due(config.eval.every):
            self._observe_losses()
        if not last and is_due(config.data.redeal_every):
            self.writer.deal(step, self.feed.redeal(self.world, timeout=config.run.wait_timeout_s))
        self.saver.after_step(step)
        if not last and is_due(config.checkpoint.every) and config.checkpoint.enabled:
            self._save()

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Adds the time of a part of a step to the split; ``sync`` is divided further."""
        stats, begin = self.hierarchy.wan_stats(), time.perf_counter()
        yield
        if self.ready.device.type == "cuda":
            torch.cuda.synchronize(self.ready.device)
        seconds = time.perf_counter() - begin
        split = self.tally.time
        if name == "compute":
            split["compute"] += seconds
            return
        now = self.hierarchy.wan_stats()
        encode = (now.encode_s - stats.encode_s) + (now.decode_s - stats.decode_s)
        wire = now.wire_s - stats.wire_s
        split["encode"] += encode
        split["wire"] += wire
        split["wait"] += max(0.0, seconds - encode - wire)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        enabled = self.config.run.dtype == "bf16"
        return torch.autocast(self.ready.device.type, dtype=torch.bfloat16, enabled=enabled)

    # --- log, evaluate, checkpoint ---------------------------------------------------------------

    def _log(self) -> None:
        tally = self._counted()
        row = [
            tally.loss_sum,
            tally.loss_tokens,
            tally.tokens,
            tally.wan_bytes,
            {p: tally.time[p] - tally.logged_time[p] for p in PHASES},
            tally.wan_bytes - tally.logged_wan_bytes,
            link_rate(self.hierarchy),
        ]
        with self._phase("sync"):  # a cloud may be here before others
            told = self.world.all_gather_object(row, timeout=self.config.run.timeout_s)
        good = [row for row in told if math.isfinite(row[0])]
        for rank, row in enumerate(told):
            fatal = not good or self.config.sync.nonfinite == "error"
            if fatal and not math.isfinite(row[0]):
                raise NonFinite(
                    f"[train] the loss of rank {rank} is {row[0]} at step {tally.step}: it "
                    "diverged; lower train.lr, lengthen train.warmup_steps or set train.clip"
                )
        slowest = max(sum(row[4].values()) for row in told)
        self.writer.step(
            StepRecord(
                step=tally.step,
                round=self.rule.round,
                loss=sum(row[0] for row in good) / sum(row[1] for row in good),
                tokens=sum(row[2] for row in told),
                tokens_per_s=sum(row[1] for row in told) / slowest,
                lr=optim.lr_at(tally.step - 1, self.config.train),
                wan_bytes=sum(row[3] for row in told),
                time={p: sum(row[4][p] for row in told) / len(told) for p in PHASES},
                excluded=self.rule.excluded,
                cloud=self.topology.cloud_name,
                rank=self.topology.rank,
            )
        )
        paces = [Pace(row[1], row[4]["compute"], row[5], row[6]) for row in told]
        self.rule.observe(with_paces(self.rule.observed, self.topology, paces))
        tally.loss_sum, tally.loss_tokens, tally.logged_time = 0.0, 0, dict(tally.time)
        tally.logged_wan_bytes = tally.wan_bytes

    def _observe_losses(self) -> float:
        """Evaluates, and lets the clouds' weights follow; returns the mean loss."""
        result = self._evaluate()
        self.rule.observe(with_losses(self.rule.observed, self.topology, result.by_cloud))
        return result.loss

    def _evaluate(self) -> EvalResult:
        result = evaluate(
            self.model,
            self.ready.data.heldout,
            self.world,
            self.topology,
            batch=self.config.train.micro_batch,
            autocast=self._autocast,
            across=self.config.eval.across,
            timeout=self.config.run.wait_timeout_s,
        )
        self.writer.eval(self.tally.step, result.loss, result.by_cloud)
        return result

    def _save(self) -> None:
        tally = self._counted()
        states = [self.model.state_dict(keep_vars=True), self.optimizer.state_dict()]
        values, optimizer = dtensor.gathered(states, keep=self.topology.local_rank == 0)
        self.saver.begin(
            tally.step,
            functools.partial(model_module.freeze, self.model, self.ready.data.tokenizer, values),
            {
                "optimizer": optimizer,
                "identity": identity(self.config, self.topology, self.ready.data),
            },
            {
                "sync": self.rule.state_dict(),
                "data": self.feed.state_dict(),
                "random": state.random_state(),
                "tally": asdict(tally),
            },
        )

    # --- numbers ---------------------------------------------------------------------------------

    def _counted(self) -> Tally:
        """The tally, brought up to date."""
        tally, before = self.tally, self._before
        tally.wan_bytes = before.wan_bytes + self.hierarchy.wan_stats().frame_bytes
        at_home = self.topology.clouds[self.topology.cloud]
        sent = enumerate(self.world.stats().sent_to)
        abroad = sum(n_bytes for rank, n_bytes in sent if rank not in at_home)
        tally.control_bytes = before.control_bytes + abroad
        tally.seconds = before.seconds + time.perf_counter() - self._started
        return tally

    def _summary(self) -> dict[str, Any]:
        return {
            "version": pyfedcomm.__version__,
            "config": shared(self.config),
            "model": model_module.description(self.model),
            "n_params": self.n_params,
            "optimizer": optim.chosen(self.config),
            "clouds": dict(zip(self.topology.names, self.topology.clouds, strict=True)),
            "cloud": self.topology.cloud_name,
            "rank": self.topology.rank,
            "device": str(self.ready.device),
            "data": self.ready.data.summary,
            "resumed_from_step": self.tally.step,
        }

    def _result(self, final: EvalResult) -> TrainResult:
        tally = self._counted()
        told = self.world.all_gather_object(
            [
                tally.tokens,
                tally.wan_bytes,
                tally.time,
                tally.seconds,
                tally.control_bytes,
                self.saver.held_s,
            ]
        )
        n_clouds = self.topology.n_clouds
        return TrainResult(
            eval_loss_start=tally.eval_loss_start,
            eval_loss=final.loss,
            eval_losses_by_cloud=final.by_cloud,
            steps=tally.step,
            tokens=sum(row[0] for row in told),
            seconds=told[0][3],
            n_params=self.n_params,
            rounds=self.rule.round,
            wan_bytes=sum(row[1] for row in told),
            control_bytes=sum(row[4] for row in told),
            wan_bytes_data_parallel=2 * (n_clouds - 1) * 4 * self.n_params * tally.step,
            time={p: sum(row[2][p] for row in told) / len(told) for p in PHASES},
            utilisation=pace.utilisation(self.topology, [row[2] for row in told]),
            checkpoint_s=sum(row[5] for row in told) / len(told),
            excluded=self.rule.excluded,
            bit_identical=parameters_equal(self.model, self.world),
        )
