"""Order of sequences, and dealing them anew: each sequence of an epoch is seen exactly once."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfedcomm.data import deal as deal_module
from pyfedcomm.data import stream
from pyfedcomm.data.deal import Deal, Run
from pyfedcomm.errors import ConfigError

Sample = tuple[int, int, int]


def samples(
    sequences: stream.Sequences, deal: Deal, cloud: int, begin: int, n: int, rank: int, n_ranks: int
) -> list[Sample]:
    batch = sequences.batch(deal, cloud, begin, n, rank=rank, n_ranks=n_ranks)
    return [(int(e), int(p), int(i)) for e, p, i in batch.samples]


# --- sequences ------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(10, 120), min_size=1, max_size=3),
    seq_len=st.integers(1, 9),
    n_ranks=st.integers(1, 4),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_ranks_share_every_epoch_and_leave_nothing_over(
    lengths: list[int], seq_len: int, n_ranks: int, seed: int
) -> None:
    parts = [np.arange(n, dtype=np.uint16) + 1000 * p for p, n in enumerate(lengths)]
    sequences = stream.Sequences(parts, seq_len, seed)
    for cloud, n in enumerate(sequences.lengths):
        seen: list[Sample] = []
        for rank in range(n_ranks):
            deal = Deal(sequences.lengths)  # each rank has its own
            batch = sequences.batch(deal, cloud, 0, 2 * n, rank=rank, n_ranks=n_ranks)
            assert batch.tokens.shape == (2 * n, seq_len + 1)
            assert (np.diff(batch.tokens, axis=1) == 1).all(), "consecutive tokens"
            starts = 1000 * batch.samples[:, 1] + seq_len * batch.samples[:, 2]
            assert (batch.tokens[:, 0] == starts).all(), "the samples that it says"
            seen += [(int(e), int(p), int(i)) for e, p, i in batch.samples]
        # 2 n on each rank: 2 n_ranks epochs, wherever the ranks' boundaries fell.
        whole = [(e, cloud, i) for e in range(2 * n_ranks) for i in range(n)]
        assert sorted(seen) == whole


def test_position_resumes_exactly_and_epochs_and_seeds_differ() -> None:
    tokens = np.arange(200, dtype=np.uint16)
    sequences = stream.Sequences([tokens], 4, seed=7)
    (n,) = sequences.lengths

    def taken(begin: int, n: int, seed: int = 7) -> np.ndarray:
        fresh = stream.Sequences([tokens], 4, seed)
        return fresh.batch(Deal([49]), 0, begin, n, rank=1, n_ranks=2).tokens

    rows = taken(0, 60)
    assert (taken(33, 27) == rows[33:]).all()
    assert (taken(0, 60, seed=8) != rows).any()
    first = sequences.batch(Deal([n]), 0, 0, 2 * n, rank=0, n_ranks=1).tokens
    assert (first[:n] != first[n:]).any(), "another order in the next epoch"
    assert sorted(first[:n, 0]) == sorted(first[n:, 0])


def test_a_permutation_is_the_same_with_every_version_of_numpy() -> None:
    assert stream.permutation(0, 0, 0, 10).tolist() == GOLDEN[0]
    assert stream.permutation(3, 2, 1, 10).tolist() == GOLDEN[1]
    assert sorted(stream.permutation(1, 1, 1, 1001)) == list(range(1001))


GOLDEN = [[3, 2, 1, 8, 6, 0, 7, 4, 5, 9], [5, 1, 4, 6, 8, 9, 3, 0, 7, 2]]


def test_orders_are_forgotten_but_not_lost() -> None:
    """A run of many epochs keeps few permutations, and makes again what it needs again."""
    sequences = stream.Sequences([np.arange(30, dtype=np.uint16)] * 2, 1, 0)
    rows = [
        sequences.batch(Deal(sequences.lengths), 0, begin, 29, rank=0, n_ranks=1).tokens
        for begin in [*range(0, 29 * 9, 29), 0]
    ]
    assert (rows[0] == rows[-1]).all()
    assert len(sequences._orders) <= 5


def test_a_part_with_fewer_sequences_than_ranks_is_named() -> None:
    stream.check_lengths([2, 3], ["a", "b"], [2, 3])
    with pytest.raises(ConfigError, match=r"cloud b is too short: 2 sequences for 3 ranks"):
        stream.check_lengths([2, 2], ["a", "b"], [2, 3])


def test_held_out_sequences_are_shared_out() -> None:
    tokens = np.arange(401, dtype=np.uint16)
    parts = [stream.heldout_sequences(tokens, 4, 10, shard=i, n_shards=3) for i in range(3)]
    assert [len(part) for part in parts] == [4, 3, 3]
    assert sorted(np.concatenate(parts)[:, 0].tolist()) == list(range(0, 400, 40)), "spread evenly"
    assert len(stream.heldout_sequences(tokens, 4, 0)) == 100
    with pytest.raises(ConfigError, match="held-out data is too short: 4 tokens"):
        stream.heldout_sequences(tokens[:4], 4, 10)


# --- dealing anew ---------------------------------------------------------------------------------


@given(total=st.integers(0, 10**12), shares=st.lists(st.integers(1, 10**9), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_targets_add_up_and_are_in_proportion(total: int, shares: list[int]) -> None:
    found = deal_module.targets(total, shares)
    assert sum(found) == total
    for target, share in zip(found, shares, strict=True):
        assert abs(target - total * share / sum(shares)) <= len(shares) + 1e-3
        assert target >= 1 or total < len(shares)


def test_the_example_of_the_module() -> None:
    deal = Deal([100, 120])
    assert deal.redeal([30, 10], shard=1) == 65
    # Left are 70 and 110: 180, so 135 and 45 are the targets; b has 110.
    assert deal.take(0, 0, 135) == [Run(0, 0, 30, 100), Run(0, 1, 55, 120)]
    assert deal.take(1, 0, 45) == [Run(0, 1, 10, 55)]
    assert deal.take(1, 45, 46)[0].epoch == 1, "and both come to the end of the epoch together"


def test_a_deal_moves_whole_shards_or_nothing() -> None:
    deal = Deal([100, 100])
    assert deal.redeal([11, 10], shard=0) == 4, "a quarter of the slowest's 10, rounded: 2"
    assert deal.redeal([10, 10], shard=50) == 0


def one_of(deals: list[Deal]) -> Deal:
    states = [json.dumps(deal.state_dict()) for deal in deals]
    assert len(set(states)) == 1, "all ranks have the same deal"
    return deals[0]


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_each_sequence_of_an_epoch_is_seen_once_whatever_the_speeds(data: st.DataObject) -> None:
    """Clouds of changing speed, deals at any time, resumed from saved states in between."""
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    n_clouds = len(lengths)
    ranks = [data.draw(st.integers(1, 3)) for _ in lengths]
    parts = [np.arange(n + 1, dtype=np.uint16) for n in lengths]
    sequences = stream.Sequences(parts, 1, seed=3)
    assert sequences.lengths == lengths
    deals = [Deal(lengths) for _ in lengths]  # each cloud computes it for itself
    taken = [0] * n_clouds
    seen: list[Sample] = []
    for _ in range(data.draw(st.integers(1, 8))):
        for cloud in range(n_clouds):
            n = data.draw(st.integers(0, 25))
            ahead = deals[cloud].copy()  # as the thread that prepares batches
            for rank in range(ranks[cloud] if n else 0):
                seen += samples(sequences, ahead, cloud, taken[cloud], n, rank, ranks[cloud])
            taken[cloud] += n
        action = data.draw(st.sampled_from(["deal", "resume", "nothing"]))
        if action == "deal":
            counts = [n * r for n, r in zip(taken, ranks, strict=True)]
            shard = data.draw(st.integers(0, 9))
            for deal in deals:
                deal.redeal(counts, shard)
            taken = [0] * n_clouds
            one_of(deals)
        elif action == "resume":
            saved = json.dumps(one_of(deals).state_dict())
            deals = [Deal(lengths) for _ in lengths]
            for deal in deals:
                deal.load_state_dict(json.loads(saved))
    # Everybody goes on, one by one, until all have left the epochs that anybody has begun.
    last = max((epoch for epoch, _, _ in seen), default=0)
    for cloud in range(n_clouds):
        place, epoch = taken[cloud] * ranks[cloud], 0
        while epoch <= last:
            ((epoch, part, index),) = samples(sequences, deals[cloud], cloud, place, 1, 0, 1)
            seen.append((epoch, part, index))
            place += 1
    count = Counter(sample for sample in seen if sample[0] <= last)
    expected = {(e, p, i) for e in range(last + 1) for p, n in enumerate(lengths) for i in range(n)}
    assert set(count) == expected, "none lost"
    assert set(count.values()) == {1}, "none twice"


def test_a_cloud_that_stood_still_gives_its_work_away_and_can_go_on() -> None:
    deal = Deal([50, 50, 50])
    deal.redeal([20, 0, 20], shard=1)
    left = [sum(len(r) for r in queue if r.epoch == 0) for queue in deal._queues]
    assert left[1] < 5
    assert sum(left) == 110
    assert len(deal.take(1, 0, 500)) > 1, "its queue never ends"


def test_the_next_epochs_are_dealt_by_the_speeds_from_the_start() -> None:
    deal = Deal([100, 100])
    deal.redeal([30, 10], shard=1)
    runs = deal.take(0, 0, 1000)
    by_epoch = Counter[int]()
    for run in runs:
        by_epoch[run.epoch] += len(run)
    assert by_epoch[1] == by_epoch[2] == 150, "3 of 4, of 200"


def test_a_state_of_other_data_is_refused() -> None:
    state = Deal([5, 6]).state_dict()
    with pytest.raises(ConfigError, match=r"parts of \[5, 6\] sequences, here they are \[5, 7\]"):
        Deal([5, 7]).load_state_dict(state)
