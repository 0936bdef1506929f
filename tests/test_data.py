"""Documents, tokenizers, the held-out split, and the order of sequences."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfedcomm.data import corpus, sources, stdlib, stream, tokenizers
from pyfedcomm.data.sources import Document
from pyfedcomm.errors import ConfigError


def texts(source: str, paths: Iterable[Path | str], **options: str) -> list[str]:
    found = sources.documents(source, [str(p) for p in paths], **options)  # type: ignore[arg-type]
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


@pytest.mark.parametrize("n_clouds", [2, 3])
def test_clouds_hold_different_modules_of_the_standard_library(n_clouds: int) -> None:
    modules = stdlib.find_modules(Path(sysconfig.get_path("stdlib")))
    assert {"json", "argparse", "asyncio"} <= modules.keys()
    assert not {"test", "site-packages", "dist-packages"} & modules.keys()
    sizes = {name: sum(f.stat().st_size for f in files) for name, files in modules.items()}
    parts = stdlib.split(sizes, n_clouds)
    assert sorted(name for part in parts for name in part) == sorted(modules)
    totals = [sum(sizes[name] for name in part) for part in parts]
    assert max(totals) - min(totals) < 0.01 * sum(totals)


def test_the_standard_library_is_the_default() -> None:
    found = list(sources.documents("auto", [], cloud=1, n_clouds=40))
    assert found
    assert all(document.name.endswith(".py") for document in found)


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


def build(*documents: str, heldout: float = 0.25) -> corpus.Corpus:
    named = [Document(str(i), text) for i, text in enumerate(documents)]
    return corpus.build(named, tokenizers.load("bytes"), heldout)


def pieces(tokens: tokenizers.Tokens) -> set[str]:
    decoded = "".join("\n" if t == 256 else chr(t) for t in tokens.tolist())
    return set(decoded.split("\n")) - {""}


def test_the_held_out_part_follows_from_the_text_alone() -> None:
    documents = [f"document {i}" for i in range(400)]
    first, second = build(*documents), build(*reversed(documents), *documents[:7])
    assert pieces(first.heldout) == pieces(second.heldout)
    assert pieces(first.train) | pieces(first.heldout) == set(documents)
    assert not pieces(first.train) & pieces(first.heldout)
    assert 60 < len(pieces(first.heldout)) < 140, "about a quarter"


@pytest.mark.parametrize("heldout", [0.01, 0.99])
def test_neither_part_is_empty(heldout: float) -> None:
    for n in (2, 3):
        parts = build(*[f"document {i}" for i in range(n)], heldout=heldout)
        assert len(parts.train)
        assert len(parts.heldout)


def test_of_a_single_document_the_end_is_held_out() -> None:
    parts = build("0123456789abcdef", heldout=0.25)
    assert parts.train.tolist() == [ord(c) for c in "0123456789ab"]
    assert parts.heldout.tolist() == [*map(ord, "cdef"), 256]


def test_no_text_is_an_error_and_other_text_another_fingerprint() -> None:
    with pytest.raises(ConfigError, match="holds no text"):
        build("", "")
    assert build("a", "b").fingerprint != build("a", "c").fingerprint


# --- stream ---------------------------------------------------------------------------------------


@given(
    n_tokens=st.integers(10, 300),
    seq_len=st.integers(1, 9),
    n_shards=st.integers(1, 4),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_deals_every_sequence_once(
    n_tokens: int, seq_len: int, n_shards: int, seed: int
) -> None:
    tokens = np.arange(n_tokens, dtype=np.uint16)
    if stream.count(tokens, seq_len) < n_shards:
        with pytest.raises(ConfigError, match="too short"):
            stream.TokenStream(tokens, seq_len, seed=seed, n_shards=n_shards)
        return
    shards = [
        stream.TokenStream(tokens, seq_len, seed=seed, shard=i, n_shards=n_shards)
        for i in range(n_shards)
    ]
    for _ in range(2):
        starts: list[int] = []
        for shard in shards:
            rows = shard.next_batch(shard.epoch_length)
            assert rows.shape == (shard.epoch_length, seq_len + 1)
            assert (np.diff(rows, axis=1) == 1).all(), "consecutive tokens"
            starts += rows[:, 0].tolist()
        assert len(set(starts)) == len(starts), "no overlap between shards"
        assert all(start % seq_len == 0 for start in starts)
        assert stream.count(tokens, seq_len) - len(starts) < n_shards


def test_position_resumes_exactly_and_epochs_differ() -> None:
    tokens = np.arange(200, dtype=np.uint16)
    straight = stream.TokenStream(tokens, 4, seed=7, shard=1, n_shards=2)
    rows = straight.next_batch(60)
    resumed = stream.TokenStream(tokens, 4, seed=7, shard=1, n_shards=2)
    resumed.seek(33)
    assert (resumed.next_batch(27) == rows[33:]).all()
    assert resumed.position == straight.position == 60
    n = straight.epoch_length
    assert (rows[:n] != rows[n : 2 * n]).any()
    other = stream.TokenStream(tokens, 4, seed=8, shard=1, n_shards=2)
    assert (other.next_batch(60) != rows).any()


def test_held_out_sequences_are_shared_out() -> None:
    tokens = np.arange(401, dtype=np.uint16)
    parts = [stream.heldout_sequences(tokens, 4, 10, shard=i, n_shards=3) for i in range(3)]
    assert [len(part) for part in parts] == [4, 3, 3]
    assert sorted(np.concatenate(parts)[:, 0].tolist()) == list(range(0, 400, 40)), "spread evenly"
    assert len(stream.heldout_sequences(tokens, 4, 0)) == 100
    with pytest.raises(ConfigError, match="held-out data is too short: 4 tokens"):
        stream.heldout_sequences(tokens[:4], 4, 10)
