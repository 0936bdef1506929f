"""SparseLoCo: local training that sends a few values of each delta and carries the rest along.

    e_k <- beta e_k + (anchor - w_k);  s_k = Q(TopK(e_k));  e_k <- e_k - s_k
    anchor <- anchor - lr mean_k s_k

Q, TopK and beta are the codec, by default ``chunk_topk(4096, 64, int2, beta=0.95)``: 64 of every
4096 values with 2 bits each. The error e_k is the sender's residual, and takes the place of the
outer momentum. With ``algorithm = "all_gather"``, the default, every cloud sums up what the clouds
sent; the others code that sum once more, with a residual of its own.

Source: Sarfi et al., "Communication Efficient LLM Pre-training with SparseLoCo", arXiv 2508.15706,
algorithm 1. Its chunks end where a parameter ends; ours run on into the next one.
"""

from __future__ import annotations

from pyfedcomm.buckets import NamedParameters
from pyfedcomm.errors import ConfigError
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync.config import SyncConfig
from pyfedcomm.sync.local import LocalRule
from pyfedcomm.sync.outer import Sgd


class Sparse(LocalRule):
    """One round in ``local_steps`` steps. State: 4 bytes a parameter, and the residuals."""

    def __init__(
        self, parameters: NamedParameters, hierarchy: Hierarchy, config: SyncConfig
    ) -> None:
        super().__init__(parameters, hierarchy, config, Sgd(config.outer_lr))

    @classmethod
    def check(cls, config: SyncConfig) -> None:
        """Without error feedback what is not sent would be lost."""
        super().check(config)
        if not config.error_feedback:
            raise ConfigError(
                f"sync.error_feedback is False, but {config.rule} carries what it does not send to "
                "the next round; leave that key out, or choose sync.rule = 'diloco'"
            )
