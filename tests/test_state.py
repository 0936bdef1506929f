"""State on disk: trees of tensors and plain values come back as they were."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyfedcomm.errors import InvalidArgument
from pyfedcomm.train import state


def test_state_round_trip(tmp_path: Path) -> None:
    big = torch.arange(12.0).view(3, 4)
    tree: dict[Any, Any] = {
        "tensors": [big[:, 1], big.t(), torch.tensor(2**40), torch.zeros(0, dtype=torch.bfloat16)],
        "tied": (big, big),
        "plain": [None, True, 3, 0.1, "ü", float("inf")],
        3: {"int key": {("a", 1): 2}},
        "@tensor": "not a tag",
    }
    written = state.write(state.snapshot(tree), tmp_path / "s.tate")
    assert [p.name for p in written] == ["s.tate.json", "s.tate.safetensors"]
    read = state.read(tmp_path / "s.tate")
    for a, b in zip(
        [*tree.pop("tensors"), *tree.pop("tied")],
        [*read.pop("tensors"), *read.pop("tied")],
        strict=True,
    ):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    assert read == tree
    with pytest.raises(InvalidArgument, match="cannot hold a set"):
        state.write({"x": {1, 2}}, tmp_path / "other")


def test_a_snapshot_is_a_copy_that_keeps_ties_if_asked() -> None:
    values = torch.arange(4.0)
    tree = {"a": values, "b": values.view(4), "part": values[1:], "none": torch.zeros(0)}
    apart, tied = state.snapshot(tree), state.snapshot(tree, ties=True)
    values.fill_(9.0)
    for copied in (apart, tied):
        assert copied["a"].tolist() == copied["b"].tolist() == [0.0, 1.0, 2.0, 3.0]
        assert copied["part"].tolist() == [1.0, 2.0, 3.0]
    assert apart["a"] is not apart["b"]
    assert tied["a"] is tied["b"]


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()]

    draw()
    state.write(state.random_state(), tmp_path / "random")
    drawn = draw()
    assert draw() != drawn
    state.set_random_state(state.read(tmp_path / "random"))
    assert draw() == drawn
