"""Runs under ``mpirun`` whose data is dealt anew, over a kill and a resume: nothing is lost."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import test_train_mpi
from test_data_load import write_library
from test_train_mpi import CLI, RANK, MpiRun
from tiny_run import records

from pyfedcomm.train import state
from pyfedcomm.train.checkpoint import steps_in

pytestmark = pytest.mark.mpi

MICRO_BATCH = {0: 5, 1: 1, 2: 1}
"""Of each rank: cloud 0 takes 5 sequences a step, cloud 1, of two ranks, 2."""

SPY = f"""
{RANK}
from pathlib import Path
from pyfedcomm.data import corpus
from pyfedcomm.train import feed
out = Path(sys.argv[2]).parent
sys.argv += ['--set', 'train.micro_batch=' + ('5' if rank == '0' else '1')]
build, take = corpus.build, feed.Feed.next
def spying_build(*args, **options):
    with (out / 'builds').open('a') as sink: sink.write(rank + '\\n')
    build(*args, **options)
def spying_take(self):
    batch = take(self)
    with (out / ('samples-' + rank)).open('a') as sink:
        for row in batch.samples: sink.write(' '.join(map(str, row)) + '\\n')
    return batch
corpus.build, feed.Feed.next = spying_build, spying_take
main()"""


def taken(folder: Path, rank: int) -> list[tuple[int, ...]]:
    lines = (folder / f"samples-{rank}").read_text().splitlines()
    return [tuple(map(int, line.split())) for line in lines]


def test_each_sequence_of_an_epoch_once_over_a_kill_and_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clouds of one and of two ranks, 5 to 2 in speed, a deal every 4 steps and steps between."""
    monkeypatch.setattr(test_train_mpi, "CLI", CLI.replace("main()", SPY))
    write_library(tmp_path, 3, 4)
    tables: dict[str, Any] = {
        "data": {
            "path": str(tmp_path / "library"),
            "partition": "iid",
            "redeal_every": 4,
            "prefetch": 3,
        },
        "checkpoint": {"every": 3, "keep": 9},
    }
    first = MpiRun(tmp_path, 3, "--clouds", "1,2", **tables, train={"steps": 10**6})
    checkpoints = tmp_path / "out" / "checkpoints"
    first.wait_for(checkpoints / "cloud1" / "step-00000009")
    first.process.send_signal(signal.SIGINT)
    assert first.wait() != 0
    saved = min(steps_in(checkpoints / f"cloud{i}")[-1] for i in range(2))
    # What was trained on after the checkpoint was in vain.
    seen = {rank: taken(tmp_path, rank)[: saved * n] for rank, n in MICRO_BATCH.items()}
    for rank in MICRO_BATCH:
        (tmp_path / f"samples-{rank}").unlink()
    builds = (tmp_path / "builds").read_text()
    # The clouds share a directory here, so the second may find what the first has made.
    assert sorted(builds.split()) in (["0"], ["1"], ["0", "1"]), "one rank of a cloud, once"

    steps = saved + 70
    second = MpiRun(
        tmp_path, 3, "--clouds", "1,2", "--resume", "auto", **tables, train={"steps": steps}
    )
    assert second.wait() == 0, second.text
    assert (tmp_path / "builds").read_text() == builds, "tokens are used again"
    for rank, n in MICRO_BATCH.items():
        seen[rank] += taken(tmp_path, rank)
        assert len(seen[rank]) == steps * n

    (newest, *_) = steps_in(checkpoints / "cloud0")[-1:]
    deal = state.read(checkpoints / "cloud0" / f"step-{newest:08d}" / "rank-0")["data"]["deal"]
    whole = {(part, i) for part, length in enumerate(deal["lengths"]) for i in range(length)}
    n_epochs = min(rows[-1][0] for rows in seen.values())  # that all ranks have left
    assert n_epochs >= 2, "of a run that is long enough to tell"
    for epoch in range(n_epochs):
        count = Counter(row[1:] for rows in seen.values() for row in rows if row[0] == epoch)
        assert set(count) == whole, f"none lost in epoch {epoch}"
        assert set(count.values()) == {1}, f"none twice in epoch {epoch}"
    deals = [record for record in records(tmp_path / "out") if record.get("event") == "deal"]
    assert sum(record["moved"] for record in deals) > 0
    assert {(record["cloud0"], record["cloud1"]) for record in deals} == {(20, 8)}
    assert {rows[0][1] for rows in (seen[0], seen[1])} == {0, 1}, "each began with its own part"
    assert len({row[1] for row in seen[0]}) == 2, "and the fast one took over from the other"
