"""Rules that send little and carry the rest along, by the slow truth of codec and residuals."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ranks import run_ranks
from reference import Choice, chunk_top_k, decode, encode
from reference_sync import Run
from small_model import INNER_LR, N_ELEMS, crafted, flat_of, make_parameters, opened, train

from pyfedcomm import sync
from pyfedcomm.group import Group
from pyfedcomm.sync import SyncConfig


def train_one_parameter(
    config: SyncConfig, start: Any, gradients: list[list[Any]]
) -> list[tuple[Any, dict[str, Any], int]]:
    """Of each of two clouds: final values, state, bytes that all sent in the last step.

    gradients: of each step, of each cloud.
    """

    def fn(group: Group) -> tuple[Any, dict[str, Any], int]:
        p = torch.nn.Parameter(torch.from_numpy(start.copy()))
        optimizer = torch.optim.SGD([p], lr=INNER_LR)
        with opened(group) as hierarchy:
            rule = sync.make(config, [("p", p)], hierarchy)
            for of_clouds in gradients:
                p.grad = torch.from_numpy(of_clouds[group.rank])
                rule.after_backward(4)
                optimizer.step()
                before = hierarchy.wan_stats().frame_bytes
                rule.after_step(4)
            sent = hierarchy.wan_stats().frame_bytes - before
            return p.detach().numpy(), rule.state_dict(), sent

    return run_ranks(2, fn)


def test_sparse_sends_what_the_paper_says_and_carries_the_rest() -> None:
    """The codec by its slow truth: 32 of 256 values, two bits each, the error times 0.5."""
    n = 4 * N_ELEMS
    errors = [np.zeros(4096, np.float32) for _ in range(2)]

    def coded(cloud: int, delta: Any) -> Any:
        error = np.float32(0.5) * errors[cloud] + np.pad(delta, (0, 4096 - n))
        sent = np.zeros_like(error)
        chosen = chunk_top_k(error, 256, 32)
        int2 = Choice("int2")
        sent[chosen] = decode(int2, encode(int2, error[chosen]), len(chosen))
        errors[cloud] = error - sent
        return sent[:n]

    config = SyncConfig(rule="sparse", local_steps=2, codec="chunk_topk(256, 32, int2, beta=0.5)")
    assert (config.outer_lr, config.algorithm) == (1.0, "all_gather")
    start = crafted(0, n)
    truth = Run(start, [[0], [1]], INNER_LR, "sparse", 2, 1.0, coded=coded)
    gradients = [[crafted(1000 * t + r, n) for r in range(2)] for t in range(8)]
    for step in range(8):
        truth.step(gradients[step], (4, 4))

    for rank, (final, state, sent) in enumerate(train_one_parameter(config, start, gradients)):
        np.testing.assert_array_equal(final, truth.params[rank])
        np.testing.assert_array_equal(state["feedback.0.sender"].numpy(), errors[rank])
        assert sent < n  # a byte a value is four times what int2 of an eighth should take


def test_onebit_sends_signs_and_carries_the_rest_both_ways() -> None:
    """Each of two clouds owns half of the values, and codes their mean with its residual."""
    n, half, n_rounds = 8192, 4096, 5
    start = crafted(0, n)
    gradients = [[crafted(1000 * t + r, n) for r in range(2)] for t in range(2 * n_rounds)]
    lr = np.float32(INNER_LR)

    def signs(x: Any) -> Any:
        return decode(Choice("sign"), encode(Choice("sign"), x), len(x))

    anchor = start.copy()
    senders, owners = np.zeros((2, half), np.float32), np.zeros((2, half), np.float32)
    for round in range(n_rounds):
        moved = [anchor, anchor]
        for step in (2 * round, 2 * round + 1):
            moved = [w - lr * g for w, g in zip(moved, gradients[step], strict=True)]
        mean = np.empty_like(anchor)
        for owner, part in enumerate((slice(0, half), slice(half, n))):
            sender = 1 - owner
            owed = (anchor - moved[sender])[part] + senders[sender]
            sent = signs(owed)
            senders[sender] = owed - sent
            summed = ((anchor - moved[owner])[part] + sent) / 2 + owners[owner]
            mean[part] = signs(summed)
            owners[owner] = summed - mean[part]
        anchor = anchor - 2 * mean

    config = SyncConfig(rule="onebit", local_steps=2)
    for rank, (final, state, sent) in enumerate(train_one_parameter(config, start, gradients)):
        np.testing.assert_array_equal(final, anchor)
        other = slice(half, n) if rank == 0 else slice(0, half)
        np.testing.assert_array_equal(state["feedback.0.sender"].numpy()[other], senders[rank])
        np.testing.assert_array_equal(state["feedback.0.owner"].numpy(), owners[rank])
        assert sent < n // 4  # bytes: a bit of half of the values each way, scales and headers


def test_onebit_is_diloco_by_one_key() -> None:
    """So what was measured of one holds for the other (``bench/quality/points.toml``)."""
    one = SyncConfig(rule="onebit", horizon=600)
    plain = SyncConfig(
        rule="diloco",
        codec="sign",
        algorithm="direct",
        error_feedback=True,
        local_steps=128,
        outer_lr=2.0,
        outer_decay=0.4,
        outer_momentum=0.0,
        horizon=600,
    )

    def fn(group: Group, config: SyncConfig) -> Any:
        named = make_parameters()
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            train(rule, named, group.rank, range(600), lambda *_: 4)
            rule.finish()
        return flat_of(named)

    ours = run_ranks(3, lambda group: fn(group, one))
    for onebit, diloco in zip(ours, run_ranks(3, lambda group: fn(group, plain)), strict=True):
        np.testing.assert_array_equal(onebit, diloco)
