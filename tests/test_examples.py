"""The examples run as their first lines say."""

from __future__ import annotations

import sys
from pathlib import Path

from pyfedcomm import launch

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_sum(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert launch.run(2, [sys.executable, str(EXAMPLES / "sum.py")], timeout_s=120, log=log) == 0
    printed = log.read_text()
    assert "sum: [3. 3. 3. 3.]" in printed
    assert "bytes of 4194320 in fp32" in printed


def test_links(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = [sys.executable, str(EXAMPLES / "links.py")]
    assert launch.run(3, argv, timeout_s=120, log=log) == 0
    printed = log.read_text()
    assert "rank 2 -> rank 1" in printed
    assert "1,000,000 elements as fp32, 4 MB, 3 members: " in printed
