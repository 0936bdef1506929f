"""The only place where somebody's array becomes a view that C++ can read and write.

A contiguous CPU array is used where it lies. Anything else (strided, on a GPU) is copied to host
memory first and copied back when the operation has ended: never silently dropped, never refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyfedcomm import _core
from pyfedcomm.errors import InvalidArgument

_FLOATS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass
class Staged:
    """A call's input and target as views, and what makes the caller's result of the target."""

    source: _core.View
    target: _core.View
    finish: Callable[[], Any]


@dataclass
class _Host:
    """One array in contiguous host memory."""

    view: _core.View
    give_back: Callable[[], None]
    """Copies what C++ wrote to where the caller looks, if that is elsewhere."""


def stage(tensor: Any, out: Any, *, any_dtype: bool = False) -> Staged:
    """Views of a collective's input and of its target (the input itself where ``out`` is None)."""
    if out is None:
        host = _host(tensor, "tensor", writable=True, any_dtype=any_dtype)
        return Staged(host.view, host.view, _finish(host, tensor))
    if tuple(out.shape) != tuple(tensor.shape):
        raise InvalidArgument(
            f"out has shape {tuple(out.shape)}, the tensor has {tuple(tensor.shape)}"
        )
    if _dtype_name(out) != _dtype_name(tensor):
        raise InvalidArgument(
            f"out has dtype {_dtype_name(out)}, the tensor has {_dtype_name(tensor)}"
        )
    source = _host(tensor, "tensor", writable=False, any_dtype=any_dtype)
    target = _host(out, "out", writable=True, any_dtype=any_dtype)
    return Staged(source.view, target.view, _finish(target, out))


def stage_gather(tensor: Any, size: int) -> tuple[_core.View, _core.View, Callable[[], Any]]:
    """Views for an all_gather: the input, and new memory for ``(size, *shape)``."""
    source = _host(tensor, "tensor", writable=False, any_dtype=True)
    if _is_torch(tensor):
        import torch

        rows = torch.empty((size, *tensor.shape), dtype=tensor.dtype)
        target = _host(rows, "result", writable=True, any_dtype=True)
        return source.view, target.view, lambda: rows.to(tensor.device)
    array = np.empty((size, *np.shape(tensor)), _as_numpy(tensor, "tensor").dtype)
    target = _host(array, "result", writable=True, any_dtype=True)
    return source.view, target.view, lambda: array


def _finish(host: _Host, result: Any) -> Callable[[], Any]:
    def finish() -> Any:
        host.give_back()
        return result

    return finish


def _is_torch(tensor: Any) -> bool:
    # Without importing torch: whoever has a torch tensor has imported it.
    return type(tensor).__module__.partition(".")[0] == "torch" or (
        hasattr(tensor, "data_ptr") and hasattr(tensor, "is_cuda")
    )


def _host(tensor: Any, name: str, *, writable: bool, any_dtype: bool) -> _Host:
    if _is_torch(tensor):
        return _host_torch(tensor, name, any_dtype=any_dtype)
    if not isinstance(tensor, np.ndarray) and hasattr(tensor, "__dlpack_device__"):
        kind = int(tensor.__dlpack_device__()[0])
        if kind != 1:  # not kDLCPU: torch knows how to reach the device
            import torch.utils.dlpack

            return _host_torch(torch.utils.dlpack.from_dlpack(tensor), name, any_dtype=any_dtype)
    return _host_numpy(_as_numpy(tensor, name), name, writable=writable, any_dtype=any_dtype)


def _as_numpy(tensor: Any, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    if isinstance(tensor, np.ndarray):
        return tensor
    if hasattr(tensor, "__dlpack__"):
        return np.from_dlpack(tensor)
    raise InvalidArgument(
        f"{name} is a {type(tensor).__name__}; it must be a numpy array, a torch tensor or "
        "something with DLPack (np.asarray makes an array of a list)"
    )


def _host_numpy(
    array: np.ndarray[Any, np.dtype[Any]], name: str, *, writable: bool, any_dtype: bool
) -> _Host:
    dtype = _dtype(array.dtype.name, name, any_dtype)
    if array.dtype.hasobject or not array.dtype.isnative:
        raise InvalidArgument(f"{name} has dtype {array.dtype.str}, which cannot be sent")
    if writable and not array.flags.writeable:
        raise InvalidArgument(f"{name} is read-only; give out= an array that can be written")
    n_elems = array.nbytes if any_dtype else array.size
    if array.flags.c_contiguous and array.flags.aligned:
        return _Host(_core.View(array.ctypes.data, n_elems, dtype, array), _nothing)
    copy = np.ascontiguousarray(array) if array.flags.aligned else array.copy(order="C")
    view = _core.View(copy.ctypes.data, n_elems, dtype, copy)
    return _Host(view, lambda: np.copyto(array, copy) if writable else None)


def _host_torch(tensor: Any, name: str, *, any_dtype: bool) -> _Host:
    import torch

    if tensor.layout is not torch.strided:
        raise InvalidArgument(f"{name} has layout {tensor.layout}; call .to_dense() first")
    dtype = _dtype(_dtype_name(tensor), name, any_dtype)
    plain = tensor.detach()
    n_elems = plain.numel() * plain.element_size() if any_dtype else plain.numel()
    if plain.device.type == "cpu" and plain.is_contiguous():
        return _Host(_core.View(plain.data_ptr(), n_elems, dtype, plain), _nothing)
    copy = torch.empty(plain.shape, dtype=plain.dtype, pin_memory=plain.is_cuda)
    copy.copy_(plain)
    view = _core.View(copy.data_ptr(), n_elems, dtype, copy)
    return _Host(view, lambda: plain.copy_(copy))


def _dtype(dtype: str, name: str, any_dtype: bool) -> str:
    if any_dtype:
        return "u8"
    if dtype not in _FLOATS:
        raise InvalidArgument(f"{name} has dtype {dtype}; all_reduce takes {', '.join(_FLOATS)}")
    return _FLOATS[dtype]


def _dtype_name(tensor: Any) -> str:
    dtype = getattr(tensor, "dtype", None)  # a mere DLPack exporter need not say
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


def _nothing() -> None:
    return None
