"""fp32 masters of bf16 parameters: small steps add up, inside a cloud and across clouds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from reference_sync import Run
from small_model import (
    EXACT,
    FRAGMENTS,
    IN_ROUNDS,
    config_for,
    crafted,
    flat_of,
    make_parameters,
    opened,
)

from pyfedcomm import sync
from pyfedcomm.buckets import fingerprint
from pyfedcomm.errors import InvalidArgument
from pyfedcomm.group import Group
from pyfedcomm.sync import MasterWeights

SMALL = 2.0**-13
"""Times a gradient of at most 8, a step too small for a bf16 value of 1 or more."""


@pytest.mark.parametrize("rule", IN_ROUNDS)
def test_masters_train_as_fp32_parameters_do(rule: str) -> None:
    """The values that fp32 parameters would have had, and the model's are these, rounded."""
    truth = Run(
        crafted(0),
        [[0], [1]],
        SMALL,
        rule,
        3,
        0.5,
        0.5,
        fragments=FRAGMENTS,
        overlap=1,
        mixing=0.5,
    )
    for step in range(7):
        truth.step([crafted(1000 * step + rank) for rank in range(2)], (4, 4))
    truth.finish()

    def fn(group: Group) -> tuple[Any, Any, str]:
        named = make_parameters(torch.bfloat16)
        masters = MasterWeights(named)
        optimizer = torch.optim.SGD(masters.parameters(), lr=SMALL)
        with opened(group) as hierarchy:
            made = sync.make(config_for(rule, EXACT), masters.named_parameters(), hierarchy)
            for step in range(7):
                for half in (0.25, 0.75):  # two backward passes
                    offset, flat = 0, torch.from_numpy(crafted(1000 * step + group.rank))
                    for _, p in named:
                        part = flat[offset : offset + p.numel()].reshape(p.shape)
                        p.grad = (half * part).to(p.dtype)
                        offset += p.numel()
                    masters.take_gradients()
                    assert all(p.grad is None for _, p in named)
                made.after_backward(4)
                optimizer.step()
                optimizer.zero_grad()
                made.after_step(4)
                masters.write_back()
            made.finish()
            masters.write_back()
        return flat_of(list(masters.named_parameters())), flat_of(named), fingerprint(named)

    results = run_ranks(2, fn)
    for rank, (values, rounded, _) in enumerate(results):
        np.testing.assert_array_equal(values, truth.params[rank])
        assert not np.array_equal(values, rounded)
        expected = torch.from_numpy(truth.params[rank]).bfloat16().float().numpy()
        np.testing.assert_array_equal(rounded, expected)
    assert rule == "isolated" or results[0][2] == results[1][2]


def test_what_needs_no_master_is_itself() -> None:
    low = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    full = torch.nn.Parameter(torch.ones(2))
    frozen = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16), requires_grad=False)
    integer = torch.nn.Parameter(torch.arange(4), requires_grad=False)
    names = ["low", "full", "frozen", "integer", "tied"]
    masters = MasterWeights(zip(names, [low, full, frozen, integer, low], strict=True))
    named = dict(masters.named_parameters())
    assert list(named) == names
    assert named["full"] is full
    assert named["frozen"] is frozen
    assert named["integer"] is integer
    assert named["tied"] is named["low"]
    assert named["low"].dtype == torch.float32
    assert len(list(masters.parameters())) == 4
    masters.take_gradients()
    assert named["low"].grad is None


def test_shared_memory_is_refused() -> None:
    low = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    same = torch.nn.Parameter(low.data)
    with pytest.raises(InvalidArgument, match="'b' shares its memory"):
        MasterWeights([("a", low), ("b", same)])
