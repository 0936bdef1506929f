"""The local optimizer, ``train.optimizer``, and its learning rate: warm-up and cosine decay."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pyfedcomm.errors import InvalidArgument
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.train.config import TrainConfig, TrainSteps
from pyfedcomm.train.muon import Muon


def chosen(config: TrainConfig) -> str:
    """``adamw`` or ``muon``: what ``train.optimizer`` comes to."""
    if config.train.optimizer != "auto":
        return config.train.optimizer
    # What AdamW has trained Muon does not fine-tune better (arXiv 2502.16982, 3.5).
    return "adamw" if config.model.path else "muon"


def make(
    model: nn.Module, config: TrainSteps, kind: str, cloud: Hierarchy | None = None
) -> torch.optim.Optimizer:
    """The optimizer of a model's trainable parameters; vectors are not decayed.

    kind: ``adamw``, AdamW (arXiv 1711.05101); ``muon``, `Muon` for the matrices between embedding
    and head, AdamW for everything else, at one learning rate.
    cloud: whose ranks share Muon's work.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    hidden = _hidden(model, trainable) if kind == "muon" else []
    stepped = {id(p) for p in hidden}
    others = [p for p in trainable if id(p) not in stepped]
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    parts: list[torch.optim.Optimizer] = []
    if hidden:
        parts.append(
            Muon(hidden, config.lr, config.muon_momentum, config.weight_decay, cloud=cloud)
        )
    if groups:
        parts.append(
            torch.optim.AdamW(
                groups,
                lr=config.lr,
                betas=(config.beta1, config.beta2),
                eps=config.eps,
                # One kernel instead of a dozen: every parameter moves through memory once.
                fused=all(p.is_cuda for p in trainable),
            )
        )
    return parts[0] if len(parts) == 1 else Together(parts)


def _hidden(model: nn.Module, trainable: list[nn.Parameter]) -> list[nn.Parameter]:
    """The trainable matrices that are neither embeddings nor the head."""
    ends = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        ends.add(id(head.weight))
    return [p for p in trainable if p.dim() == 2 and id(p) not in ends]


class Together(torch.optim.Optimizer):
    """Optimizers of different parameters as one: one state, one list of parameter groups."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        """parts: without state yet, and with all of their parameter groups."""
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raises InvalidArgument: nobody would step it."""
        if hasattr(self, "_parts"):
            raise InvalidArgument(
                "optimizers together take no further parameter group; add it to one of them before"
            )
        super().add_param_group(param_group)

    def step(self, closure: Any = None) -> Any:
        """A step of each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError for a state of other parameter groups."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        # The parts' own lists and state become views of this one's, which loading replaces.
        start = 0
        for part in self._parts:
            end = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:end], self.state
            start = end


def lr_at(step: float, config: TrainSteps) -> float:
    """Learning rate of step ``step`` (from 0): linear from lr / warmup_steps, cosine to min_lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (
        1 + math.cos(math.pi * min(1.0, done))
    )
