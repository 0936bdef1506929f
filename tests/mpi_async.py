"""The rule `async` with several ranks a cloud: a check of `mpi_hierarchy`.

In which order pushes arrive is nobody's choice here. So the buffer is too large to be full before
the end, where a sum that does not round is the same in any order.
"""

from __future__ import annotations

import numpy as np
import torch
from reference_async import AsyncRun
from reference_sync import Vector, weighted_mean
from small_model import crafted

from pyfedcomm import sync
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync import SyncConfig

N = 10_001
STEPS = 5


def check_async(h: Hierarchy, tokens: list[int]) -> None:
    """Against the plain algorithm; tokens: of a step of each rank."""
    topology = h.topology
    config = SyncConfig(rule="async", local_steps=2, codec="fp32", outer_lr=0.5, buffer=1000)

    def inside(cloud: int, step: int) -> Vector:
        ranks = topology.clouds[cloud]
        gradients = [crafted(1000 * step + r, N) for r in ranks]
        return weighted_mean(gradients, [tokens[r] for r in ranks])

    truth = AsyncRun(
        crafted(0, N),
        [sum(tokens[r] for r in ranks) for ranks in topology.clouds],
        inside,
        0.25,
        local_steps=2,
        overlap=1,
        buffer=1000,
        lr=0.5,
    )
    for cloud in range(topology.n_clouds):
        for _ in range(STEPS + cloud):
            truth.step(cloud)
    p = torch.nn.Parameter(torch.from_numpy(crafted(0, N)))
    rule = sync.make(config, [("p", p)], h)
    optimizer = torch.optim.SGD([p], lr=0.25)
    for step in range(STEPS + topology.cloud):
        p.grad = torch.from_numpy(crafted(1000 * step + h.world.rank, N))
        rule.after_backward(tokens[h.world.rank])
        optimizer.step()
        rule.after_step(tokens[h.world.rank])
        if step == 2:  # the reply to the push after two steps has been applied
            np.testing.assert_array_equal(
                p.detach().numpy(),
                crafted(0, N) - np.float32(0.25) * inside(topology.cloud, 2),
            )
    rule.finish()
    truth.finish()
    np.testing.assert_array_equal(p.detach().numpy(), truth.model)
    assert ("start" in rule.state_dict()) == (topology.local_rank == 0)
