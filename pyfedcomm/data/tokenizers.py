"""Text to token ids and back: the built-in byte tokenizer, or a Hugging Face directory.

Never downloads anything. A tokenizer adds no special tokens of its own; ``corpus`` puts the
end-of-text token between documents.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfedcomm.data.huggingface import LOCK, transformers
from pyfedcomm.errors import ConfigError

Tokens = NDArray[np.unsignedinteger[Any]]


class Tokenizer(ABC):
    """What the corpus and the model need to know."""

    vocab_size: int
    """Ids are 0 to vocab_size - 1."""
    end_of_text: int
    fingerprint: str
    """Equal where two tokenizers encode alike: clouds must agree on it."""

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """The smallest type that holds every id."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Ids of each text, arrays of `dtype`."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the ids; bytes that are no UTF-8 become U+FFFD."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Adds the tokenizer's files, if it has any, to a saved model."""


END_OF_TEXT = "<|endoftext|>"


class ByteTokenizer(Tokenizer):
    """Ids 0-255 are the bytes of the UTF-8 text, 256 is end-of-text."""

    vocab_size = 257
    end_of_text = 256
    fingerprint = "bytes-257"

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        return [np.frombuffer(t.encode("utf-8"), np.uint8).astype(self.dtype) for t in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(t for t in tokens if t < 256).decode("utf-8", errors="replace")

    def save(self, directory: Path) -> None:
        """The same ids from ``AutoTokenizer``; but there the text ``<|endoftext|>`` is id 256."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        letters = {_byte_letter(byte): byte for byte in range(256)}
        inner = Tokenizer(models.BPE(vocab={**letters, END_OF_TEXT: 256}, merges=[]))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        with LOCK:
            fast = transformers().PreTrainedTokenizerFast
            fast(tokenizer_object=inner, eos_token=END_OF_TEXT).save_pretrained(str(directory))


class HuggingFaceTokenizer(Tokenizer):
    """A directory that ``transformers.AutoTokenizer`` opens."""

    def __init__(self, path: str) -> None:
        if not Path(path).is_dir():
            raise ConfigError(
                f"data.tokenizer is {path!r}: there is no such directory; give a local tokenizer "
                "directory, or 'bytes' for the built-in one"
            )
        try:
            with LOCK:
                auto = transformers().AutoTokenizer
                self._inner: Any = auto.from_pretrained(path, local_files_only=True)
        except Exception as error:  # what a broken directory raises is not documented
            raise ConfigError(f"data.tokenizer {path!r} cannot be opened: {error}") from error
        if self._inner.eos_token_id is None:
            raise ConfigError(
                f"data.tokenizer {path!r} has no end-of-text token (eos_token), "
                "which separates documents; add one to its tokenizer_config.json"
            )
        self.end_of_text = int(self._inner.eos_token_id)
        # The highest id decides, not the count: a vocabulary may have holes.
        self.vocab_size = max(self._inner.get_vocab().values()) + 1
        self.fingerprint = hashlib.sha256(self._description().encode()).hexdigest()

    def _description(self) -> str:
        backend = getattr(self._inner, "backend_tokenizer", None)
        if backend is not None:  # merges, normalizer and pre-tokenizer too
            return f"{self.end_of_text} {backend.to_str()}"
        return json.dumps([self.end_of_text, sorted(self._inner.get_vocab().items())])

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        # verbose=False: documents are longer than the model's window, and are meant to be.
        rows = self._inner(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [np.asarray(row, dtype=self.dtype) for row in rows]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._inner.decode(list(tokens)))

    def save(self, directory: Path) -> None:
        self._inner.save_pretrained(str(directory))


def _byte_letter(byte: int) -> str:
    """How byte-level tokenizers since GPT-2 spell a byte: as itself where that can be seen."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte if byte in visible else 256 + byte - sum(b < byte for b in visible))


def load(name: str) -> Tokenizer:
    """``"bytes"``, or a tokenizer directory. Raises ConfigError if it cannot be opened."""
    return ByteTokenizer() if name == "bytes" else HuggingFaceTokenizer(name)
