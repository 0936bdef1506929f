"""The state of a sync rule, for other clouds and ranks than those that saved it."""

from __future__ import annotations

from typing import Any

import torch


def residual_squares(state: dict[str, Any]) -> tuple[float, float]:
    """Sums of squares of the residuals in one rank's state: the senders', the owners'."""
    return _squares(state, "sender"), _squares(state, "owner")


def _squares(state: dict[str, Any], kind: str) -> float:
    return sum(
        float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
        for name, tensor in state.items()
        if name.startswith("feedback.") and name.endswith(f".{kind}")
    )
