"""A file of tokens that all ranks of a host map into memory: one copy, in the page cache.

    16 bytes  magic, which has the version of the format in it
    JSON      padded with blanks to 4096 bytes: key, counts, SHA-256 of the tokens
    tokens    little-endian, 2 or 4 bytes each: those to train on, then those held out

Written beside its place and renamed, so that it is whole or not there. What it was made from is
told by its key, which the caller chooses: a file of another key, of another version or of another
length than it says is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pyfedcomm.data.tokenizers import Tokens
from pyfedcomm.errors import ConfigError

_MAGIC = b"fedcomm tokens 1"
_HEADER = 4096


@dataclass(frozen=True)
class Corpus:
    """Documents, each followed by end-of-text, one after the other; mapped, not read."""

    train: Tokens
    heldout: Tokens
    n_documents: int
    n_bytes: int
    """UTF-8 bytes of all documents."""
    fingerprint: str
    """SHA-256 of all tokens: equal where two ranks, or two runs, hold the same data."""
    deal: str
    """`partition.digest` of the deal that it came from; empty where documents were not dealt."""

    def is_intact(self) -> bool:
        """Reads all of it: whether the tokens are those that were written."""
        return _digest(self.train, self.heldout) == self.fingerprint


def open_corpus(file: Path, key: str) -> Corpus | None:
    """What `write` wrote for this key; None if there is no such file."""
    try:
        with file.open("rb") as source:
            magic, text = source.read(len(_MAGIC)), source.read(_HEADER - len(_MAGIC))
        header = json.loads(text) if magic == _MAGIC else {}
        if header.get("key") != key:
            return None
        n_train, n_heldout = int(header["n_train"]), int(header["n_heldout"])
        dtype = np.dtype({2: "<u2", 4: "<u4"}[header["token_bytes"]])
        if file.stat().st_size != _HEADER + (n_train + n_heldout) * dtype.itemsize:
            return None
        tokens = np.memmap(file, dtype, "r", offset=_HEADER)
        return Corpus(
            tokens[:n_train],
            tokens[n_train:],
            n_documents=int(header["n_documents"]),
            n_bytes=int(header["n_bytes"]),
            fingerprint=str(header["fingerprint"]),
            deal=str(header["deal"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # whoever needs it makes it again, or says that it cannot be read


def write(
    file: Path,
    key: str,
    token_bytes: int,
    train: Iterable[Tokens],
    heldout: Iterable[Tokens],
    facts: dict[str, Any],
) -> None:
    """Writes what `open_corpus` opens, a piece at a time. Raises OSError.

    token_bytes: 2 or 4. facts: ``n_documents``, ``n_bytes`` and ``deal``.
    """
    dtype = np.dtype(f"<u{token_bytes}")
    digest, counts = hashlib.sha256(), []
    with replacing(file) as sink:
        sink.write(bytes(_HEADER))
        for pieces, label in ((train, b""), (heldout, b"heldout")):
            digest.update(label)
            counts.append(0)
            for piece in pieces:
                data = piece.astype(dtype, copy=False).tobytes()
                digest.update(data)
                sink.write(data)
                counts[-1] += len(piece)
        header = {
            "key": key,
            "token_bytes": token_bytes,
            "n_train": counts[0],
            "n_heldout": counts[1],
            "fingerprint": digest.hexdigest(),
            **facts,
        }
        sink.seek(0)
        sink.write((_MAGIC + json.dumps(header).encode()).ljust(_HEADER))


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[BinaryIO]:
    """A new file that takes the name when all went well, and is removed when not."""
    # Ranks may be threads, and hosts may share the directory: no two write to one name.
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as sink:
            yield sink
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming_disk_errors(directory: Path) -> Iterator[None]:
    """An OSError becomes a ConfigError with the remedy."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"the tokens could not be kept in {directory}: {error.strerror or error}; make room, "
            "or name another directory with data.cache"
        ) from error


def _digest(train: Tokens, heldout: Tokens) -> str:
    digest = hashlib.sha256()
    for tokens, label in ((train, b""), (heldout, b"heldout")):
        digest.update(label)
        for begin in range(0, len(tokens), 1 << 20):
            digest.update(tokens[begin : begin + (1 << 20)].tobytes())
    return digest.hexdigest()
