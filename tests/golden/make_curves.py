"""Writes ``curves.json``: the losses of a tiny model under a fixed seed, for each sync rule.

    python tests/golden/make_curves.py

Run it when a rule is added, or when what a rule computes was changed on purpose: the commit that
changes a curve says why. What is compared, and how closely, is in ``tests/test_golden_curves.py``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from curves import CURVES, RULES, Curve, curve


def main() -> None:
    """One curve after the other, each in a directory of its own."""
    curves: dict[str, Curve] = {}
    for rule in RULES:
        with tempfile.TemporaryDirectory() as folder:
            curves[rule] = curve(rule, Path(folder))
    CURVES.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
