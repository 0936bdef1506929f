"""Training one model in several clouds: configuration, loop, checkpoints, metrics.

``loop.train`` is the whole run as one function; read it first. ``setup`` builds what it works on
and makes sure that all ranks agree, ``agree`` is how one rank's error becomes everybody's.
"""
