"""The runs whose losses are kept in ``golden/curves.json``: two clouds, one rule each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_run

CURVES = Path(__file__).with_name("golden") / "curves.json"

LOCAL: dict[str, Any] = {"local_steps": 4, "codec": "int4", "error_feedback": True}
RULES: dict[str, dict[str, Any]] = {
    "gradient": {"codec": "int4", "error_feedback": True},
    "fedavg": LOCAL,
    "diloco": LOCAL,
    "fedopt": LOCAL,
    # A fragment is under way, and mixed in, at every other step.
    "streaming": {**LOCAL, "fragments": 2, "overlap_steps": 1},
    "sparse": {"local_steps": 4, "codec": "chunk_topk(256, 32, int4, beta=0.95)"},
    "onebit": {"local_steps": 4},
    "isolated": {},
}
"""Options of ``[sync]`` for each rule: coded, and with residuals where the rule has them."""

Curve = dict[str, Any]
"""``losses``: of the steps 1 to 16; ``eval_loss``: of the final model."""


def curve(rule: str, folder: Path) -> Curve:
    """Trains, with files in ``folder``."""
    config = tiny_run.config(
        folder,
        # Whose steps have the same bits everywhere but for the last.
        train={"steps": 16, "optimizer": "adamw"},
        sync={"rule": rule, **RULES[rule]},
        checkpoint={"enabled": False},
    )
    result, _ = tiny_run.run(config)
    return {"losses": list(tiny_run.losses(folder / "out").values()), "eval_loss": result.eval_loss}


def kept() -> dict[str, Curve]:
    """Rule -> curve, as they were."""
    curves: dict[str, Curve] = json.loads(CURVES.read_text())
    return curves
