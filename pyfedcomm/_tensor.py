"""The only place where somebody's array becomes a view that C++ can read and write.

A contiguous array on the CPU or on a CUDA GPU is used where it lies; a strided one is made
contiguous there, and copied back when the operation has ended. What C++ cannot reach (another kind
of device, or a GPU in a build without CUDA) goes through host memory. Nothing is silently dropped.
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
class _Reachable:
    """One contiguous array where C++ can read and write it."""

    view: _core.View
    give_back: Callable[[], None]
    """Copies what C++ wrote to where the caller looks, if that is elsewhere."""


def stage(tensor: Any, out: Any, *, any_dtype: bool = False, on_host: bool = False) -> Staged:
    """Views of a collective's input and of its target (the input itself where ``out`` is None).

    on_host: in host memory, wherever the tensors are.
    """
    if out is None:
        here = _reach(tensor, "tensor", writable=True, any_dtype=any_dtype, on_host=on_host)
        return Staged(here.view, here.view, _finish(here, tensor))
    if tuple(out.shape) != tuple(tensor.shape):
        raise InvalidArgument(
            f"out has shape {tuple(out.shape)}, the tensor has {tuple(tensor.shape)}"
        )
    if _dtype_name(out) != _dtype_name(tensor):
        raise InvalidArgument(
            f"out has dtype {_dtype_name(out)}, the tensor has {_dtype_name(tensor)}"
        )
    on_host = on_host or gpu_of(tensor) != gpu_of(out)
    source = _reach(tensor, "tensor", writable=False, any_dtype=any_dtype, on_host=on_host)
    target = _reach(out, "out", writable=True, any_dtype=any_dtype, on_host=on_host)
    return Staged(source.view, target.view, _finish(target, out))


def stage_gather(tensor: Any, size: int) -> tuple[_core.View, _core.View, Callable[[], Any]]:
    """Views for an all_gather: the input, and new memory for ``(size, *shape)``."""
    source = _reach(tensor, "tensor", writable=False, any_dtype=True)
    if _is_torch(tensor):
        import torch

        device = "cpu" if gpu_of(tensor) == HOST else tensor.device
        rows = torch.empty((size, *tensor.shape), dtype=tensor.dtype, device=device)
        target = _reach(rows, "result", writable=True, any_dtype=True)
        return source.view, target.view, lambda: rows.to(tensor.device)
    array = np.empty((size, *np.shape(tensor)), _as_numpy(tensor, "tensor").dtype)
    target = _reach(array, "result", writable=True, any_dtype=True)
    return source.view, target.view, lambda: array


def residual_view(tensor: Any) -> _core.View:
    """Of a contiguous tensor on the CPU or, in a build that reaches it, on a GPU."""
    here = _reach(tensor, "residual", writable=True, any_dtype=False)
    if here.give_back is not _nothing:
        raise InvalidArgument("a residual must be contiguous, and where C++ reaches it")
    return here.view


HOST = -1


def gpu_of(tensor: Any) -> int:
    """Number of the GPU on which C++ works on the tensor; `HOST` where it uses host memory."""
    is_cuda = _is_torch(tensor) and tensor.device.type == "cuda"
    return int(tensor.device.index) if is_cuda and _core.cuda.available() else HOST


def _finish(here: _Reachable, result: Any) -> Callable[[], Any]:
    def finish() -> Any:
        here.give_back()
        return result

    return finish


def _is_torch(tensor: Any) -> bool:
    # Without importing torch: whoever has a torch tensor has imported it.
    return type(tensor).__module__.partition(".")[0] == "torch" or (
        hasattr(tensor, "data_ptr") and hasattr(tensor, "is_cuda")
    )


def _reach(
    tensor: Any, name: str, *, writable: bool, any_dtype: bool, on_host: bool = False
) -> _Reachable:
    if _is_torch(tensor):
        return _reach_torch(tensor, name, any_dtype=any_dtype, on_host=on_host)
    if not isinstance(tensor, np.ndarray) and hasattr(tensor, "__dlpack_device__"):
        kind = int(tensor.__dlpack_device__()[0])
        if kind != 1:  # not kDLCPU: torch knows how to reach the device
            import torch.utils.dlpack

            same = torch.utils.dlpack.from_dlpack(tensor)
            return _reach_torch(same, name, any_dtype=any_dtype, on_host=on_host)
    return _reach_numpy(_as_numpy(tensor, name), name, writable=writable, any_dtype=any_dtype)


def _as_numpy(tensor: Any, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    if isinstance(tensor, np.ndarray):
        return tensor
    if hasattr(tensor, "__dlpack__"):
        return np.from_dlpack(tensor)
    raise InvalidArgument(
        f"{name} is a {type(tensor).__name__}; it must be a numpy array, a torch tensor or "
        "something with DLPack (np.asarray makes an array of a list)"
    )


def _reach_numpy(
    array: np.ndarray[Any, np.dtype[Any]], name: str, *, writable: bool, any_dtype: bool
) -> _Reachable:
    dtype = _dtype(array.dtype.name, name, any_dtype)
    if array.dtype.hasobject or not array.dtype.isnative:
        raise InvalidArgument(f"{name} has dtype {array.dtype.str}, which cannot be sent")
    if writable and not array.flags.writeable:
        raise InvalidArgument(f"{name} is read-only; give out= an array that can be written")
    n_elems = array.nbytes if any_dtype else array.size
    if array.flags.c_contiguous and array.flags.aligned:
        return _Reachable(_core.View(array.ctypes.data, n_elems, dtype, array), _nothing)
    copy = np.ascontiguousarray(array) if array.flags.aligned else array.copy(order="C")
    view = _core.View(copy.ctypes.data, n_elems, dtype, copy)
    return _Reachable(view, lambda: np.copyto(array, copy) if writable else None)


def _reach_torch(tensor: Any, name: str, *, any_dtype: bool, on_host: bool) -> _Reachable:
    import torch

    if tensor.layout is not torch.strided:
        raise InvalidArgument(f"{name} has layout {tensor.layout}; call .to_dense() first")
    dtype = _dtype(_dtype_name(tensor), name, any_dtype)
    plain = tensor.detach()
    n_elems = plain.numel() * plain.element_size() if any_dtype else plain.numel()
    gpu = HOST if on_host else gpu_of(plain)
    if gpu != HOST:
        here = plain.contiguous()
        stream = torch.cuda.current_stream(plain.device).cuda_stream
        view = _core.View(here.data_ptr(), n_elems, dtype, here, gpu, stream)
        return _Reachable(view, _nothing if here is plain else lambda: _copy(plain, here))
    if plain.device.type == "cpu" and plain.is_contiguous():
        return _Reachable(_core.View(plain.data_ptr(), n_elems, dtype, plain), _nothing)
    copy = torch.empty(plain.shape, dtype=plain.dtype, pin_memory=plain.is_cuda)
    copy.copy_(plain)
    view = _core.View(copy.data_ptr(), n_elems, dtype, copy)
    return _Reachable(view, lambda: _copy(plain, copy))


def _copy(to: Any, source: Any) -> None:
    to.copy_(source)


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
