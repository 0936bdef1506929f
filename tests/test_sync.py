"""Sync rules, one rank per cloud, in threads; several ranks per cloud are `test_hierarchy`'s."""

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
    FRAGMENTS,
    IN_ROUNDS,
    INNER_LR,
    bits,
    config_for,
    crafted,
    flat_of,
    make_parameters,
    one_rank_per_cloud,
    opened,
    set_gradients,
    train,
)

from pyfedcomm import sync, weights
from pyfedcomm.buckets import fingerprint
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.holding import Whole
from pyfedcomm.sync import SyncConfig
from pyfedcomm.sync.config import OUTER_OPTIMIZERS
from pyfedcomm.sync.fragment import Fragment
from pyfedcomm.sync.outer import Sgd

EXCHANGING = [name for name in IN_ROUNDS if name != "isolated"]

TOKENS: dict[str, tuple[int, ...]] = {
    "one cloud": (4,),
    "equal": (2, 2),
    "uneven": (1, 3),
    "one idle": (0, 4),
    "three": (1, 5, 2),
}


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS.keys())
@pytest.mark.parametrize("rule", IN_ROUNDS)
@pytest.mark.parametrize("weighting", weights.names())
def test_rule_equals_the_plain_algorithm(
    rule: str, tokens: tuple[int, ...], weighting: str
) -> None:
    n = len(tokens)
    if weighting != "tokens" and n == 3:
        tokens = (1, 5, 2, 8)  # a mean over three equal clouds would round
        n = 4
    config = config_for(rule, EXACT, weights=weighting)
    truth = Run(
        crafted(0),
        [[c] for c in range(n)],
        INNER_LR,
        rule,
        3,
        0.5,
        0.5,
        True,
        weighting,
        fragments=FRAGMENTS,
        overlap=1,
        mixing=0.5,
    )
    history: list[list[Any]] = []
    for step in range(7):
        truth.step([crafted(1000 * step + rank) for rank in range(n)], tokens)
        history.append([p.copy() for p in truth.params])
    truth.finish()

    def fn(group: Group) -> tuple[Any, int, int]:
        named = make_parameters()
        with opened(group) as hierarchy:
            made = sync.make(config, named, hierarchy)
            opening = hierarchy.wan_stats().frame_bytes
            for step in range(7):
                train(made, named, group.rank, range(step, step + 1), lambda _, r: tokens[r])
                np.testing.assert_array_equal(flat_of(named), history[step][group.rank])
            made.finish()
            made.finish()  # nothing is left: does nothing
            return flat_of(named), made.round, hierarchy.wan_stats().frame_bytes - opening

    for rank, (final, rounds, exchanged) in enumerate(run_ranks(n, fn)):
        np.testing.assert_array_equal(final, truth.params[rank])
        assert rounds == truth.rounds == {"gradient": 7, "streaming": 6, "isolated": 0}.get(rule, 3)
        assert (exchanged > 0) == (rule != "isolated" and n > 1)


@pytest.mark.parametrize("nesterov", [True, False])
def test_diloco_with_the_papers_constants(nesterov: bool) -> None:
    config = SyncConfig(
        rule="diloco",
        local_steps=2,
        codec="fp32",
        outer_lr=0.7,
        outer_momentum=0.9,
        nesterov=nesterov,
    )
    truth = Run(crafted(0), [[0], [1]], INNER_LR, "diloco", 2, 0.7, 0.9, nesterov)
    for step in range(8):
        truth.step([crafted(1000 * step + rank) for rank in range(2)], (4, 4))

    def fn(group: Group) -> Any:
        named = make_parameters()
        with opened(group) as hierarchy:
            train(sync.make(config, named, hierarchy), named, group.rank, range(8), lambda *_: 4)
        return flat_of(named)

    for final in run_ranks(2, fn):
        np.testing.assert_array_equal(final, truth.params[0])


@pytest.mark.parametrize("optimizer", OUTER_OPTIMIZERS)
def test_fedopt_with_the_papers_constants(optimizer: str) -> None:
    config = SyncConfig(rule="fedopt", local_steps=2, codec="fp32", outer_optimizer=optimizer)
    truth = Run(crafted(0), [[0], [1]], INNER_LR, "fedopt", 2, config.outer_lr, optimizer=optimizer)
    for step in range(8):
        truth.step([crafted(1000 * step + rank) for rank in range(2)], (4, 4))

    def fn(group: Group) -> Any:
        named = make_parameters()
        with opened(group) as hierarchy:
            train(sync.make(config, named, hierarchy), named, group.rank, range(8), lambda *_: 4)
        return flat_of(named)

    for final in run_ranks(2, fn):
        np.testing.assert_array_equal(final, truth.params[0])


def test_fedavg_is_diloco_without_an_outer_optimizer_and_the_mean_of_parameters() -> None:
    def fn(group: Group) -> list[Any]:
        finals = []
        for config in (
            SyncConfig(rule="fedavg", local_steps=3),
            SyncConfig(rule="diloco", local_steps=3, outer_lr=1.0, outer_momentum=0.0),
        ):
            named = make_parameters()
            with opened(group) as hierarchy:
                rule = sync.make(config, named, hierarchy)
                train(rule, named, group.rank, range(9), lambda *_: 1 + group.rank)
                finals.append({**bits(named), **bits(rule.state_dict()), "rule": b""})
        return finals

    for fedavg, diloco in run_ranks(2, fn):
        assert fedavg == diloco
    alone = [make_parameters() for _ in range(2)]
    for rank, named in enumerate(alone):
        optimizer = torch.optim.SGD([p for _, p in named], lr=INNER_LR)
        for step in range(3):
            set_gradients(named, crafted(1000 * step + rank))
            optimizer.step()

    def once(group: Group) -> Any:
        named = make_parameters()
        with opened(group) as hierarchy:
            rule = sync.make(
                SyncConfig(rule="fedavg", local_steps=3, codec="fp32"), named, hierarchy
            )
            train(rule, named, group.rank, range(3), lambda _, rank: 1 + 2 * rank)
        return flat_of(named)

    for final in run_ranks(2, once):
        np.testing.assert_array_equal(final, (flat_of(alone[0]) + 3 * flat_of(alone[1])) / 4)


def test_outer_sgd_rounds_every_product_and_every_sum() -> None:
    generator = torch.Generator().manual_seed(3)
    anchor, momentum, delta = torch.randn(3, 10_001, generator=generator)
    a, m, d = anchor.numpy().copy(), momentum.numpy().copy(), delta.numpy().copy()
    mu, lr = np.float32(0.9), np.float32(0.7)
    m2 = mu * m + d
    sgd = Sgd(0.7, 0.9, nesterov=True)
    got_anchor, state = sgd.step(anchor, {"momentum": momentum}, delta.clone())
    np.testing.assert_array_equal(state["momentum"].numpy(), m2)
    np.testing.assert_array_equal(got_anchor.numpy(), a - lr * (d + mu * m2))
    # And it is what torch calls SGD with Nesterov momentum, up to how that rounds.
    p = torch.nn.Parameter(anchor.clone())
    optimizer = torch.optim.SGD([p], lr=0.7, momentum=0.9, nesterov=True)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.state[p]["momentum_buffer"] = momentum.clone()
    p.grad = delta.clone()
    optimizer.step()
    torch.testing.assert_close(got_anchor, p.detach())


# --- what the model may look like ----------------------------------------------------------------


@pytest.mark.parametrize("rule", EXCHANGING)
@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "chunk_topk(4096, 64, int2, beta=0.95)"])
@pytest.mark.parametrize("feedback", [False, True])
def test_all_clouds_end_bit_identical(rule: str, codec: str, feedback: bool) -> None:
    """Frozen, integer, tied, low-precision parameters, and real-valued gradients."""
    if rule in CARRYING and not feedback:
        pytest.skip("it does not do without")
    config = SyncConfig(rule=rule, local_steps=2, codec=codec, error_feedback=feedback, fragments=2)

    def fn(group: Group) -> tuple[str, str, bool, bool]:
        generator = torch.Generator().manual_seed(7)
        shared = torch.nn.Parameter(torch.randn(33, 17, generator=generator))
        low = torch.nn.Parameter(torch.randn(300, generator=generator).bfloat16())
        frozen = torch.nn.Parameter(torch.ones(5), requires_grad=False)
        integer = torch.nn.Parameter(torch.arange(4, dtype=torch.int8), requires_grad=False)
        unused = torch.nn.Parameter(torch.ones(3))
        named = [
            ("frozen", frozen),
            ("embed", shared),
            ("integer", integer),
            ("low", low),
            ("head", shared),
            ("unused", unused),
        ]
        before = fingerprint([("frozen", frozen), ("integer", integer)])
        mine = torch.Generator().manual_seed(100 + group.rank)
        optimizer = torch.optim.SGD([shared, low, unused], lr=0.1)
        with opened(group) as hierarchy:
            made = sync.make(config, named, hierarchy)
            for _ in range(5):
                shared.grad = torch.randn(shared.shape, generator=mine)
                low.grad = torch.randn(low.shape, generator=mine).bfloat16()
                made.after_backward(3 + group.rank)
                optimizer.step()
                made.after_step(3 + group.rank)
            made.finish()
            state = made.state_dict()
        assert ("feedback.0.sender" in state) == feedback
        carries = feedback and bool(state["feedback.0.sender"].any())
        after = fingerprint([("frozen", frozen), ("integer", integer)])
        moved = not torch.equal(low, torch.randn(300, generator=generator).bfloat16())
        return fingerprint(named), str(before == after), moved, carries

    results = run_ranks(3, fn)
    assert len({result[0] for result in results}) == 1
    assert all(result[1] == "True" and result[2] for result in results)
    # So small a bucket has one owner with direct, who codes nothing of its own.
    coding = 2 if config.algorithm == "direct" else 3
    assert sum(result[3] for result in results) == (coding if feedback and codec != "fp32" else 0)


@pytest.mark.parametrize("rule", ["diloco", "sparse", "streaming"])
def test_rounding_of_bf16_parameters_is_no_movement_and_small_steps_add_up(rule: str) -> None:
    """Each round moves by far less than one bf16 step of the value; together they arrive."""
    config = SyncConfig(
        rule=rule,
        local_steps=1,
        outer_lr=2.0**-4,
        outer_momentum=0.0,
        codec="fp32",
        fragments=1,
        overlap_steps=0,
        mixing=0.0,
    )
    spacing = 2.0**-7  # of bf16 above 1

    def fn(group: Group) -> tuple[list[float], list[float]]:
        p = torch.nn.Parameter(torch.full((4,), 1.0, dtype=torch.bfloat16))
        values: list[float] = []
        anchors: list[float] = []
        with opened(group) as hierarchy:
            made = sync.make(config, [("p", p)], hierarchy)
            for step in range(40):
                made.after_backward(1)
                if step < 3 or step >= 11:
                    with torch.no_grad():
                        p.add_(spacing)
                made.after_step(1)
                values.append(float(p.detach()[0]))
                anchors.append(float(made.state_dict()["fragment.0.anchor"][0]))
        return values, anchors

    for values, anchors in run_ranks(2, fn):
        assert anchors[2] == 1.0 + 3 * spacing / 16
        assert set(anchors[3:11]) == {anchors[2]}
        assert set(values[:11]) == {1.0}
        assert anchors[-1] == 1.0 + 32 * spacing / 16
        assert values[-1] == 1.0 + 2 * spacing


@pytest.mark.parametrize("mixing", [0.0, 0.5, 0.99])
def test_mixing_with_what_rounding_hides_is_no_movement(mixing: float) -> None:
    """Parameters that are the rounded anchor stay it, and make no delta."""

    def fn(group: Group) -> None:
        generator = torch.Generator().manual_seed(5)
        p = torch.nn.Parameter(torch.zeros(4096, dtype=torch.bfloat16))
        with opened(group) as hierarchy:
            fragment = Fragment(0, [("p", p)], Whole([("p", p)], hierarchy, 1), Sgd(1.0))
            fragment.anchor = torch.randn(4096, generator=generator)
            fragment.set_values(fragment.anchor, mixing=0.0)
            rounded = p.detach().clone()
            assert not torch.equal(rounded.float(), fragment.anchor)
            fragment.set_values(fragment.anchor, mixing=mixing)
            delta = fragment.delta()
            assert torch.equal(p, rounded)
            assert delta is not None
            assert not delta.any()

    run_ranks(1, fn)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rule", EXCHANGING)
@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_a_cloud_of_gpus_and_one_of_cpus_end_bit_identical(rule: str, codec: str) -> None:
    config = SyncConfig(rule=rule, local_steps=2, codec=codec, error_feedback=True, fragments=2)

    def fn(group: Group) -> str:
        device = "cuda" if group.rank else "cpu"
        mine = torch.Generator().manual_seed(group.rank)
        named = [(name, torch.nn.Parameter(p.detach().to(device))) for name, p in make_parameters()]
        # A step of a power of two: the optimizer itself then rounds alike on both devices.
        optimizer = torch.optim.SGD([p for _, p in named], lr=INNER_LR)
        with Hierarchy(group, one_rank_per_cloud(group), device=device) as hierarchy:
            made = sync.make(config, named, hierarchy)
            for _ in range(6):
                for _, p in named:
                    p.grad = torch.randn(p.shape, generator=mine).to(device)
                made.after_backward(3 + group.rank)
                optimizer.step()
                made.after_step(3 + group.rank)
            made.finish()
        return fingerprint(named)

    assert len(set(run_ranks(2, fn))) == 1
