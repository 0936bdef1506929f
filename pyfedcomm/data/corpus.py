"""All tokens of one cloud, in memory, with a part kept out of training.

The held-out part is chosen by document, by the hash of its text: the same document falls on the
same side on every machine and in every run, and a copy of it under another name does too. It
does not shuffle or shard: see ``stream``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pyfedcomm.data.sources import Document
from pyfedcomm.data.tokenizers import Tokenizer, Tokens
from pyfedcomm.errors import ConfigError

_DOCUMENTS_AT_ONCE = 256  # fast tokenizers work through a list in parallel


@dataclass(frozen=True)
class Corpus:
    """Documents, each followed by end-of-text, one after the other."""

    train: Tokens
    heldout: Tokens
    n_documents: int
    n_bytes: int
    """UTF-8 bytes of all documents."""
    fingerprint: str
    """Hash of all tokens: equal where two ranks, or two runs, hold the same data."""


def build(documents: Iterable[Document], tokenizer: Tokenizer, heldout: float) -> Corpus:
    """Tokenizes the documents and splits them.

    heldout: share of the documents to keep out of training, between 0 and 1. At least one is kept
        out; of a single document, its last part.
    Raises ConfigError if there is no text.
    """
    hashes: list[float] = []
    tokens: list[Tokens] = []
    n_bytes = 0
    end = np.array([tokenizer.end_of_text], tokenizer.dtype)
    batch: list[str] = []

    def flush() -> None:
        tokens.extend(np.concatenate([row, end]) for row in tokenizer.encode(batch))
        batch.clear()

    for document in documents:
        if not document.text:
            continue
        data = document.text.encode("utf-8")
        hashes.append(_uniform(data))
        n_bytes += len(data)
        batch.append(document.text)
        if len(batch) == _DOCUMENTS_AT_ONCE:
            flush()
    flush()
    if not tokens:
        raise ConfigError("the data of this cloud holds no text: every document is empty")
    if len(tokens) == 1:
        cut = int(len(tokens[0]) * (1 - heldout))
        train, held = tokens[0][:cut], tokens[0][cut:]
    else:
        keep_out = [h < heldout for h in hashes]
        if all(keep_out):  # few documents, and a large share
            keep_out[hashes.index(max(hashes))] = False
        if not any(keep_out):
            keep_out[hashes.index(min(hashes))] = True
        train = np.concatenate([t for t, out in zip(tokens, keep_out, strict=True) if not out])
        held = np.concatenate([t for t, out in zip(tokens, keep_out, strict=True) if out])
    digest = hashlib.sha256(train.tobytes())
    digest.update(b"heldout" + held.tobytes())
    return Corpus(train, held, len(tokens), n_bytes, digest.hexdigest())


def _uniform(data: bytes) -> float:
    """A number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2.0**64
