"""What only streaming does: fragments, their turns, and exchanges beside the training.

That it computes the right thing is for `test_sync`, what it leaves after a failure for
`test_sync_failures`.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from ranks import run_ranks
from reference_sync import Run
from small_model import (
    EXACT,
    FRAGMENTS,
    INNER_LR,
    N_ELEMS,
    SHAPES,
    config_for,
    crafted,
    flat_of,
    make_parameters,
    opened,
    train,
)

from pyfedcomm import sync
from pyfedcomm.buckets import fingerprint
from pyfedcomm.group import Group
from pyfedcomm.sync import SyncConfig
from pyfedcomm.sync.config import FRAGMENT_ORDERS
from pyfedcomm.sync.streaming import divide

GPT2 = [
    "transformer.wte.weight",
    "transformer.wpe.weight",
    *(f"transformer.h.{i}.{part}" for i in range(12) for part in ("ln_1.weight", "mlp.c_fc.bias")),
    "transformer.ln_f.weight",
    "transformer.ln_f.bias",
]


@pytest.mark.parametrize("order", FRAGMENT_ORDERS)
@pytest.mark.parametrize("n", [1, 2, 4, 7, 15])
@pytest.mark.parametrize("names", [GPT2, [f"{i}.weight" for i in range(40)]])
def test_every_parameter_is_in_one_fragment(names: list[str], n: int, order: str) -> None:
    fragments = divide(names, n=n, order=order)
    assert len(fragments) == n
    assert all(fragments)
    assert sorted(i for fragment in fragments for i in fragment) == list(range(len(names)))
    for layer in ("transformer.h.1.", "transformer.h.10.", "transformer.ln_f."):
        having = [f for f in fragments if any(names[i].startswith(layer) for i in f)]
        assert len(having) == (names is GPT2), "a layer is in one fragment"


def test_strided_deals_layers_out_and_sequential_cuts_runs() -> None:
    names = ["embed.weight", *(f"layers.{i}.w" for i in range(4)), "head.weight"]
    assert divide(names, n=3, order="strided") == [[0, 3], [1, 4], [2, 5]]
    assert divide(names, n=3, order="sequential") == [[0, 1], [2, 3], [4, 5]]
    # The first number is the layer's; experts inside are not layers.
    experts = ["layers.0.experts.0.w", "layers.0.experts.1.w", "layers.1.experts.0.w"]
    assert divide(experts, n=2, order="strided") == [[0, 1], [2]]


@pytest.mark.parametrize("order", FRAGMENT_ORDERS)
@pytest.mark.parametrize(
    ("names", "most", "n"),
    [
        (GPT2, 4, 4),
        (GPT2, 1, 1),
        (["0.weight", "0.bias", "2.weight", "2.bias"], 4, 2),
        (["0.weight", "0.bias", "2.weight", "2.bias"], 1, 1),
        (["layers.0.q.lora_A.weight", "layers.0.q.lora_B.weight"], 4, 1),
        (["p"], 4, 1),
        ([f"group.0.parameter.{i}" for i in range(9)], 4, 1),
    ],
)
def test_as_many_fragments_as_can_be_had(names: list[str], most: int, n: int, order: str) -> None:
    chosen = divide(names, n=0, most=most, order=order)
    assert chosen == divide(names, n=n, order=order)
    assert len(chosen) == n


@pytest.mark.parametrize(("local_steps", "n"), [(1, 1), (2, 2), (3, 3), (40, 4)])
def test_by_default_nothing_but_the_rounds_length_is_needed(local_steps: int, n: int) -> None:
    """All that is not given fits: fragments in a round, and steps that one may be under way."""
    config = SyncConfig(local_steps=local_steps)

    def fn(group: Group) -> str:
        named = make_parameters()
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            train(rule, named, group.rank, range(local_steps + 1), lambda *_: 4)
            assert len(rule.state_dict()["steps"]) == n
            rule.finish()
        return fingerprint(named)

    assert len(set(run_ranks(3, fn))) == 1


@pytest.mark.parametrize(
    ("local_steps", "overlap", "mixing"), [(3, 0, 0.0), (3, 2, 0.0), (4, 3, 0.75), (5, 0, 0.5)]
)
def test_overlap_and_mixing(local_steps: int, overlap: int, mixing: float) -> None:
    config = config_for(
        "streaming", EXACT, local_steps=local_steps, overlap_steps=overlap, mixing=mixing
    )
    truth = Run(
        crafted(0),
        [[0], [1]],
        INNER_LR,
        "streaming",
        local_steps,
        0.5,
        0.5,
        fragments=FRAGMENTS,
        overlap=overlap,
        mixing=mixing,
    )
    history: list[list[Any]] = []
    for step in range(12):
        truth.step([crafted(1000 * step + rank) for rank in range(2)], (4, 4))
        history.append([p.copy() for p in truth.params])
    truth.finish()

    def fn(group: Group) -> Any:
        named = make_parameters()
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            for step in range(12):  # after 12 of 5 a fragment has just been mixed
                train(rule, named, group.rank, range(step, step + 1), lambda *_: 4)
                np.testing.assert_array_equal(flat_of(named), history[step][group.rank])
            rule.finish()
            rule.finish()  # nothing is left: does nothing
        return flat_of(named)

    for final in run_ranks(2, fn):
        np.testing.assert_array_equal(final, truth.params[0])


def test_sending_waits_for_no_other_cloud() -> None:
    """Cloud 0 is a step ahead: it goes on although cloud 1 has not sent its part yet."""
    config = config_for("streaming", EXACT, local_steps=4, overlap_steps=2)
    gone_on = threading.Event()

    def fn(group: Group) -> str:
        named = make_parameters()
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            train(rule, named, group.rank, range(1), lambda *_: 4)
            assert group.rank == 0 or gone_on.wait(10), "cloud 0 was made to wait"
            train(rule, named, group.rank, range(1, 3), lambda *_: 4)  # sent after the second
            gone_on.set()
            train(rule, named, group.rank, range(3, 9), lambda *_: 4)
            rule.finish()
        return fingerprint(named)

    assert len(set(run_ranks(2, fn))) == 1


def test_each_turn_moves_one_fragment() -> None:
    config = config_for("streaming", EXACT, local_steps=8, fragments=4, overlap_steps=0)
    sizes = [int(np.prod(shape)) for shape in SHAPES.values()]

    def fn(group: Group) -> list[int]:
        named = make_parameters()
        sent = []
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            for step in range(16):
                before = hierarchy.wan_stats().payload_bytes
                train(rule, named, group.rank, range(step, step + 1), lambda *_: 4)
                sent.append(hierarchy.wan_stats().payload_bytes - before)
        return sent

    for sent in run_ranks(2, fn):
        assert [n > 0 for n in sent] == [step % 2 == 1 for step in range(16)]
        # A shard is padded to 4096 elements; an empty fragment sends its cloud's weight only.
        assert [n > 100 for n in sent[1::2]] == [size > 0 for size in sizes] * 2
        assert max(sent) <= 4 * (4096 + 100)
        assert sum(sizes) == N_ELEMS
