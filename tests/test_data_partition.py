"""Dealing of documents to clouds: each to exactly one, the same everywhere, none left idle."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfedcomm.data import partition
from pyfedcomm.data.partition import Entry
from pyfedcomm.errors import ConfigError

RULES = ["iid", "source", "dirichlet(0.3)"]


def entry(source: str, number: int, n_bytes: int = 100) -> Entry:
    return Entry(source, n_bytes, hashlib.sha256(f"{source} {number}".encode()).digest())


def documents(n_sources: int = 30, each: int = 40) -> list[Entry]:
    sizes = np.random.default_rng(0).integers(10, 200, (n_sources, each))
    return [entry(f"source{s}", i, int(sizes[s, i])) for s in range(n_sources) for i in range(each)]


def assign(
    rule: str, entries: list[Entry], n_clouds: int, seed: int = 0, shares: list[float] | None = None
) -> list[int]:
    made = partition.make(rule)
    assert made is not None
    names = [f"cloud{i}" for i in range(n_clouds)]
    return partition.assign(made, entries, shares or [1.0] * n_clouds, seed, names)


def sizes_of(entries: list[Entry], chosen: list[int]) -> list[int]:
    total: Counter[int] = Counter()
    for each, cloud in zip(entries, chosen, strict=True):
        total[cloud] += each.n_bytes
    return [total[cloud] for cloud in sorted(total)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n_clouds", [1, 2, 3, 7])
def test_every_document_goes_to_one_cloud_and_no_cloud_is_idle(rule: str, n_clouds: int) -> None:
    entries = documents()
    chosen = assign(rule, entries, n_clouds)
    assert len(chosen) == len(entries)
    assert set(chosen) == set(range(n_clouds))
    assert chosen == assign(rule, entries, n_clouds), "the same again"


def test_the_seed_decides() -> None:
    entries = documents()
    for rule in ("iid", "dirichlet(1)"):
        assert assign(rule, entries, 3, seed=0) != assign(rule, entries, 3, seed=1)


def test_iid_meets_shares_and_mixes_sources() -> None:
    entries = documents()
    total = sum(each.n_bytes for each in entries)
    for shares in ([1.0, 1.0, 1.0], [3.0, 1.0, 0.5]):
        found = sizes_of(entries, assign("iid", entries, 3, shares=shares))
        for size, share in zip(found, shares, strict=True):
            assert abs(size - total * share / sum(shares)) <= 200 * 3, "to within a few documents"
    chosen = assign("iid", entries, 2)
    for s in range(30):
        own = Counter(chosen[40 * s : 40 * s + 40])
        assert 5 <= own[0] <= 35


def test_sources_stay_whole_and_sizes_are_about_equal() -> None:
    entries = documents()
    chosen = assign("source", entries, 4)
    clouds_of: dict[str, set[int]] = {}
    for each, cloud in zip(entries, chosen, strict=True):
        clouds_of.setdefault(each.source, set()).add(cloud)
    assert all(len(clouds) == 1 for clouds in clouds_of.values())
    found = sizes_of(entries, chosen)
    assert max(found) < 4 / 3 * sum(found) / 4
    double = sizes_of(entries, assign("source", entries, 2, shares=[2.0, 1.0]))
    assert double[0] / double[1] == pytest.approx(2, rel=0.1)


def test_alpha_says_how_different_clouds_are() -> None:
    """Of each source the largest part that one cloud has: 1 where they are whole, 1/4 for iid."""

    def largest(rule: str) -> float:
        entries = documents(200)
        chosen = assign(rule, entries, 4)
        parts = [max(Counter(chosen[40 * s : 40 * s + 40]).values()) / 40 for s in range(200)]
        return float(np.mean(parts))

    found = [largest(f"dirichlet({alpha})") for alpha in (0.001, 0.1, 1, 1e6)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.98
    assert found[-1] == pytest.approx(largest("iid"), abs=0.05)


@given(alpha=st.floats(1e-8, 1e8), seed=st.integers(0, 2**31), n=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_any_alpha_gives_a_cloud(alpha: float, seed: int, n: int) -> None:
    chosen = partition.Dirichlet(alpha).assign(documents(3, 5), [1.0] * n, seed)
    assert set(chosen) <= set(range(n))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine", r"data.partition is 'mine'; it must be one of own, iid, source, dirichlet"),
        ("dirichlet", r"dirichlet takes a number, as in dirichlet\(0.5\)"),
        ("dirichlet(x)", "takes a number"),
        ("dirichlet(nan)", "takes a number"),
        ("dirichlet(inf)", "takes a number"),
        ("dirichlet(0)", "alpha of dirichlet is 0; it must be above 0"),
        ("dirichlet(-1)", "alpha of dirichlet is -1; it must be above 0"),
        ("iid(3)", r"data.partition is 'iid\(3\)'; iid takes no argument"),
        ("own()", "own takes no argument"),
    ],
)
def test_names_that_are_none(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        partition.make(text)


def test_own_deals_nothing() -> None:
    assert partition.make("own") is None


def test_a_cloud_that_would_be_idle_is_named() -> None:
    with pytest.raises(ConfigError, match="2 documents are too few for 3 clouds"):
        assign("iid", documents(1, 2), 3)
    with pytest.raises(ConfigError, match=r"1 sources are too few for 2 clouds.*'iid'"):
        assign("source", documents(1, 9), 2)
    with pytest.raises(ConfigError, match=r"leaves cloud cloud\d, cloud\d, cloud\d without"):
        assign("dirichlet(1e-6)", documents(1, 9), 4)


def test_a_digest_tells_other_documents_and_another_deal() -> None:
    entries = documents(2, 3)
    chosen = assign("iid", entries, 2)
    digests = {
        partition.digest(entries, chosen),
        partition.digest(entries[::-1], chosen),
        partition.digest(entries, [1 - cloud for cloud in chosen]),
        partition.digest([*entries[:-1], entry("source1", 99)], chosen),
        partition.digest([*entries[:-1], entry("other", 2)], chosen),
    }
    assert len(digests) == 5
