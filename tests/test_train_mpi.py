"""Real runs of ``pyfedcomm train`` under ``mpirun``: they train, resume, and end when they must."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from tiny_run import assert_equal_weights, losses, records, weights

from pyfedcomm import launch
from pyfedcomm.train import state
from pyfedcomm.train.checkpoint import read_manifest

pytestmark = pytest.mark.mpi

DEADLINE_S = 240.0
CLI = "import os, sys; from pyfedcomm.cli import main; main()"
RANK = "rank = os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('PMI_RANK'))"


class MpiRun:
    """``pyfedcomm train`` in a process tree of its own; the whole output in ``log``."""

    def __init__(self, tmp_path: Path, n_ranks: int, *arguments: str, **tables: Any) -> None:
        file = tmp_path / "run.toml"
        file.write_text(tiny_run.toml(tiny_run.table(tmp_path, **tables)), encoding="utf-8")
        argv = [sys.executable, "-W", "ignore", "-c", CLI, "train", str(file), *arguments]
        self.log = tmp_path / "log"
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                launch.mpirun_command(n_ranks, argv),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> int:
        """Exit status; fails if the run does not end."""
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {DEADLINE_S} s:\n{self.text}") from None
        finally:
            launch.stop(self.process)

    def wait_for(self, path: Path) -> None:
        """Until the run has written ``path``."""
        end = time.monotonic() + DEADLINE_S
        while not path.exists():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.05)

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def errors(self) -> list[str]:
        # mpirun's own messages may leave a blank before a rank's.
        lines = [line.strip() for line in self.text.splitlines()]
        return [line for line in lines if line.startswith("error: ")]


def mpirun(tmp_path: Path, n_ranks: int, *arguments: str, **tables: Any) -> tuple[int, MpiRun]:
    started = MpiRun(tmp_path, n_ranks, *arguments, **tables)
    return started.wait(), started


DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}


def test_run_and_resume(tmp_path: Path) -> None:
    """Clouds of one and of two ranks, with dropout: the generators of all ranks go on too."""
    n_ranks, clouds = 3, "1,2"
    tables: dict[str, Any] = {
        "model": DROPOUT,
        "checkpoint": {"every": 3, "keep": 9},
        "log": {"progress": True, "tensorboard": True},
    }
    status, straight = mpirun(tmp_path, n_ranks, "--clouds", clouds, **tables)
    assert status == 0, straight.text
    assert "step 6/6  loss " in straight.text
    assert "ranks are bit-identical" in straight.text
    first = tmp_path / "out"
    assert records(first)[-1]["bit_identical"]
    second = tmp_path / "second"
    status, resumed = mpirun(
        tmp_path,
        n_ranks,
        "--clouds",
        clouds,
        "--set",
        f"run.out={second}",
        "--resume",
        f"{first}/checkpoints/{{cloud}}/step-00000003",
        **tables,
    )
    assert status == 0, resumed.text
    for i in range(2):
        assert_equal_weights(weights(first, 6, i), weights(second, 6, i))
    assert losses(second) == {s: loss for s, loss in losses(first).items() if s > 3}


def once_more(changes: list[str]) -> str:
    """`CLI` that trains a second time with these keys; to start ranks takes longer than both."""
    sets = [part for change in changes for part in ("--set", change)]
    return CLI.replace(
        "main()",
        f"\ntry: main()\nexcept SystemExit as end: assert not end.code\nsys.argv += {sets}\nmain()",
    )


@pytest.mark.parametrize(
    ("clouds", "n_ranks", "sync"),
    [
        ("1,2", 3, {"rule": "diloco"}),
        ("1,2", 3, {"rule": "streaming", "codec": "e3m0"}),
        ("2", 4, {"rule": "streaming", "fragments": 2, "codec": "e3m0", "error_feedback": True}),
    ],
)
def test_parameters_sharded_inside_clouds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clouds: str, n_ranks: int, sync: dict[str, Any]
) -> None:
    """FSDP2: trains as whole parameters do, and goes on from a checkpoint with the same bits."""
    first, second, third = (tmp_path / name for name in ("out", "second", "third"))
    tables: dict[str, Any] = {
        "run": {"parallel": "fsdp"},
        "model": DROPOUT,
        "sync": sync,
        "eval": {"every": 3, "across": True, "sequences": 5},
        "checkpoint": {"every": 3, "keep": 9},
    }
    changes = [f'run.out="{third}"', 'run.parallel="ddp"', "inter.rails=1"]
    monkeypatch.setattr(sys.modules[__name__], "CLI", once_more(changes))
    status, both = mpirun(tmp_path, n_ranks, "--clouds", clouds, **tables)
    assert status == 0, both.text
    monkeypatch.undo()
    assert records(first)[-1]["bit_identical"]
    saved = state.read(first / "checkpoints" / "cloud1" / "step-00000003" / "rank-1")["sync"]
    assert saved.get("sections") == (2 if clouds == "2" else None)
    resume = f"{first}/checkpoints/{{cloud}}/step-00000003"
    options = ["--clouds", clouds, "--set", f"run.out={second}", "--resume", resume]
    status, resumed = mpirun(tmp_path, n_ranks, *options, **tables)
    assert status == 0, resumed.text
    for i in range(2):
        assert_equal_weights(weights(first, 6, i), weights(second, 6, i))
    assert losses(second) == {s: loss for s, loss in losses(first).items() if s > 3}

    saved = state.read(third / "checkpoints" / "cloud1" / "step-00000003" / "rank-1")["sync"]
    assert saved["n_rails"] == 1
    assert "fragment.0.anchor" not in saved  # the cloud's gateway has all of it
    # Other bits: FSDP's mean rounds otherwise, and shards are coded in other blocks.
    assert list(losses(third).values()) == pytest.approx(list(losses(first).values()), rel=0.02)
    evaluated = [
        {r["step"]: r["eval_loss"] for r in records(out) if r.get("event") == "eval"}
        for out in (first, third)
    ]
    assert len(evaluated[0]) == 3
    assert evaluated[0] == pytest.approx(evaluated[1], rel=0.02)


def test_a_bad_configuration_is_one_line_on_every_rank(tmp_path: Path) -> None:
    status, done = mpirun(tmp_path, 2, "--clouds", "2", "--set", "train.lrr=3")
    assert status != 0
    assert len(done.errors()) == 2, done.text
    for line in done.errors():
        assert "unknown key 'train.lrr'; did you mean 'train.lr'?" in line
    assert "Traceback" not in done.text


def test_ranks_without_a_cloud(tmp_path: Path) -> None:
    tables = {"clouds.hosts": {"aws": ["some-other-host"]}}
    status, done = mpirun(tmp_path, 2, **tables)
    assert status != 0
    assert len(done.errors()) == 2, done.text
    assert all("no cloud for rank 0" in line for line in done.errors())


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "cloud1.txt").write_bytes(b"\x7fELF\x00")
    status, done = mpirun(tmp_path, 3, "--clouds", "1,2")
    assert status != 0
    assert len(done.errors()) == 3, done.text
    for line in done.errors():
        assert line.startswith("error: rank 1 (cloud cloud1)")
    detailed = [line for line in done.errors() if "cloud1.txt is not text" in line]
    assert len(detailed) == 2, "private: the two ranks of that cloud, and not the other cloud's"


def test_a_full_disk(tmp_path: Path) -> None:
    """A file-size limit stands in for a full disk: the second checkpoint fails half-way."""
    limited = CLI.replace(
        "main()",
        "import resource; from pyfedcomm.train.saving import Saver\n"
        "begin = Saver.begin\n"
        "def limited(self, step, *rest):\n"
        "    if step == 4:\n"
        "        self.finish()\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
        "    return begin(self, step, *rest)\n"
        "Saver.begin = limited\n"
        "main()",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "CLI", limited)
        status, done = mpirun(tmp_path, 2, "--clouds", "2", checkpoint={"every": 2})
    assert status != 0
    assert len(done.errors()) == 2, done.text
    for line in done.errors():
        assert "the checkpoint of step 4 could not be written" in line
        assert "File too large" in line
    for i in range(2):
        kept = tmp_path / "out" / "checkpoints" / f"cloud{i}"
        assert [path.name for path in kept.iterdir()] == ["step-00000002"]
        manifest = read_manifest(kept / "step-00000002")
        for name, (size, _) in manifest["files"].items():
            assert (kept / "step-00000002" / name).stat().st_size == size


def test_interrupted(tmp_path: Path) -> None:
    tables = {"train": {"steps": 10**6}, "checkpoint": {"every": 5}}
    started = MpiRun(tmp_path, 2, "--clouds", "2", **tables)
    started.wait_for(tmp_path / "out" / "checkpoints" / "cloud0" / "step-00000005")
    started.process.send_signal(signal.SIGINT)
    assert started.wait() != 0
    assert "Traceback" not in started.text


def test_a_rank_that_dies_ends_the_run(tmp_path: Path) -> None:
    tables: dict[str, Any] = {"train": {"steps": 10**6}, "checkpoint": {"every": 5}}
    started = MpiRun(tmp_path, 3, "--clouds", "1,2", **tables)
    started.wait_for(tmp_path / "out" / "checkpoints" / "cloud0" / "step-00000005")
    ranks = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _is_rank(entry, str(tmp_path))
    ]
    assert len(ranks) == 3
    os.kill(ranks[-1], signal.SIGKILL)
    assert started.wait() != 0


def test_an_error_of_one_rank_alone_ends_all(tmp_path: Path) -> None:
    """A disk that fills up under ``metrics.jsonl`` is found by one rank, in the middle of a run."""
    broken = CLI.replace(
        "main()",
        f"import pyfedcomm.train.metrics as m; write = m.MetricsWriter._write; {RANK}\n"
        "def full(self, record):\n"
        "    if rank == '0' and record.get('step') == 3:\n"
        "        raise OSError(28, 'No space left on device')\n"
        "    write(self, record)\n"
        "m.MetricsWriter._write = full\n"
        "main()",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "CLI", broken)
        status, done = mpirun(tmp_path, 3, "--clouds", "1,2")
    assert status != 0
    assert any("rank 0: OSError: [Errno 28]" in line for line in done.errors()), done.text


def _is_rank(entry: Path, folder: str) -> bool:
    try:
        command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return command[0] == sys.executable and any(folder in part for part in command)


def test_codec_of_one_cloud_differs(tmp_path: Path) -> None:
    """Each cloud reads its own file, as on machines of their own."""
    own = CLI.replace(
        "main()",
        f"{RANK}; sys.argv += ['--set', 'sync.codec=' + ('int8' if rank == '0' else 'bf16')]\n"
        "main()",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "CLI", own)
        status, done = mpirun(tmp_path, 2, "--clouds", "2")
    assert status != 0
    assert len(done.errors()) == 2, done.text
    pattern = re.compile("disagree on sync.codec: 'int8' on rank 0 .*, 'bf16' on rank 1")
    assert all(pattern.search(line) for line in done.errors()), done.text
