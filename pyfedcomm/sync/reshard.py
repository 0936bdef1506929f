"""The state of a sync rule, for other clouds and ranks than those that saved it.

A rule's `state_dict` is one rank's: its rail's shard of every bucket, and, of the residual of the
sum, what its cloud owned. Here the states of one cloud's ranks become a `Whole`, and a whole
becomes the state that a rank of other clouds would have saved. What was each cloud's own stays its
own: a cloud that joins starts without residuals, and has no part in what was under way before.
Nothing here communicates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from pyfedcomm.errors import ConfigError

Whole = dict[str, Any]
"""``plain``: what all clouds have in common, by name; ``tokens``: of each rank, for each fragment;
``tensors``: buckets in full, fp32 on the CPU, by the names that the shards had; ``owners``: lengths
of those that clouds own parts of."""

_TENSOR = re.compile(r"(fragment|flight|feedback)\.\d+\.\w+")
_OWN = re.compile(r"flight\.\d+\.delta|feedback\.\d+\.sender")
_OWNER = re.compile(r"feedback\.\d+\.owner")
_OWNED = re.compile(r"feedback\.\d+\.owned")


def assemble(states: Sequence[dict[str, Any]]) -> Whole:
    """states: of all ranks of one cloud, in order.

    A tensor ``feedback.B.owner`` has zeros where this cloud owned nothing: the sum over clouds is
    whole. Raises ConfigError where the states do not belong together.
    """
    gateways = states[: int(states[0]["n_rails"])]
    tensors: dict[str, torch.Tensor] = {}
    for name in states[0]:
        if not _TENSOR.fullmatch(name) or _OWNED.fullmatch(name):
            continue
        if not all(isinstance(state.get(name), torch.Tensor) for state in gateways):
            raise ConfigError(f"the checkpoint's sync state has no {name!r} of every gateway")
        tensors[name] = torch.cat(
            [
                _in_shard(state, name) if _OWNER.fullmatch(name) else state[name].reshape(-1)
                for state in gateways
            ]
        )
    plain = {k: v for k, v in states[0].items() if not _TENSOR.fullmatch(k) and k != "tokens"}
    return {
        "plain": plain,
        "tokens": [s.get("tokens", []) for s in states],
        "tensors": tensors,
        "owners": {n: t.numel() for n, t in tensors.items() if _OWNER.fullmatch(n)},
    }


def for_joining(whole: Whole) -> Whole:
    """Without what is the cloud's own."""
    kept = {
        name: tensor
        for name, tensor in whole["tensors"].items()
        if not _OWN.fullmatch(name) and not _OWNER.fullmatch(name)
    }
    return {**whole, "tokens": [], "tensors": kept}


def distribute(
    whole: Whole,
    fresh: dict[str, Any],
    *,
    rail: int | None,
    rank: int,
    n_ranks: int,
    common: Sequence[str],
    measured: Sequence[str],
    joins: bool,
) -> dict[str, Any]:
    """The state for one rank.

    fresh: its state as it starts, which tells what it keeps, and of what size. rail: None if it is
        no gateway; rank: of ``n_ranks`` in its cloud. common, measured: keys of plain values that
        are the same on all ranks, and that begin anew. joins: the cloud was not there before.
    Raises ConfigError where the state has a part that is not known to be one of these.
    """
    state: dict[str, Any] = {}
    for name in {**fresh, **whole["plain"]}:
        own = fresh.get(name)
        if _OWNED.fullmatch(name):
            state[name] = own
        elif isinstance(own, torch.Tensor):
            state[name] = own if joins and _OWN.fullmatch(name) else _part(whole, fresh, name, rail)
        elif name in measured:
            state[name] = own
        elif name in common:
            state[name] = whole["plain"][name]
        elif name == "tokens":
            state[name] = (
                [0] * len(fresh[name]) if joins else _tokens(whole["tokens"], rank, n_ranks)
            )
        elif name == "flights":
            state |= _flights(whole, fresh, rail, joins=joins)
        elif name == "n_rails" or whole["plain"].get(name) == own:
            state[name] = own
        else:
            raise ConfigError(
                f"the checkpoint's sync state has {name} = {whole['plain'].get(name)!r}, this run "
                f"has {own!r}, and it is not known what other clouds make of it; resume with the "
                "clouds, model and [sync] it was written with"
            )
    return state


def residual_squares(state: dict[str, Any]) -> tuple[float, float]:
    """Sums of squares of the residuals in one rank's state: the senders', the owners'."""
    return _squares(state, "sender"), _squares(state, "owner")


def _squares(state: dict[str, Any], kind: str) -> float:
    return sum(
        float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
        for name, tensor in state.items()
        if name.startswith("feedback.") and name.endswith(f".{kind}")
    )


def _in_shard(state: dict[str, Any], name: str) -> torch.Tensor:
    """The residual of what a gateway owned, where it lies in its shard."""
    stem = name.rpartition(".")[0]
    shard = torch.zeros_like(state[f"{stem}.sender"])
    begin, end = state[f"{stem}.owned"]
    shard[begin:end] = state[name]
    return shard


def _part(whole: Whole, fresh: dict[str, Any], name: str, rail: int | None) -> torch.Tensor:
    """This gateway's part of a bucket; what lies beyond its end is padding."""
    assert rail is not None  # who has a shard is a gateway
    own: torch.Tensor = fresh[name]
    stem, _, kind = name.rpartition(".")
    full = whole["tensors"].get(name)
    if full is None and name.startswith("feedback."):
        return own  # there was one cloud, which coded nothing
    if full is None:
        raise ConfigError(
            f"the checkpoint's sync state has no {name!r}; resume with the [sync] it was written "
            "with"
        )
    if kind == "owner":
        begin = fresh[f"{stem}.owned"][0] + rail * fresh[f"{stem}.sender"].numel()
    else:
        begin = rail * own.numel()
    return _padded(full[begin : begin + own.numel()], own.numel())


def _flights(
    whole: Whole, fresh: dict[str, Any], rail: int | None, *, joins: bool
) -> dict[str, Any]:
    """Fragments under way: who joins sends nothing of weight, and receives with the others."""
    rows, deltas = [], {}
    for p, weight, *when in whole["plain"]["flights"]:
        rows.append([p, 0.0 if joins else weight, *when])
        anchor = fresh.get(f"fragment.{p}.anchor")
        if anchor is None:
            continue
        name = f"flight.{p}.delta"
        deltas[name] = torch.zeros_like(anchor)
        if not joins:
            deltas[name] = _part(whole, {**fresh, name: anchor}, name, rail)
    return {"flights": rows, **deltas}


def _tokens(by_rank: list[list[int]], rank: int, n_ranks: int) -> list[int]:
    """Each rank's own; where a cloud has other ranks, its tokens spread over them."""
    if len(by_rank) == n_ranks:
        return by_rank[rank]
    totals = [sum(column) for column in zip(*by_rank, strict=True)]
    return [total // n_ranks + (rank < total % n_ranks) for total in totals]


def _padded(values: torch.Tensor, n_elems: int) -> torch.Tensor:
    out = torch.zeros(n_elems)
    out[: values.numel()] = values
    return out
