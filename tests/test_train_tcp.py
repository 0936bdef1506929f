"""Training over TCP: under one ``mpirun``, and with a rendezvous in place of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from tcp_ranks import LOOPBACK, free_port
from test_train_mpi import CLI, mpirun
from tiny_run import assert_equal_weights, losses, records, weights

from pyfedcomm.errors import ConfigError
from pyfedcomm.train.inter import InterConfig, place

pytestmark = pytest.mark.mpi

DEADLINE_S = 200.0


def cloud(folder: Path, name: str, *overrides: str, **tables: Any) -> subprocess.Popen[str]:
    """``pyfedcomm train`` of one cloud, which knows of the others by the configuration only."""
    file = folder / f"{name}.toml"
    file.write_text(tiny_run.toml(tiny_run.table(folder, **tables)), encoding="utf-8")
    sets = [part for override in overrides for part in ("--set", override)]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CLI, "train", str(file), *sets],
        env={**os.environ, "FEDCOMM_CLOUD": name},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outputs(*clouds: subprocess.Popen[str]) -> list[str]:
    try:
        return [each.communicate(timeout=DEADLINE_S)[0] for each in clouds]
    finally:
        for each in clouds:
            each.kill()


def test_tcp_gives_the_same_bits_as_mpi_with_and_without_mpirun(tmp_path: Path) -> None:
    mpi, tcp, met = (tmp_path / name for name in ("mpi", "tcp", "met"))
    for folder, inter in ((mpi, {"transport": "mpi"}), (tcp, {"transport": "tcp"})):
        folder.mkdir()
        status, done = mpirun(folder, 2, "--clouds", "2", "-v", inter=inter)
        assert status == 0, done.text
        assert "ranks are bit-identical" in done.text
        # Without a measurement the rule of the choice is said.
        assert "2 members: all_gather (by size and members; links are not measured" in done.text
        assert "round trip" not in done.text
    met.mkdir()
    (met / "key").write_text("a secret\n")
    inter = {
        "transport": "tcp",
        "rendezvous": f"{LOOPBACK}:{free_port()}",
        "key_file": str(met / "key"),
        "interface": LOOPBACK,
    }
    listed = 'inter.clouds=["cloud0", "cloud1"]'
    first, second = outputs(
        cloud(met, "cloud0", listed, inter=inter), cloud(met, "cloud1", listed, inter=inter)
    )
    assert "ranks are bit-identical" in first, first + second
    for folder in (tcp, met):
        assert losses(folder / "out") == losses(mpi / "out")
        for i in range(2):
            assert_equal_weights(weights(folder / "out", 6, i), weights(mpi / "out", 6, i))
        assert records(folder / "out")[-1]["wan_bytes"] == records(mpi / "out")[-1]["wan_bytes"]


def test_a_cloud_that_does_not_come(tmp_path: Path) -> None:
    inter = {"transport": "tcp", "rendezvous": f"{LOOPBACK}:{free_port()}", "meet_timeout_s": 2.0}
    listed = 'inter.clouds=["here", "away:2"]'
    (output,) = outputs(cloud(tmp_path, "here", listed, inter=inter))
    assert "rank 1, 2 did not come within 2 s" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"transport": "rdma"}, "must be mpi or tcp"),
        ({"streams": 100}, "streams is 100"),
        ({"meet_timeout_s": 0.0}, "meet_timeout_s"),
        ({"rate_limit": -1.0}, "rate_limit"),
        ({"transport": "tcp", "rendezvous": "a:1"}, "need each other"),
        ({"clouds": ("a",)}, "need each other"),
        ({"rendezvous": "a:1", "clouds": ("a",)}, 'transport = "tcp"'),
        ({"transport": "tcp", "rendezvous": "a:1", "clouds": ("a:0",)}, "'a:0'"),
        ({"transport": "tcp", "rendezvous": "a:1", "clouds": ("a:x",)}, "'a:x'"),
        ({"transport": "tcp", "rendezvous": "a:1", "clouds": ("a", "a:2")}, "'a' twice"),
    ],
)
def test_what_a_configuration_may_not_say(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InterConfig(**keys).check()


def test_which_rank_a_process_is() -> None:
    ranks = {"aws": 4, "gcp": 2}
    gcp = {"FEDCOMM_CLOUD": "gcp"}
    openmpi = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
    assert place(ranks, {**gcp, **openmpi}) == (5, 6)
    assert place(ranks, {**gcp, "PMI_RANK": "0", "PMI_SIZE": "2"}) == (4, 6)
    assert place({"gcp": 1, "aws": 4}, gcp) == (0, 5)
    with pytest.raises(ConfigError, match=r"started with 1 ranks, but inter.clouds says 2"):
        place(ranks, gcp)
    with pytest.raises(ConfigError, match=r"FEDCOMM_CLOUD is ''; .* one of inter.clouds: aws, gcp"):
        place(ranks, {})


@pytest.mark.parametrize("transport", ["mpi", "tcp"])
def test_links_are_measured_and_the_choice_explained(tmp_path: Path, transport: str) -> None:
    """Two rails, one after the other; said once, by rank 0."""
    inter = {"transport": transport, "measure": True}
    status, done = mpirun(tmp_path, 4, "--clouds", "2", "--verbose", inter=inter)
    assert status == 0, done.text
    assert "ranks are bit-identical" in done.text
    assert re.search(r"^link +rate +round trip +loss$", done.text, re.MULTILINE), done.text
    assert len(re.findall(r"^cloud \S+ -> cloud \S+ +[\d.]+ .B/s ", done.text, re.MULTILINE)) == 2
    assert len(re.findall(r" elements as \S+, .*, 2 members: all_gather$", done.text, re.M)) == 1
    assert len(re.findall(r"^(all_gather|direct|ring) ", done.text, re.MULTILINE)) == 3
