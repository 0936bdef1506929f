"""``pyfedcomm export``: a checkpoint's model as a plain Hugging Face directory.

Only what was verified against the manifest is read, and the directory is there completely or not at
all. Neither optimizer nor residuals are exported: who wants to train on resumes the checkpoint.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyfedcomm.errors import ConfigError, NonFinite
from pyfedcomm.train import checkpoint, model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_MODEL = "model/"
_MADE_ANEW = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class Exported:
    """What was exported; ``str()`` of it is for people."""

    checkpoint: Path
    out: Path
    step: int
    n_params: int
    dtype: str
    tokenizer: bool
    """Whether ``AutoTokenizer`` opens the directory, too."""

    def __str__(self) -> str:
        tokenizer = "with its tokenizer" if self.tokenizer else "without a tokenizer"
        return (
            f"step {self.step} of {self.checkpoint.parent.name} exported to {self.out}: "
            f"{self.n_params:,} parameters, {self.dtype}, {tokenizer}"
        )


def export(
    source: Path,
    out: Path,
    *,
    dtype: str = "fp32",
    step: int | None = None,
    cloud: str | None = None,
) -> Exported:
    """Makes ``out``, which ``AutoModelForCausalLM.from_pretrained`` opens.

    source: a run's directory, a cloud's directory of checkpoints, or one checkpoint.
    dtype: one of `DTYPES`, rounded to nearest.
    step: default the newest, of all clouds in question. cloud: default any, if their models are
        equal.
    Raises ConfigError where there is no such checkpoint, clouds differ or ``out`` is taken,
    CorruptFrame for a damaged checkpoint, NonFinite where a parameter does not fit ``dtype``.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already; choose another directory, or remove it")
    chosen = _find(source, step, cloud)
    manifest = checkpoint.read_manifest(chosen)
    files = checkpoint.verify(chosen, manifest, only=_MODEL + ".*")
    opened: Any = model.open_directory(chosen / "model")
    opened = _converted(opened, DTYPES[dtype]).eval()
    try:
        tokenizer = _write(opened, chosen, files, out)
    except OSError as error:
        raise ConfigError(f"{out} could not be written: {error.strerror or error}") from error
    n_params = sum(p.numel() for p in opened.parameters())
    return Exported(chosen, out, manifest["step"], n_params, dtype, tokenizer)


def _find(source: Path, step: int | None, cloud: str | None) -> Path:
    """The directory of the checkpoint."""
    if (source / checkpoint.MANIFEST).is_file():
        if step is not None or cloud is not None:
            raise ConfigError(f"{source} is one checkpoint: leave out --step and --cloud")
        return source
    if not source.is_dir():
        raise ConfigError(f"there is no run and no checkpoint {source}")
    root = source / "checkpoints"
    homes = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else [source]
    homes = [home for home in homes if checkpoint.steps_in(home)]
    if cloud is not None and root.is_dir():
        names = ", ".join(home.name for home in homes) or "none"
        homes = [home for home in homes if home.name == cloud]
        if not homes:
            raise ConfigError(f"{root} has no checkpoints of cloud {cloud!r}; it has {names}")
    common = set.intersection(*(set(checkpoint.steps_in(h)) for h in homes)) if homes else set()
    if not common:
        raise ConfigError(f"{source} holds no checkpoint{' that all clouds have' * bool(homes)}")
    if step is not None and step not in common:
        listed = ", ".join(map(str, sorted(common)))
        raise ConfigError(f"{source} holds no checkpoint of step {step}; it holds {listed}")
    found = [checkpoint.path_of(home, max(common) if step is None else step) for home in homes]
    models = [_model_digests(path) for path in found]
    if any(other != models[0] for other in models):
        raise ConfigError(
            f"the clouds' models differ at step {max(common) if step is None else step} (isolated "
            "clouds, or the middle of a round): choose one with --cloud "
            + " or ".join(path.parent.name for path in found)
        )
    return found[0]


def _model_digests(path: Path) -> dict[str, Any]:
    files: dict[str, Any] = checkpoint.read_manifest(path)["files"]
    weights = re.compile(_MODEL + r".*\.safetensors")
    return {name: entry for name, entry in files.items() if weights.fullmatch(name)}


def _converted(opened: Any, dtype: torch.dtype) -> Any:
    for name, parameter in opened.named_parameters():
        finite = torch.isfinite(parameter)
        if not bool(torch.equal(finite, torch.isfinite(parameter.to(dtype)))):
            largest = parameter.detach().abs().max().item()
            raise NonFinite(
                f"parameter {name!r} has values up to {largest:g}, which {dtype} cannot hold; "
                "use --dtype bf16 or fp32"
            )
    return opened.to(dtype)


def _write(opened: Any, source: Path, files: list[str], out: Path) -> bool:
    """Beside ``out`` first, then renamed; returns whether there is a tokenizer."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        made = Path(folder) / "model"
        model.save(opened, made)
        for name in files:
            target = made / name.removeprefix(_MODEL)
            # What the model does not bring itself is the tokenizer's.
            if target.name not in _MADE_ANEW and ".safetensors" not in target.name:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, target)
        tokenizer = (made / "tokenizer_config.json").is_file()
        made.rename(out)  # over an empty directory, too
    return tokenizer
