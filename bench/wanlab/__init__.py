"""Several clouds on one Linux machine, with wide-area links between them.

Each cloud is a network namespace; each ordered pair of clouds has a rate, a delay, jitter, random
loss and a queue, made by the kernel's ``netem`` or, where there is none, by ``fedcomm-delay-line``
(``line/``, C++). Programs and MPI ranks run there as on hosts far from each other::

    python -m bench.wanlab run --clouds 2 --rate 1000 --rtt 50 -- pyfedcomm train run.toml

    with Lab(clouds=2, links=Links(rate_mbit=1000, rtt_ms=50)) as lab:
        lab.run(lab.mpirun(["fedcomm-bench-allreduce"]))

It needs root and the program ``ip``. Scripts of ``bench/`` and tests have ``bench/`` on their path
and write ``from wanlab import Lab, Links``. It is no model of the internet: no cross traffic, no
route changes, no reordering. What the columns mean is in ``bench/README.md``.
"""

from .backend import LabError, Unavailable
from .lab import Lab, missing
from .links import Link, Links, Site

__all__ = ["Lab", "LabError", "Link", "Links", "Site", "Unavailable", "missing"]
