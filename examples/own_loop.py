"""A training loop of your own in two clouds; `mpirun -n 2 python examples/own_loop.py`."""

import torch

from pyfedcomm import CrossCloudOptimizer, Group
from pyfedcomm.buckets import fingerprint
from pyfedcomm.sync import SyncConfig

with Group.world() as world:  # each rank is a cloud; for clouds of several ranks give a Hierarchy
    torch.manual_seed(0)  # the same initial model in every cloud ...
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    torch.manual_seed(1 + world.rank)  # ... and other data
    x = torch.randn(512, 8) + world.rank
    y = x.square().mean(1, keepdim=True).sin()

    inner = torch.optim.AdamW(model.named_parameters(), lr=3e-3)
    how = SyncConfig(rule="fedavg", local_steps=10, codec="int8")
    with CrossCloudOptimizer(inner, world, sync=how) as optimizer:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
        for step in range(200):
            rows = torch.randint(len(x), (32,))
            loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step(n_tokens=len(rows))
            optimizer.zero_grad()
            schedule.step()
            if step % 50 == 0 and world.rank == 0:
                print(f"step {step}: loss {loss.item():.3f}")
        sent = optimizer.hierarchy.wan_stats().frame_bytes

    hashes = world.all_gather_object(fingerprint(model.named_parameters()))
    if world.rank == 0:
        print(f"{sent} bytes sent; equal parameters in all clouds: {len(set(hashes)) == 1}")
