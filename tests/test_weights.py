"""Rules of weights: what they give, that it sums to 1, and what they refuse."""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import small_model
import tiny_run
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import errors_of, run_ranks
from tiny_run import failures, run

from pyfedcomm import sync, weights
from pyfedcomm.errors import ConfigError, NonFinite
from pyfedcomm.group import Group
from pyfedcomm.topology import from_labels
from pyfedcomm.train import evaluation, observe
from pyfedcomm.weights import Contribution, Observation


def weigh(rule: str, observed: list[Observation], n_tokens: int = 10) -> list[float]:
    made = weights.make(rule)
    return [
        made.weight(Contribution(n_tokens, cloud, tuple(observed)))
        for cloud in range(len(observed))
    ]


def losses(*values: float) -> list[Observation]:
    return [Observation(loss=value) for value in values]


# --- loss -----------------------------------------------------------------------------------------


def test_a_lower_loss_counts_more_and_temperature_says_how_much() -> None:
    terms = [math.exp(-loss / 0.5) for loss in (2.0, 2.5, 4.0)]
    expected = [term / sum(terms) for term in terms]
    assert weigh("loss(0.5)", losses(2.0, 2.5, 4.0)) == pytest.approx(expected, rel=1e-12)
    assert weigh("loss", losses(2.0, 3.0)) == weigh("loss(1)", losses(2.0, 3.0))
    assert weigh("loss(1e9)", losses(2.0, 3.0)) == pytest.approx([0.5, 0.5])
    assert weigh("loss(1e-9)", losses(2.0, 3.0)) == [1.0, 0.0]
    low, high = weigh("loss(-1)", losses(2.0, 3.0))
    assert high / low == pytest.approx(math.e)


@given(
    values=st.lists(st.floats(0, 1e6), min_size=1, max_size=8),
    temperature=st.floats(-1e6, 1e6).filter(lambda t: abs(t) > 1e-300),
)
def test_weights_sum_to_one_whatever_the_losses(values: list[float], temperature: float) -> None:
    found = weigh(f"loss({temperature!r})", losses(*values))
    assert all(math.isfinite(weight) and weight >= 0 for weight in found)
    assert math.fsum(found) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_none_counts_nothing(bad: float) -> None:
    assert weigh("loss", losses(2.0, bad, 2.0)) == [0.5, 0.0, 0.5]
    assert weigh("loss", losses(bad, bad)) == [0.0, 0.0]
    rule = weights.make("loss")
    with pytest.raises(NonFinite, match=r"held-out loss of cloud b is (nan|inf).*nonfinite"):
        rule.check(losses(2.0, bad), ["a", "b"])
    rule.check(losses(2.0, 3.0), ["a", "b"])
    weights.make("tokens").check(losses(2.0, bad), ["a", "b"])


# --- throughput -----------------------------------------------------------------------------------


def test_a_faster_cloud_counts_more() -> None:
    clouds = [
        Observation(n_tokens=300, seconds=10.0, sent_bytes=1000, link_bytes_per_s=100.0),
        Observation(n_tokens=200, seconds=20.0, sent_bytes=1000, link_bytes_per_s=10.0),
    ]
    assert weigh("throughput", clouds) == pytest.approx([30 / 40, 10 / 40])
    fast, slow = 300 / (10 + 10), 200 / (20 + 100)
    expected = [fast / (fast + slow), slow / (fast + slow)]
    assert weigh("throughput(bandwidth)", clouds) == pytest.approx(expected)


def test_until_all_are_measured_all_count_alike() -> None:
    measured = Observation(n_tokens=300, seconds=10.0, sent_bytes=10, link_bytes_per_s=5.0)
    for unknown in (
        Observation(),
        replace(measured, n_tokens=None),
        replace(measured, seconds=None),
        replace(measured, seconds=0.0),
    ):
        assert weigh("throughput", [measured, unknown]) == [1.0, 1.0]
    assert weigh("throughput(bandwidth)", [measured, replace(measured, link_bytes_per_s=None)]) == [
        1.0,
        1.0,
    ]
    assert weights.make("loss").weight(Contribution(10)) == 1.0
    assert weigh("throughput", [replace(measured, n_tokens=0)] * 2) == [1.0, 1.0]


@pytest.mark.parametrize("rule", ["tokens", "uniform", "loss", "loss(2)", "throughput"])
def test_a_cloud_that_did_nothing_counts_nothing(rule: str) -> None:
    clouds = [Observation(loss=2.0, n_tokens=5, seconds=1.0)] * 2
    assert weigh(rule, clouds, n_tokens=0) == [0.0, 0.0]
    assert all(weight > 0 for weight in weigh(rule, clouds))


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gold", "sync.weights is 'gold'; it must be one of tokens, uniform, loss, throughput"),
        ("loss(0)", "temperature of loss is 0; it must not be 0"),
        ("loss(x)", r"loss takes a number, as in loss\(0.5\)"),
        ("loss(nan)", "takes a number"),
        ("loss(", "it must be one of"),
        ("tokens(3)", "tokens takes no argument"),
        ("throughput(speed)", r"it must be throughput or throughput\(bandwidth\)"),
    ],
)
def test_names_that_are_none(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        weights.make(text)


# --- what is observed -----------------------------------------------------------------------------


def test_observations_are_of_clouds_not_of_ranks() -> None:
    topology = from_labels(["a", "b", "b"], ["h"] * 3, 0)
    paces = [
        observe.Pace(10, 2.0, 100, 7.0),
        observe.Pace(20, 3.0, 50, 5.0),
        observe.Pace(30, 1.0, 60, None),
    ]
    found = observe.with_paces((), topology, paces)
    assert found == [Observation(None, 10, 2.0, 100, 7.0), Observation(None, 50, 3.0, 60, 5.0)]
    both = observe.with_losses(found, topology, {"b": 3.0, "a": 2.0})
    assert both == [replace(found[0], loss=2.0), replace(found[1], loss=3.0)]
    assert observe.with_losses((), topology, {"b": 3.0, "a": 2.0}) == losses(2.0, 3.0)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"sync": {"weights": "loss"}}, "goes by held-out losses, but eval.every is 0"),
        ({"sync": {"weights": "throughput(bandwidth)"}}, "set inter.measure = true"),
        ({"sync": {"weights": "loss(0)"}}, "temperature of loss is 0"),
    ],
)
def test_a_rule_that_would_wait_in_vain(
    tmp_path: Path, tables: dict[str, dict[str, Any]], said: str
) -> None:
    for error in failures(tiny_run.config(tmp_path, **tables)):
        assert isinstance(error, ConfigError)
        assert said in str(error)


# --- in a sync rule -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["gradient", "diloco", "streaming"])
def test_a_round_is_weighted_by_what_was_observed(rule: str) -> None:
    """Losses of 1, 1 and NaN are weights of 1/2, 1/2 and 0: what tokens of 8, 8 and 0 are."""
    config = small_model.config_for(rule, small_model.EXACT, nonfinite="exclude")

    def train(group: Group, by_loss: bool) -> Any:
        named = small_model.make_parameters()
        with small_model.opened(group) as hierarchy:
            chosen = replace(config, weights="loss" if by_loss else "tokens")
            made = sync.make(chosen, named, hierarchy)
            if by_loss:
                made.observe(losses(1.0, 1.0, math.nan))
            tokens = [8, 8, 8] if by_loss else [8, 8, 0]
            small_model.train(made, named, group.rank, range(6), lambda _, rank: tokens[rank])
            made.finish()
            return small_model.bits(named)

    by_loss = run_ranks(3, lambda group: train(group, True))
    by_tokens = run_ranks(3, lambda group: train(group, False))
    if rule == "gradient":  # where a cloud without tokens has no gradient of its own either
        by_loss, by_tokens = by_loss[:2], by_tokens[:2]
    assert by_loss == by_tokens


def test_what_was_observed_is_saved_and_a_bad_loss_ends_all(tmp_path: Path) -> None:
    config = replace(small_model.EXACT, weights="loss")
    clouds = [Observation(2.0, 10, 1.0, 5, None), Observation(3.0, 10, 2.0, 5, None)]

    def rank(group: Group) -> None:
        named = small_model.make_parameters()
        with small_model.opened(group) as hierarchy:
            one = sync.make(config, named, hierarchy)
            one.observe(clouds)
            other = sync.make(config, named, hierarchy)
            other.load_state_dict(one.state_dict())
            assert other.observed == tuple(clouds)
            assert one.state_dict()["observed"] == [asdict(each) for each in clouds]
            fewer = {**one.state_dict(), "observed": [asdict(clouds[0])]}
            other.load_state_dict(fewer)
            assert other.observed == (), "of another number of clouds"
            one.observe(losses(2.0, math.nan))

    for error in errors_of(2, rank):
        assert isinstance(error, NonFinite)
        assert "the held-out loss of cloud c1 is nan" in str(error)


# --- in a run -------------------------------------------------------------------------------------


def test_runs_weighted_by_loss_resume_bit_for_bit(tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "sync": {"weights": "loss(0.1)"},
        "eval": {"every": 2},
        "checkpoint": {"every": 3, "keep": 9},
    }
    (straight, _) = run(tiny_run.config(tmp_path, **tables))
    tables["checkpoint"]["resume"] = str(tmp_path / "out/checkpoints/{cloud}/step-00000003")
    second = tmp_path / "second"
    (resumed, _) = run(tiny_run.config(tmp_path, **tables, run={"out": str(second)}))
    assert straight.bit_identical
    assert resumed.eval_loss == straight.eval_loss
    tiny_run.assert_equal_weights(
        tiny_run.weights(tmp_path / "out", 6), tiny_run.weights(second, 6)
    )
    tables["checkpoint"]["resume"] = ""
    tables["sync"]["weights"] = "tokens"
    (other, _) = run(tiny_run.config(tmp_path, **tables, run={"out": str(tmp_path / "third")}))
    assert other.eval_loss != straight.eval_loss, "and the weights did matter"


def test_runs_weighted_by_throughput(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Observation, ...]] = []
    original = sync.SyncRule.observe

    def observe_and_tell(self: sync.SyncRule, clouds: Any) -> None:
        original(self, clouds)
        seen.append(tuple(clouds))

    monkeypatch.setattr(sync.SyncRule, "observe", observe_and_tell)
    tables: dict[str, Any] = {"sync": {"weights": "throughput(bandwidth)"}}
    (result, _) = run(tiny_run.config(tmp_path, **tables, inter={"measure": True}))
    assert result.bit_identical
    last = seen[-1]
    assert all(each.n_tokens == 2 * 16 for each in last), "of the step since the last record"
    assert all((each.seconds or 0) > 0 for each in last)
    assert all((each.link_bytes_per_s or 0) > 0 for each in last)
    assert any(each.sent_bytes for clouds in seen for each in clouds)


@pytest.mark.parametrize("nonfinite", ["error", "exclude"])
def test_a_held_out_loss_that_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nonfinite: str
) -> None:
    original = evaluation.token_losses
    calls = itertools.count()

    def token_losses(*args: Any, **options: Any) -> torch.Tensor:
        held_out = threading.current_thread().name == "rank 1" and bool(options)
        bad = held_out and next(calls) == 2  # of the second evaluation
        return original(*args, **options) * (math.nan if bad else 1.0)

    monkeypatch.setattr(evaluation, "token_losses", token_losses)
    config = tiny_run.config(
        tmp_path,
        sync={"weights": "loss", "nonfinite": nonfinite},
        eval={"every": 2, "sequences": 4},
        train={"micro_batch": 2},
    )
    if nonfinite == "exclude":
        (result, _) = run(config)
        assert result.bit_identical
        assert math.isfinite(result.eval_loss)
        return
    for error in failures(config):
        assert isinstance(error, NonFinite)
        assert "the held-out loss of cloud cloud1 is nan" in str(error)
