"""A training run's configuration: TOML file + ``--set`` overrides -> checked dataclasses.

It checks what can be known from the file alone: keys, types, ranges. Whether files exist, whether
a model accepts its options, and whether the clouds agree is found out in ``setup``.

A key made with ``local`` may differ between clouds (paths, devices, batch sizes); every other
key must be equal everywhere, because it decides what is exchanged and when.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pyfedcomm.errors import ConfigError
from pyfedcomm.sync import SyncConfig
from pyfedcomm.train.inter import InterConfig, local
from pyfedcomm.train.parallel import PARALLEL
from pyfedcomm.train.texts import DataConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

C = TypeVar("C")

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("fp32", "bf16")
OPTIMIZERS = ("auto", "adamw", "muon")


@dataclass(frozen=True)
class RunConfig:
    """``[run]``: where and how the processes work."""

    out: str = local("runs/default")
    """Directory of metrics and checkpoints; all ranks of a cloud must see the same one."""
    seed: int = 0
    """Initial weights and the order of the data follow from it."""
    device: str = local("auto")
    """``auto`` (CUDA if there is any), ``cpu`` or ``cuda``."""
    dtype: str = local("fp32")
    """``fp32``, or ``bf16`` for autocast; parameters are fp32 in both."""
    parallel: str = local("ddp")
    """How the ranks of a cloud work on one model: ``ddp``, each holds it; ``fsdp``, each holds
    some rows of every parameter, and of the optimizer's state (FSDP2)."""
    compile: bool = local(False)
    """Let ``torch.compile`` make faster kernels of the model, which takes a minute at the start;
    not with ``fsdp``."""
    threads: int = local(0)
    """CPU threads of a rank; 0: the host's cores shared among its ranks."""
    timeout_s: float = local(120.0)
    """Seconds without progress after which an exchange fails. It must exceed the time by which
    one cloud may be slower than another between two exchanges."""
    wait_timeout_s: float = local(1800.0)
    """The same while others load data, evaluate, or write a checkpoint."""


@dataclass(frozen=True)
class ModelConfig:
    """``[model]``: either ``type`` and that type's own options, or ``path``."""

    type: str = local("")
    """A transformers model type (``gpt2``, ``llama``, ...), with random weights."""
    path: str = local("")
    """Or a local directory that ``from_pretrained`` opens, with its weights."""
    options: dict[str, Any] = field(default_factory=dict, metadata={"local": True})
    """Every other key of the table: options of the model's configuration class. Clouds are
    compared by the configuration that results."""


@dataclass(frozen=True)
class TrainSteps:
    """``[train]``: the local optimizer (linear warm-up, cosine decay)."""

    steps: int = 1000
    micro_batch: int = local(8)
    """Sequences of one forward pass of one rank."""
    accumulation: int = local(1)
    """Forward passes of an optimizer step."""
    optimizer: str = "auto"
    """``adamw``; ``muon``, Muon for the matrices between embedding and head, AdamW for the rest,
    at one learning rate; ``auto``: muon for random weights, adamw for those of a directory."""
    lr: float = 1e-3
    min_lr: float = 1e-4
    """Where the cosine ends."""
    warmup_steps: int = 20
    weight_decay: float = 0.1
    """For matrices; vectors (biases, norms) have none."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    """Of AdamW."""
    muon_momentum: float = 0.95
    clip: float = 1.0
    """Largest norm of the gradient; 0: any."""


@dataclass(frozen=True)
class EvalConfig:
    """``[eval]``: held-out loss."""

    every: int = 0
    """Steps between evaluations; 0: only before the first and after the last step."""
    sequences: int = 64
    """Held-out sequences of each cloud, spread evenly; 0: all."""
    across: bool = False
    """Where the clouds' models differ, evaluate each on every cloud's held-out text, not only on
    its own cloud's. It moves models between clouds, never text."""


@dataclass(frozen=True)
class CheckpointConfig:
    """``[checkpoint]``."""

    enabled: bool = True
    """``false`` writes none, not even of the final model."""
    every: int = 0
    """Steps between checkpoints; 0: only after the last step."""
    background: bool = True
    """Write them while training goes on, from a copy in host memory; ``false`` waits for the disk,
    and needs the copy only so long."""
    keep: int = local(2)
    """How many to keep."""
    elastic: bool = False
    """Resume with other clouds, or other ranks in a cloud, than those that wrote the checkpoint."""
    resume: str = local("")
    """``auto``: the newest that all clouds have, if any; or a path, see ``--resume``."""


@dataclass(frozen=True)
class LogConfig:
    """``[log]``."""

    every: int = 10
    """Steps between two records of ``metrics.jsonl``."""
    tensorboard: bool = local(True)
    progress: bool = local(True)
    """A progress line (plain lines where the output is no terminal)."""


@dataclass(frozen=True)
class CloudsConfig:
    """``[clouds]``."""

    hosts: dict[str, Any] = field(default_factory=dict)
    """``[clouds.hosts]``: cloud name -> list of host names."""


@dataclass(frozen=True)
class TrainConfig:
    """A whole run; see ``examples/run.toml`` for every key."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainSteps = field(default_factory=TrainSteps)
    sync: SyncConfig = field(default_factory=SyncConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    clouds: CloudsConfig = field(default_factory=CloudsConfig)
    inter: InterConfig = field(default_factory=InterConfig)


def load(path: str | Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """Reads and checks a run's TOML file.

    overrides: ``"table.key=value"``; the value is read as TOML, and as a string where it is none.
    Raises ConfigError naming the file, the key and what is allowed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply(table, override)
    return from_table(table, where=str(path))


def from_table(table: Mapping[str, Any], *, where: str = "config") -> TrainConfig:
    """A checked configuration from nested dicts, as TOML gives them."""
    config = _build(TrainConfig, _with_model_options(table), (), where)
    clouds = {name: _cloud_data(name, own, where) for name, own in config.data.clouds.items()}
    config = replace(config, data=replace(config.data, clouds=clouds))
    _check_ranges(config, where)
    return config


def shared(config: TrainConfig) -> dict[str, Any]:
    """Dotted key -> value of everything that must be equal in all clouds."""
    return {
        f"{table.name}.{item.name}": getattr(getattr(config, table.name), item.name)
        for table in fields(config)
        for item in fields(getattr(config, table.name))
        if not item.metadata.get("local")
    }


def _apply(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: write it as table.key=value, as in train.lr=3e-4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a table")
    table[parts[-1]] = value


def _with_model_options(table: Mapping[str, Any]) -> dict[str, Any]:
    """Moves the keys of ``[model]`` that are the model's own into ``options``."""
    result = dict(table)
    model = result.get("model")
    if isinstance(model, dict):
        own = {k: v for k, v in model.items() if k in ("type", "path")}
        options = {k: v for k, v in model.items() if k not in own}
        result["model"] = {**own, "options": options}
    return result


def _build(cls: type[C], table: Any, path: tuple[str, ...], where: str) -> C:
    """An instance of dataclass ``cls``; every key must be one of its fields, of its type."""
    name = ".".join(path)
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: {name} must be a table, [{name}]")
    hints = get_type_hints(cls)
    known = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        full = (*path, key)
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key '{'.'.join(full)}'{_suggest(key, known, path)}"
            )
        hint = hints[key]
        if is_dataclass(hint):
            values[key] = _build(hint, value, full, where)  # type: ignore[arg-type]
        else:
            values[key] = _typed(value, hint, ".".join(full), where)
    return cls(**values)


def _suggest(key: str, known: Sequence[str], path: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"; did you mean '{'.'.join((*path, close[0]))}'?"
    what = f"[{'.'.join(path)}]" if path else "the file"
    return f"; {what} may hold {', '.join(known)}"


def _typed(value: Any, hint: Any, name: str, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_origin(hint) is tuple:  # only tuple[str, ...] occurs: one string, or a list of them
        values = [value] if isinstance(value, str) else value
        if isinstance(values, list) and all(isinstance(v, get_args(hint)[0]) for v in values):
            return tuple(values)
        raise ConfigError(f"{where}: {name} is {value!r}; it must be a string or a list of strings")
    kind = get_origin(hint) or hint
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: {name} is {value!r}; it must be {_KIND_NAMES[kind]}")
    return value


_KIND_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    dict: "a table",
}


def _cloud_data(name: str, own: Any, where: str) -> dict[str, Any]:
    """The checked keys of ``[data.clouds.NAME]``."""
    allowed = [f.name for f in fields(DataConfig) if f.metadata.get("local") and f.name != "clouds"]
    path = ("data", "clouds", name)
    if not isinstance(own, dict):
        raise ConfigError(f"{where}: {'.'.join(path)} must be a table, [{'.'.join(path)}]")
    hints = get_type_hints(DataConfig)
    checked = {}
    for key, value in own.items():
        full = ".".join((*path, key))
        if key not in allowed:
            raise ConfigError(f"{where}: unknown key '{full}'{_suggest(key, allowed, path)}")
        checked[key] = _typed(value, hints[key], full, where)
    return checked


def _check_ranges(config: TrainConfig, where: str) -> None:
    def check(name: str, good: bool, needed: str) -> None:
        table, _, key = name.partition(".")
        value = getattr(getattr(config, table), key)
        if not good:
            raise ConfigError(f"{where}: {name} is {value!r}; it must be {needed}")

    run, train = config.run, config.train
    check("run.device", run.device in DEVICES, " or ".join(DEVICES))
    try:
        config.inter.check()
        config.data.check()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    check("run.dtype", run.dtype in DTYPES, " or ".join(DTYPES))
    check("run.compile", not (run.compile and run.parallel == "fsdp"), "false with fsdp")
    check("run.parallel", run.parallel in PARALLEL, " or ".join(PARALLEL))
    check("run.seed", run.seed >= 0, "0 or more")
    check("run.threads", run.threads >= 0, "0 (automatic) or more")
    check("run.timeout_s", 0 < run.timeout_s < float("inf"), "a positive number of seconds")
    check(
        "run.wait_timeout_s", 0 < run.wait_timeout_s < float("inf"), "a positive number of seconds"
    )
    for name in ("train.steps", "train.micro_batch", "train.accumulation", "checkpoint.keep"):
        check(name, _value(config, name) >= 1, "at least 1")
    check("log.every", config.log.every >= 1, "at least 1")
    for name in ("train.warmup_steps", "eval.every", "eval.sequences", "checkpoint.every"):
        check(name, _value(config, name) >= 0, "0 or more")
    for name in ("train.min_lr", "train.weight_decay", "train.clip", "train.eps"):
        check(name, 0 <= _value(config, name) < float("inf"), "0 or more")
    if config.sync.adaptive and train.steps % config.sync.local_steps:
        raise ConfigError(
            f"{where}: train.steps is {train.steps}; with sync.adaptive clouds are together only "
            f"where a round ends: make it a multiple of sync.local_steps, {config.sync.local_steps}"
        )
    check("train.lr", 0 < train.lr < float("inf"), "more than 0")
    check("train.min_lr", train.min_lr <= train.lr, f"at most train.lr, {train.lr}")
    check("train.optimizer", train.optimizer in OPTIMIZERS, " or ".join(OPTIMIZERS))
    for name in ("train.beta1", "train.beta2", "train.muon_momentum"):
        check(name, 0 <= _value(config, name) < 1, "at least 0 and below 1")
    if bool(config.model.type) == bool(config.model.path):
        raise ConfigError(
            f'{where}: [model] needs either type, as in type = "gpt2", or path, a local directory'
        )
    if config.model.path and config.model.options:
        raise ConfigError(
            f"{where}: unknown key 'model.{next(iter(config.model.options))}'; "
            "with model.path the configuration comes from that directory"
        )
    for cloud, hosts in config.clouds.hosts.items():
        if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
            raise ConfigError(
                f"{where}: clouds.hosts.{cloud} is {hosts!r}; it must be a list of host names"
            )


def _value(config: TrainConfig, name: str) -> Any:
    table, _, key = name.partition(".")
    return getattr(getattr(config, table), key)
