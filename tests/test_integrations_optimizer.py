"""`CrossCloudOptimizer`: the calls of a sync rule, in an optimizer that torch knows as one."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import errors_of, run_ranks
from small_model import (
    EXACT,
    IN_ROUNDS,
    INNER_LR,
    Named,
    bits,
    config_for,
    crafted,
    flat_of,
    make_parameters,
    opened,
    set_gradients,
    train,
)

import pyfedcomm
from pyfedcomm import launch, sync
from pyfedcomm.errors import ConfigError, Error, InvalidArgument, NonFinite
from pyfedcomm.group import Group
from pyfedcomm.integrations.optimizer import CrossCloudOptimizer
from pyfedcomm.sync import SyncConfig
from pyfedcomm.train.muon import Muon
from pyfedcomm.train.optim import Together

pytestmark = pytest.mark.mpi


def sgd(named: Named, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for _, p in named], lr=INNER_LR, **options)


def run(
    optimizer: CrossCloudOptimizer, named: Named, rank: int, steps: range, tokens: int = 4
) -> None:
    for step in steps:
        set_gradients(named, crafted(1000 * step + rank))
        optimizer.step(n_tokens=tokens)
        optimizer.zero_grad()


@pytest.mark.parametrize("rule", IN_ROUNDS)
def test_it_is_the_rule_called_by_hand(rule: str) -> None:
    """Same parameters and same state, every bit, after every step and after the last round."""
    config = config_for(rule, EXACT)

    def fn(group: Group) -> None:
        by_hand, wrapped = make_parameters(), make_parameters()
        tokens = 1 + 2 * group.rank
        with opened(group) as hierarchy:
            plain = sync.make(config, by_hand, hierarchy)
            optimizer = CrossCloudOptimizer(
                sgd(wrapped), hierarchy, sync=config, named_parameters=wrapped
            )
            for step in range(7):
                train(plain, by_hand, group.rank, range(step, step + 1), lambda *_: tokens)
                run(optimizer, wrapped, group.rank, range(step, step + 1), tokens)
                assert bits(wrapped) == bits(by_hand)
            plain.finish()
            optimizer.finish()
            assert bits(wrapped) == bits(by_hand)
            assert bits(optimizer.rule.state_dict()) == bits(plain.state_dict())

    run_ranks(2, fn)


def test_optimizers_together_are_saved_and_go_on_as_one() -> None:
    """Muon for matrices and AdamW for the rest, with names, as a loop of one's own makes them."""

    def both(named: Named) -> torch.optim.Optimizer:
        matrices = [(name, p) for name, p in named if p.dim() == 2]
        others = [(name, p) for name, p in named if p.dim() != 2]
        return Together([Muon(matrices, lr=0.1), torch.optim.AdamW(others, lr=0.1)])

    def fn(group: Group) -> bytes:
        straight, resumed = make_parameters(), make_parameters()
        config = config_for("diloco", EXACT)
        with opened(group) as hierarchy:
            first = CrossCloudOptimizer(both(straight), hierarchy, sync=config)
            run(first, straight, group.rank, range(3))
            saved = copy.deepcopy(first.state_dict())
            with torch.no_grad():
                for (_, to), (_, value) in zip(resumed, straight, strict=True):
                    to.copy_(value)
            second = CrossCloudOptimizer(both(resumed), hierarchy, sync=config)
            second.load_state_dict(saved)
            for optimizer, named in ((first, straight), (second, resumed)):
                run(optimizer, named, group.rank, range(3, 7))
                optimizer.finish()
            assert bits(straight) == bits(resumed)
        assert not np.array_equal(flat_of(straight), crafted(0))
        return flat_of(straight).tobytes()

    assert len(set(run_ranks(2, fn))) == 1


def test_async_needs_no_equal_steps_and_ends_with_one_model() -> None:
    config = config_for("async", EXACT)

    def fn(group: Group) -> bytes:
        named = make_parameters()
        with CrossCloudOptimizer(sgd(named), group, sync=config) as optimizer:
            run(optimizer, named, group.rank, range(3 + 4 * group.rank))
        assert not np.array_equal(flat_of(named), crafted(0))
        return flat_of(named).tobytes()

    assert len(set(run_ranks(2, fn))) == 1


def test_a_group_is_clouds_of_one_rank_and_the_block_finishes() -> None:
    def fn(group: Group) -> bytes:
        named = make_parameters()
        with CrossCloudOptimizer(sgd(named), group, sync=SyncConfig(local_steps=100)) as optimizer:
            assert optimizer.hierarchy.topology.n_clouds == 3
            run(optimizer, named, group.rank, range(3))
            assert len(set(group.all_gather_object(flat_of(named).tobytes().hex()))) == 3
        return flat_of(named).tobytes()

    assert len(set(run_ranks(3, fn))) == 1


@pytest.mark.parametrize("n_steps", [3, 47])
def test_an_optimizer_of_one_layer_has_one_fragment(n_steps: int) -> None:
    """Without any option, with parameters that have no names; less and more than a round."""

    def fn(group: Group) -> bytes:
        named = make_parameters()
        inner = torch.optim.SGD([p for _, p in named], lr=INNER_LR)
        with CrossCloudOptimizer(inner, group) as optimizer:
            run(optimizer, named, group.rank, range(n_steps))
            assert optimizer.rule.round == n_steps // 40
        return flat_of(named).tobytes()

    first, second = run_ranks(2, fn)
    assert first == second
    assert first != crafted(0).tobytes()


def test_torch_takes_it_for_an_optimizer() -> None:
    """Schedulers, hooks, a closure, an optimizer's own names of parameters."""

    def fn(group: Group) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.5)
        inner = torch.optim.SGD(model.named_parameters(), lr=1.0, momentum=0.5)
        config = SyncConfig(rule="streaming", fragments=2, local_steps=2)
        optimizer = CrossCloudOptimizer(inner, group, sync=config)
        assert isinstance(optimizer, torch.optim.Optimizer)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        steps: list[int] = []
        optimizer.register_step_post_hook(lambda *_: steps.append(1))

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(torch.ones(2, 3) * (1 + group.rank)).sum()
            torch.autograd.backward(loss)
            return loss

        before = model(torch.ones(2, 3) * (1 + group.rank)).sum().item()
        assert optimizer.step(closure).item() == before
        scheduler.step()
        assert inner.param_groups[0]["lr"] == 0.5
        assert optimizer.state is inner.state
        assert len(optimizer.state) == 4
        assert steps == [1]
        assert "momentum: 0.5" in repr(optimizer)
        with pytest.raises(InvalidArgument, match="before it is wrapped"):
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
        optimizer.close()

    run_ranks(2, fn)


def test_clipping_between_average_and_step_is_that_of_the_mean() -> None:
    def fn(group: Group) -> Any:
        p = torch.nn.Parameter(torch.zeros(2))
        config = SyncConfig(rule="gradient", codec="fp32")
        optimizer = CrossCloudOptimizer(torch.optim.SGD([p], lr=1.0), group, sync=config)
        p.grad = torch.tensor([6.0, 0.0]) if group.rank == 0 else torch.tensor([0.0, 8.0])
        optimizer.average_gradients(1)
        with pytest.raises(InvalidArgument, match="twice"):
            optimizer.average_gradients(1)
        assert p.grad.tolist() == [3.0, 4.0]
        torch.nn.utils.clip_grad_norm_([p], 2.5)
        optimizer.step()
        assert optimizer.rule.round == 1
        optimizer.close()
        return p.detach().numpy()

    for value in run_ranks(2, fn):
        np.testing.assert_allclose(value, [-1.5, -2.0], rtol=1e-6)


@pytest.mark.parametrize("rule", ["diloco", "gradient", "streaming"])
def test_state_goes_on_bit_for_bit(rule: str, tmp_path: Path) -> None:
    config = config_for(rule, EXACT, codec="int4", error_feedback=True)

    def fn(group: Group) -> tuple[Any, Any]:
        straight, resumed = make_parameters(), make_parameters()
        with opened(group) as hierarchy:
            first = CrossCloudOptimizer(sgd(straight, momentum=0.5), hierarchy, sync=config,
                                        named_parameters=straight)  # fmt: skip
            run(first, straight, group.rank, range(5))
            file = tmp_path / f"rank-{group.rank}.pt"
            torch.save({"state": first.state_dict(), "model": dict(straight)}, file)
            run(first, straight, group.rank, range(5, 10))
            first.finish()

            saved = torch.load(file)
            second = CrossCloudOptimizer(sgd(resumed, momentum=0.5), hierarchy, sync=config,
                                         named_parameters=resumed)  # fmt: skip
            with torch.no_grad():
                for name, p in resumed:
                    p.copy_(saved["model"][name])
            second.load_state_dict(saved["state"])
            run(second, resumed, group.rank, range(5, 10))
            second.finish()
            return (
                (bits(straight), bits(first.rule.state_dict())),
                (bits(resumed), bits(second.rule.state_dict())),
            )

    for straight, resumed in run_ranks(2, fn):
        assert resumed == straight


def test_state_of_the_optimizer_alone_is_refused() -> None:
    def fn(group: Group) -> None:
        named = make_parameters()
        inner = sgd(named)
        plain = copy.deepcopy(inner.state_dict())
        optimizer = CrossCloudOptimizer(inner, group)
        with pytest.raises(ConfigError, match="without a CrossCloudOptimizer"):
            optimizer.load_state_dict(plain)
        optimizer.close()

    run_ranks(2, fn)


@pytest.mark.parametrize("rule", ["diloco", "gradient"])
@pytest.mark.parametrize("unscale", [False, True])
def test_an_overflow_under_a_grad_scaler(rule: str, unscale: bool) -> None:
    """Scaled gradients are unscaled; one rank's overflow skips the steps that depend on it."""
    config = SyncConfig(rule=rule, codec="fp32", local_steps=100)

    def fn(group: Group) -> tuple[list[float], float]:
        p = torch.nn.Parameter(torch.zeros(2))
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        optimizer = CrossCloudOptimizer(torch.optim.SGD([p], lr=1.0), group, sync=config)
        for step in range(2):
            loss = (p * (1.0 + group.rank)).sum()
            if step == 0 and group.rank == 1:
                loss = loss * float("inf")
            torch.autograd.backward(scaler.scale(loss))
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        optimizer.close()
        return p.tolist(), scaler.get_scale()

    values = run_ranks(2, fn)
    assert [scale for _, scale in values] == [4.0, 2.0]
    if rule == "gradient":  # neither took the first step; the second was of the mean gradient
        assert [p for p, _ in values] == [[-1.5, -1.5]] * 2
    else:  # clouds of their own: one took both
        assert [p for p, _ in values] == [[-2.0, -2.0], [-2.0, -2.0]]


def test_a_cloud_that_diverged_forgets_its_momentum() -> None:
    config = SyncConfig(rule="fedavg", codec="fp32", local_steps=1, nonfinite="exclude")

    def fn(group: Group) -> int:
        named = make_parameters()
        optimizer = CrossCloudOptimizer(sgd(named, momentum=0.9), group, sync=config)
        gradient = crafted(1)
        gradient[:] = np.nan if group.rank == 1 else gradient
        set_gradients(named, gradient)
        optimizer.step()
        optimizer.close()
        assert np.isfinite(flat_of(named)).all()
        return len(optimizer.state)

    assert run_ranks(2, fn) == [len(make_parameters()), 0]


def test_bad_input() -> None:
    named = make_parameters()
    group: Any = object()
    with pytest.raises(InvalidArgument, match="LBFGS"):
        CrossCloudOptimizer(torch.optim.LBFGS([p for _, p in named]), group)
    with pytest.raises(InvalidArgument, match="this is a object; give a Group"):
        CrossCloudOptimizer(sgd(named), group)
    with pytest.raises(InvalidArgument, match=r"lacks 1 parameters .* shapes \[7, 11\]"):
        CrossCloudOptimizer(sgd(named), group, named_parameters=named[:-1])


def test_an_error_on_one_rank_ends_the_others() -> None:
    def fn(group: Group) -> None:
        named = make_parameters()
        with CrossCloudOptimizer(sgd(named), group, sync=SyncConfig(local_steps=2)) as optimizer:
            run(optimizer, named, group.rank, range(1))
            if group.rank == 1:
                raise RuntimeError("the disk is full")
            run(optimizer, named, group.rank, range(1, 4))

    mine, theirs = errors_of(2, fn)
    assert isinstance(mine, Error)
    assert "the disk is full" in str(mine)
    assert isinstance(theirs, RuntimeError)


def test_a_nan_is_named() -> None:
    def fn(group: Group) -> None:
        named = make_parameters()
        gradient = crafted(1)
        gradient[641] = np.nan if group.rank == 1 else 0
        config = SyncConfig(rule="gradient")
        optimizer = CrossCloudOptimizer(sgd(named), group, sync=config, named_parameters=named)
        set_gradients(named, gradient)
        optimizer.step()

    for error in errors_of(2, fn):
        assert isinstance(error, NonFinite)
        assert "parameter 'head.weight'" in str(error)


def test_the_package_has_it_without_loading_torch() -> None:
    assert pyfedcomm.CrossCloudOptimizer is CrossCloudOptimizer
    with pytest.raises(AttributeError, match="Nothing"):
        pyfedcomm.Nothing  # noqa: B018


SCRIPT = Path(__file__).with_name("mpi_integrations.py")


@pytest.mark.parametrize("clouds", ["2", "1,3"])
def test_clouds_of_several_ranks(tmp_path: Path, clouds: str) -> None:
    log = tmp_path / "log"
    argv = [sys.executable, "-W", "error", str(SCRIPT), "optimizer", clouds]
    status = launch.run(4, argv, timeout_s=200.0, log=log, env={"OMP_NUM_THREADS": "1"})
    output = log.read_text()
    assert status == 0, output
    assert [f"rank {rank} ok" in output for rank in range(4)] == [True] * 4, output
