"""What lies between the members; start it with `mpirun -n 3 python examples/links.py`."""

from pyfedcomm import Group

with Group.world(transport="tcp") as world:
    links = world.measure()  # seconds; every member ends with the same table
    if world.rank == 0:
        print(links)
        print(world.explain(1_000_000, "fp32"))  # what algorithm="auto" takes, and why
