"""Builds what a run works on, and makes sure that all ranks agree before the first step.

Everything that can be wrong with a run is found here and becomes one error on every rank: a
missing file, a typo, clouds that disagree on the model, the vocabulary, the codec or the version.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pyfedcomm
from pyfedcomm import _core, buckets, codecs, sync
from pyfedcomm.errors import ConfigError, InvalidArgument
from pyfedcomm.group import Group
from pyfedcomm.topology import Topology
from pyfedcomm.train import config as config_module
from pyfedcomm.train import metrics, model, observe, optim
from pyfedcomm.train.agree import agree, agree_on
from pyfedcomm.train.checkpoint import Checkpoints, Resumed, clouds_of
from pyfedcomm.train.config import TrainConfig
from pyfedcomm.train.data import Data, load

CLOUDS, DATA = "the clouds", "the data"
"""Keys of what `identity` knows of them."""
_DIRECTORY_NAME = re.compile(r"[\w][\w.-]*")


@dataclass(frozen=True)
class Ready:
    """All that is there before the network inside the cloud is opened."""

    who: str
    """This rank in messages: ``rank 3 (cloud aws)``."""
    device: torch.device
    data: Data
    model: nn.Module
    checkpoints: Checkpoints
    resumed: Resumed | None


def prepare(config: TrainConfig, world: Group, topology: Topology) -> Ready:
    """Checks the configuration, loads data and model. Collective over all ranks.

    Raises on every rank, naming the ranks at fault: ConfigError, or CorruptFrame for a damaged
    checkpoint.
    """
    who = f"rank {topology.rank} (cloud {topology.cloud_name})"
    wait = config.run.wait_timeout_s
    device = agree(world, who, lambda: _check_alone(config, world, topology), timeout=wait)
    agree_on(
        world,
        who,
        {
            "the version of pyfedcomm": pyfedcomm.__version__,
            "the version of its frames": _core.build_info()["wire_version"],
            **config_module.shared(config),
            # Paths may differ, but not whether there is one.
            "whether to resume (checkpoint.resume)": bool(config.checkpoint.resume),
            "whether weights are given (model.path)": bool(config.model.path),
            f"the device of cloud {topology.cloud_name}": device.type,
            f"run.parallel of cloud {topology.cloud_name}": config.run.parallel,
        },
        remedy="use one version of pyfedcomm, and one configuration but for paths and devices",
    )
    _limit_threads(config, topology)
    _check_muon(config, world, topology, who, device)
    checkpoints = Checkpoints(Path(config.run.out), world, topology, who, timeout=wait)
    resumed = (
        checkpoints.open(config.checkpoint.resume, elastic=config.checkpoint.elastic)
        if config.checkpoint.resume
        else None
    )
    if resumed is None and config.checkpoint.enabled:
        checkpoints.check_unused()
    data = load(config, world, topology, who)
    built = agree(world, who, lambda: _build(config, data, resumed), timeout=wait)
    agree_on(world, who, model.description(built), remedy="train one model in all clouds")
    if resumed is None:
        _start_equal(config, world, who, built)
    if config.run.parallel != "fsdp":  # which moves it a layer at a time
        built = built.to(device)
    if config.run.compile:
        built.compile()  # in place: names of parameters, and what is saved, stay as they are
    return Ready(who, device, data, built, checkpoints, resumed)


def identity(config: TrainConfig, topology: Topology, data: Data) -> dict[str, Any]:
    """What a checkpoint and the run that goes on from it must have in common."""
    fixed = {
        key: value
        for key, value in config_module.shared(config).items()
        if key.startswith(("sync.", "data.")) or key == "run.seed"
    }
    return {
        **fixed,
        "train.optimizer": optim.chosen(config),
        "the model": [config.model.type, config.model.path, config.model.options],
        CLOUDS: clouds_of(topology),
        "the vocabulary": data.tokenizer.fingerprint,
        DATA: data.fingerprint,
    }


def _check_alone(config: TrainConfig, world: Group, topology: Topology) -> torch.device:
    """What one rank can find wrong with its configuration, before anything is loaded."""
    if not _DIRECTORY_NAME.fullmatch(topology.cloud_name):
        raise ConfigError(
            f"the cloud name {topology.cloud_name!r} cannot name a directory; use letters, digits, "
            "dots, dashes and underscores"
        )
    sync.check(config.sync)
    observe.check(config)
    try:
        codecs.get(config.sync.codec)
    except InvalidArgument as error:
        raise ConfigError(f"sync.codec: {error}") from error
    try:
        world.owned(0, config.sync.algorithm, config.sync.codec)
    except InvalidArgument as error:
        raise ConfigError(f"sync.algorithm: {error}") from error
    config.data.of(topology.cloud_name, topology.names)
    config.data.shares_of(topology.names)
    if config.log.tensorboard and topology.local_rank == 0:
        metrics.require_tensorboard()
    return _device(config.run.device, topology)


def _device(wanted: str, topology: Topology) -> torch.device:
    """This rank's own GPU; ``auto`` uses GPUs only if each rank of the cloud here can have one."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("run.device is 'cuda', but torch finds no GPU here; set it to 'cpu'")
    host = topology.hosts[topology.rank]
    here = [rank for rank, name in enumerate(topology.hosts) if name == host]
    n_gpus = torch.cuda.device_count()
    gpu_of = {rank: i % n_gpus for i, rank in enumerate(here)}
    mates = [gpu_of[rank] for rank in topology.clouds[topology.cloud] if rank in gpu_of]
    if len(set(mates)) < len(mates):
        # NCCL wants a GPU for each rank of its world; ranks of different clouds may share one.
        if wanted == "auto":
            return torch.device("cpu")
        raise ConfigError(
            f"run.device is 'cuda', but {len(mates)} ranks of this cloud share the {n_gpus} GPUs "
            f"of {host}; start as many ranks as there are GPUs, or set run.device = 'cpu'"
        )
    device = torch.device("cuda", gpu_of[topology.rank])
    torch.cuda.set_device(device)
    return device


def _limit_threads(config: TrainConfig, topology: Topology) -> None:
    """Ranks of one host share its cores: torch would start a thread per core in each of them."""
    here = topology.hosts.count(topology.hosts[topology.rank])
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(config.run.threads or max(1, cores // here))


def _check_muon(
    config: TrainConfig, world: Group, topology: Topology, who: str, device: torch.device
) -> None:
    """With rule ``gradient`` clouds must compute the same steps from the same gradients.

    AdamW's steps differ in last bits at most, and mostly not at all. Products of 16 bits differ in
    the third digit: clouds would drift apart with nothing to bring them back.
    """
    if device.type == "cuda":
        how = torch.cuda.get_device_name(device)
    else:
        how = f"{torch.backends.cpu.get_cpu_capability()} and {torch.get_num_threads()} threads"
    how += f", {config.run.parallel} over {topology.local_size} ranks"
    matters = optim.chosen(config) == "muon" and config.sync.rule == "gradient"
    agree_on(
        world,
        who,
        {"what multiplies Muon's matrices": how} if matters else {},
        remedy="make it the same (run.threads, run.parallel), use train.optimizer = 'adamw', or a "
        "sync.rule that exchanges parameters",
    )


def _build(config: TrainConfig, data: Data, resumed: Resumed | None) -> nn.Module:
    if resumed is not None and resumed.own is not None:
        return model.open_directory(resumed.own.model)
    return model.build(config.model, data.tokenizer, config.data.seq_len, config.run.seed)


def _start_equal(config: TrainConfig, world: Group, who: str, built: nn.Module) -> None:
    """All ranks start from the same parameters.

    A seed gives the same weights on equal machines only: CPUs differ in the last bits of a normal
    distribution. Where they do, rank 0's weights are sent to all, once. Weights from a directory
    are somebody's choice, and must be equal.
    """
    mine = buckets.fingerprint(built.named_parameters())
    if config.model.path:
        remedy = "give all clouds the same model directory"
        agree_on(world, who, {"the weights of the model": mine}, remedy=remedy)
    elif len(set(world.all_gather_object(mine))) > 1:
        with torch.no_grad():
            for parameter in built.parameters():
                world.broadcast(parameter.data)
