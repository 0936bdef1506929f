"""Configs and models that sync rules refuse: impossible ones, and those that differ between ranks.

One rank per cloud, in threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks import errors_of
from small_model import EXACT, config_for, crafted, make_parameters, opened, set_gradients

from pyfedcomm import sync, weights
from pyfedcomm.errors import ConfigError, Error
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync import SyncConfig


def disagreement(make: Callable[[Group, Hierarchy], object], n: int = 3) -> list[str]:
    """The messages of the ConfigError that every rank must raise."""

    def fn(group: Group) -> None:
        with opened(group) as hierarchy:
            make(group, hierarchy)

    errors = errors_of(n, fn)
    assert all(isinstance(error, ConfigError) for error in errors), errors
    return [str(error) for error in errors]


def test_clouds_that_disagree_on_the_config() -> None:
    def make(group: Group, hierarchy: Hierarchy) -> None:
        codec = "fp32" if group.rank == 2 else "int8"
        sync.make(SyncConfig(codec=codec), make_parameters(), hierarchy)

    for message in disagreement(make):
        assert message == (
            "clouds disagree on sync.codec: rank 0 (cloud c0) has 'int8', "
            "rank 2 (cloud c2) has 'fp32'; use one config"
        )


@pytest.mark.parametrize("change", ["shape", "name", "dtype", "missing", "frozen"])
def test_clouds_that_disagree_on_the_model(change: str) -> None:
    def make(group: Group, hierarchy: Hierarchy) -> None:
        named = make_parameters()
        if group.rank == 1:
            match change:
                case "shape":
                    named[3] = ("head.weight", torch.nn.Parameter(torch.zeros(11, 7)))
                case "name":
                    named[3] = ("lm_head.weight", named[3][1])
                case "dtype":
                    named[3] = ("head.weight", torch.nn.Parameter(named[3][1].bfloat16()))
                case "missing":
                    del named[3]
                case "frozen":
                    named[3][1].requires_grad_(False)
        sync.make(SyncConfig(), named, hierarchy)

    for message in disagreement(make):
        assert message.startswith("clouds disagree on the model: rank 0 (cloud c0) has ")
        assert "head.weight [7, 11] float32" in message
        assert "rank 1 (cloud c1)" in message


def test_a_model_that_cannot_be_exchanged_fails_on_every_rank() -> None:
    def fn(group: Group) -> None:
        with opened(group) as hierarchy:
            named = make_parameters()
            if group.rank == 1:
                named[0][1].data = named[0][1].data.double()
            sync.make(SyncConfig(), named, hierarchy)

    for error in errors_of(2, fn):
        assert isinstance(error, Error)
        assert "'embed.weight' is torch.float64" in str(error)


@pytest.mark.parametrize("rule", sync.names())
def test_ranks_that_start_from_different_parameters(rule: str) -> None:
    def make(group: Group, hierarchy: Hierarchy) -> None:
        named = make_parameters()
        if group.rank == 2:
            with torch.no_grad():
                named[3][1][0, 0] += 1
        made = sync.make(config_for(rule, EXACT), named, hierarchy)
        set_gradients(named, crafted(1))
        made.after_backward(4)

    for message in disagreement(make):
        assert "different parameters" in message
        assert "head.weight" in message
        assert "rank 2 (cloud c2)" in message


def test_names_that_do_not_exist() -> None:
    def make(**change: Any) -> Callable[[Group, Hierarchy], object]:
        return lambda _, hierarchy: sync.make(SyncConfig(**change), make_parameters(), hierarchy)

    for name in sync.names():
        assert name in disagreement(make(rule="nonsense"))[0]
    for name in weights.names():
        assert name in disagreement(make(weights="nonsense"))[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("local_steps", 0),
        ("outer_lr", 0.0),
        ("outer_lr", float("nan")),
        ("outer_decay", 1.5),
        ("outer_decay", -0.1),
        ("outer_end", 0.0),
        ("horizon", -1),
        ("outer_momentum", 1.0),
        ("local_momentum", 1.0),
        ("local_momentum", -0.5),
        ("outer_beta1", -0.1),
        ("outer_beta2", 1.0),
        ("outer_tau", 0.0),
        ("outer_optimizer", "sgd"),
        ("fragments", -1),
        ("fragment_order", "random"),
        ("overlap_steps", -1),
        ("mixing", 1.0),
        ("mixing", -0.5),
        ("mixing", float("nan")),
        ("nonfinite", "ignore"),
    ],
)
def test_impossible_values(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"sync\.{field} is {value!r}; it must be "):
        SyncConfig(**{field: value})


@pytest.mark.parametrize(
    ("rule", "change", "said"),
    [
        ("streaming", {"fragments": 4}, "sync.fragments is 4, but sync.local_steps 3"),
        ("streaming", {"overlap_steps": 3}, "sync.overlap_steps is 3; it must be below"),
        ("streaming", {"local_steps": 9, "fragments": 5}, "4 layers and other blocks (embed, "),
        ("streaming", {"local_steps": 9, "fragments": 5}, "or leave that key out"),
        ("sparse", {"error_feedback": False}, "sync.error_feedback is False, but sparse"),
        ("onebit", {"error_feedback": False}, "sync.error_feedback is False, but onebit"),
        *(
            (rule, {"outer_decay": 0.5}, "sync.outer_decay is 0.5, but sync.rule = ")
            for rule in ("fedavg", "gradient", "isolated", "async")
        ),
    ],
)
def test_keys_that_do_not_go_together(rule: str, change: dict[str, Any], said: str) -> None:
    def make(_: Group, hierarchy: Hierarchy) -> None:
        sync.make(config_for(rule, EXACT, **change), make_parameters(), hierarchy)

    for message in disagreement(make, n=2):
        assert said in message


@pytest.mark.parametrize("name", weights.names())
def test_weights_are_finite_and_zero_without_tokens(name: str) -> None:
    rule = weights.make(name)
    assert rule.weight(weights.Contribution(n_tokens=0)) == 0
    assert 0 < rule.weight(weights.Contribution(n_tokens=10**12)) < float("inf")
