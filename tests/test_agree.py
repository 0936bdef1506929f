"""Agreement: what goes wrong on one rank is known to all."""

from __future__ import annotations

from ranks import errors_of, run_ranks

from pyfedcomm.errors import ConfigError, CorruptFrame, InvalidArgument
from pyfedcomm.group import Group
from pyfedcomm.train.agree import agree, agree_on, is_everywhere


def test_one_ranks_error_is_everybodys() -> None:
    def rank(group: Group) -> int:
        def work() -> int:
            if group.rank == 1:
                raise OSError(2, "No such file or directory", "/data/x")
            return group.rank

        return agree(group, f"rank {group.rank}", work)

    for error in errors_of(3, rank):
        assert isinstance(error, ConfigError)
        assert str(error) == "rank 1: No such file or directory: /data/x"
        assert is_everywhere(error)


def test_errors_keep_their_kind_and_equal_ones_are_told_once() -> None:
    def rank(group: Group) -> None:
        def work() -> None:
            raise CorruptFrame("all alike") if group.rank else InvalidArgument("other")

        agree(group, f"rank {group.rank}", work)

    for error in errors_of(3, rank):
        assert isinstance(error, InvalidArgument)
        assert str(error) == "rank 0: other; rank 1, rank 2: all alike"
    assert run_ranks(3, lambda g: agree(g, "", lambda: g.rank)) == [0, 1, 2]


def test_differences_are_named() -> None:
    def rank(group: Group) -> None:
        own = {"codec": "int4" if group.rank == 2 else "int8", "same": [1], f"own {group.rank}": 1}
        agree_on(group, f"rank {group.rank}", own, remedy="choose")

    for error in errors_of(3, rank):
        assert isinstance(error, ConfigError)
        assert str(error) == (
            "the ranks disagree on codec: 'int8' on rank 0, rank 1, 'int4' on rank 2: choose"
        )
