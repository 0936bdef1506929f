"""What a batch of a `transformers.Trainer` weighs, and which part of a dataset a rank trains on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pyfedcomm.buckets import fingerprint
from pyfedcomm.errors import InvalidArgument

IGNORED = -100
"""A label that no loss counts."""


def shifts_labels(model: Any) -> bool:
    """Whether the model's loss compares position i with label i + 1: the first label is unused."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        return False
    return getattr(base, "loss_type", None) == "ForCausalLM"


def n_predicted(inputs: Mapping[str, Any], *, shifted: bool) -> torch.Tensor:
    """How many predictions the loss of this batch is the mean over, as a scalar on its device.

    The labels that are not -100, as the Trainer counts them; without labels the tokens that
    ``attention_mask`` has, else all of ``input_ids``, else the rows of the first tensor.
    shifted: see `shifts_labels`.
    """
    labels = inputs.get("shift_labels")
    if labels is None:
        labels = inputs.get("labels")
        if shifted and isinstance(labels, torch.Tensor):
            labels = labels[..., 1:]
    if isinstance(labels, torch.Tensor) and not labels.is_floating_point():
        return (labels != IGNORED).sum()
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if labels is None and isinstance(mask, torch.Tensor) and mask.dim() == 2:
        return (mask != 0).sum()
    if labels is None and isinstance(ids, torch.Tensor):
        return torch.tensor(ids.numel(), device=ids.device)
    for value in inputs.values():
        if isinstance(value, torch.Tensor) and value.dim():
            return torch.tensor(len(value), device=value.device)
    raise InvalidArgument(
        f"there is no tensor among the model's inputs ({', '.join(inputs) or 'none'}), so what its "
        "batch weighs is unknown: let the data collator return tensors by name"
    )


def digest(inputs: Mapping[str, Any]) -> str:
    """Of every bit of a batch's tensors."""
    return fingerprint((k, v) for k, v in inputs.items() if isinstance(v, torch.Tensor))


def part(dataset: Any, index: int, n: int) -> Any:
    """Every ``n``-th element of a dataset from ``index`` on; all parts are of equal length.

    A `datasets.Dataset` stays one. Raises InvalidArgument for a dataset without a length.
    """
    if not hasattr(dataset, "__len__"):
        raise InvalidArgument(
            f"a {type(dataset).__name__} has no length, and cannot be dealt out: give each rank "
            f"its own, this one part {index} of {n}"
        )
    indices = range(index, len(dataset) - len(dataset) % n, n)
    if hasattr(dataset, "select"):
        return dataset.select(indices)
    return torch.utils.data.Subset(dataset, indices)
