"""Documents become token files, one a cloud, with a part kept out of training.

The held-out part is chosen by document, by the hash of its text: the same document falls on the
same side on every machine and in every run, and a copy of it under another name does too. It
does not choose a document's cloud (see ``partition``), shuffle or shard (see ``stream``).

Never more than a few hundred documents are in memory: tokens go to the disk as they come, and
from there to their places when it is known which documents are held out.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyfedcomm.data import tokenfile
from pyfedcomm.data.partition import Entry
from pyfedcomm.data.sources import Document
from pyfedcomm.data.tokenizers import Tokenizer, Tokens
from pyfedcomm.errors import ConfigError

_DOCUMENTS_AT_ONCE = 256  # fast tokenizers work through a list in parallel


@dataclass(frozen=True)
class Target:
    """Where the tokens of one cloud go."""

    file: Path
    key: str
    """See `tokenfile`."""
    who: str
    """In messages: ``cloud aws``."""


def entries(documents: Iterable[Document]) -> Iterator[Entry]:
    """What a partition needs to know of each document that has text, in order."""
    for document in documents:
        if document.text:
            data = document.text.encode("utf-8")
            yield Entry(document.source, len(data), hashlib.sha256(data).digest())


def build(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    heldout: float,
    targets: Mapping[int, Target],
    *,
    clouds: Iterable[int] | None = None,
    deal: str = "",
) -> None:
    """Tokenizes the documents of some clouds, splits them and writes each cloud's file.

    heldout: share of the documents to keep out of training, between 0 and 1. At least one is kept
        out; of a single document, its last part.
    targets: by cloud; documents of others are skipped.
    clouds: of each document that has text; default: all belong to the only target.
    deal: see `tokenfile.Corpus`.
    Raises ConfigError if a cloud has no text, or if a file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        parts = {
            cloud: stack.enter_context(_Part(target, tokenizer))
            for cloud, target in targets.items()
        }
        batch: list[tuple[_Part, str]] = []

        def flush() -> None:
            rows = tokenizer.encode([text for _, text in batch])
            for (part, text), row in zip(batch, rows, strict=True):
                part.add(text, row)
            batch.clear()

        with_text = (document for document in documents if document.text)
        if clouds is None:
            (only,) = targets
            dealt: Iterable[tuple[int, Document]] = ((only, document) for document in with_text)
        else:
            dealt = _zip(clouds, with_text)
        for cloud, document in dealt:
            if cloud in parts:
                batch.append((parts[cloud], document.text))
            if len(batch) == _DOCUMENTS_AT_ONCE:
                flush()
        flush()
        for part in parts.values():
            part.write(heldout, deal)


def _zip(clouds: Iterable[int], documents: Iterable[Document]) -> Iterator[tuple[int, Document]]:
    for cloud, document in itertools.zip_longest(clouds, documents):
        if cloud is None or document is None:
            raise ConfigError("the files of data.path changed while they were read; start again")
        yield cloud, document


class _Part:
    """What one cloud gets, while it comes in: tokens in a file that has no name."""

    def __init__(self, target: Target, tokenizer: Tokenizer) -> None:
        self._target, self._dtype = target, np.dtype(tokenizer.dtype)
        self._end = np.array([tokenizer.end_of_text], self._dtype)
        self._hashes: list[float] = []
        self._ends = [0]
        self._n_bytes = 0

    def __enter__(self) -> _Part:
        directory = self._target.file.parent
        with tokenfile.naming_disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._raw = tempfile.TemporaryFile(dir=directory)
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def add(self, text: str, row: Tokens) -> None:
        data = text.encode("utf-8")
        self._hashes.append(_uniform(data))
        self._n_bytes += len(data)
        self._ends.append(self._ends[-1] + len(row) + 1)
        with tokenfile.naming_disk_errors(self._target.file.parent):
            self._raw.write(np.concatenate([row, self._end]).tobytes())

    def write(self, heldout: float, deal: str) -> None:
        n = len(self._hashes)
        if not n:
            raise ConfigError(
                f"the data of {self._target.who} holds no text: every document is empty; give it "
                "files with text (data.path, [data.clouds.NAME])"
            )
        with tokenfile.naming_disk_errors(self._target.file.parent):
            self._raw.flush()
            raw = np.memmap(self._raw, self._dtype, "r")
            cuts = list(zip(self._ends, self._ends[1:], strict=False))
            if n == 1:
                middle = int(self._ends[1] * (1 - heldout))
                train, held = [(0, middle)], [(middle, self._ends[1])]
            else:
                out = held_out(self._hashes, heldout)
                train = [cut for cut, is_out in zip(cuts, out, strict=True) if not is_out]
                held = [cut for cut, is_out in zip(cuts, out, strict=True) if is_out]
            tokenfile.write(
                self._target.file,
                self._target.key,
                self._dtype.itemsize,
                (raw[begin:end] for begin, end in train),
                (raw[begin:end] for begin, end in held),
                {"n_documents": n, "n_bytes": self._n_bytes, "deal": deal},
            )


def held_out(hashes: list[float], share: float) -> list[bool]:
    """Which of two or more documents are held out; neither all nor none."""
    out = [each < share for each in hashes]
    if all(out):  # few documents, and a large share
        out[hashes.index(max(hashes))] = False
    if not any(out):
        out[hashes.index(min(hashes))] = True
    return out


def _uniform(data: bytes) -> float:
    """A number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2.0**64
