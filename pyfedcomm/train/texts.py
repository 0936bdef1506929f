"""``[data]``: which texts a cloud trains on, and how they are divided among the clouds.

What the rules of division are is in `pyfedcomm.data.partition`, how files are read in
`pyfedcomm.data.sources`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pyfedcomm.data import partition
from pyfedcomm.errors import ConfigError
from pyfedcomm.train.inter import local


@dataclass(frozen=True)
class DataConfig:
    """``[data]``: what this cloud trains on; ``[data.clouds.NAME]`` overrides it for one cloud."""

    source: str = local("auto")
    """``stdlib``, ``text``, ``jsonl``, ``parquet``, or ``auto``: by the file names, and the
    standard library where no path is given."""
    path: tuple[str, ...] = local(())
    """Files, directories or globs; ``{cloud}`` stands for the cloud's name."""
    text_field: str = local("text")
    """The JSONL field, or the Parquet column, that holds the text."""
    heldout: float = local(0.05)
    """Share of the documents kept out of training, chosen by hash."""
    tokenizer: str = local("bytes")
    """``bytes``, or a directory that ``AutoTokenizer`` opens."""
    seq_len: int = 256
    """Tokens a sequence predicts."""
    partition: str = "own"
    """``own``: the files are this cloud's, and nothing about them but counts of tokens leaves it
    (of the standard library each cloud has some modules). Or all clouds name the same files, and
    each document goes to one cloud: ``iid``, ``source`` (packages, directories or files as a whole)
    or ``dirichlet(alpha)``; see `data.partition`."""
    shares: dict[str, Any] = field(default_factory=dict)
    """Cloud -> its share of the documents, in any unit, for all but ``own``; 1 where not given."""
    redeal_every: int = 0
    """Steps after which what is left of an epoch is dealt anew, in proportion to what each cloud
    has trained on since the deal before; 0: never. Not with ``own``."""
    shard: int = 0
    """Sequences that change clouds together; 0: a quarter of what the slowest cloud trains on
    between two deals."""
    cache: str = local("")
    """Directory of tokenized files, which the ranks of a host share; empty: ``tokens`` in
    ``run.out``."""
    prefetch: int = local(2)
    """Batches that are prepared ahead."""
    clouds: dict[str, Any] = field(default_factory=dict, metadata={"local": True})

    def of(self, cloud: str, names: Sequence[str]) -> DataConfig:
        """The data of one cloud; ``names`` lists the run's clouds."""
        for name in self.clouds:
            if name not in names:
                raise ConfigError(
                    f"[data.clouds.{name}]: there is no cloud {name!r}; "
                    f"the clouds of this run are {', '.join(names)}"
                )
        chosen = replace(self, clouds={}, **self.clouds.get(cloud, {}))
        return replace(chosen, path=tuple(p.replace("{cloud}", cloud) for p in chosen.path))

    def shares_of(self, names: Sequence[str]) -> list[float]:
        """The share of each cloud. Raises ConfigError for a cloud that there is not."""
        for name in self.shares:
            if name not in names:
                raise ConfigError(
                    f"data.shares.{name}: there is no cloud {name!r}; "
                    f"the clouds of this run are {', '.join(names)}"
                )
        return [float(self.shares.get(name, 1.0)) for name in names]

    def check(self) -> None:
        """Raises ConfigError for what cannot be."""
        partition.make(self.partition)
        for key, least in (("seq_len", 1), ("prefetch", 1), ("shard", 0), ("redeal_every", 0)):
            value = getattr(self, key)
            if value < least:
                raise ConfigError(f"data.{key} is {value}; it must be at least {least}")
        own = [cloud["heldout"] for cloud in self.clouds.values() if "heldout" in cloud]
        for heldout in (self.heldout, *own):
            if not 0 < heldout < 1:
                raise ConfigError(f"data.heldout is {heldout}; it must be between 0 and 1")
        for name, share in self.shares.items():
            good = isinstance(share, (int, float)) and not isinstance(share, bool)
            if not good or not 0 < share < float("inf"):
                raise ConfigError(f"data.shares.{name} is {share!r}; it must be more than 0")
        for key in ("shares", "redeal_every"):
            if self.partition == "own" and getattr(self, key):
                raise ConfigError(
                    f"data.{key} is set, but data.partition is 'own': private data stays where it "
                    "is; name the same files in all clouds and use 'iid' or 'source'"
                )
