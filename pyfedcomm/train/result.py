"""The numbers of a run: those at its end, and what a rank counts on the way to them."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyfedcomm.train.metrics import PHASES


@dataclass(frozen=True)
class TrainResult:
    """The numbers of a finished run; equal on all ranks."""

    eval_loss_start: float
    """Held-out loss (nats a token, mean over clouds) before the first step."""
    eval_loss: float
    """The same of the final model."""
    eval_losses_by_cloud: dict[str, float]
    """The final model on each cloud's held-out text."""
    steps: int
    tokens: int
    """Trained on by all ranks together."""
    seconds: float
    """Wall time of training and evaluation, without loading; with that before a resume."""
    n_params: int
    """Trainable parameters."""
    rounds: int
    wan_bytes: int
    """Sent between clouds by the sync rule: frames, all ranks together."""
    control_bytes: int
    """Sent between clouds for everything else: agreement, logging, evaluation across clouds."""
    wan_bytes_data_parallel: int
    """What data parallelism would have sent: an fp32 ring all-reduce over the N clouds of every
    gradient at every step, N * 2 (N - 1) / N * 4 bytes * n_params * steps."""
    time: dict[str, float]
    """Seconds in compute, encode, wire and wait (see `metrics.StepRecord`), mean over ranks."""
    utilisation: dict[str, float]
    """Share of each cloud's training time that was compute (see `pace.utilisation`)."""
    checkpoint_s: float
    """Seconds for which checkpoints held training, mean over ranks. Of the last one, which no
    training is beside, only the copy, unless ``checkpoint.background`` is false."""
    excluded: dict[str, int]
    """Rounds that a cloud was left out of because it had diverged, by its name."""
    bit_identical: bool
    """Every bit of every parameter is the same on all ranks of all clouds."""


@dataclass
class Tally:
    """What one rank counts; goes into checkpoints, so that a resumed run logs the same numbers."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    wan_bytes: int = 0
    control_bytes: int = 0
    time: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    eval_loss_start: float = 0.0
    # Since the last logged step, and the time split and bytes at it:
    loss_sum: float = 0.0
    loss_tokens: int = 0
    logged_wan_bytes: int = 0
    logged_time: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
