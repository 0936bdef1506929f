"""Ranks as threads that make one step each in a given order: what tests of `async` play on."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
from reference_sync import Vector
from small_model import INNER_LR, crafted, set_gradients

from pyfedcomm import sync

TOKENS = (4, 8)


class Stage:
    """Lets ranks, which are threads, make one step each in a given order."""

    def __init__(self, order: list[int]) -> None:
        self.order, self.at = order, 0
        self.changed = threading.Condition()
        self.host: Any = None

    def step(self, rule: sync.SyncRule, named: Any, cloud: int, step: int) -> None:
        """Waits for the cloud's turn; ends it when what the step pushed has been applied."""
        with self.changed:
            mine = self.changed.wait_for(lambda: self.order[self.at :][:1] == [cloud], 30)
            assert mine, f"no turn for cloud {cloud}"
        pushed = self.host.server.pushes + ((step + 1) % rule.config.local_steps == 0)
        one_step(rule, named, cloud, step)
        end = time.monotonic() + 30
        while self.host.server.pushes < pushed:
            assert time.monotonic() < end, "a push was not applied"
            time.sleep(1e-3)
        with self.changed:
            self.at += 1
            self.changed.notify_all()


def gradient(cloud: int, step: int) -> Vector:
    return crafted(1000 * step + cloud)


def one_step(rule: sync.SyncRule, named: Any, cloud: int, step: int) -> None:
    set_gradients(named, gradient(cloud, step))
    rule.after_backward(TOKENS[cloud % 2])
    torch.optim.SGD([p for _, p in named], lr=INNER_LR).step()
    rule.after_step(TOKENS[cloud % 2])
