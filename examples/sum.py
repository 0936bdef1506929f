"""The low-level library in a few lines; start it with `mpirun -n 2 python examples/sum.py`."""

import numpy as np

from pyfedcomm import Group

with Group.world() as world:  # all ranks that mpirun started
    ones = np.full(4, world.rank + 1, np.float32)
    world.all_reduce(ones)  # the sum, in place
    values = np.linspace(-1, 1, 1 << 20, dtype=np.float32) * (world.rank + 1)
    world.all_reduce(values, op="mean", weight=world.rank + 1, codec="int8")
    if world.rank == 0:
        print("sum:", ones, " weighted mean, int8:", values[:3])
        print(f"sent {world.stats().frame_bytes} bytes of {ones.nbytes + values.nbytes} in fp32")
