"""Nested dicts, lists and tensors: copied beside a run that goes on, written, and read back.

One safetensors file and one JSON file. Never pickle: a checkpoint may come from somebody else, and
opening one must not run code. What JSON cannot hold (tensors, tuples, keys that are no strings) is
tagged. It knows nothing of models.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pyfedcomm.errors import InvalidArgument

_TENSOR, _TUPLE, _DICT = "@tensor", "@tuple", "@dict"


def snapshot(tree: Any, *, ties: bool = False) -> Any:
    """The same tree; each tensor in it is a contiguous copy in host memory, alone in its memory.

    ties: tensors that are the same memory, as tied parameters are, stay one tensor.
    Tensors of a GPU go to pinned memory, which torch keeps for the next snapshot, all at once: this
    waits for the last of them. A stream of their own would hide that only until the next optimizer
    step, which changes them.
    """
    copies: dict[object, torch.Tensor] = {}
    devices: set[torch.device] = set()

    def copied(node: Any) -> Any:
        if isinstance(node, torch.Tensor):
            key: object = id(node)
            if ties and node.numel():
                key = (node.device, node.data_ptr(), node.dtype, node.shape, node.stride())
            if not ties or key not in copies:
                copies[key] = _host_copy(node.detach())
                devices.add(node.device)
            return copies[key]
        if isinstance(node, dict):
            return {key: copied(value) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(copied(value) for value in node)
        return node

    result = copied(tree)
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return result


def _host_copy(tensor: torch.Tensor) -> torch.Tensor:
    pinned = tensor.device.type == "cuda"
    out = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
    return out.copy_(tensor, non_blocking=pinned)


def write(tree: Any, stem: Path) -> list[Path]:
    """Writes ``stem.json`` and, if there are tensors, ``stem.safetensors``; returns the paths.

    tree: as `snapshot` makes it.
    Raises OSError or SafetensorError, InvalidArgument for a value that cannot be stored.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain = flatten(tree, tensors)
    paths = [stem.with_name(stem.name + ".json")]
    paths[0].write_text(json.dumps(plain), encoding="utf-8")
    if tensors:
        paths.append(stem.with_name(stem.name + ".safetensors"))
        save_file(tensors, paths[1])
    return paths


def read(stem: Path) -> Any:
    """What `write` was given; tensors are on the CPU."""
    plain = json.loads(stem.with_name(stem.name + ".json").read_text(encoding="utf-8"))
    file = stem.with_name(stem.name + ".safetensors")
    return unflatten(plain, load_file(file) if file.exists() else {})


def random_state() -> dict[str, Any]:
    """State of the generators of Python, numpy and torch (CPU, and the current CUDA device)."""
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)
    inner = numpy_state["state"]
    state = {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {**inner, "key": [int(k) for k in inner["key"]]}},
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Makes the generators go on from `random_state`."""
    random.setstate(state["python"])
    inner = state["numpy"]["state"]
    key = np.array(inner["key"], np.uint32)
    np.random.set_state({**state["numpy"], "state": {**inner, "key": key}})
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def flatten(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree as JSON has it; adds its tensors to ``tensors``, by names that it refers to."""
    if isinstance(tree, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = tree
        return {_TENSOR: name}
    if isinstance(tree, dict):
        return {_DICT: [[flatten(k, tensors), flatten(v, tensors)] for k, v in tree.items()]}
    if isinstance(tree, tuple):
        return {_TUPLE: [flatten(v, tensors) for v in tree]}
    if isinstance(tree, list):
        return [flatten(v, tensors) for v in tree]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise InvalidArgument(f"a checkpoint cannot hold a {type(tree).__name__}: {tree!r:.60}")


def unflatten(plain: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """What `flatten` was given."""
    if isinstance(plain, list):
        return [unflatten(v, tensors) for v in plain]
    if not isinstance(plain, dict):
        return plain
    ((tag, value),) = plain.items()
    if tag == _TENSOR:
        return tensors[value]
    if tag == _TUPLE:
        return tuple(unflatten(v, tensors) for v in value)
    return {unflatten(k, tensors): unflatten(v, tensors) for k, v in value}
