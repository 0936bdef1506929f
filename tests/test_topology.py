"""Which rank is in which cloud, and what happens where that cannot be told."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from ranks import errors_of, run_ranks

from pyfedcomm.errors import ConfigError
from pyfedcomm.group import Group
from pyfedcomm.topology import CLOUD_VARIABLE, Topology, from_labels


class Told:
    """Stands for a group whose ranks run on the given hosts with the given FEDCOMM_CLOUD.

    `Topology.discover` asks its group one question; in threads of one process all ranks would
    give the same answer.
    """

    def __init__(self, rows: list[tuple[str, str | None]], rank: int = 0) -> None:
        self.rows, self.rank, self.size = rows, rank, len(rows)

    def all_gather_object(self, mine: list[Any]) -> list[Any]:
        told = [[host, cloud, *mine[2:]] for host, cloud in self.rows]
        decoded: list[Any] = json.loads(json.dumps(told))
        return decoded


@pytest.fixture(autouse=True)
def _no_cloud_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CLOUD_VARIABLE, raising=False)


def discover(rows: list[tuple[str, str | None]], rank: int = 0, **how: Any) -> Topology:
    return Topology.discover(Told(rows, rank), **how)  # type: ignore[arg-type]


FOUR: list[tuple[str, str | None]] = [("n0", None), ("n1", None), ("m0", None), ("m1", None)]


def test_positions_of_uneven_clouds() -> None:
    seen = [from_labels(["a", "b", "b", "a", "b"], ["h"] * 5, rank) for rank in range(5)]
    assert seen[0].names == ("a", "b")
    assert seen[0].clouds == ((0, 3), (1, 2, 4))
    assert [t.cloud for t in seen] == [0, 1, 1, 0, 1]
    assert [t.cloud_name for t in seen] == ["a", "b", "b", "a", "b"]
    assert [t.local_rank for t in seen] == [0, 0, 1, 1, 2]
    assert [t.local_size for t in seen] == [2, 3, 3, 2, 3]
    assert {(t.n_clouds, t.n_rails, t.world_size) for t in seen} == {(2, 2, 5)}
    assert [seen[0].rail_ranks(rail) for rail in range(2)] == [(0, 1), (3, 2)]


@pytest.mark.parametrize(
    ("clouds", "expected"),
    [
        ("1", ((0, 1, 2, 3),)),
        ("2", ((0, 1), (2, 3))),
        ("4", ((0,), (1,), (2,), (3,))),
        ("1,3", ((0,), (1, 2, 3))),
        ("2, 1, 1", ((0, 1), (2,), (3,))),
    ],
)
def test_blocks(clouds: str, expected: tuple[tuple[int, ...], ...]) -> None:
    assert discover(FOUR, clouds=clouds).clouds == expected


@pytest.mark.parametrize(
    ("clouds", "message"),
    [
        ("3", "4 ranks cannot be split evenly over 3 clouds"),
        ("1,2", "adds up to 3 ranks, but 4 were started"),
        ("0", "at least 1"),
        ("4,0", "at least 1"),
        ("two", "must be a number of clouds"),
        ("", "must be a number of clouds"),
    ],
)
def test_blocks_that_do_not_fit(clouds: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        discover(FOUR, clouds=clouds)


def test_variable_names_the_cloud() -> None:
    found = discover([("h", "aws"), ("h", "gcp"), ("h", "aws")])
    assert found.names == ("aws", "gcp")
    assert found.clouds == ((0, 2), (1,))


def test_variable_missing_on_a_rank_is_named() -> None:
    with pytest.raises(ConfigError, match=r"rank 1 \(n1\)"):
        discover([("n0", "aws"), ("n1", None), ("n2", "gcp")])


def test_table_of_hosts() -> None:
    table = {"west": ["m0", "m1"], "east": ["n0", "n1"]}
    rows: list[tuple[str, str | None]] = [("n0.corp.example", None), ("m1", None), ("n1", None)]
    found = discover(rows, hosts=table)
    assert found.names == ("east", "west")
    assert found.clouds == ((0, 2), (1,))
    with pytest.raises(ConfigError, match=r"no cloud for rank 1 \(stranger\)"):
        discover([("n0", None), ("stranger", None)], hosts=table)
    with pytest.raises(ConfigError, match="'n0' is listed in clouds 'a' and 'b'"):
        discover([("n0", None)], hosts={"a": ["n0"], "b": ["n0"]})


def test_without_anything_a_host_is_a_cloud() -> None:
    assert discover([("x", None), ("y", None), ("x", None)]).clouds == ((0, 2), (1,))


def test_explicit_clouds_win_over_the_variable_and_the_variable_over_the_table() -> None:
    rows: list[tuple[str, str | None]] = [("n0", "aws"), ("n1", "gcp")]
    assert discover(rows, clouds="1", hosts={"t": ["n0", "n1"]}).names == ("cloud0",)
    assert discover(rows, hosts={"t": ["n0", "n1"]}).names == ("aws", "gcp")


def test_ranks_of_a_group_find_each_other() -> None:
    found = run_ranks(3, lambda group: Topology.discover(group, clouds="1,2"))
    assert [t.rank for t in found] == [0, 1, 2]
    assert {t.clouds for t in found} == {((0,), (1, 2))}
    assert {t.hosts for t in found} == {(socket.gethostname(),) * 3}


def test_ranks_that_disagree_all_fail() -> None:
    def fn(group: Group) -> None:
        Topology.discover(group, clouds="1" if group.rank else "2")

    for error in errors_of(2, fn):
        assert isinstance(error, ConfigError)
        assert "disagree" in str(error)
        assert "rank 0" in str(error)
        assert "rank 1" in str(error)
