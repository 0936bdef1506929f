"""Loading the data of a run: who tokenizes, what clouds compare, and what they never tell."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from ranks import run_ranks
from tiny_run import failures, one_rank_per_cloud, run

from pyfedcomm.data import corpus, sources, stream, tokenfile
from pyfedcomm.errors import ConfigError
from pyfedcomm.group import Group
from pyfedcomm.train.config import TrainConfig
from pyfedcomm.train.data import Data, load


def loaded(config: TrainConfig, n_clouds: int = 2) -> list[Data]:
    def rank(group: Group) -> Data:
        topology = one_rank_per_cloud(group)
        return load(config, group, topology, f"rank {group.rank}")

    return run_ranks(n_clouds, rank)


def write_library(folder: Path, n_packages: int = 6, n_files: int = 8) -> Path:
    """Packages of files that all differ."""
    top = folder / "library"
    for package in range(n_packages):
        (top / f"package{package}").mkdir(parents=True, exist_ok=True)
        for file in range(n_files):
            tiny_run.write_text(
                top / f"package{package}" / f"{file}.txt", seed=100 * package + file, n_words=60
            )
    return top


def dealt(folder: Path, partition: str, **data: Any) -> TrainConfig:
    path = str(folder / "library")
    return tiny_run.config(folder, data={"path": path, "partition": partition, **data})


def texts_of(data: Data, end: int = 256) -> set[str]:
    """The documents to train on."""
    whole = data.sequences._parts[data.queue].tolist()
    return set("".join(chr(t) if t != end else "\n" for t in whole).split("\n")) - {""}


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of files of each call that made any."""
    calls: list[int] = []
    original = corpus.build

    def build(documents: Any, tokenizer: Any, heldout: float, targets: Any, **options: Any) -> None:
        calls.append(len(targets))
        original(documents, tokenizer, heldout, targets, **options)

    monkeypatch.setattr(corpus, "build", build)
    return calls


# --- files ----------------------------------------------------------------------------------------


def test_files_are_made_once_and_again_when_something_changed(
    tmp_path: Path, builds: list[int]
) -> None:
    config = tiny_run.config(tmp_path)
    first = loaded(config)
    assert builds == [1, 1], "one of each cloud"
    files = sorted((tmp_path / "out" / "tokens").iterdir())
    assert [file.name.split("-")[0] for file in files] == ["cloud0", "cloud1"]
    again = loaded(config)
    assert builds == [1, 1]
    assert [d.fingerprint for d in again] == [d.fingerprint for d in first]
    assert [d.summary for d in again] == [d.summary for d in first]

    data = bytearray(files[1].read_bytes())
    data[-1] ^= 1
    files[1].write_bytes(data)
    assert [d.fingerprint for d in loaded(config)] == [d.fingerprint for d in first]
    assert builds == [1, 1, 1], "what was damaged is made again"

    tiny_run.write_text(tmp_path / "cloud0.txt", seed=99)
    assert loaded(config)[0].fingerprint != first[0].fingerprint
    assert len(builds) == 4
    loaded(tiny_run.config(tmp_path, data={"heldout": 0.2}))
    assert len(builds) == 6
    elsewhere = tmp_path / "elsewhere"
    loaded(tiny_run.config(tmp_path, data={"cache": str(elsewhere)}))
    assert len(list(elsewhere.iterdir())) == 2


def test_tokens_are_mapped_not_read(tmp_path: Path) -> None:
    for data in loaded(tiny_run.config(tmp_path)):
        (part,) = data.sequences._parts
        assert isinstance(part.base, np.memmap)


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = tiny_run.config(tmp_path, data={"cache": str(tmp_path / "file" / "below")})
    for error in failures(config):
        assert isinstance(error, ConfigError)
        assert "the tokens could not be kept in" in str(error)
        assert "Not a directory; make room, or name another directory with data.cache" in str(error)


def test_a_file_that_is_not_visible_to_another_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tokenfile.open_corpus
    monkeypatch.setattr(tokenfile, "open_corpus", lambda file, key: None)
    for error in failures(tiny_run.config(tmp_path)):
        assert "must be a directory that the ranks of a host share" in str(error)
    monkeypatch.setattr(tokenfile, "open_corpus", original)


# --- dealing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", ["iid", "source", "dirichlet(0.5)"])
@pytest.mark.parametrize("n_clouds", [2, 3])
def test_each_document_is_in_one_cloud(tmp_path: Path, partition: str, n_clouds: int) -> None:
    files = list(write_library(tmp_path).rglob("*.txt"))
    everything = {file.read_text() for file in files}
    config = dealt(tmp_path, partition)
    found = loaded(config, n_clouds)
    trained = [texts_of(data) for data in found]
    assert sum(data.summary["documents"] for data in found) == len(files)
    assert sum(map(len, trained)) == len(set.union(*trained)), "no document twice"
    assert set.union(*trained) < everything
    if partition == "source":
        package_of = {file.read_text(): file.parent.name for file in files}
        packages = [{package_of[text] for text in own} for own in trained]
        assert sum(map(len, packages)) == len(set.union(*packages))


def test_shares_decide_how_much_a_cloud_gets(tmp_path: Path) -> None:
    write_library(tmp_path)
    first, second = loaded(dealt(tmp_path, "iid", shares={"cloud0": 3}))
    assert first.summary["bytes"] == pytest.approx(3 * second.summary["bytes"], rel=0.15)


def test_the_standard_library_by_default_is_divided_by_module(tmp_path: Path) -> None:
    first, second = loaded(tiny_run.config(tmp_path, data={"path": []}))
    assert first.summary["bytes"] == pytest.approx(second.summary["bytes"], rel=0.05)
    assert first.fingerprint != second.fingerprint
    documents = len([d for d in sources.documents("auto", []) if d.text])
    assert first.summary["documents"] + second.summary["documents"] == documents


def test_clouds_that_see_other_documents_are_told(tmp_path: Path) -> None:
    write_library(tmp_path)
    (tmp_path / "other").mkdir()
    write_library(tmp_path / "other", n_files=7)
    configs = [dealt(tmp_path, "iid", cache=str(tmp_path / "a"))]
    other = {"path": str(tmp_path / "other" / "library"), "partition": "iid"}
    configs.append(tiny_run.config(tmp_path, data={**other, "cache": str(tmp_path / "b")}))
    for error in failures(*configs):
        assert isinstance(error, ConfigError)
        assert "the ranks disagree on the documents and who gets which: " in str(error)
        assert "give all clouds the same files, or use data.partition = 'own'" in str(error)


def test_the_same_documents_under_another_path_are_the_same(tmp_path: Path) -> None:
    write_library(tmp_path)
    (tmp_path / "library2").symlink_to(tmp_path / "library")
    other = {"path": str(tmp_path / "library2"), "partition": "source"}
    configs = [dealt(tmp_path, "source"), tiny_run.config(tmp_path, data=other)]
    (result, _) = run(*configs)
    assert result.bit_identical


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"partition": "dirichlet(0)"}, "alpha of dirichlet is 0; it must be above 0"),
        ({"partition": "mine"}, "data.partition is 'mine'; it must be one of own, iid"),
        ({"redeal_every": 2}, "data.redeal_every is set, but data.partition is 'own'"),
        ({"shares": {"cloud0": 2}}, "data.shares is set, but data.partition is 'own'"),
        ({"partition": "iid", "shares": {"cloud0": 0}}, "data.shares.cloud0 is 0"),
        ({"partition": "iid", "shares": {"cloud0": "x"}}, "data.shares.cloud0 is 'x'"),
        ({"prefetch": 0}, "data.prefetch is 0; it must be at least 1"),
        ({"shard": -1}, "data.shard is -1; it must be at least 0"),
    ],
)
def test_a_mistake_that_the_configuration_shows(
    tmp_path: Path, data: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        tiny_run.config(tmp_path, data=data)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"partition": "iid", "shares": {"aws": 1}}, "data.shares.aws: there is no cloud 'aws'"),
        ({"partition": "iid", "path": "{folder}/cloud0.txt"}, "1 documents are too few for 2"),
        ({"partition": "source", "path": "{folder}/library/**"}, "1 sources are too few for 2"),
        ({"partition": "iid", "path": "{folder}/short"}, "is too short: 0 sequences for 1 ranks"),
        ({"path": "{folder}/empty.txt"}, "holds no text: every document is empty; give"),
    ],
)
def test_a_mistake_that_the_files_show(tmp_path: Path, data: dict[str, Any], said: str) -> None:
    write_library(tmp_path, 1, 3)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short").mkdir()
    for i in range(4):
        (tmp_path / "short" / f"{i}.txt").write_text("abc" if i else "abcdefghijklmnopqrst")
    if "path" in data:
        data = {**data, "path": data["path"].replace("{folder}", str(tmp_path))}
    for error in failures(tiny_run.config(tmp_path, data=data)):
        assert isinstance(error, ConfigError)
        assert said in str(error)


# --- what leaves a private cloud ------------------------------------------------------------------


def test_nothing_about_private_data_leaves_but_counts_of_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that goes over the group of all ranks, in a run with a checkpoint and an evaluation."""
    told: list[str] = []
    original = Group.all_gather_bytes

    def all_gather_bytes(self: Group, data: bytes, **options: Any) -> list[bytes]:
        if self.size == 2:
            told.append(data.decode("utf-8", errors="replace"))
        return original(self, data, **options)

    monkeypatch.setattr(Group, "all_gather_bytes", all_gather_bytes)
    clouds = {f"cloud{i}": {"path": str(tmp_path / f"cloud{i}.txt")} for i in range(2)}
    config = tiny_run.config(
        tmp_path,
        data={"clouds": clouds, "cache": str(tmp_path / "cache")},
        checkpoint={"every": 2},
        eval={"every": 2},
    )
    run(config)
    assert any("the vocabulary" in text for text in told), "what is told passes here"
    secrets = ["cloud0.txt", "cloud1.txt", str(tmp_path / "cache")]
    for data in loaded(config):
        secrets += [data.fingerprint, *(str(data.summary[key]) for key in ("documents", "bytes"))]
    for file in (tmp_path / "cache").iterdir():
        secrets.append(file.name.split("-")[1].removesuffix(".tokens"))
    for secret in secrets:
        if len(secret) > 4:
            assert not [text for text in told if secret in text], secret


# --- a batch that cannot be made ------------------------------------------------------------------


def test_a_disk_that_fails_under_the_thread_ends_the_run_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = stream.Sequences.batch

    def batch(self: Any, deal: Any, cloud: int, begin: int, n: int, **rest: int) -> stream.Batch:
        if cloud == 1 and begin == 6:
            raise OSError(5, "Input/output error")
        return original(self, deal, cloud, begin, n, **rest)

    monkeypatch.setattr(stream.Sequences, "batch", batch)
    write_library(tmp_path)
    other, failed = failures(dealt(tmp_path, "iid", redeal_every=100))
    assert "[data] the next batch could not be made: OSError: [Errno 5] Input/output" in str(failed)
    assert "[data] the next batch could not be made: OSError" in str(other)
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
