"""The state of a run's ranks, put together and divided anew among others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ranks import run_ranks

from pyfedcomm import sync
from pyfedcomm.buckets import shards
from pyfedcomm.errors import ConfigError
from pyfedcomm.train.resuming import broadcast_tree


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_shards_and_owned_parts_for_other_rails(before: int, after: int) -> None:
    """Against slices of the whole; lengths that differ by their padding only."""
    n = 10_000  # elements; the rest of each bucket is padding

    def rank_state(values: dict[str, torch.Tensor], rail: int | None, n_rails: int) -> Any:
        """Of one rank of the second of two clouds, which owns the end of each shard."""
        result: dict[str, Any] = {"rule": "x", "n_rails": n_rails, "round": 7, "steps": [3]}
        result |= {"flights": [[0, 5.0, 7, 9, 8]], "tokens": [10 * (rail or 0)]}
        if rail is None:
            return result
        length = -(-n // (4096 * n_rails)) * 4096
        part = shards(length * n_rails, n_rails)[rail]
        cut = {
            k: torch.cat([v, torch.zeros(length * n_rails - n)])[part] for k, v in values.items()
        }
        result |= cut
        result["feedback.0.owned"] = [length // 2, length]
        result["feedback.0.owner"] = cut["feedback.0.owner"][length // 2 :]
        return result

    names = ("fragment.0.anchor", "flight.0.delta", "feedback.0.sender", "feedback.0.owner")
    values = {name: torch.randn(n) for name in names}
    old = [rank_state(values, rail, before) for rail in range(before)]
    whole = sync.assemble([*old, rank_state(values, None, before)])
    owner = whole["tensors"]["feedback.0.owner"]
    assert 0 < int((owner != 0).sum()) < n, "only what this cloud owned"
    owner[: len(values["feedback.0.owner"])] = values["feedback.0.owner"]  # the other cloud's, too

    for rail in [*range(after), None]:
        joins = rail is None
        expected = rank_state(values, rail, after)
        zeros = {name: torch.zeros(n) for name in names}
        fresh = {**rank_state(zeros, rail, after), "flights": [], "round": 0, "steps": [0]}
        fresh.pop("flight.0.delta", None)
        found = sync.distribute(
            sync.for_joining(whole) if joins else whole,
            fresh,
            rail=rail,
            rank=after if rail is None else rail,
            n_ranks=after + 1,
            common=("round", "steps"),
            measured=(),
            joins=joins,
        )
        assert found["flights"] == [[0, 0.0 if joins else 5.0, 7, 9, 8]]
        assert found["round"] == 7
        for name in names:
            assert (name in found) == (name in expected) == (rail is not None)
            if name in found:
                assert torch.equal(found[name], expected[name]), name
    spread = [sync.reshard._tokens([[10], [5]], rank, 4) for rank in range(4)]
    assert spread == [[4], [4], [4], [3]]


def test_state_that_nobody_knows_how_to_divide_is_refused() -> None:
    old = {"rule": "x", "n_rails": 1, "clock": [3, 4]}
    with pytest.raises(ConfigError, match=r"has clock = \[3, 4\], this run has \[0, 0, 0\]"):
        sync.distribute(
            sync.assemble([old]),
            {"rule": "x", "n_rails": 1, "clock": [0, 0, 0]},
            rail=0,
            rank=0,
            n_ranks=1,
            common=("round",),
            measured=(),
            joins=False,
        )


def test_a_layout_of_other_sections_is_refused() -> None:
    old = {"rule": "x", "n_rails": 2, "sections": 2}
    with pytest.raises(ConfigError, match="has sections = 2, this run has None"):
        sync.distribute(
            sync.assemble([old, old]),
            {"rule": "x", "n_rails": 1},
            rail=0,
            rank=0,
            n_ranks=1,
            common=(),
            measured=(),
            joins=False,
        )


def test_a_tree_is_sent_as_it_is() -> None:
    tree: dict[Any, Any] = {
        "a": [torch.arange(6).view(2, 3), torch.tensor(2.5), torch.zeros(0, dtype=torch.bfloat16)],
        3: {"x": (1, None, "ü", math.inf)},
        "half": torch.randn(4).bfloat16()[::2],
    }
    for got in run_ranks(3, lambda g: broadcast_tree(g, tree if g.rank == 0 else None)):
        for a, b in zip([*tree["a"], tree["half"]], [*got["a"], got["half"]], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        assert got[3] == tree[3]
