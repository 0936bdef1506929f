"""DDP in two clouds of two ranks each; `mpirun -n 4 python examples/ddp_hook.py`.

Every step's gradients are averaged over all ranks: inside a cloud by torch.distributed, between
clouds as int4 with error feedback, while backward goes on.
"""

import torch
from torch.nn.parallel import DistributedDataParallel

from pyfedcomm import Group, Topology
from pyfedcomm.buckets import fingerprint
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.integrations import ddp

with Group.world() as world:
    topology = Topology.discover(world, clouds="2")
    with Hierarchy(world, topology) as hierarchy:  # opens torch.distributed inside each cloud
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
        model = DistributedDataParallel(net)
        exchange = ddp.register(model, hierarchy, codec="int4", error_feedback=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

        torch.manual_seed(1 + world.rank)
        x = torch.randn(512, 8) + topology.cloud
        y = x.square().mean(1, keepdim=True).sin()
        for step in range(100):
            rows = torch.randint(len(x), (32,))
            exchange.n_tokens = len(rows)
            loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 25 == 0 and world.rank == 0:
                print(f"step {step}: loss {loss.item():.3f}")
        sent = hierarchy.wan_stats().frame_bytes
        exchange.close()

    hashes = world.all_gather_object(fingerprint(net.named_parameters()))
    if world.rank == 0:
        print(f"{sent} bytes sent; equal parameters on all ranks: {len(set(hashes)) == 1}")
