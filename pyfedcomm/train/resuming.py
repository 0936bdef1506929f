"""A run goes on from a checkpoint: bit for bit, or, with ``checkpoint.elastic``, with other clouds.

Where clouds or their ranks are others than those that wrote it,

- a cloud that was there keeps what was its own: parameters, optimizer, residuals, its place in the
  data if that is the same; ranks, rails and clouds divide anew what was divided among them;
- a cloud that joins gets a copy of another one's model, optimizer and common sync state over the
  network, takes over the common parameters, and starts with its own data and without residuals;
- a cloud that is gone takes its residuals with it, which are told.

The optimizer is copied because Adam's first steps without its second moments are as long as the
learning rate lets them be, and because `gradient` needs it equal everywhere.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from pyfedcomm import buckets, dtensor, sync
from pyfedcomm.errors import ConfigError
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.topology import Topology
from pyfedcomm.train import parallel, state
from pyfedcomm.train.agree import agree, agree_on
from pyfedcomm.train.checkpoint import Checkpoint, Resumed
from pyfedcomm.train.config import TrainConfig
from pyfedcomm.train.feed import Feed
from pyfedcomm.train.setup import CLOUDS, DATA, Ready, identity

_SUMS = (
    *("tokens", "loss_sum", "loss_tokens"),
    *("wan_bytes", "logged_wan_bytes", "control_bytes"),
)
"""What a tally has of one rank alone."""


def restore(
    config: TrainConfig,
    ready: Ready,
    hierarchy: Hierarchy,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rule: sync.SyncRule,
    feed: Feed,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Loads all but the model, which is there where the cloud has one. Collective over all ranks.

    Returns this rank's tally, and what changed in the clouds, for ``metrics.jsonl``. Raises
    ConfigError on every rank if any cannot go on from what it has. Warns, on the first rank of each
    cloud, of residuals that are lost.
    """
    resumed = ready.resumed
    assert resumed is not None
    restoring = _Restoring(config, ready, hierarchy, model, optimizer, rule, feed, resumed)
    if not resumed.changed:
        return restoring.unchanged(), None
    tally = restoring.changed()
    lost = _lost(resumed, hierarchy.topology)
    return tally, {
        "step": resumed.step,
        "before": resumed.saved,
        "joined": list(resumed.joined),
        "lost": lost,
        "data": "continued" if restoring.same_data else "from its beginning",
    }


def _lost(resumed: Resumed, topology: Topology) -> dict[str, dict[str, float]]:
    """Norms of the residuals that nobody carries on, by the cloud that had them."""
    # Where one cloud is left nothing is coded, and its own have no use either.
    gone = [name for name, _ in resumed.saved if topology.n_clouds == 1 or name in resumed.lost]
    lost = {name: resumed.residuals[name] for name in gone}
    if topology.local_rank == 0:
        for name, norms in lost.items():
            warnings.warn(
                f"the run goes on without the residuals of cloud {name}: of norm "
                f"{norms['sender']:.4g} what it had not sent yet, {norms['owner']:.4g} what was "
                "left of sums that it coded",
                stacklevel=2,
            )
    return lost


class _Restoring:
    """One rank's part."""

    def __init__(
        self,
        config: TrainConfig,
        ready: Ready,
        hierarchy: Hierarchy,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rule: sync.SyncRule,
        feed: Feed,
        resumed: Resumed,
    ) -> None:
        self._config, self._ready, self._hierarchy = config, ready, hierarchy
        self._model, self._optimizer, self._rule, self._feed = model, optimizer, rule, feed
        self._resumed, self._own = resumed, resumed.own
        self._world, self._topology = hierarchy.world, hierarchy.topology
        self._timeout = config.run.wait_timeout_s
        self.same_data = False
        """The cloud goes on where it was in its data."""

    # --- the same clouds -------------------------------------------------------------------------

    def unchanged(self) -> dict[str, Any]:
        """Everything as it was."""
        return agree(self._world, self._ready.who, self._unchanged, timeout=self._timeout)

    def _unchanged(self) -> dict[str, Any]:
        own, mine = self._own, self._topology.local_rank
        assert own is not None
        self._check(own.path, own.cloud_state["identity"], but=())
        saved = own.rank_states[mine]
        parallel.load_optimizer(self._optimizer, own.cloud_state["optimizer"])
        self._rule.load_state_dict(saved["sync"])
        self._feed.load_state_dict(saved["data"])
        state.set_random_state(saved["random"])
        tally: dict[str, Any] = saved["tally"]
        return tally

    def _check(self, where: object, saved: dict[str, Any], *, but: tuple[str, ...]) -> None:
        own = identity(self._config, self._topology, self._ready.data)
        for key, value in saved.items():
            if key not in but and own.get(key) != value:
                # All clouds hear of it, and nothing about the data leaves one, not even a hash.
                found = f"{key} = {value!r}, this run has {own.get(key)!r}"
                other = ", or give --elastic" if key == CLOUDS else ""
                raise ConfigError(
                    f"{where} was written with {'other data' if key == DATA else found}; resume "
                    f"with the configuration and data it was written with{other}"
                )

    # --- other clouds ----------------------------------------------------------------------------

    def changed(self) -> dict[str, Any]:
        """What each cloud has is put together, sent where it is missing, and divided anew."""
        who, joins = self._ready.who, self._own is None
        self._clouds = dict(zip(self._topology.names, self._topology.clouds, strict=True))
        package = agree(self._world, who, self._pack, timeout=self._timeout)
        package = self._hand_over(package)
        agree(self._world, who, lambda: self._check_package(package), timeout=self._timeout)
        self._complete_owners(package["sync"])
        tally = agree(self._world, who, lambda: self._unpack(package), timeout=self._timeout)
        if joins:
            self._rule.join()
        self._check_common()
        return tally

    def _pack(self) -> dict[str, Any]:
        """What this cloud has, as one that joins would need it; empty on ranks of those."""
        own = self._own
        if own is None:
            return {}
        states = [own.rank_states[rank] for rank in sorted(own.rank_states)]
        return {
            "identity": {k: v for k, v in own.cloud_state["identity"].items() if k != DATA},
            "optimizer": own.cloud_state["optimizer"],
            "sync": sync.assemble([s["sync"] for s in states]),
            "tally": states[0]["tally"],
        }

    def _hand_over(self, package: dict[str, Any]) -> dict[str, Any]:
        """From the first cloud that has it to one rank of each that joins, and on inside these."""
        joined = [self._clouds[name] for name in self._resumed.joined]
        if not joined:
            return package
        root = self._clouds[self._resumed.holders[0]][0]
        sent: dict[str, Any] = {}
        if root in self._clouds[self._topology.cloud_name]:
            here = self._topology.rank == root
            values = self._model.state_dict(keep_vars=True)
            model = dtensor.gathered(dict(values), keep=here)
        if self._topology.rank == root:
            sent = {**package, "sync": sync.for_joining(package["sync"]), "model": model}
        between = [root, *(ranks[0] for ranks in joined)]
        for groups in ([between], [list(ranks) for ranks in joined]):
            group = self._world.split(groups, timeout=self._timeout)
            if group is not None:
                with group:
                    sent = broadcast_tree(group, sent)
        if self._own is not None:
            return package
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            dtensor.set_whole(tensor, sent["model"][name])
        return sent

    def _check_package(self, package: dict[str, Any]) -> None:
        where = self._own.path if self._own is not None else "the checkpoint of the other clouds"
        self._check(where, package["identity"], but=(CLOUDS,))

    def _complete_owners(self, whole: sync.Whole) -> None:
        """What each cloud owned of a sum's residual, to all: disjoint parts, so sums are exact.

        One fp32 all-reduce of each bucket; nothing where no residuals are kept.
        """
        leads = self._own is not None and self._topology.local_rank == 0
        for name, n_elems in sorted(whole["owners"].items()):
            part = whole["tensors"][name] if leads else torch.zeros(n_elems)
            whole["tensors"][name] = self._world.all_reduce(part, timeout=self._timeout)

    def _unpack(self, package: dict[str, Any]) -> dict[str, Any]:
        own, mine = self._own, self._topology.local_rank
        parallel.load_optimizer(self._optimizer, package["optimizer"])
        self._rule.load_state_dict(
            sync.distribute(
                package["sync"],
                self._rule.state_dict(),
                rail=self._hierarchy.rail,
                rank=mine,
                n_ranks=self._topology.local_size,
                common=self._rule.COMMON,
                measured=self._rule.MEASURED,
                joins=own is None,
            )
        )
        if own is not None and mine in own.rank_states:
            state.set_random_state(own.rank_states[mine]["random"])
        else:
            # Other numbers than any rank has drawn since the run began.
            seed, n = self._config.run.seed, self._topology.world_size
            torch.manual_seed(seed + 1 + self._topology.rank + n * (self._resumed.step + 1))
        if own is not None and self._is_same_data(own):
            self.same_data = True
            self._feed.load_state_dict(self._position(own))
        return self._tally(package["tally"])

    def _is_same_data(self, own: Checkpoint) -> bool:
        """The same sequences are dealt to the same queues, all of which go on."""
        data = identity(self._config, self._topology, self._ready.data)[DATA]
        lengths = [
            saved["deal"]["lengths"]
            for saved in (self._feed.state_dict(), own.rank_states[0]["data"])
        ]
        return bool(
            own.cloud_state["identity"][DATA] == data
            and lengths[0] == lengths[1]
            and not (self._config.data.redeal_every and self._resumed.joined)
        )

    def _position(self, own: Checkpoint) -> dict[str, Any]:
        """Ranks take turns: what all of them took, divided among those that there are now.

        Rounded up: nothing is seen twice, and fewer sequences than there are ranks are skipped.
        """
        taken = sum(saved["data"]["taken"] for saved in own.rank_states.values())
        return {**own.rank_states[0]["data"], "taken": -(-taken // self._topology.local_size)}

    def _tally(self, first: dict[str, Any]) -> dict[str, Any]:
        """``first``: of the first rank of this cloud then, or of the cloud that is copied.

        Sums of ranks that are gone are counted on by their cloud's first; those of a cloud that is
        gone are not.
        """
        own, mine = self._own, self._topology.local_rank
        if own is not None and len(own.rank_states) == self._topology.local_size:
            tally: dict[str, Any] = own.rank_states[mine]["tally"]
            return tally
        tallies = [] if own is None or mine else [s["tally"] for s in own.rank_states.values()]
        return {**first, **{key: sum(t[key] for t in tallies) for key in _SUMS}}

    def _check_common(self) -> None:
        """All clouds must have the same common parameters and outer state on each rail."""
        common = {
            name: tensor
            for name, tensor in self._rule.state_dict().items()
            if name.startswith("fragment.")
        }
        key = f"the common parameters of rail {self._hierarchy.rail}"
        agree_on(
            self._world,
            self._ready.who,
            {key: buckets.fingerprint(common.items())} if common else {},
            remedy="resume all clouds from checkpoints of one run",
        )


def broadcast_tree(group: Group, tree: Any) -> Any:
    """Member 0's nested dicts, lists and tensors, on every member of ``group``. Collective.

    Returns tensors on the CPU. What is sent is JSON and the bytes of the tensors, one by one.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain = state.flatten(tree, tensors) if group.rank == 0 else None
    shapes = {n: [list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in tensors.items()}
    plain, shapes = group.all_gather_object([plain, shapes])[0]
    for name, (shape, dtype) in shapes.items():
        if group.rank == 0:
            tensor = tensors[name].detach().cpu().contiguous()
        else:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        if tensor.numel():
            group.broadcast(tensor.reshape(-1))
        tensors[name] = tensor
    return state.unflatten(plain, tensors)
