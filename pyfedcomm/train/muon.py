"""Muon: steps along orthogonalised momentum, of matrices that are whole or sharded by rows (FSDP2).

    B <- mu B + (1 - mu) G
    O <- the nearest orthogonal matrix to (1 - mu) G + mu B
    W <- (1 - lr weight_decay) W - lr 0.2 sqrt(max(m, n)) O

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/): O comes from five iterations of
Newton and Schulz whose singular values end between 0.7 and 1.2; Liu et al. (arXiv 2502.16982) for
the factor, with which a step is as long as AdamW's and takes its learning rate. Such steps of
clouds that train apart agree better than AdamW's (MuLoCo, arXiv 2505.23725).

torch has the same optimizer (``torch.optim.Muon``) for whole matrices, one at a time. Here those
of one shape are multiplied together, and each is in one rank of a cloud only: of shards a rank
gathers some matrices, orthogonalises those and hands back the others' rows; where all ranks hold
all matrices, each does some and tells the others. On a GPU 2 bytes a value go either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, overload

import torch
from torch import distributed as dist

from pyfedcomm import dtensor
from pyfedcomm.errors import InvalidArgument
from pyfedcomm.hierarchy import Hierarchy

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5 that a step of Newton and Schulz applies to singular values;
chosen by Jordan for its slope at 0, not to converge."""
STEPS = 5
_AT_ONCE = 2**26
"""Elements of a rank that are stepped together: more need memory, and keep a GPU no busier."""


class Muon(torch.optim.Optimizer):
    """Muon of two-dimensional parameters.

    params: matrices, or groups of them, or with names; embeddings, heads and vectors are AdamW's.
        DTensors must be sharded by rows, each over one group of ranks.
    lr: as AdamW's. momentum: mu. weight_decay: decoupled.
    cloud: whose ranks hold, and have gradients for, the same whole matrices; without one a rank
        computes all that it holds. A step is collective over the ranks that share its work.
    State of a parameter: ``momentum_buffer``, of its shape, dtype and sharding.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor]
        | Iterable[dict[str, Any]]
        | Iterable[tuple[str, torch.Tensor]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        *,
        cloud: Hierarchy | None = None,
    ) -> None:
        """Raises InvalidArgument for a parameter that is no matrix, and a factor out of range."""
        if not 0 <= momentum < 1:
            raise InvalidArgument(
                f"Muon's momentum is {momentum}; it must be at least 0 and below 1"
            )
        self._cloud = cloud if cloud is not None and cloud.topology.local_size > 1 else None
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raises InvalidArgument for a parameter that is no matrix."""
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.dim() != 2:
                del self.param_groups[-1]
                raise InvalidArgument(
                    f"Muon was given a parameter of shape {tuple(p.shape)}; it steps matrices, "
                    "give others to AdamW"
                )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for matrices in self._buckets([p for p in group["params"] if p.grad is not None]):
                parts = [dtensor.local(p) for p in matrices]
                updates = self._momentum(matrices, group["momentum"])
                directions = self._orthogonal(matrices[0], updates).to(parts[0].dtype)
                length = group["lr"] * 0.2 * math.sqrt(max(matrices[0].shape))
                torch._foreach_mul_(parts, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parts, list(directions.unbind()), alpha=-length)
        return loss

    def _momentum(self, matrices: list[torch.Tensor], mu: float) -> list[torch.Tensor]:
        """What is to be orthogonalised, of each matrix what this rank holds."""
        for p in matrices:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)
        gradients = [dtensor.local(p.grad) for p in matrices if p.grad is not None]
        buffers = [dtensor.local(self.state[p]["momentum_buffer"]) for p in matrices]
        torch._foreach_lerp_(buffers, gradients, 1 - mu)
        return list(torch._foreach_lerp(gradients, buffers, mu))

    def _buckets(self, parameters: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        """Parameters of one shape, sharding and device, as many as are multiplied together."""
        alike: dict[Any, list[torch.Tensor]] = {}
        for p in parameters:
            alike.setdefault((p.shape, p.dtype, p.device, _mesh(p)), []).append(p)
        for (shape, _, _, mesh), same in alike.items():
            if shape.numel():
                n_ranks = 1 if self._cloud is None else self._cloud.topology.local_size
                held = shape.numel()
                if mesh is not None:
                    n_ranks = mesh.size()
                    held = -(-held // n_ranks)
                each = max(n_ranks, _AT_ONCE // held)
                for start in range(0, len(same), each):
                    yield same[start : start + each]

    def _orthogonal(self, parameter: torch.Tensor, updates: list[torch.Tensor]) -> torch.Tensor:
        """What this rank holds of each orthogonalised update, stacked.

        parameter: one of those that the updates are of.
        """
        # Processors without instructions for bf16 multiply it slower than fp32.
        dtype = torch.bfloat16 if parameter.is_cuda else torch.float32
        stack = torch.stack([update.to(dtype) for update in updates])
        mesh = _mesh(parameter)
        if mesh is not None:
            return _exchanged(stack, parameter.shape, mesh)
        return orthogonalised(stack) if self._cloud is None else _shared(stack, self._cloud)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """U V^T of each matrix U S V^T, about: singular values end between 0.7 and 1.2.

    matrices: (k, m, n), in the precision that is multiplied in; 16 bits suffice. A new tensor.
    """
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x = x / (norms + 1e-7).to(x.dtype)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def _mesh(parameter: torch.Tensor) -> Any:
    sharded: Any = parameter
    return sharded.device_mesh if dtensor.is_sharded(parameter) else None


def _shared(stack: torch.Tensor, cloud: Hierarchy) -> torch.Tensor:
    """``orthogonalised``, of which each rank of the cloud computes as many as any other."""
    k, m, n = stack.shape
    n_ranks, rank = cloud.topology.local_size, cloud.topology.local_rank
    each = -(-k // n_ranks)
    result = stack.new_zeros(n_ranks * each, m, n)
    own = slice(rank * each, (rank + 1) * each)
    if len(stack[own]):
        result[own][: len(stack[own])] = orthogonalised(stack[own])
    cloud.share_inside(result.view(-1))
    return result[:k]


def _exchanged(held: torch.Tensor, shape: torch.Size, mesh: Any) -> torch.Tensor:
    """``orthogonalised`` of k matrices of which each rank of a mesh holds some rows.

    held: (k, rows of this rank, n). Matrices are dealt to the ranks in turn.
    """
    n_ranks, rank = mesh.size(), mesh.get_local_rank()
    k, (m, n) = len(held), shape
    rows = [dtensor.rows(m, n_ranks, r) for r in range(n_ranks)]
    n_rows = [part.stop - part.start for part in rows]
    n_own = [len(range(r, k, n_ranks)) for r in range(n_ranks)]
    # To rank r go this rank's rows of r's matrices; from r come r's rows of this rank's.
    leaving = [count * n_rows[rank] * n for count in n_own]
    coming = [n_own[rank] * count * n for count in n_rows]
    group = mesh.get_group()

    sent = torch.cat([held[r::n_ranks].flatten() for r in range(n_ranks)])
    came = sent.new_empty(sum(coming))
    dist.all_to_all_single(came, sent, coming, leaving, group=group)
    parts = torch.split(came, coming)
    own = torch.cat([part.view(n_own[rank], n_rows[r], n) for r, part in enumerate(parts)], dim=1)
    own = orthogonalised(own)
    came = torch.cat([own[:, part].flatten() for part in rows])
    dist.all_to_all_single(sent, came, leaving, coming, group=group)
    result = torch.empty_like(held)
    for r, part in enumerate(torch.split(sent, leaving)):
        result[r::n_ranks] = part.view(n_own[r], n_rows[rank], n)
    return result
