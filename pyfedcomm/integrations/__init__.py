"""pyfedcomm inside other people's training loops.

`CrossCloudOptimizer` (``optimizer``) for a loop of your own, ``ddp`` for the gradients of torch's
`DistributedDataParallel`, ``hf`` for a `transformers.Trainer`. Each needs only what it integrates:
nothing is imported here.
"""
