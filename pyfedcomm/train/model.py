"""The model: any Hugging Face causal language model, with random weights or from a directory.

Never downloads anything. Parameters are fp32, whatever the directory holds: outer optimizers and
small updates need it, and bf16 is for autocast. It does not train, and does not compare clouds.
"""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyfedcomm.data.huggingface import LOCK, transformers
from pyfedcomm.data.tokenizers import Tokenizer
from pyfedcomm.errors import ConfigError
from pyfedcomm.train import state
from pyfedcomm.train.config import ModelConfig

# Keys of a configuration that say where it came from, not what the model computes.
_INCIDENTAL = frozenset({"_name_or_path", "transformers_version", "architectures", "dtype"})


def build(config: ModelConfig, tokenizer: Tokenizer, seq_len: int, seed: int) -> nn.Module:
    """The model on the CPU, in fp32 and in training mode.

    With ``config.type`` its weights follow from ``seed`` alone. The vocabulary is the
    tokenizer's, unless the options give a larger one.
    Raises ConfigError for a type, option or directory that does not work, and for a model that
    cannot hold the vocabulary or the sequence length.
    """
    model = open_directory(config.path) if config.path else _random(config, tokenizer, seed)
    inner: Any = model
    vocabulary = int(inner.config.get_text_config().vocab_size)
    if vocabulary < tokenizer.vocab_size:
        raise ConfigError(
            f"the model's vocab_size is {vocabulary}, but the tokenizer has "
            f"{tokenizer.vocab_size} tokens; leave model.vocab_size out, or choose another "
            "tokenizer"
        )
    longest = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < seq_len:
        raise ConfigError(
            f"data.seq_len is {seq_len}, but the model has {longest} positions; lower it, or raise "
            "the model's max_position_embeddings"
        )
    return model


def open_directory(path: str | Path) -> nn.Module:
    """A model that was saved with ``save_pretrained``, in fp32 and in training mode."""
    if not (Path(path) / "config.json").is_file():
        raise ConfigError(f"the model directory {path} has no config.json; give a local directory")
    with LOCK, _no_progress_bar():
        try:
            model: nn.Module = transformers().AutoModelForCausalLM.from_pretrained(
                str(path), local_files_only=True, dtype=torch.float32
            )
        except Exception as error:  # what a broken directory raises is not documented
            raise ConfigError(f"the model in {path} cannot be opened: {_brief(error)}") from error
    return model.train()


def freeze(
    model: nn.Module, tokenizer: Tokenizer, values: Mapping[str, torch.Tensor]
) -> Callable[[Path], None]:
    """Writes the model as it is now, whatever training does to it meanwhile, to a directory.

    values: the model's state dict, of whole tensors.
    What it writes opens with ``AutoModelForCausalLM.from_pretrained``; the tokenizer's files, if it
    has any, lie beside it. Costs a copy of the parameters in host memory.
    """
    copies: dict[str, torch.Tensor] = state.snapshot(dict(values), ties=True)

    def write(directory: Path) -> None:
        save(model, directory, copies)
        tokenizer.save(directory)

    return write


def save(model: nn.Module, directory: Path, values: dict[str, torch.Tensor] | None = None) -> None:
    """Writes weights and configuration; ``values`` by name instead of the model's own."""
    inner: Any = model
    with LOCK, _no_progress_bar():
        inner.save_pretrained(str(directory), state_dict=values)


def description(model: nn.Module) -> dict[str, Any]:
    """Option -> value of the effective configuration, as JSON values: equal in all clouds."""
    inner: Any = model
    options = json.loads(inner.config.to_json_string(use_diff=False))
    return {f"model.{key}": options[key] for key in sorted(options) if key not in _INCIDENTAL}


def _random(config: ModelConfig, tokenizer: Tokenizer, seed: int) -> nn.Module:
    # Ranks may be threads, and torch's generator and default dtype are the process's.
    with LOCK, _own_generator(seed):
        known = transformers().CONFIG_MAPPING
        if config.type not in known:
            close = difflib.get_close_matches(config.type, list(known.keys()), n=3)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise ConfigError(
                f"model.type is {config.type!r}, which transformers does not know{hint}"
            )
        _check_options(config.type, config.options, known[config.type])
        ends = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
        options = {"vocab_size": tokenizer.vocab_size, **ends, **config.options}
        try:
            model: nn.Module = transformers().AutoModelForCausalLM.from_config(
                known[config.type](**options), dtype=torch.float32
            )
        except Exception as error:  # options that do not go together, or no causal LM of this type
            raise ConfigError(f"[model] type {config.type!r}: {_brief(error)}") from error
    return model.train()


@contextlib.contextmanager
def _own_generator(seed: int) -> Iterator[None]:
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _check_options(model_type: str, options: Mapping[str, Any], config_class: Any) -> None:
    """Configuration classes accept any keyword, so that a typo would go unnoticed."""
    defaults = config_class()
    known = {*defaults.to_dict(), *defaults.attribute_map} - _INCIDENTAL - {"model_type"}
    for key in options:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean 'model.{close[0]}'?" if close else ""
            raise ConfigError(f"unknown key 'model.{key}' for type {model_type!r}{hint}")


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hides the one it draws on every rank. Its switch is global, hence inside ``LOCK``."""
    logging = transformers().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _brief(error: Exception) -> str:
    """The last line says what is wrong; what comes before it is about how it was found out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
