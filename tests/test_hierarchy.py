"""Two networks together: real ``mpirun`` runs of `mpi_hierarchy`, and clouds of one rank each."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import pytest
import torch
from ranks import errors_of, run_ranks

from pyfedcomm import launch
from pyfedcomm.errors import ConfigError, InvalidArgument, NonFinite, Timeout
from pyfedcomm.exchange import Exchanged, finish_all
from pyfedcomm.feedback import ErrorFeedback
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.topology import Topology, from_labels

pytestmark = pytest.mark.mpi

SCRIPT = Path(__file__).with_name("mpi_hierarchy.py")
DEADLINE_S = 200.0


def mpirun(tmp_path: Path, *argv: str, n_ranks: int = 4) -> tuple[int, str]:
    """Exit status and output of a run; `Timeout` if it does not end by itself."""
    log = tmp_path / "output.txt"
    command = [sys.executable, "-W", "error", str(SCRIPT), *argv]
    env = {"OMP_NUM_THREADS": "1"}
    status = launch.run(n_ranks, command, timeout_s=DEADLINE_S, log=log, env=env)
    return status, log.read_text(errors="replace")


def passed(output: str) -> list[int]:
    """The ranks that came to the end of their scenario."""
    return sorted(int(rank) for rank in re.findall(r"^rank (\d+) ok$", output, re.MULTILINE))


@pytest.mark.parametrize(
    ("scenarios", "clouds", "n_ranks"),
    [("everything,user-world", "2", 4), ("everything", "1,3", 4), ("everything", "1", 2)],
)
def test_clouds_of_several_ranks(tmp_path: Path, scenarios: str, clouds: str, n_ranks: int) -> None:
    """Also beside a torch.distributed of the user's own."""
    status, output = mpirun(tmp_path, scenarios, clouds, n_ranks=n_ranks)
    assert passed(output) == list(range(n_ranks)), output
    assert status == 0, output


@pytest.mark.parametrize("clouds", ["2", "1,3"])
def test_failures_reach_every_rank(tmp_path: Path, clouds: str) -> None:
    # The exit status is not the point here: MPI may refuse to end well after a broken exchange.
    _, output = mpirun(tmp_path, "failures", clouds)
    assert passed(output) == [0, 1, 2, 3], output


@pytest.mark.parametrize("clouds", ["2", "1,3"])
def test_a_rank_that_hangs_leaves_no_other_hanging(tmp_path: Path, clouds: str) -> None:
    status, output = mpirun(tmp_path, "hung-rank", clouds)
    assert status != 0, output
    ended = re.findall(r"^rank (\d+) ended with (?:Timeout|PeerLost)$", output, re.MULTILINE)
    assert sorted(ended) == ["0", "1", "2"], output


# --- clouds of one rank, in threads --------------------------------------------------------------


def lone(group: Group) -> Topology:
    return from_labels([f"c{i}" for i in range(group.size)], ["h"] * group.size, group.rank)


def test_codec_and_weights_reach_the_exchange() -> None:
    def fn(group: Group) -> tuple[float, torch.Tensor, int, int]:
        with Hierarchy(group, lone(group)) as h:
            flat = torch.full((10_000,), float(group.rank))
            plain = h.wan_stats().frame_bytes
            total = h.all_reduce(flat, weight=[1.0, 3.0][group.rank], codec="fp32").weight
            plain = h.wan_stats().frame_bytes - plain
            again = h.wan_stats().frame_bytes
            h.all_reduce(flat.clone(), weight=1.0, codec="int8")
            return total, flat, plain, h.wan_stats().frame_bytes - again

    for total, flat, plain, coded in run_ranks(2, fn):
        assert total == 4.0
        assert torch.equal(flat, torch.full_like(flat, 0.75))
        assert coded < 0.3 * plain


def test_feedback_is_committed_by_the_caller_alone() -> None:
    """Decoded plus residual is the input; until the commit the old residual stands."""

    def fn(group: Group) -> None:
        n = 5_000
        with Hierarchy(group, lone(group)) as h:
            assert h.inter is not None
            generator = torch.Generator().manual_seed(group.rank)
            flat = torch.randn(n, generator=generator)
            given = flat.clone()
            feedback = ErrorFeedback(n, h.inter, "direct")
            h.all_reduce(flat, weight=1.0, codec="int8", algorithm="direct", feedback=feedback)
            assert not any(t.any() for t in feedback.state_dict().values())
            feedback.commit()
            sender = feedback.state_dict()["sender"]
            assert sender.any()
            assert feedback.state_dict()["owner"].any()
            assert sender.abs().max() <= given.abs().max() / 127

    run_ranks(2, fn)


@pytest.mark.parametrize("apart", [False, True])
def test_what_has_no_weight_does_no_harm(apart: bool) -> None:
    def fn(group: Group) -> torch.Tensor:
        with Hierarchy(group, lone(group)) as h:
            flat = torch.full((5_000,), float("nan") if group.rank == 0 else 2.0)
            out = torch.zeros(5_000) if apart else flat
            h.exchange(flat, weight=float(group.rank), out=out)
            return out

    for out in run_ranks(2, fn):
        assert set(out.tolist()) == {2.0}


@pytest.mark.parametrize("n_clouds", [1, 2])
def test_non_finite_values_and_weights_of_zero(n_clouds: int) -> None:
    def bad_value(group: Group) -> None:
        flat = torch.ones(5_000)
        if group.rank == 0:
            flat[4_321] = float("nan")
        with Hierarchy(group, lone(group)) as h:
            h.all_reduce(flat, weight=1.0)

    def no_weight(group: Group) -> None:
        with Hierarchy(group, lone(group)) as h:
            h.all_reduce(torch.ones(5_000), weight=0.0)

    for error in errors_of(n_clouds, bad_value):
        assert isinstance(error, NonFinite)
        assert error.index == 4_321
    for other in errors_of(n_clouds, no_weight):
        assert isinstance(other, InvalidArgument)
        assert "weights" in str(other)


def test_a_cloud_with_a_nan_is_left_out_if_asked_for() -> None:
    def fn(group: Group) -> tuple[Exchanged, set[float]]:
        flat = torch.full((5_000,), float(group.rank))
        if group.rank == 1:
            flat[4_321] = float("nan")
        with Hierarchy(group, lone(group)) as h:
            return h.all_reduce(flat, weight=2.0, nonfinite="exclude"), set(flat.tolist())

    assert run_ranks(3, fn) == [(Exchanged(4.0, (1,)), {1.0})] * 3


@pytest.mark.parametrize("n_clouds", [1, 2])
def test_nothing_is_left_where_every_cloud_is_left_out(n_clouds: int) -> None:
    def fn(group: Group) -> None:
        with Hierarchy(group, lone(group)) as h:
            h.all_reduce(torch.full((5_000,), float("inf")), weight=1.0, nonfinite="exclude")

    for error in errors_of(n_clouds, fn):
        assert isinstance(error, NonFinite)


def test_an_exchange_that_begins_waits_for_no_other_cloud() -> None:
    begun = threading.Event()

    def fn(group: Group) -> list[float]:
        n = 5_000
        part, out = torch.full((n,), float(group.rank)), torch.zeros(n)
        with Hierarchy(group, lone(group)) as h:
            assert group.rank == 0 or begun.wait(10)
            exchange = h.begin_shard(part, out, n_elems=n, weight=1.0)
            begun.set()
            assert exchange.finish() == Exchanged(2.0)
        assert set(part.tolist()) == {float(group.rank)}
        return sorted(set(out.tolist()))

    assert run_ranks(2, fn) == [[0.5]] * 2


def test_bad_arguments_raise_on_every_rank() -> None:
    def too_many_rails(group: Group) -> None:
        Hierarchy(group, lone(group), n_rails=2)

    def different_rails(group: Group) -> None:
        Hierarchy(group, lone(group), n_rails=1 + group.rank)

    def unknown_codec(group: Group) -> None:
        with Hierarchy(group, lone(group)) as h:
            h.all_reduce(torch.ones(8), weight=1.0, codec="nonsense")

    def bad_weight(group: Group) -> None:
        with Hierarchy(group, lone(group)) as h:
            h.all_reduce(torch.ones(8), weight=float("nan"))

    def unknown_policy(group: Group) -> None:
        with Hierarchy(group, lone(group)) as h:
            h.all_reduce(torch.ones(8), weight=1.0, nonfinite="ignore")

    for fn, kind, text in [
        (too_many_rails, InvalidArgument, "must be 1 to 1"),
        (different_rails, ConfigError, "rank 1 has 2"),
        (unknown_codec, InvalidArgument, "nonsense"),
        (bad_weight, InvalidArgument, "weight is nan"),
        (unknown_policy, InvalidArgument, "error, exclude"),
    ]:
        for error in errors_of(2, fn):
            assert isinstance(error, kind)
            assert text in str(error)


class Slow:
    """Stands for an exchange that takes longer than a few of its callers' waits."""

    def __init__(self, n_waits: int) -> None:
        self.left = n_waits

    def wait(self, timeout: float | None = None) -> None:
        assert timeout is not None
        self.left -= 1
        if self.left > 0:
            raise Timeout("not yet")

    def done(self) -> bool:
        return self.left <= 0


class Pair:
    """Stands for the inside of a cloud of two ranks, of which the other one has nothing to do."""

    size, rank = 2, 0

    def __init__(self) -> None:
        self.told: list[bool] = []

    def max(self, values: list[float]) -> list[float]:
        self.told.append(bool(values[0]))
        return values


def test_a_slow_exchange_is_not_a_dead_one() -> None:
    """While it runs, the gateway tells its cloud again and again that it is still waiting."""
    pair = Pair()
    ended = finish_all(pair, [Slow(4)], None, timeout=1.0)  # type: ignore[arg-type, list-item]
    assert ended == (None, False)
    assert pair.told == [True, True, True, False]
