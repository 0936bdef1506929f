"""Measured links in Python: one table for all, as text and JSON, and what goes by it."""

from __future__ import annotations

import re
import threading
import time

import numpy as np
import pytest
from ranks import TRANSPORTS, errors_of, integers, run_ranks

import pyfedcomm as fc
from pyfedcomm import links as links_module
from pyfedcomm.feedback import ErrorFeedback


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_member_ends_with_the_same_table(transport: str, size: int) -> None:
    def rank(group: fc.Group) -> fc.Links:
        assert group.links() is None
        links = group.measure(seconds=0.5)
        assert group.links() == links
        x = integers(group.rank, 30_000)
        group.all_reduce(x, algorithm="ring")
        np.testing.assert_array_equal(x, sum(integers(r, 30_000) for r in range(size)))
        return links

    tables = run_ranks(size, rank, transport=transport)
    assert all(each == tables[0] for each in tables)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    assert [(each.source, each.destination) for each in tables[0].links] == pairs
    for each in tables[0].links:
        assert each.rate is not None
        assert each.rate > 0
        assert each.round_trip_s is not None
        assert each.round_trip_s > 0
        assert (each.loss is None) == (transport == "memory")
        assert tables[0].link(each.source, each.destination) is each
    assert sorted(tables[0].ring) == list(range(size))
    assert fc.Links.from_json(tables[0].to_json()) == tables[0]
    with pytest.raises(KeyError):
        tables[0].link(0, 0)


def test_measuring_takes_as_long_as_it_may() -> None:
    def rank(group: fc.Group) -> float:
        start = time.monotonic()
        group.measure(seconds=0.4)
        return time.monotonic() - start

    # A quarter of a minute is for a machine that does other things as well.
    assert max(run_ranks(3, rank)) < 15


def test_tables_can_be_read() -> None:
    table = fc.Links(
        ("cloud aws", "cloud b"),
        (fc.Link(0, 1, 24.94e6, 0.0201, 0.00123), fc.Link(1, 0, None, None, None)),
        (0, 1),
    )
    assert str(table) == (
        "link                       rate  round trip     loss\n"
        "cloud aws -> cloud b  24.9 MB/s     20.1 ms  0.123 %\n"
        "cloud b -> cloud aws          -           -        -"
    )
    ring = fc.Links(("a", "b", "c"), (), (0, 2, 1))
    assert str(ring).endswith("\nring: a -> c -> b")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (16.78e6, "16.8 MB"), (9.996e8, "1 GB")],
)
def test_bytes_have_units(number: float, text: str) -> None:
    assert links_module.bytes_text(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(50e-6, "50 us"), (0.9996e-3, "1 ms"), (0.0201, "20.1 ms"), (2.5, "2.5 s")]
)
def test_times_have_units(number: float, text: str) -> None:
    assert links_module.time_text(number) == text


def test_a_choice_is_explained() -> None:
    def rank(group: fc.Group) -> tuple[str, str, str]:
        before = str(group.explain(1 << 24, "int8"))
        group.measure(seconds=0.3)
        choice = group.explain(1 << 24, "int8")
        assert [each.algorithm for each in choice.forecasts] == ["all_gather", "direct", "ring"]
        times = {each.algorithm: each.total_s for each in choice.forecasts}
        assert choice.algorithm in times
        assert times[choice.algorithm] <= times["all_gather"]
        assert group.owned(1 << 24, "auto", "int8") == group.owned(
            1 << 24, choice.algorithm, "int8"
        )
        of_whole = group.explain(1 << 24, "topk(0.01, int8)")
        assert [each.algorithm for each in of_whole.forecasts] == ["all_gather", "sparse"]
        return before, str(choice), str(group.explain(10, "fp32"))

    told = run_ranks(3, rank)
    assert told[0] == told[1] == told[2]
    before, after, small = told[0]
    assert before == (
        "16,777,216 elements as int8, 17 MB, 3 members: direct "
        "(by size and members; links are not measured, or nothing to choose)"
    )
    lines = after.splitlines()
    assert re.fullmatch(r"algorithm +steps +time +latency +moving +computing +slowest", lines[1])
    assert [line.split()[:2] for line in lines[2:]] == [
        ["all_gather", "1"],
        ["direct", "2"],
        ["ring", "4"],
    ]
    assert all(
        re.search(r"(rank \d -> rank \d|all (from|to) rank \d)$", each) for each in lines[2:]
    )
    assert small.startswith("10 elements as fp32, 40 B, 3 members: all_gather\n")


def test_error_feedback_keeps_its_algorithm_when_links_are_measured() -> None:
    """Who owns what is fixed with the residuals; "auto" may mean something else afterwards."""
    n = 1 << 22  # unmeasured: all_gather; measured on threads: computing decides

    def rank(group: fc.Group) -> str:
        feedback = ErrorFeedback(n, group, "auto", "int8")
        assert group.explain(n, "int8").algorithm == "all_gather"
        group.measure(seconds=0.3)
        x = integers(group.rank, n)
        group.all_reduce(x, codec="int8", residual=feedback.begin())
        feedback.commit()
        assert feedback.state_dict()["owner"].numel() == 0
        return group.explain(n, "int8").algorithm

    assert set(run_ranks(2, rank)) == {"direct"}


def test_traffic_alone_says_little_and_later_more() -> None:
    def rank(group: fc.Group) -> None:
        links = group.measure(by="traffic")
        assert links.ring == ()
        assert all(each.rate is None for each in links.links)
        assert group.explain(1 << 24, "int8").forecasts == ()
        x = np.zeros(1 << 20, np.float32)
        while not group.all_gather(
            np.array([group.link_stats(1 - group.rank).received_rate is not None])
        ).all():  # the deadline is the test's
            group.all_reduce(x, algorithm="direct")
        assert group.link_stats(1 - group.rank).received_rate is not None
        links = group.measure(by="traffic")
        assert all(each.rate is not None and each.rate > 1e5 for each in links.links)

    run_ranks(2, rank)


def test_link_stats_count_payload_and_frames() -> None:
    def rank(group: fc.Group) -> tuple[fc.LinkStats, fc.Stats]:
        group.all_reduce(np.ones(50_000, np.float32), algorithm="direct")
        group.barrier()
        return group.link_stats(1 - group.rank), group.stats()

    told = run_ranks(2, rank)
    for link, stats in told:
        assert link.payload_bytes_sent == stats.payload_bytes
        assert link.frame_bytes_sent == stats.frame_bytes == stats.sent_to[0] + stats.sent_to[1]
        assert link.retransmitted_segments is None
        assert link.stalled_s is None
        assert link.rtt_s is None
        assert link.streams is None
    assert told[0][0].frame_bytes_sent == told[1][0].frame_bytes_received
    assert told[0][0].payload_bytes_received == told[1][0].payload_bytes_sent


def test_bad_arguments() -> None:
    def rank(group: fc.Group) -> None:
        for seconds in (0.0, -1.0, float("nan"), 1e9):
            with pytest.raises(fc.InvalidArgument, match="seconds"):
                group.measure(seconds=seconds)
        with pytest.raises(fc.InvalidArgument, match="measure by guessing"):
            group.measure(by="guessing")
        with pytest.raises(fc.InvalidArgument, match="in another way"):
            group.measure(by="probes" if group.rank else "traffic", seconds=1.0)
        group.barrier()  # nothing is broken by that

    run_ranks(2, rank)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_member_that_fails_ends_measuring_everywhere(transport: str) -> None:
    def rank(group: fc.Group) -> None:
        if group.rank == 1:
            threading.Timer(0.2, group.abort, ["on purpose"]).start()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            group.measure(seconds=0.3)

    for error in errors_of(3, rank, transport=transport):
        assert isinstance(error, fc.Error)
        assert "on purpose" in str(error)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_member_that_never_comes_is_a_timeout(transport: str) -> None:
    def rank(group: fc.Group) -> None:
        if group.rank != 2:
            group.measure(seconds=0.3)

    raised = errors_of(3, rank, transport=transport, timeout=1.0)
    assert isinstance(raised[0], (fc.Timeout, fc.PeerLost))
    assert isinstance(raised[1], (fc.Timeout, fc.PeerLost))
