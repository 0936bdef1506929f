"""Documents, tokenizers, the held-out split, and the files that hold tokens."""

from __future__ import annotations

import itertools
import json
import os
import sysconfig
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfedcomm.data import corpus, sources, stdlib, tokenfile, tokenizers
from pyfedcomm.data.corpus import Target
from pyfedcomm.data.sources import Document
from pyfedcomm.data.tokenfile import Corpus
from pyfedcomm.errors import ConfigError

Build = Callable[..., Corpus]


def texts(source: str, paths: Iterable[Path | str], **options: str) -> list[str]:
    found = sources.documents(source, [str(p) for p in paths], **options)
    return [document.text for document in found]


# --- sources --------------------------------------------------------------------------------------


def test_files_directories_and_globs(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("B")
    (tmp_path / "a.md").write_text("A")
    (tmp_path / "sub" / "c.txt").write_text("C")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    assert texts("auto", [tmp_path]) == ["A", "B", "C"]
    assert texts("text", [tmp_path / "**/*.txt"]) == ["B", "C"]
    assert texts("text", [tmp_path / "b.txt", tmp_path]) == ["B", "A", "C"], "each file once"


def test_what_belongs_together(tmp_path: Path) -> None:
    """The first name below what a path names: the same wherever a cloud has it mounted."""
    for mount in ("a", "b"):
        for name in ("pkg/sub/x.txt", "pkg/y.txt", "z.txt"):
            (tmp_path / mount / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / mount / name).write_text(name)
        top = tmp_path / mount
        for path in (top, top / "**/*.txt"):
            found = sources.documents("auto", [str(path)])
            assert {d.text: d.source for d in found} == {
                "pkg/sub/x.txt": "0:pkg",
                "pkg/y.txt": "0:pkg",
                "z.txt": "0:z.txt",
            }
        (only,) = sources.documents("auto", [str(top / "pkg/y.txt")])
        assert only.source == "0:y.txt"


def test_a_signature_changes_with_the_files(tmp_path: Path) -> None:
    def signature() -> str:
        return sources.signature("auto", [str(tmp_path)], "text")

    file = tmp_path / "a.txt"
    file.write_text("A")
    seen = [signature(), signature()]
    assert seen[0] == seen[1]
    os.utime(file, ns=(0, 1))
    seen.append(signature())
    (tmp_path / "b.txt").write_text("B")
    seen.append(signature())
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    seen.append(signature())
    seen.append(sources.signature("text", [str(tmp_path)], "text"))
    assert len(set(seen)) == 5


def test_jsonl(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"body": "one\u2028line"}, {"body": "zwei"}]
    file.write_text(
        "\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n", encoding="utf-8"
    )
    assert texts("auto", [file], text_field="body") == ["one\u2028line", "zwei"]
    with pytest.raises(ConfigError, match=r"a.jsonl:1 has no field 'text', only 'body'"):
        texts("jsonl", [file])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": ', "a.jsonl:2 is not JSON"),
        ('["text"]', "a.jsonl:2 is not a JSON object but list"),
        ('{"text": 3}', "a.jsonl:2: field 'text' is not a string: 3"),
    ],
)
def test_a_bad_jsonl_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "good"}\n' + line)
    with pytest.raises(ConfigError, match=said):
        texts("auto", [file])


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["one", "zwei"], "n": [1, 2]}), file)
    assert texts("auto", [file], text_field="body") == ["one", "zwei"]
    with pytest.raises(ConfigError, match=r"a.parquet has no column 'text', only 'body', 'n'"):
        texts("auto", [file])
    with pytest.raises(ConfigError, match="row 0 of column 'n' is not text: 1"):
        texts("auto", [file], text_field="n")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ConfigError, match=r"a.parquet cannot be read as Parquet"):
        texts("auto", [file], text_field="body")


def test_parquet_without_pyarrow_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install pyfedcomm\[data\]"):
        texts("auto", [tmp_path / "a.parquet"])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"text\0more", r"a.txt is not text: NUL byte at offset 4"),
        (b"caf\xe9", r"a.txt is not UTF-8 text: byte 0xe9 at offset 3"),
    ],
)
def test_a_file_that_is_not_text(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ConfigError, match=said):
        texts("auto", [tmp_path])


def test_paths_and_sources_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'.*nothing\*': there is no such file"):
        texts("auto", [tmp_path / "nothing*"])
    with pytest.raises(ConfigError, match=r"data.source is 'csv'; it must be one of auto, stdlib"):
        texts("csv", [tmp_path])
    with pytest.raises(ConfigError, match=r"data.path names no file"):
        texts("jsonl", [])
    with pytest.raises(ConfigError, match="which has no paths"):
        texts("stdlib", ["x"])


# --- the standard library -------------------------------------------------------------------------


def test_the_modules_of_the_standard_library_are_the_default() -> None:
    modules = stdlib.find_modules(Path(sysconfig.get_path("stdlib")))
    assert {"json", "argparse", "asyncio"} <= modules.keys()
    assert not {"test", "site-packages", "dist-packages"} & modules.keys()
    found = list(itertools.islice(sources.documents("auto", []), 300))
    assert all(document.name.endswith(".py") for document in found)
    assert {document.source for document in found} <= modules.keys()
    in_package = next(document for document in found if "/" in document.name)
    assert in_package.name.startswith(f"{in_package.source}/")


# --- tokenizers -----------------------------------------------------------------------------------


@given(st.text())
@settings(deadline=None)
def test_bytes_round_trip(text: str) -> None:
    tokenizer = tokenizers.load("bytes")
    try:
        expected = text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate cannot come out of a file
        return
    (ids,) = tokenizer.encode([text])
    assert ids.tolist() == list(expected)
    assert tokenizer.decode([*ids.tolist(), tokenizer.end_of_text]) == text


def write_hf_tokenizer(directory: Path, *, eos: bool = True) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"cat": 0, "dog": 1, "<unk>": 2, "<end>": 3}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": "<end>"} if eos else {}
    wrapper: Any = PreTrainedTokenizerFast
    wrapper(tokenizer_object=inner, unk_token="<unk>", **special).save_pretrained(str(directory))


def test_a_hugging_face_directory(tmp_path: Path) -> None:
    write_hf_tokenizer(tmp_path / "tok")
    tokenizer = tokenizers.load(str(tmp_path / "tok"))
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (4, 3)
    assert [row.tolist() for row in tokenizer.encode(["dog cat", "cow"])] == [[1, 0], [2]]
    again = tokenizers.load(str(tmp_path / "tok"))
    assert again.fingerprint == tokenizer.fingerprint != tokenizers.load("bytes").fingerprint


def test_tokenizers_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such directory"):
        tokenizers.load("org/name-on-a-hub")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="cannot be opened"):
        tokenizers.load(str(tmp_path / "empty"))
    write_hf_tokenizer(tmp_path / "tok", eos=False)
    with pytest.raises(ConfigError, match="has no end-of-text token"):
        tokenizers.load(str(tmp_path / "tok"))


# --- corpus ---------------------------------------------------------------------------------------


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Corpus]:
    def build_one(*documents: str, heldout: float = 0.25) -> Corpus:
        named = [Document(str(i), text) for i, text in enumerate(documents)]
        target = Target(tmp_path / f"{time.monotonic_ns()}.tokens", "key", "cloud aws")
        corpus.build(named, tokenizers.load("bytes"), heldout, {0: target})
        opened = tokenfile.open_corpus(target.file, "key")
        assert opened is not None
        assert opened.is_intact()
        assert opened.n_documents == len([text for text in documents if text])
        assert opened.n_bytes == sum(len(text.encode()) for text in documents)
        return opened

    return build_one


def pieces(tokens: tokenizers.Tokens) -> set[str]:
    decoded = "".join("\n" if t == 256 else chr(t) for t in tokens.tolist())
    return set(decoded.split("\n")) - {""}


def test_the_held_out_part_follows_from_the_text_alone(build: Build) -> None:
    documents = [f"document {i}" for i in range(400)]
    first, second = build(*documents), build(*reversed(documents), *documents[:7])
    assert pieces(first.heldout) == pieces(second.heldout)
    assert pieces(first.train) | pieces(first.heldout) == set(documents)
    assert not pieces(first.train) & pieces(first.heldout)
    assert 60 < len(pieces(first.heldout)) < 140, "about a quarter"


@pytest.mark.parametrize("heldout", [0.01, 0.99])
def test_neither_part_is_empty(build: Build, heldout: float) -> None:
    for n in (2, 3):
        parts = build(*[f"document {i}" for i in range(n)], heldout=heldout)
        assert len(parts.train)
        assert len(parts.heldout)


def test_of_a_single_document_the_end_is_held_out(build: Build) -> None:
    parts = build("0123456789abcdef", heldout=0.25)
    assert parts.train.tolist() == [ord(c) for c in "0123456789ab"]
    assert parts.heldout.tolist() == [*map(ord, "cdef"), 256]


def test_no_text_is_an_error_and_other_text_another_fingerprint(build: Build) -> None:
    with pytest.raises(ConfigError, match="the data of cloud aws holds no text"):
        build("", "")
    assert build("a", "b").fingerprint != build("a", "c").fingerprint


# --- files of tokens ------------------------------------------------------------------------------


def written(file: Path, **change: Any) -> None:
    pieces: list[tokenizers.Tokens] = [np.arange(300, dtype=np.uint16), np.zeros(0, np.uint16)]
    facts = {"n_documents": 2, "n_bytes": 300, "deal": "d"}
    arguments: dict[str, Any] = {"key": "k", "token_bytes": 2, **change}
    tokenfile.write(file, train=pieces, heldout=pieces[::-1], facts=facts, **arguments)


@pytest.mark.parametrize("token_bytes", [2, 4])
def test_a_file_of_tokens_is_mapped_as_it_was_written(tmp_path: Path, token_bytes: int) -> None:
    file = tmp_path / "a.tokens"
    written(file, token_bytes=token_bytes)
    opened = tokenfile.open_corpus(file, "k")
    assert opened is not None
    assert isinstance(opened.train.base, np.memmap)
    assert opened.train.dtype.itemsize == token_bytes
    assert opened.train.tolist() == opened.heldout.tolist() == list(range(300))
    assert (opened.n_documents, opened.n_bytes, opened.deal) == (2, 300, "d")
    assert opened.is_intact()
    assert [path.name for path in tmp_path.iterdir()] == ["a.tokens"]


def test_a_file_that_is_not_what_was_asked_for_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "a.tokens"
    assert tokenfile.open_corpus(file, "k") is None
    written(file)
    data = file.read_bytes()
    assert tokenfile.open_corpus(file, "other") is None
    for other in (data[:-1], data + b"\0", b"", data[:100], data.replace(b"tokens 1", b"tokens 2")):
        file.write_bytes(other)
        assert tokenfile.open_corpus(file, "k") is None
    file.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    altered = tokenfile.open_corpus(file, "k")
    assert altered is not None
    assert not altered.is_intact()


def test_what_could_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterable[tokenizers.Tokens]:
        yield np.arange(300, dtype=np.uint16)
        raise OSError(28, "No space left on device")

    file = tmp_path / "a.tokens"
    written(file)
    before = file.read_bytes()
    with (
        pytest.raises(ConfigError, match=r"No space left on device; make room, .*data.cache"),
        tokenfile.naming_disk_errors(tmp_path),
    ):
        tokenfile.write(file, "k", 2, failing(), [], {})
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.tokens"]


def test_documents_of_several_clouds_in_one_pass(tmp_path: Path) -> None:
    """More than one batch of the tokenizer; documents without text have no cloud."""
    documents = [Document(str(i), f"document {i}" if i % 5 else "") for i in range(700)]
    with_text = [document for document in documents if document.text]
    clouds = [i % 3 for i in range(len(with_text))]
    targets = {c: Target(tmp_path / f"{c}.tokens", str(c), f"cloud {c}") for c in (0, 2)}
    corpus.build(documents, tokenizers.load("bytes"), 0.2, targets, clouds=clouds, deal="d")
    assert {path.name for path in tmp_path.iterdir()} == {"0.tokens", "2.tokens"}
    for cloud in (0, 2):
        opened = tokenfile.open_corpus(tmp_path / f"{cloud}.tokens", str(cloud))
        assert opened is not None
        own = {d.text for d, c in zip(with_text, clouds, strict=True) if c == cloud}
        assert pieces(opened.train) | pieces(opened.heldout) == own
        assert not pieces(opened.train) & pieces(opened.heldout)
        assert opened.deal == "d"
    with pytest.raises(ConfigError, match="changed while they were read"):
        corpus.build(documents, tokenizers.load("bytes"), 0.2, targets, clouds=clouds[1:])
