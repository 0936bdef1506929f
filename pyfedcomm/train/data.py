"""Loads the data of a run, and makes sure that all ranks agree on it.

One rank of each host tokenizes for its cloud, into files that the others map (see
``data.tokenfile``). Where documents are dealt to clouds, all clouds must see the same ones, and
compare their digests. A private cloud (``data.partition = "own"``) compares only inside itself, and
of an error others are told that there is one: nothing about its data leaves it but counts of
tokens.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyfedcomm.data import corpus, partition, sources, stream, tokenfile, tokenizers
from pyfedcomm.data.corpus import Target
from pyfedcomm.data.deal import Deal
from pyfedcomm.data.tokenfile import Corpus
from pyfedcomm.data.tokenizers import Tokenizer
from pyfedcomm.errors import ConfigError, Error
from pyfedcomm.group import Group
from pyfedcomm.topology import Topology
from pyfedcomm.train.agree import agree, agree_on, is_everywhere
from pyfedcomm.train.config import TrainConfig
from pyfedcomm.train.texts import DataConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Data:
    """This rank's data."""

    tokenizer: Tokenizer
    sequences: stream.Sequences
    deal: Deal
    """Of all clouds where sequences change clouds, else of this cloud alone."""
    queue: int
    """This cloud's index in the deal."""
    heldout: NDArray[np.int64]
    """This rank's part of its cloud's held-out sequences, shape ``(n, seq_len + 1)``."""
    fingerprint: str
    summary: dict[str, Any]


def load(config: TrainConfig, world: Group, topology: Topology, who: str) -> Data:
    """Collective over all ranks. Raises ConfigError on every rank, naming those at fault."""
    mine = config.data.of(topology.cloud_name, topology.names)
    wait = config.run.wait_timeout_s
    tokenizer = agree(world, who, lambda: tokenizers.load(mine.tokenizer), timeout=wait)
    vocabulary = {"the vocabulary": [tokenizer.vocab_size, tokenizer.fingerprint]}
    agree_on(world, who, vocabulary, remedy="give all clouds the same tokenizer", timeout=wait)
    home = world.split(topology.clouds, timeout=wait)
    assert home is not None  # every rank is in a cloud
    with home:
        circle = _Circle(world, home, topology, who, wait, private=mine.partition == "own")
        files = _Files(config, mine, topology, tokenizer)
        found = circle.agree(files.targets)
        circle.agree(lambda: files.make(found))
        opened = circle.agree(lambda: {cloud: _open(target) for cloud, target in found.items()})
        own = opened[topology.cloud]
        circle.agree_on({f"the data of cloud {topology.cloud_name}": own.fingerprint})
        if mine.partition != "own":
            agree_on(
                world,
                who,
                {
                    "the documents and who gets which": own.deal,
                    "the tokens of all clouds": _fingerprints(opened),
                    # One cursor serves all ranks of a cloud.
                    **_step_of(config, topology),
                },
                remedy="give all clouds the same files, or use data.partition = 'own'",
                timeout=wait,
            )
        return circle.agree(lambda: _serve(config, topology, tokenizer, opened))


class _Files:
    """The token files of this rank's host."""

    def __init__(
        self, config: TrainConfig, mine: DataConfig, topology: Topology, tokenizer: Tokenizer
    ) -> None:
        self._config, self._mine, self._topology = config, mine, topology
        self._tokenizer = tokenizer
        # The standard library is everybody's; without a word about it, modules are divided.
        self._name = mine.partition
        if mine.partition == "own" and not mine.path and mine.source in ("auto", "stdlib"):
            self._name = "source"

    def targets(self) -> dict[int, Target]:
        """The files that this rank needs, by cloud: all clouds' where sequences change clouds."""
        mine, topology = self._mine, self._topology
        directory = Path(mine.cache or Path(self._config.run.out) / "tokens")
        made_of: list[Any] = [
            sources.signature(mine.source, mine.path, mine.text_field),
            self._tokenizer.fingerprint,
            mine.heldout,
            self._name,
        ]
        if self._name != "own":
            made_of += [self._config.run.seed, mine.shares_of(topology.names)]
        needed = range(topology.n_clouds) if mine.redeal_every else [topology.cloud]
        targets = {}
        for cloud in needed:
            part = None if self._name == "own" else cloud
            key = hashlib.sha256(json.dumps([*made_of, part]).encode()).hexdigest()
            name = topology.names[cloud]
            file = directory / f"{name}-{key[:16]}.tokens"
            targets[cloud] = Target(file, key, f"cloud {name}")
        return targets

    def make(self, targets: dict[int, Target]) -> None:
        """Makes those that are not there or not as they were made; on one rank of each host."""
        topology, mine = self._topology, self._mine
        host = topology.hosts[topology.rank]
        mates = [r for r in topology.clouds[topology.cloud] if topology.hosts[r] == host]
        if topology.rank != mates[0]:
            return
        missing = {}
        for cloud, target in targets.items():
            found = tokenfile.open_corpus(target.file, target.key)
            if found is None or not found.is_intact():
                missing[cloud] = target
        if not missing:
            return
        read = functools.partial(
            sources.documents, mine.source, mine.path, text_field=mine.text_field
        )
        clouds, deal = None, ""
        rule = partition.make(self._name)
        if rule is not None:
            entries = list(corpus.entries(read()))
            shares = mine.shares_of(topology.names)
            clouds = partition.assign(rule, entries, shares, self._config.run.seed, topology.names)
            deal = partition.digest(entries, clouds)
        corpus.build(read(), self._tokenizer, mine.heldout, missing, clouds=clouds, deal=deal)


class _Circle:
    """Who is told what: everybody everything, or other clouds only that something is wrong."""

    def __init__(
        self,
        world: Group,
        home: Group,
        topology: Topology,
        who: str,
        timeout: float,
        *,
        private: bool,
    ) -> None:
        self._world, self._home, self._who, self._timeout = world, home, who, timeout
        self._private = private
        self._complaint = (
            f"the data of cloud {topology.cloud_name} cannot be used; its own ranks say why, "
            "because with data.partition = 'own' nothing about it leaves the cloud"
        )

    def agree(self, fn: Callable[[], T]) -> T:
        """`agree` over all ranks."""
        if not self._private:
            return agree(self._world, self._who, fn, timeout=self._timeout)
        return self._inside(lambda: agree(self._home, self._who, fn, timeout=self._timeout))

    def agree_on(self, values: dict[str, Any]) -> None:
        """`agree_on`; what a private cloud's ranks have is compared among them only."""
        remedy = "give all ranks of a cloud the same files"

        def compare(group: Group) -> None:
            agree_on(group, self._who, values, remedy=remedy, timeout=self._timeout)

        if self._private:
            self._inside(lambda: compare(self._home))
        else:
            compare(self._world)

    def _inside(self, collective: Callable[[], T]) -> T:
        """Runs what raises on all ranks of this cloud, if at all; then the others raise, too."""
        failure: Error | None = None
        try:
            result = collective()
        except Error as error:
            if not is_everywhere(error):
                raise
            failure = error
        try:
            agree(self._world, self._who, lambda: self._complain(failure), timeout=self._timeout)
        except ConfigError:
            if failure is not None:
                raise failure from None
            raise
        return result

    def _complain(self, failure: Error | None) -> None:
        if failure is not None:
            raise ConfigError(self._complaint)


def _open(target: Target) -> Corpus:
    found = tokenfile.open_corpus(target.file, target.key)
    if found is None:
        raise ConfigError(
            f"{target.file} was made by another rank of this host, and cannot be opened here: "
            "data.cache (or run.out) must be a directory that the ranks of a host share"
        )
    return found


def _fingerprints(opened: dict[int, Corpus]) -> list[str]:
    """Of all clouds' files; empty where this rank has only its own cloud's."""
    return [each.fingerprint for each in opened.values()] if len(opened) > 1 else []


def _step_of(config: TrainConfig, topology: Topology) -> dict[str, Any]:
    if not config.data.redeal_every:
        return {}
    n = config.train.micro_batch * config.train.accumulation
    return {f"the sequences of a step of a rank of cloud {topology.cloud_name}": n}


def _serve(
    config: TrainConfig, topology: Topology, tokenizer: Tokenizer, opened: dict[int, Corpus]
) -> Data:
    seq_len, own = config.data.seq_len, opened[topology.cloud]
    sequences = stream.Sequences([each.train for each in opened.values()], seq_len, config.run.seed)
    stream.check_lengths(
        sequences.lengths,
        [topology.names[cloud] for cloud in opened],
        [len(topology.clouds[cloud]) for cloud in opened],
    )
    heldout = stream.heldout_sequences(
        own.heldout,
        seq_len,
        config.eval.sequences,
        shard=topology.local_rank,
        n_shards=topology.local_size,
    )
    summary = {
        "documents": own.n_documents,
        "bytes": own.n_bytes,
        "train_tokens": len(own.train),
        "heldout_tokens": len(own.heldout),
    }
    queue = list(opened).index(topology.cloud)
    deal = Deal(sequences.lengths)
    return Data(tokenizer, sequences, deal, queue, heldout, own.fingerprint, summary)
