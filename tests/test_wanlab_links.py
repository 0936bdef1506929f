"""bench/wanlab: tables of links, right and wrong. Needs no laboratory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pyfedcomm.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))  # as for the scripts there

from wanlab import Link, Links, Site

TOML = """
[default]
rtt_ms = 80
[[pair]]
from = 0
to = 1
rate_mbit = 200
[[pair]]
from = 1
to = 0
loss = 1e-3
[[cloud]]
cloud = 2
uplink_mbit = 50
"""
JSON = json.dumps(
    {
        "default": {"rtt_ms": 80},
        "pair": [{"from": 0, "to": 1, "rate_mbit": 200}, {"from": 1, "to": 0, "loss": 1e-3}],
        "cloud": [{"cloud": 2, "uplink_mbit": 50}],
    }
)


@pytest.mark.parametrize(("name", "text"), [("a.toml", TOML), ("a.json", JSON)])
def test_tables_of_links(tmp_path: Path, name: str, text: str) -> None:
    if name.endswith(".toml") and sys.version_info < (3, 11):
        pytest.importorskip("tomli")
    file = tmp_path / name
    file.write_text(text)
    links = Links.read(file, Links(queue_ms=7, downlink_mbit=9))
    assert links.link(0, 1) == Link(rate_mbit=200, rtt_ms=80, queue_ms=7)
    assert links.link(1, 0) == Link(rtt_ms=80, loss=1e-3, queue_ms=7)
    assert links.link(2, 1) == Link(rtt_ms=80, queue_ms=7)
    assert links.site(2) == Site(uplink_mbit=50, downlink_mbit=9)
    assert links.site(0) == Site(downlink_mbit=9)


def test_a_pair_counts_in_both_directions_unless_both_are_there(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("from,to,rate_mbit,rtt_ms\n0,1,10,\n0,2,,8\n2,0,30,\n")
    links = Links.read(file)
    assert links.link(1, 0) == links.link(0, 1) == Link(rate_mbit=10)
    assert links.link(0, 2) == Link(rtt_ms=8)
    assert links.link(2, 0) == Link(rate_mbit=30)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "[[pair]]\nfrom = 0\n", "needs 'to'"),
        ("a.toml", "[[pair]\n", "a.toml: links: "),
        ("a.toml", "[default]\nspeed = 1\n", "no 'speed'"),
        ("a.toml", "[default]\nloss = 1.5\n", "loss is 1.5; it must be from 0 to 1"),
        ("a.toml", "[default]\nrtt_ms = nan\n", "rtt_ms is nan"),
        ("a.toml", "[default]\njitter_ms = 26\n", "cannot be more than half of rtt_ms"),
        ("a.toml", "pair = 3\n", "must be a list"),
        ("a.json", "[1]", "must hold an object"),
        ("a.json", '{"pair": [{"from": 0, "to": true}]}', "needs 'to'"),
        ("a.json", '{"default": {"rtt_ms": "50"}}', "it must be a number"),
        ("a.json", '{"cloud": [{"cloud": 0}, {"cloud": 0}]}', "cloud 0 is there twice"),
        ("a.csv", "from,to,loss\n0,1,0.1,5\n", "not as many fields"),
        ("a.csv", "from,to,loss\n0,1\n", "not as many fields"),
        ("a.csv", "from,to,loss\n0,x,0.1\n", "to is 'x'"),
        ("a.csv", "from,to\n0,1\n0,1\n", "pair 0-1 is there twice"),
        ("a.txt", "", "a .toml, .json or .csv file"),
        ("none.json", None, "No such file"),
    ],
)
def test_bad_tables(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if name.endswith(".toml") and sys.version_info < (3, 11):
        pytest.importorskip("tomli")
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Links.read(file)
    assert message in str(caught.value)
    assert name in str(caught.value)
