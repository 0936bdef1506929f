"""Sync rules that fail, stop or resume: what they must leave as it was, and say.

One rank per cloud, in threads; several ranks per cloud are `test_hierarchy`'s. What rules refuse to
begin with is `test_sync_config`'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from reference_sync import Run
from small_model import (
    CARRYING,
    EXACT,
    IN_ROUNDS,
    INNER_LR,
    REPEATING,
    bits,
    config_for,
    crafted,
    flat_of,
    make_parameters,
    opened,
    set_gradients,
    train,
)

from pyfedcomm import sync
from pyfedcomm.errors import ConfigError, NonFinite, PeerLost
from pyfedcomm.group import Group
from pyfedcomm.sync import SyncConfig

LOSSY = config_for("diloco", EXACT, codec="int8", outer_lr=0.7, outer_momentum=0.9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("rule", REPEATING)
def test_failed_local_round_changes_nothing(rule: str, bad: float, feedback: bool) -> None:
    config = config_for(rule, LOSSY, local_steps=100, error_feedback=feedback or rule in CARRYING)

    def fn(group: Group) -> tuple[Exception, dict[str, bytes], dict[str, bytes]]:
        named = make_parameters()
        with opened(group) as hierarchy:
            made = sync.make(config, named, hierarchy)
            train(made, named, group.rank, range(4), lambda *_: 5)
            made.finish()  # a good round, so that momentum and residuals are not zero
            train(made, named, group.rank, range(4, 6), lambda *_: 5)
            if group.rank == 1:
                with torch.no_grad():
                    named[3][1][2, 3] = bad
            before = {**bits(named), **bits(made.state_dict())}
            with pytest.raises(NonFinite) as caught:
                made.finish()
            return caught.value, before, {**bits(named), **bits(made.state_dict())}

    # Of several fragments the one with the value is the last: its index counts in that one.
    before_it = 1 if rule == "streaming" else 40 * 16 + 1
    for error, before, after in run_ranks(3, fn):
        assert "'head.weight'" in str(error)
        assert f"{rule}, round {3 if rule == 'streaming' else 1}" in str(error)
        assert isinstance(error, NonFinite)
        assert error.index == before_it + 2 * 11 + 3
        assert before == after


def test_failed_arrival_changes_nothing() -> None:
    """A fragment is sent with a NaN, and the step that would apply it fails."""
    config = config_for("streaming", LOSSY, local_steps=4, overlap_steps=2, error_feedback=True)

    def fn(group: Group) -> tuple[str, Any, Any]:
        named = make_parameters()
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            train(rule, named, group.rank, range(7), lambda *_: 5)
            if group.rank == 1:
                with torch.no_grad():
                    named[3][1][2, 3] = float("nan")
            train(rule, named, group.rank, range(7, 9), lambda *_: 5)  # sent after the 8th
            set_gradients(named, crafted(group.rank))
            rule.after_backward(5)
            before = {**bits(named), **bits(rule.state_dict())}
            with pytest.raises(NonFinite) as caught:
                rule.after_step(5)
            return str(caught.value), before, {**bits(named), **bits(rule.state_dict())}

    for message, before, after in run_ranks(2, fn):
        assert "streaming, round 3, parameter 'head.weight'" in message
        assert "flight.1.delta" in before
        assert before == after


@pytest.mark.parametrize("rule", REPEATING)
def test_a_cloud_that_leaves_costs_the_others_nothing(rule: str) -> None:
    """Whether a fragment is sent, under way or waited for when it happens."""
    config = config_for(rule, LOSSY, local_steps=4, overlap_steps=2, error_feedback=True)

    def fn(group: Group) -> tuple[Any, Any]:
        named = make_parameters()
        with opened(group) as hierarchy:
            made = sync.make(config, named, hierarchy)
            train(made, named, group.rank, range(7), lambda *_: 5)
            if group.rank == 1:
                assert hierarchy.inter is not None
                hierarchy.inter.abort("its machine is gone")
                return None, None
            for step in range(7, 11):
                before = {**bits(named), **bits(made.state_dict())}
                trained = [p.detach().clone() for _, p in named]
                try:
                    train(made, named, group.rank, range(step, step + 1), lambda *_: 5)
                except PeerLost:
                    after = {**bits(named), **bits(made.state_dict())}
                    for (name, p), start in zip(named, trained, strict=True):
                        # The inner optimizer's step is all that happened.
                        assert p.grad is not None
                        before |= bits([(name, start - INNER_LR * p.grad)])
                    return before, after
        raise AssertionError("it did not notice")

    before, after = run_ranks(2, fn)[0]
    assert before == after


def test_failed_gradient_round_changes_nothing() -> None:
    config = SyncConfig(rule="gradient", codec="int8", error_feedback=True)

    def fn(group: Group) -> tuple[str, Any, Any]:
        named = make_parameters()
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            train(rule, named, group.rank, range(3), lambda *_: 5)
            set_gradients(named, crafted(group.rank))
            if group.rank == 0:
                grad = named[0][1].grad
                assert grad is not None
                grad[1, 1] = float("nan")

            def everything() -> list[dict[str, bytes]]:
                grads = [(name, p.grad) for name, p in named]
                return [bits(named), bits(grads), bits(rule.state_dict())]

            before = everything()
            with pytest.raises(NonFinite) as caught:
                rule.after_backward(5)
            return str(caught.value), before, everything()

    for message, before, after in run_ranks(2, fn):
        assert "'embed.weight'" in message
        assert before == after


@pytest.mark.parametrize("rule", ["gradient", "fedavg", "diloco", "fedopt", *CARRYING])
def test_a_cloud_without_tokens_spoils_nothing(rule: str) -> None:
    """The mean over no tokens is NaN; weight zero keeps it out."""
    config = config_for(rule, EXACT, local_steps=1)
    truth = Run(crafted(0), [[0]], INNER_LR, rule, 1, 0.5, 0.5)
    truth.step([crafted(1)], [4])

    def fn(group: Group) -> Any:
        named = make_parameters()
        idle = group.rank == 1
        with opened(group) as hierarchy:
            made = sync.make(config, named, hierarchy)
            set_gradients(named, crafted(1) * np.float32("nan" if idle else 1))
            made.after_backward(0 if idle else 4)
            torch.optim.SGD([p for _, p in named], lr=INNER_LR).step()
            made.after_step(0 if idle else 4)
        return flat_of(named)

    for final in run_ranks(2, fn):
        np.testing.assert_array_equal(final, truth.params[0])


def test_a_cloud_without_tokens_keeps_its_residual() -> None:
    config = SyncConfig(rule="diloco", local_steps=2, codec="int8", error_feedback=True)

    def fn(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
        named = make_parameters()
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            train(rule, named, group.rank, range(2), lambda *_: 5)
            before = rule.state_dict()["feedback.0.sender"]
            train(rule, named, group.rank, range(2, 4), lambda _, rank: 5 * (1 - rank))
            return before, rule.state_dict()["feedback.0.sender"]

    busy, idle = run_ranks(2, fn)
    assert idle[0].any()
    assert torch.equal(*idle)
    assert not torch.equal(*busy)


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", IN_ROUNDS)
@pytest.mark.parametrize("cut", [4, 5, 6])
def test_resumed_run_continues_bit_identically(rule: str, cut: int) -> None:
    """Cut before, in the middle of and after a round; lossy codec with residuals.

    Two fragments of streaming are under way after step 4, one after 5 and 6.
    """
    config = config_for(rule, LOSSY, overlap_steps=2, error_feedback=True)

    def fn(group: Group) -> tuple[Any, Any]:
        def tokens(step: int, rank: int) -> int:
            return 1 + (step + rank) % 3

        straight = make_parameters()
        with opened(group) as hierarchy:
            made = sync.make(config, straight, hierarchy)
            train(made, straight, group.rank, range(cut), tokens)
            saved_state = {k: _copy(v) for k, v in made.state_dict().items()}
            assert len(saved_state.get("flights", [])) == (2 if cut == 4 else 1) * (
                rule == "streaming"
            )
            saved = [p.detach().clone() for _, p in straight]
            train(made, straight, group.rank, range(cut, 11), tokens)
            made.finish()
            whole = {**bits(straight), **bits(made.state_dict())}
        resumed = make_parameters()
        with opened(group) as hierarchy:
            with torch.no_grad():
                for (_, p), value in zip(resumed, saved, strict=True):
                    p.copy_(value)
            made = sync.make(config, resumed, hierarchy)
            made.load_state_dict(saved_state)
            train(made, resumed, group.rank, range(cut, 11), tokens)
            made.finish()
            return whole, {**bits(resumed), **bits(made.state_dict())}

    for whole, resumed in run_ranks(2, fn):
        assert whole == resumed


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def test_foreign_state_is_refused_and_changes_nothing() -> None:
    config = SyncConfig(rule="diloco", codec="int8", error_feedback=True)

    def fn(group: Group) -> None:
        with opened(group) as hierarchy:
            rule = sync.make(config, make_parameters(), hierarchy)
            good = rule.state_dict()
            before = bits(good)
            spoiled: dict[str, tuple[Any, str]] = {
                "rule": ("gradient", "rule = 'gradient', this run has 'diloco'"),
                "n_elems": (5, "n_elems = 5"),
                "fragments": ([3, 4], "fragments = "),
                "fragment.0.anchor": (torch.zeros(3), "'fragment.0.anchor'"),
                "fragment.0.momentum": (None, "'fragment.0.momentum'"),
                "flights": ([[0, 1.0, 0, 1, 1]], "'flight.0.delta'"),
                "feedback.0.sender": (torch.zeros(3), "sender residual"),
                "feedback.0.owner": (torch.zeros(3), "owner residual"),
            }
            for key, (value, message) in spoiled.items():
                with pytest.raises(ConfigError, match=message):
                    rule.load_state_dict({**good, "round": 9, key: value})
                assert bits(rule.state_dict()) == before

    run_ranks(2, fn)
