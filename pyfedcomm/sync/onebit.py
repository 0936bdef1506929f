"""One bit a value, many local steps apart: for links so slow, or so dear, that bytes come first.

    e_k <- e_k + (anchor - w_k);   s_k = C(e_k);   e_k <- e_k - s_k      each cloud
    e <- e + mean_k s_k;           s = C(e);       e <- e - s            each owner, of its part
    anchor <- anchor - lr s

C is the codec, by default ``sign``: the sign of each value and one scale for 1024 of them; an owner
adds its own cloud's part as it is. What C leaves out is carried on both ways, which takes the place
of the outer momentum. ``lr`` is above 1, since clouds that walk apart for long agree on less than
each has gone, and falls towards the end of a run, where the last rounds' errors would stay in the
model. With defaults about 4,000 times fewer bytes than data-parallel training in fp32: for long
runs ("Quality against bytes" in ``bench/README.md``).

Sources: error feedback for signs, Karimireddy et al., arXiv 1901.09847, algorithm 1; both ways,
Tang et al., "DoubleSqueeze", arXiv 1905.05957, algorithm 1; of local steps' deltas, as in `sparse`.
"""

from __future__ import annotations

from pyfedcomm.sync.sparse import Sparse


class OneBit(Sparse):
    """`sparse` with other defaults: the same steps, the same state and residuals at owners."""
