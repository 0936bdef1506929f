"""Outer state in host memory: the same bits as on the model's own device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks
from small_model import EXACT, bits, config_for, make_parameters, one_rank_per_cloud

from pyfedcomm import sync
from pyfedcomm.buckets import fingerprint
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync import on_host
from pyfedcomm.sync.config import OUTER_OPTIMIZERS as KINDS
from pyfedcomm.sync.fedopt import Adaptive
from pyfedcomm.sync.on_host import streamed_step
from pyfedcomm.sync.outer import OuterOptimizer, Remembering, Sgd


@pytest.mark.parametrize("chunk", [1, 1000, 10_001, 20_000])
@pytest.mark.parametrize(
    "optimizer",
    [
        Sgd(0.7),
        Sgd(0.7, 0.9, nesterov=True),
        Remembering(Sgd(0.7, 0.9)),
        *(Adaptive(k, 0.01, 0.9, 0.99, 1e-3) for k in KINDS),
    ],
)
def test_streaming_the_outer_state_changes_no_bit(optimizer: OuterOptimizer, chunk: int) -> None:
    if chunk == 1:
        chunk, n = 1, 50
    else:
        n = 10_001
    anchor, *deltas = torch.randn(4, n, generator=torch.Generator().manual_seed(3))
    anchors = [anchor, anchor.clone()]
    states = [optimizer.start(a) for a in anchors]
    for delta in deltas:
        before = [anchors[1].clone(), {k: v.clone() for k, v in states[1].items()}]
        anchors[0], states[0] = optimizer.step(anchors[0], states[0], delta.clone())
        old_anchor, old_state = anchors[1], states[1]
        anchors[1], states[1] = streamed_step(
            optimizer, anchors[1], states[1], delta.clone(), chunk=chunk
        )
        assert torch.equal(anchors[0], anchors[1])
        assert bits(states[0]) == bits(states[1])
        # A round that fails later must find what it had.
        assert torch.equal(old_anchor, before[0])
        assert bits(old_state) == bits(before[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "rule", [r for r in sync.names() if r not in ("gradient", "isolated", "async")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_outer_state_in_host_memory_gives_the_bits_of_that_on_the_gpu(
    rule: str, dtype: torch.dtype, momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_host, "CHUNK", 1000)

    def fn(group: Group, where: bool) -> tuple[str, dict[str, bytes]]:
        config = config_for(
            rule,
            EXACT,
            codec="int8",
            error_feedback=True,
            outer_on_host=where,
            local_steps=2,
            local_momentum=momentum,
        )
        mine = torch.Generator().manual_seed(group.rank)
        named = [
            (n, torch.nn.Parameter(p.detach().to("cuda", dtype))) for n, p in make_parameters()
        ]
        optimizer = torch.optim.SGD([p for _, p in named], lr=0.1)
        with Hierarchy(group, one_rank_per_cloud(group), device="cuda") as hierarchy:
            made = sync.make(config, named, hierarchy)
            for step in range(6):
                if step == 3:
                    made.load_state_dict({k: on_cpu(v) for k, v in made.state_dict().items()})
                for _, p in named:
                    p.grad = torch.randn(p.shape, generator=mine).to(p)
                made.after_backward(3 + group.rank)
                optimizer.step()
                made.after_step(3 + group.rank)
            made.finish()
            state = made.state_dict()
        kept = [v for k, v in state.items() if k.startswith("fragment.")]
        assert kept
        for tensor in kept:
            assert tensor.device.type == ("cpu" if where else "cuda")
            assert tensor.is_pinned() == (where and tensor.numel() > 0)
        return fingerprint(named), bits({k: on_cpu(v) for k, v in state.items()})

    on_gpu = run_ranks(2, lambda group: fn(group, False))
    in_host_memory = run_ranks(2, lambda group: fn(group, True))
    assert on_gpu == in_host_memory
    assert on_gpu[0][0] == on_gpu[1][0]


def on_cpu(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value
