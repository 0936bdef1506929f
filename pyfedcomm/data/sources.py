"""Reads documents from plain text, JSONL and Parquet files.

A new format is one reader and one line in ``READERS``. Readers are strict: a file that is not
what it claims to be is an error that names the file and the place, never skipped, because a
silently shrunken corpus is found weeks later or not at all.

It does not tokenize, split or shuffle; order is by file name, then by place in the file.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyfedcomm.data import stdlib
from pyfedcomm.errors import ConfigError


@dataclass(frozen=True)
class Document:
    """One piece of text; sequences may span documents, but the held-out split does not cut them."""

    name: str
    """File, or file and row."""
    text: str
    source: str = ""
    """What belongs together: a package; a directory or a file at the top of what a path names."""


def documents(source: str, paths: Sequence[str], *, text_field: str = "text") -> Iterator[Document]:
    """All documents there are.

    source: ``stdlib``, a name in `READERS`, or ``auto``: by each file's suffix, and ``stdlib``
        where there are no paths.
    paths: files, directories (all files below, but for hidden ones) or globs (``**`` allowed).
    text_field: the JSONL field or Parquet column that holds the text.
    Raises ConfigError for an unknown source, a path without files, a file that cannot be read.
    """
    if is_stdlib(source, paths):
        for module, name, text in stdlib.documents():
            yield Document(name, text, module)
        return
    for file, group in find(paths).items():
        reader = READERS[_by_suffix(file) if source == "auto" else source]
        try:
            for name, text in reader(file, text_field):
                yield Document(name, text, group)
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror or error}") from error


def is_stdlib(source: str, paths: Sequence[str]) -> bool:
    """Whether the documents are the standard library's. Raises ConfigError for what cannot be."""
    if source == "stdlib" or (source == "auto" and not paths):
        if paths:
            raise ConfigError(
                f"data.source is 'stdlib', which has no paths; got {', '.join(paths)}"
            )
        return True
    if source != "auto" and source not in READERS:
        known = ", ".join(["auto", "stdlib", *READERS])
        raise ConfigError(f"data.source is {source!r}; it must be one of {known}")
    if not paths:
        raise ConfigError(f"data.source is {source!r}, but data.path names no file")
    return False


def signature(source: str, paths: Sequence[str], text_field: str) -> str:
    """Changes when a file is added, removed, renamed or written to; reads none of them."""
    files = stdlib.files() if is_stdlib(source, paths) else list(find(paths))
    total = hashlib.sha256(f"{source} {text_field}".encode())
    for file in files:
        try:
            found = file.stat()
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror or error}") from error
        total.update(f"\n{file.absolute()} {found.st_size} {found.st_mtime_ns}".encode())
    return total.hexdigest()


def find(paths: Sequence[str]) -> dict[Path, str]:
    """Every file that the paths name, each once, sorted within a path -> its source."""
    found: dict[Path, str] = {}
    for number, path in enumerate(paths):
        if glob.has_magic(path):
            # Not Path.glob, which knows no absolute patterns.
            names = glob.glob(path, recursive=True)  # noqa: PTH207
            files = sorted(Path(name) for name in names if Path(name).is_file())
            parts = Path(path).parts
            top = Path(*parts[: [glob.has_magic(part) for part in parts].index(True)])
        elif Path(path).is_dir():
            top = Path(path)
            files = sorted(p for p in top.rglob("*") if _is_visible_file(p, top))
        else:
            top = Path(path).parent
            files = [Path(path)] if Path(path).exists() else []
        if not files:
            raise ConfigError(f"data.path {path!r}: there is no such file (looked in {Path.cwd()})")
        for file in files:
            # By number: a path may be another one in another cloud, and name the same files.
            found.setdefault(file, f"{number}:{file.relative_to(top).parts[0]}")
    return found


def read_text(file: Path) -> str:
    """A file's text, which must be UTF-8 without NUL bytes; a byte order mark is dropped."""
    data = file.read_bytes()
    nul = data.find(b"\0")
    if nul >= 0:
        raise ConfigError(
            f"{file} is not text: NUL byte at offset {nul}; give data.path as a glob that leaves "
            "it out, as in 'corpus/**/*.txt'"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start} "
            f"({error.reason}); convert it with iconv -t utf-8, or leave it out of data.path"
        ) from error


def _is_visible_file(path: Path, top: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(top).parts)
    return not hidden and path.is_file()


def _by_suffix(file: Path) -> str:
    return {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}.get(
        file.suffix.lower(), "text"
    )


def _read_text(file: Path, text_field: str) -> Iterator[tuple[str, str]]:
    yield str(file), read_text(file)


def _read_jsonl(file: Path, text_field: str) -> Iterator[tuple[str, str]]:
    # Only "\n" ends a line: str.splitlines would cut a record at a U+2028 inside a string.
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{where} is not a JSON object but {type(row).__name__}")
        if text_field not in row:
            raise ConfigError(
                f"{where} has no field {text_field!r}, only {', '.join(map(repr, row)) or 'none'}; "
                "name the right one with data.text_field"
            )
        if not isinstance(row[text_field], str):
            raise ConfigError(
                f"{where}: field {text_field!r} is not a string: {row[text_field]!r:.60}"
            )
        yield where, row[text_field]


def _read_parquet(file: Path, text_field: str) -> Iterator[tuple[str, str]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(f"{file}: reading Parquet needs: pip install pyfedcomm[data]") from error
    try:
        with pq.ParquetFile(file) as table:
            columns = table.schema_arrow.names
            if text_field not in columns:
                raise ConfigError(
                    f"{file} has no column {text_field!r}, only {', '.join(map(repr, columns))}; "
                    "name the right one with data.text_field"
                )
            row = 0
            for batch in table.iter_batches(columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str):
                        raise ConfigError(
                            f"{file}: row {row} of column {text_field!r} is not text: {text!r:.60}"
                        )
                    yield f"{file}:{row}", text
                    row += 1
    except (pa.ArrowException, OSError) as error:
        # Arrow reports damaged pages as OSError, which would otherwise be shown without its text.
        raise ConfigError(f"{file} cannot be read as Parquet: {error}") from error


READERS: dict[str, Callable[[Path, str], Iterator[tuple[str, str]]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
}
